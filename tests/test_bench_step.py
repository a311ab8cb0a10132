"""The benchmarks of a step and of a picture run and say what they measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["-O", "--device", "cpu", "--grid_size", "32", "--log2_table_size", "10", "--max_steps", "64"]


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_bench_step(demo_scene, tmp_path):
    out = tmp_path / "step.json"
    done = run("bench_step.py", demo_scene, "--sizes", 11, "--warm", 4, "--turns", 1, "--steps", 2, "--out", out, "--", *SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["baseline", "hsm"]
    assert all(row["ms"] > 0 and row["samples"] == 2**11 for row in rows) and "hsm over baseline at 2048" in done.stdout


def test_bench_render(demo_scene, tmp_path):
    out = tmp_path / "render.json"
    done = run("bench_render.py", demo_scene, "--steps", 20, "--views", 1, "--rounds", 1, "--out", out, "--", *SMALL, "--num_points", 2048)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["steps"] == 20 and report["frames_per_second"] == pytest.approx(1000 / report["ms"]) and report["ms_to_host"] > 0
