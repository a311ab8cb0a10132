"""The sanity report: silent on a sound scene, and for each thing that is wrong the flag that mends it, with a value that does."""

import re

import pytest

from nerf.options import parse_options, resolve
from nerf.scene import load_scene
from nerf.scene.sanity import sanity_report
from scene_files import ring_scene, ring_transforms


def report(root, *flags):
    options = resolve(parse_options([str(root), *flags]), "cpu")
    return sanity_report(load_scene(options), options)


def warnings(root, *flags):
    return [line for line in report(root, *flags) if line.startswith("warning:")]


@pytest.fixture
def ring(tmp_path):
    return ring_scene(tmp_path)


def test_a_sound_scene_gets_a_line(ring):
    lines = report(ring, "-O")
    assert warnings(ring, "-O") == []
    assert lines[0].startswith("extent: cameras are ") and "(0.989 on average)" in lines[0] and "within bound 2: 100 %" in lines[0]


@pytest.mark.parametrize(("flags", "flag"), [
    (["--bound", "0.2"], "--bound"), (["--bound", "16"], "--bound"), (["--min_near", "1"], "--min_near"), (["--scale", "100", "--bound", "400"], "--scale"),
    (["--scale", "0.001"], "--scale"), (["--scale", "5"], "--scale")])  # fmt: skip
def test_the_flag_that_is_named_mends_it(ring, flags, flag):
    said = warnings(ring, "-O", *flags)
    assert said and all(line.count("\n") == 0 for line in said)
    value = re.search(rf"try {flag} ([\d.e-]+)", " ".join(said)).group(1)
    rest = [flags[i + k] for i in range(0, len(flags), 2) for k in (0, 1) if flags[i] not in (flag, "--bound")]
    assert warnings(ring, "-O", *rest, flag, value) == []


def test_points_that_no_bound_holds(ring):
    assert any("-O2" in line for line in warnings(ring, "-O", "--scale", "100"))


def test_cameras_outside_the_cube_of_an_object_are_as_they_should_be(tmp_path):
    ring_transforms(tmp_path)
    assert warnings(tmp_path, "-O", "--bound", "0.5") == []


def test_cameras_about_a_rendered_object_are_as_far_as_they_should_be(tmp_path):
    """NeRF-synthetic at its own scale."""
    ring_transforms(tmp_path, "transforms_train.json", folder="train", head={"camera_angle_x": 0.6911}, radius=4.03)
    assert warnings(tmp_path, "-O", "--scale", "1") == [] and len(warnings(tmp_path, "-O", "--scale", "4")) == 1


def test_pictures_of_more_than_the_cube(tmp_path):
    """An object as NeRF-synthetic has them, but larger than its cube."""
    ring_transforms(tmp_path, "transforms_train.json", folder="train", head={"camera_angle_x": 0.9}, radius=8)
    line, = warnings(tmp_path, "-O")
    value = re.search(r"% of the rays go past the box .* try --bound (\d)", line).group(1)
    assert warnings(tmp_path, "-O", "--bound", value) == []
    assert "try another --scale or --offset" in warnings(tmp_path, "-O", "--offset", "0", "0", "60")[-1]


def test_cells_that_nobody_sees(tmp_path):
    ring_scene(tmp_path, camera=("PINHOLE", 64, 48, [600, 610, 32, 24]))
    assert any("--mark_untrained" in line for line in warnings(tmp_path, "-O", "--no-mark_untrained"))
    assert warnings(tmp_path, "-O") == [] and "stay closed" in report(tmp_path, "-O")[-1]


def test_points_that_no_camera_sees(tmp_path):
    ring_scene(tmp_path, camera=("PINHOLE", 64, 48, [60, 61, 5000, 24]))
    assert any("poses" in line for line in warnings(tmp_path, "-O"))


def test_contracted_space_has_no_bound_to_warn_of(ring):
    assert warnings(ring, "-O2") == []
