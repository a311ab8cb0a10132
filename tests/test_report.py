"""The report of runs: tables, JSON, page, figures and film, with workspaces made up here; and the page in a real browser."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import pytest

from conftest import ROOT
from nerf.images import write_png
from test_viewer_browser import CHROMIUM, CHROMIUM_FLAGS

SCRIPT = ROOT / "scripts" / "report.py"
sys.path.insert(0, str(SCRIPT.parent))
from run_report.runs import Run, SceneRuns
from run_report.tables import against, claims_table, scenes_table

VIEWS = [f"photo{index}.jpg" for index in range(5)]


def make_workspace(folder, psnr=25.0, views=VIEWS, history=True, results=True, size=(40, 30), conditions=None, **options):
    folder.mkdir(parents=True)
    saved = {"path": "data/demo", "data_format": "colmap", "downscale": 1, "train_split": "train", "hsm": False, **options}
    (folder / "options.json").write_text(json.dumps(saved))
    if history:
        lines = [
            {"step": 100 * k, "training_time": 10.0 * k, "psnr": psnr - 4 / k, "ssim": 0.7, "lpips": None, "ms_per_step": 90.0 + 5 * k,
             "peak_memory_mib": 1000 + k, "memory_before_mib": 200.0, "samples_per_step": 16384, "hard_fraction": None, "tau": 5.0, "device": "a GPU"}
            for k in range(1, 4)
        ]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        images = [{"name": name, "file": Path(name).stem, "psnr": psnr, "ssim": 0.8, "seconds": 0.1, "non_finite": 0} for name in views]
        means = {"psnr": psnr, "ssim": 0.8, "seconds": 0.1}
        result = {**(conditions or {}), "protocol": "predictions rounded", "count": len(views), "non_finite": 0, **means, "images": images}
        (folder / "results").mkdir()
        (folder / "results" / "metrics.json").write_text(json.dumps(result))
        for name in views:
            for kind, shade in (("photo", 0.2), ("rgb", 0.4), ("error", 0.9)):
                write_png(folder / "results" / f"{Path(name).stem}_{kind}.png", np.full((size[1], size[0], 3), shade, np.float32))
    return folder


def add_validations(folder, shades=(0.1, 0.6)):
    """Pictures of the first photo at the first two validations: squares that become brighter."""
    for k, shade in enumerate(shades, 1):
        inside = folder / "validation" / f"step_{100 * k:08d}"
        inside.mkdir(parents=True)
        (inside / "metrics.json").write_text(json.dumps({"images": [{"name": VIEWS[0], "file": "photo0", "psnr": 20.0 + k}]}))
        for kind, grey in (("rgb", shade), ("photo", 0.2)):
            write_png(inside / f"photo0_{kind}.png", np.full((30, 40, 3), grey, np.float32))
    return folder


def report(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_tables_page_and_files(tmp_path):
    runs = make_workspace(tmp_path / "trial" / "baseline", 24.125), make_workspace(tmp_path / "trial" / "hsm", 25.5, hsm=True)
    done = report(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "demo"
    titles = "run PSNR [dB] SSIM training [s] steps ms/step memory [MiB] training's tau"
    assert " ".join(lines[2].split()) == titles
    assert lines[3].split() == ["baseline", "24.12", "0.8000", "30.0", "300", "100.00", "1,003", "803", "5.0"]
    assert lines[4].split() == ["hsm", "25.50", "0.8000", "30.0", "300", "100.00", "1,003", "803", "5.0"]
    assert "PSNR and SSIM: predictions rounded." in lines and "Measured on a GPU." in lines
    assert any(line.startswith("The paper claims") for line in lines)
    assert (tmp_path / "out" / "report.txt").read_text().splitlines()[3] == lines[3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo_curves.png", "demo_pictures.png", "index.html", "report.json", "report.txt"]
    pictures, plot = (cv2.imread(str(tmp_path / "out" / name)) for name in ("demo_pictures.png", "demo_curves.png"))
    assert pictures.shape[0] > 3 * 30 and pictures.shape[1] >= 5 * 40
    shades = {int(value) for value, count in zip(*np.unique(pictures[..., 0], return_counts=True), strict=True) if count > 500}
    assert {51, 102, 230} <= shades  # the photo, the renders and the errors are on it
    assert plot.std() > 5
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "24.12" in page and "http" not in page


def test_the_numbers_as_json(tmp_path):
    runs = make_workspace(tmp_path / "baseline", 24.0), make_workspace(tmp_path / "hsm", 25.0, hsm=True, seed=3)
    assert report(*runs, "--out", tmp_path / "out").returncode == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())["demo"]
    assert list(told) == ["baseline", "hsm"] and told["baseline"]["against_first"] is None
    assert told["hsm"]["psnr"] == 25.0 and told["hsm"]["hsm"] is True and told["hsm"]["seed"] == 3 and told["hsm"]["device"] == "a GPU"
    assert told["hsm"]["against_first"]["gain_db"][-1] == pytest.approx(1.0)


def made_run(points, **more):
    history = [{"training_time": seconds, "psnr": psnr, **more} for seconds, psnr in points]
    return Run("a", Path(), {}, history, {})


def test_how_a_run_stands_against_another():
    reference = made_run([(10, 20.0), (20, 24.0), (40, 26.0)], peak_memory_mib=1000.0, memory_before_mib=200.0)
    run = made_run([(10, 22.0), (20, 28.0), (30, 29.0)], peak_memory_mib=600.0, memory_before_mib=200.0)
    found = against(run, reference)
    assert found["seconds_to_equal"] == pytest.approx(10 + 10 * 4 / 6)  # 26 dB between 22 and 28
    assert found["speedup"] == pytest.approx(40 / (10 + 10 * 4 / 6))
    assert found["gain_db"] == pytest.approx([None, 25.0 - 22.0, 29.0 - 25.0])  # at 7.5 s nothing had been measured, then 15 s and 30 s
    assert found["memory"] == pytest.approx(0.4) and found["training_memory"] == pytest.approx(0.5)
    back = against(made_run([(10, 19.0), (40, 25.0)]), reference)
    assert back["seconds_to_equal"] is None and back["speedup"] is None and back["memory"] is None
    assert set(against(made_run([]), reference).values()) == {None}
    assert against(reference, reference)["speedup"] == pytest.approx(1.0)
    nearly = made_run([(10, 20.0)], peak_memory_mib=1001.0, memory_before_mib=200.0)
    assert claims_table(SceneRuns("demo", [reference, nearly]))[1][-2:] == ["0%", "0%"]  # not -0%


def test_several_scenes_have_one_table(tmp_path):
    scenes = [SceneRuns("bonsai", [made_run([(1, 30.0)]), Run("hsm", Path(), {}, [{"psnr": 31.0}], {})]), SceneRuns("room", [made_run([(1, 20.0)])])]
    assert scenes_table(scenes) == [["PSNR [dB]", "a", "hsm"], ["bonsai", "30.00", "31.00"], ["room", "20.00", "-"], ["mean of 1", "30.00", "31.00"]]
    runs = [make_workspace(tmp_path / scene / kind, 20.0 + place, path=f"data/{scene}") for place, scene in enumerate(("fox", "room")) for kind in ("baseline", "hsm")]
    done = report(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[1:4]] == [["fox", "20.00", "20.00"], ["room", "21.00", "21.00"], ["mean", "of", "2", "20.50", "20.50"]]
    assert {"fox_curves.png", "room_curves.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "names photos of one scene" in report(*runs, "--view", VIEWS[0]).stderr


def test_chosen_views_and_three_runs(tmp_path):
    runs = [make_workspace(tmp_path / name) for name in ("a", "b", "c")]
    done = report(*runs, "--out", tmp_path / "out", "--view", VIEWS[4])
    assert done.returncode == 0, done.stderr
    wrong = report(*runs, "--out", tmp_path / "out", "--view", "nowhere.jpg")
    assert wrong.returncode == 1 and "No view nowhere.jpg" in wrong.stderr and VIEWS[0] in wrong.stderr


def test_runs_of_different_size_and_views_are_shown_with_a_remark(tmp_path):
    runs = make_workspace(tmp_path / "a", downscale=1), make_workspace(tmp_path / "b", size=(20, 15), views=VIEWS[1:3], downscale=2)
    done = report(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "differ in downscale (1, 2)" in done.stdout
    assert (tmp_path / "out" / "demo_pictures.png").is_file()


def remarks_on(tmp_path, *runs):
    done = report(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_results_of_an_earlier_step_are_not_shown_beside_later_steps(tmp_path):
    """A run that ended, went on and was stopped keeps the results of its first end."""
    said = remarks_on(tmp_path, make_workspace(tmp_path / "a", psnr=25.0, conditions={"step": 200, "training_time": 20.0}))
    assert said.splitlines()[3].split()[:5] == ["a", "23.67", "0.7000", "30.0", "300"]
    assert "a: results/metrics.json and the pictures are of step 200, its last validation of step 300, whose PSNR" in said


def test_results_of_a_later_step_have_its_time(tmp_path):
    """--test of a run that was stopped after its last validation."""
    said = remarks_on(tmp_path, make_workspace(tmp_path / "a", conditions={"step": 340, "training_time": 34.5}))
    assert said.splitlines()[3].split()[:5] == ["a", "25.00", "0.8000", "34.5", "340"] and "metrics.json" not in said


def test_results_that_do_not_say_their_step_are_remarked_on(tmp_path):
    assert "a: results/metrics.json does not say at which step it was measured" in remarks_on(tmp_path, make_workspace(tmp_path / "a"))


def test_results_measured_at_another_size_are_remarked_on(tmp_path):
    end = {"step": 300, "training_time": 30.0, "data_format": "colmap", "train_split": "train"}
    runs = make_workspace(tmp_path / "a", conditions={**end, "downscale": 4}), make_workspace(tmp_path / "b", conditions={**end, "downscale": 1})
    said = remarks_on(tmp_path, *runs)
    assert "The runs differ in downscale (4, 1): their numbers are not of the same pictures." in said
    assert "a was measured at its end with downscale 4, and trained and validated with 1." in said and "b was measured" not in said


def test_runs_that_differ_in_bound_are_measured_on_the_same_photos(tmp_path):
    assert "differ in" not in remarks_on(tmp_path, make_workspace(tmp_path / "a", bound=None), make_workspace(tmp_path / "b", bound=128.0))


def test_runs_without_results_or_history(tmp_path):
    unfinished = make_workspace(tmp_path / "unfinished", results=False)
    with open(unfinished / "history.jsonl", "a") as history:
        history.write('{"step": 400, "psn')  # a killed run
    empty = make_workspace(tmp_path / "empty", results=False, history=False)
    done = report(unfinished, empty, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[3].split()[:2] == ["unfinished", "23.67"]
    assert set(lines[4].split()) == {"empty", "-"}
    assert "unfinished has no results/metrics.json" in done.stdout and "No pictures" in (tmp_path / "out" / "index.html").read_text()
    alone = report(empty, "--out", tmp_path / "alone")
    assert alone.returncode == 0 and "No curves" in (tmp_path / "alone" / "index.html").read_text()


def test_a_step_that_was_measured_twice_counts_once(tmp_path):
    run = make_workspace(tmp_path / "a")
    lines = (run / "history.jsonl").read_text().splitlines()
    (run / "history.jsonl").write_text("\n".join([*lines, lines[-1].replace("300", "300")]) + "\n")
    assert report(run, "--out", tmp_path / "out").returncode == 0
    from run_report.runs import load_scenes

    assert len(load_scenes([run])[0].runs[0].history) == 3


def test_a_run_whose_renders_are_not_finite(tmp_path):
    runs = make_workspace(tmp_path / "a"), make_workspace(tmp_path / "b")
    metrics = json.loads((runs[1] / "results" / "metrics.json").read_text())
    metrics.update(psnr=None, ssim=None, non_finite=5)
    for image in metrics["images"]:
        image.update(psnr=None, ssim=None, non_finite=3)
    (runs[1] / "results" / "metrics.json").write_text(json.dumps(metrics))
    done = report(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[4].split()[:3] == ["b", "-", "-"] and "5 of 5 renders are not finite" in done.stdout


def test_the_film_shows_each_run_at_the_same_moment(tmp_path):
    bright, dark = add_validations(make_workspace(tmp_path / "bright"), (0.5, 0.9)), add_validations(make_workspace(tmp_path / "dark"), (0.05, 0.3))
    done = report(bright, dark, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    frames = iio.imread(tmp_path / "out" / "demo_over_time.mp4")
    assert len(frames) == 3 * 24  # two validations and the end, a second each
    height, width = frames.shape[1:3]
    middle = frames[[0, 30, -1], height // 2].astype(int)[:, [width // 6, width // 2, 5 * width // 6]].mean(axis=-1)
    np.testing.assert_allclose(middle / 255, [[0.2, 0.5, 0.05], [0.2, 0.9, 0.3], [0.2, 0.4, 0.4]], atol=0.02)
    assert (tmp_path / "out" / "demo_moments.png").is_file()
    assert "data:video/mp4;base64," in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_chromium_shows_the_page(tmp_path):
    """Figures and film are decoded: their sizes are known to the page."""
    runs = add_validations(make_workspace(tmp_path / "baseline")), add_validations(make_workspace(tmp_path / "<hsm>", hsm=True))
    assert report(*runs, "--out", tmp_path / "out").returncode == 0
    page = tmp_path / "out" / "index.html"
    probe = """<script>addEventListener("load", () => setTimeout(() => document.body.dataset.told = JSON.stringify({
        images: [...document.images].map(i => i.naturalWidth), video: document.querySelector("video").videoWidth,
        labels: [...document.querySelectorAll("td:first-child")].map(t => t.textContent)}), 2000))</script>"""
    page.write_text(page.read_text().replace("</body>", probe + "</body>"))
    flags = [flag for flag in CHROMIUM_FLAGS if not flag.startswith("--remote-debugging-port")]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    told = json.loads(re.search(r'data-told="(.*?)"', shown)[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">"))
    assert len(told["images"]) == 3 and min(told["images"]) > 200 and told["video"] > 1000
    assert told["labels"] == ["baseline", "<hsm>", "<hsm>"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
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
    done = report(*workspaces, "--out", tmp_path / "out")
    assert done.returncode == 1 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
