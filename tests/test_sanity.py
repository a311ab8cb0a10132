"""The sanity report: silent on a sound scene, and for each thing that is wrong the flag that mends it, with a value that does."""

import re

import numpy as np
import pytest
import torch

from nerf.options import parse_options, resolve
from nerf.rays import Views
from nerf.scene import load_scene
from nerf.scene.lens import beyond_reach, lens_reach
from nerf.scene.sanity import sanity_report
from scene_files import ring_scene, ring_transforms, write_mask


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
    (tmp_path / "clear").mkdir()
    ring_transforms(tmp_path / "clear", "transforms_train.json", folder="train", head={"camera_angle_x": 0.9}, radius=8, mode="RGBA")
    assert warnings(tmp_path / "clear", "-O") == []  # there is nothing to learn where the photos see through
    assert warnings(tmp_path, "-O", "--bound", value) == []
    assert "try another --scale or --offset" in warnings(tmp_path, "-O", "--offset", "0", "0", "60")[-1]


def test_cells_that_nobody_sees(tmp_path):
    ring_scene(tmp_path, camera=("PINHOLE", 64, 48, [600, 610, 32, 24]))
    assert any("--mark_untrained" in line for line in warnings(tmp_path, "-O", "--no-mark_untrained"))
    assert warnings(tmp_path, "-O") == [] and "stay closed" in report(tmp_path, "-O")[-1]


def test_points_that_no_camera_sees(tmp_path):
    ring_scene(tmp_path, camera=("PINHOLE", 64, 48, [60, 61, 5000, 24]))
    assert any("poses" in line for line in warnings(tmp_path, "-O"))


LENSES = {  # of photos of 64x48 pixels
    "circular fisheye": ("OPENCV_FISHEYE", 64, 48, [10, 10, 32, 24, 0.05, -0.01, 0.002, -0.0005]), "turns back": ("RADIAL", 64, 48, [36, 32, 24, -0.3, 0.0]),
    "wide fisheye": ("OPENCV_FISHEYE", 64, 48, [19, 19, 32, 24, 0.05, -0.01, 0.002, -0.0005]), "wide": ("OPENCV", 64, 48, [30, 30, 32, 24, -0.25, 0.07, 1e-3, -5e-4])}


@pytest.mark.parametrize(("name", "reached"), [("circular fisheye", False), ("turns back", False), ("wide fisheye", True), ("wide", True)])
def test_pixels_that_the_lens_does_not_reach(tmp_path, name, reached):
    """Rays through the pixels of which it warns lead elsewhere, and no others do; masked, they are no trouble."""
    ring_scene(tmp_path, camera=LENSES[name])
    cameras = load_scene(parse_options([str(tmp_path)])).cameras.select([0])
    pixels = np.stack(np.meshgrid(np.arange(64), np.arange(48)), axis=-1).reshape(-1, 2) + 0.5
    cameras.poses[:] = np.eye(4)[:3]
    rays = Views(cameras, np.ones(6, dtype=np.float32), torch.device("cpu")).rays(torch.zeros(len(pixels), dtype=torch.int64), torch.tensor(pixels, dtype=torch.float32))
    lens = perspective_project if LENSES[name][0] != "OPENCV_FISHEYE" else fisheye_project
    directions = rays.directions.numpy().astype(np.float64) * [1, -1, -1]
    other_side = (directions[:, :2] * (pixels - (32, 24))).sum(axis=1) < 0
    astray = (np.linalg.norm(lens(directions, cameras) - pixels, axis=1) > 0.01) | other_side
    beyond = beyond_reach(cameras, 0, pixels)
    border = np.abs(np.linalg.norm(pixels - (32, 24), axis=1) - lens_reach(cameras.distortion[0], cameras.lens[0]) * cameras.intrinsics[0, 0]) < 0.2
    assert np.array_equal(beyond[~border], astray[~border]) and beyond.any() == (not reached) and border.mean() < 0.02
    line = [line for line in warnings(tmp_path, "-O") if "the lens leads no ray" in line]
    assert len(line) == (not reached)
    if line:
        assert float(re.search(r"([\d.]+) % of the pixels", line[0]).group(1)) == pytest.approx(100 * beyond.mean(), abs=2)
        for i in range(9):
            write_mask(tmp_path / "masks" / f"{i:03d}.png", ~beyond.reshape(48, 64))
        assert not any("the lens leads no ray" in line for line in warnings(tmp_path, "-O"))


def perspective_project(directions, cameras):
    x, y = (directions[:, :2] / directions[:, 2:]).T
    k1, k2, _, _, p1, p2 = cameras.distortion[0].astype(np.float64)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2
    bent = np.stack([x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=1)
    return bent * cameras.intrinsics[0, :2] + cameras.intrinsics[0, 2:]


def fisheye_project(directions, cameras):
    aside = np.linalg.norm(directions[:, :2], axis=1, keepdims=True)
    theta = np.arctan2(aside, directions[:, 2:])
    bent = theta * np.polyval([*cameras.distortion[0, 3::-1].astype(np.float64), 1], theta**2) * directions[:, :2] / np.maximum(aside, 1e-12)
    return bent * cameras.intrinsics[0, :2] + cameras.intrinsics[0, 2:]


def test_contracted_space_has_no_bound_to_warn_of(ring):
    assert warnings(ring, "-O2") == []
