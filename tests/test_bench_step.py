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


@pytest.mark.parametrize("command", [["bench_step.py"], ["bench_render.py"], ["bench_kernels.py", "--copy_mib", 1, "--scene"]], ids=lambda command: command[0])
def test_what_is_no_scene_is_one_sentence(command, tmp_path):
    done = run(*command, tmp_path / "nowhere", "--", *SMALL)
    assert done.returncode == 1 and done.stderr.startswith(f"{command[0]}: {tmp_path / 'nowhere'}: no such folder") and done.stderr.count("\n") == 1


def test_a_bench_that_cannot_write_says_so(demo_scene, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ["--steps", 1, "--views", 1, "--rounds", 1, "--out", tmp_path / "file" / "render.json", "--", *SMALL, "--num_points", 2048]
    done = run("bench_render.py", demo_scene, *flags)
    assert done.returncode == 1 and done.stderr.startswith("bench_render.py: Cannot write ") and done.stderr.count("\n") == 1


def test_bench_render(demo_scene, tmp_path):
    out = tmp_path / "render.json"
    done = run("bench_render.py", demo_scene, "--steps", 20, "--views", 1, "--rounds", 1, "--out", out, "--", *SMALL, "--num_points", 2048)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["steps"] == 20 and report["frames_per_second"] == pytest.approx(1000 / report["ms"]) and report["ms_to_host"] > 0
