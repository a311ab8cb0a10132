"""The scripts that train sets of runs: what they run in which order (with a stand-in for Python), what they skip and what they refuse."""

import re
import shutil

import pytest

from nerf.options import parse_options
from test_scripts import add_python, add_tool, complaint, project, run  # noqa: F401 (project is a fixture)

SETS = ["run_360.sh", "run_synthetic.sh", "run_llff.sh"]


@pytest.fixture
def ready(project):  # noqa: F811
    """The project with a compiler, Python and what the scripts call besides."""
    for tool in ("sed", "basename"):
        assert shutil.which(tool)
    add_tool(project, "g++", "exit 0")
    add_python(project)
    return project


def calls(folder, program="main.py"):
    """The argument lists of the calls of a program, without its name; each list is one that main.py understands."""
    lines = [line.split()[1:] for line in (folder / "calls").read_text().splitlines() if line.startswith(program)]
    if program == "main.py":
        for line in lines:
            parse_options(line)
    return lines


def scenes(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)


def test_run_vis_trains_three_kinds_at_the_same_clock_and_reports(ready):
    scenes(ready, "data/bonsai/images_2")
    result = run(ready, "run_vis.sh", "--system", "--max_training_time", "0.5", "--out", "vis")
    assert result.returncode == 0, result.stderr
    baseline, hsm, uniform = calls(ready)
    assert hsm == [word.replace("vis/baseline", "vis/hsm") for word in baseline] + ["--hsm"]
    control = ["--hsm", "--hsm_draw", "uniform", "--hsm_budget", "fixed", "--hsm_fraction", "0.25"]
    assert uniform == [word.replace("vis/baseline", "vis/uniform") for word in baseline] + control
    options = parse_options(baseline)
    assert (options.path, options.downscale, options.bound, options.seed, options.O) == ("data/bonsai", 2, 8, 1, True)
    assert (options.max_training_time, options.val_checkpoint, options.ckpt) == (0.5, 5, "scratch")
    assert calls(ready, "scripts/report.py") == [["vis/baseline", "vis/hsm", "vis/uniform", "--out", "vis/report"]]


def test_run_vis_of_another_scene_and_with_other_flags(ready):
    scenes(ready, "data/my room", "data/fox", "data/bonsai")
    assert run(ready, "run_vis.sh", "--system", "data/fox", "--val_checkpoint", "2").returncode == 0
    options = parse_options(calls(ready)[0])
    assert options.O and options.bound is None and options.downscale == 1 and options.val_checkpoint == 2
    assert run(ready, "run_vis.sh", "--system", "--", "-O2", "--downscale", "4").returncode == 0
    options = parse_options(calls(ready)[3])
    assert options.path == "data/bonsai" and options.O2 and options.downscale == 4 and not options.enable_cam_center
    (ready / "calls").unlink()
    assert run(ready, "run_vis.sh", "--system", "data/my room").returncode == 0
    assert "main.py data/my room --workspace" in (ready / "calls").read_text()


def test_what_run_vis_refuses(ready):
    assert "no scene at data/bonsai: name the folder of one" in complaint(run(ready, "run_vis.sh", "--system"))
    assert "--out needs a value" in complaint(run(ready, "run_vis.sh", "--out"))
    assert "unknown argument --hsm; --help lists them" in complaint(run(ready, "run_vis.sh", "--hsm"))
    assert "two scenes given" in complaint(run(ready, "run_vis.sh", "a", "b"))
    assert not (ready / "calls").exists()


def test_a_run_that_fails_stops_run_vis(ready):
    scenes(ready, "data/bonsai")
    add_python(ready, {"vis/hsm": "echo 'main.py: broken.' >&2; exit 1"})
    result = run(ready, "run_vis.sh", "--system", "--out", "vis")
    assert result.returncode == 1 and result.stderr == "main.py: broken.\n" and len(calls(ready)) == 2


@pytest.mark.parametrize("script", SETS)
def test_no_scene_is_one_sentence_and_help_is_there(ready, script):
    assert re.search(r"no folder nowhere: name the one that holds the scenes \(.*\)", complaint(run(ready, script, "--system", "nowhere")))
    scenes(ready, "empty")
    result = run(ready, script, "--system", "empty")
    assert result.returncode == 1 and "nothing was trained" in result.stderr.splitlines()[-1] and "Skipping " in result.stdout
    assert "unknown argument --minutes" in complaint(run(ready, script, "--minutes", "3"))
    helped = run(ready, script, "--help")
    assert helped.returncode == 0 and "--max_training_time M" in helped.stdout and "scripts/environment.sh names" in helped.stdout and "set -e" not in helped.stdout


def test_run_360_takes_the_papers_flags_and_skips_what_is_missing(ready):
    scenes(ready, "data/360/room", "data/360/garden")
    result = run(ready, "run_360.sh", "--system", "--", "--num_points", "1048576")
    assert result.returncode == 0, result.stderr
    assert "Skipping bonsai: there is no data/360/bonsai.\n" in result.stdout
    found = [parse_options(call) for call in calls(ready)]
    assert [(o.path, o.downscale, o.bound, o.hsm) for o in found] == [
        ("data/360/room", 4, 8, False), ("data/360/room", 4, 8, True), ("data/360/garden", 8, 16, False), ("data/360/garden", 8, 16, True)]  # fmt: skip
    for options in found:
        assert options.O and options.enable_cam_center and options.enable_cam_near_far and options.min_near == 0.2
        assert options.background == "random" and options.lambda_tv == 0 and options.num_points == 2**20 and options.max_training_time == 4
    workspaces = [f"trial_360/{scene}/{kind}" for scene in ("room", "garden") for kind in ("baseline", "hsm")]
    assert calls(ready, "scripts/report.py") == [[*workspaces, "--out", "trial_360/report"]]


def test_run_360_with_proposal_networks(ready):
    scenes(ready, "data/360/room", "data/360/garden")
    assert run(ready, "run_360.sh", "--system", "-O2").returncode == 0
    found = [parse_options(call) for call in calls(ready)]
    assert [o.path for o in found] == ["data/360/room"] * 2  # the paper's script has three scenes, none of them outdoors
    assert all(o.O2 and o.enable_cam_center and not o.enable_cam_near_far and o.lambda_distort == 0 and o.workspace.startswith("trial_360_O2/") for o in found)
    assert "-O2 is for run_360.sh" in complaint(run(ready, "run_llff.sh", "-O2"))


def test_run_synthetic_and_run_llff(ready):
    scenes(ready, "blender/lego", "blender/ship", "data/nerf_llff_data/fern", "data/nerf_llff_data/horns")
    assert run(ready, "run_synthetic.sh", "--system", "blender").returncode == 0
    found = [parse_options(call) for call in calls(ready)]
    assert [(o.path, o.scale) for o in found[::2]] == [("blender/lego", 0.8), ("blender/ship", 0.7)]
    assert all(o.bound == 1 and o.dt_gamma == 0 and o.background == "white" for o in found)
    (ready / "calls").unlink()
    assert run(ready, "run_llff.sh", "--system", "--scenes", "fern horns", "--out", "out").returncode == 0
    found = [parse_options(call) for call in calls(ready)]
    assert [o.workspace for o in found] == ["out/fern/baseline", "out/fern/hsm", "out/horns/baseline", "out/horns/hsm"]
    assert all(o.downscale == 4 and o.bound == 4 and o.max_training_time == 8 for o in found)
