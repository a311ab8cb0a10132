"""The comparison of runs, with workspaces made up here."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from nerf.images import write_png

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare_runs.py"
VIEWS = [f"photo{index}.jpg" for index in range(5)]


def make_workspace(folder, psnr=25.0, views=VIEWS, history=True, results=True, size=(40, 30), **options):
    folder.mkdir(parents=True)
    saved = {"path": "data/demo", "data_format": "colmap", "downscale": 1, "train_split": "train", "hsm": False, **options}
    (folder / "options.json").write_text(json.dumps(saved))
    if history:
        lines = [
            {"step": 100 * k, "training_time": 10.0 * k, "psnr": psnr - 4 / k, "ssim": 0.7, "ms_per_step": 90.0 + 5 * k,
             "peak_memory_mib": 1000 + k, "samples_per_step": 16384, "hard_fraction": None}
            for k in range(1, 4)
        ]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        images = [{"name": name, "file": Path(name).stem, "psnr": psnr, "ssim": 0.8, "seconds": 0.1, "non_finite": 0} for name in views]
        means = {"psnr": psnr, "ssim": 0.8, "seconds": 0.1}
        result = {"protocol": "predictions rounded", "count": len(views), "non_finite": 0, **means, "images": images}
        (folder / "results").mkdir()
        (folder / "results" / "metrics.json").write_text(json.dumps(result))
        for name in views:
            for kind, shade in (("photo", 0.2), ("rgb", 0.4), ("error", 0.9)):
                write_png(folder / "results" / f"{Path(name).stem}_{kind}.png", np.full((size[1], size[0], 3), shade, np.float32))
    return folder


def compare(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_table_pictures_and_plot(tmp_path):
    runs = make_workspace(tmp_path / "trial" / "baseline", 24.125), make_workspace(tmp_path / "trial" / "hsm", 25.5, hsm=True)
    done = compare(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["run", "PSNR", "[dB]", "SSIM", "training", "[s]", "steps", "ms/step", "memory", "[MiB]"]
    assert lines[1].split() == ["baseline", "24.12", "0.8000", "30.0", "300", "100.00", "1,003"]
    assert lines[2].split() == ["hsm", "25.50", "0.8000", "30.0", "300", "100.00", "1,003"]
    assert "PSNR and SSIM: predictions rounded." in lines
    assert (tmp_path / "out" / "comparison.txt").read_text().splitlines()[1] == lines[1]
    pictures, plot = (cv2.imread(str(tmp_path / "out" / name)) for name in ("pictures.png", "psnr.png"))
    assert pictures.shape[0] > 3 * 30 and pictures.shape[1] >= 5 * 40
    shades = {int(value) for value, count in zip(*np.unique(pictures[..., 0], return_counts=True), strict=True) if count > 500}
    assert {51, 102, 230} <= shades  # the photo, the renders and the errors are on it
    assert plot.std() > 5


def test_chosen_views_and_three_runs(tmp_path):
    runs = [make_workspace(tmp_path / name) for name in ("a", "b", "c")]
    done = compare(*runs, "--out", tmp_path / "out", "--view", VIEWS[4])
    assert done.returncode == 0, done.stderr
    wrong = compare(*runs, "--out", tmp_path / "out", "--view", "nowhere.jpg")
    assert wrong.returncode == 1 and "No view nowhere.jpg" in wrong.stderr and VIEWS[0] in wrong.stderr


def test_runs_of_different_size_and_views_are_shown_with_a_remark(tmp_path):
    runs = make_workspace(tmp_path / "a", downscale=1), make_workspace(tmp_path / "b", size=(20, 15), views=VIEWS[1:3], downscale=2)
    done = compare(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "differ in downscale (1, 2)" in done.stdout
    assert (tmp_path / "out" / "pictures.png").is_file()


def test_runs_without_results_or_history(tmp_path):
    unfinished = make_workspace(tmp_path / "unfinished", results=False)
    with open(unfinished / "history.jsonl", "a") as history:
        history.write('{"step": 400, "psn')  # a killed run
    empty = make_workspace(tmp_path / "empty", results=False, history=False)
    done = compare(unfinished, empty, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == ["unfinished", "23.67"]
    assert lines[2].split() == ["empty"] + ["-"] * 6
    assert "unfinished has no results/metrics.json" in done.stdout and "No pictures" in done.stdout
    assert (tmp_path / "out" / "psnr.png").is_file()


def test_a_run_whose_renders_are_not_finite(tmp_path):
    runs = make_workspace(tmp_path / "a"), make_workspace(tmp_path / "b")
    metrics = json.loads((runs[1] / "results" / "metrics.json").read_text())
    metrics.update(psnr=None, ssim=None, non_finite=5)
    for image in metrics["images"]:
        image.update(psnr=None, ssim=None, non_finite=3)
    (runs[1] / "results" / "metrics.json").write_text(json.dumps(metrics))
    done = compare(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].split()[:3] == ["b", "-", "-"] and "5 of 5 renders are not finite" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a, b: ([a], None), "name two or more"),
        (lambda a, b: ([a, a], None), "given twice"),
        (lambda a, b: ([a, b.parent / "nowhere"], None), "No such workspace"),
        (lambda a, b: ([a, b], (b / "options.json").unlink()), "holds no options.json"),
        (lambda a, b: ([a, b], (b / "options.json").write_text("{")), "Cannot read"),
        (lambda a, b: ([a, b], (b / "results" / "metrics.json").write_text("[]")), "not an object"),
        (lambda a, b: ([a, b], (b / "results" / "photo2_rgb.png").write_text("no picture")), "Cannot read the picture"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, spoil, words):
    workspaces, _ = spoil(make_workspace(tmp_path / "a"), make_workspace(tmp_path / "b"))
    done = compare(*workspaces, "--out", tmp_path / "out")
    assert done.returncode == 1 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
