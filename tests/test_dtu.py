"""The DTU reader: projections taken apart, the unit sphere kept, masks, and files that are not what they should be."""

import shutil

import numpy as np
import pytest
import torch

from nerf.errors import UserError
from nerf.rays import Views
from nerf.scene import load_scene
from nerf.scene.colmap import read_colmap
from nerf.scene.dtu import read_dtu
from scene_files import options, ring_scene, write_dtu, write_mask, write_photo

CENTRE, RADIUS = (1.0, -2.0, 0.5), 1.5


def dtu(root, **changes):
    return options(root, data_format="dtu", **changes)


@pytest.fixture
def ring(tmp_path):
    """A ring of nine cameras in DTU's layout, with one mask's hole in the corner."""
    ring_scene(tmp_path)
    write_dtu(tmp_path, read_colmap(tmp_path, options(tmp_path)), CENTRE, RADIUS)
    (tmp_path / "images").rename(tmp_path / "image")
    (tmp_path / "sparse").rename(tmp_path / "kept")
    for i in range(9):
        mask = np.ones((48, 64), dtype=bool)
        mask[:5, :i] = False
        write_mask(tmp_path / "mask" / f"{i}.png", mask)
    return tmp_path


def test_the_same_as_colmap(tmp_path):
    ring_scene(tmp_path)
    colmap = read_colmap(tmp_path, options(tmp_path))
    (tmp_path / "images").rename(tmp_path / "image")
    write_dtu(tmp_path, colmap, CENTRE, RADIUS)
    capture = read_dtu(tmp_path, dtu(tmp_path))
    assert np.allclose(capture.intrinsics, colmap.intrinsics) and np.allclose(capture.poses[:, :, :3], colmap.poses[:, :, :3])
    assert np.allclose(capture.poses[:, :, 3], (colmap.poses[:, :, 3] - CENTRE) / RADIUS)
    assert np.array_equal(capture.full_sizes, colmap.full_sizes) and capture.framed
    (tmp_path / "cameras_sphere.npz").unlink()
    matrices = {f"world_mat_{i}": matrix[:3] for i, matrix in enumerate(world_matrices(colmap))}
    np.savez_compressed(tmp_path / "cameras.npz", **matrices)
    bare = read_dtu(tmp_path, dtu(tmp_path))
    assert np.allclose(bare.poses, colmap.poses) and not bare.framed


def world_matrices(capture):
    for pose, (fx, fy, cx, cy) in zip(capture.poses, capture.intrinsics, strict=True):
        to_camera = np.linalg.inv(np.vstack([np.column_stack([pose[:, :3] * [1, -1, -1], pose[:, 3]]), [0, 0, 0, 1]]))
        yield np.array([[fx, 0, cx - 0.5, 0], [0, fy, cy - 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ to_camera


@pytest.mark.parametrize("downscale", [1, 2])
def test_a_pixel_looks_where_it_does_in_neus(tmp_path, downscale):
    """NeuS takes pixel (x, y), counted from 0, along R K^-1 (x, y, 1), with K of a file whose principal point is ((w - 1) / 2, (h - 1) / 2)."""
    ring_scene(tmp_path)
    capture = read_colmap(tmp_path, options(tmp_path))
    (tmp_path / "images").rename(tmp_path / "image")
    calibration = np.array([[60, 0, 31.5, 0], [0, 60, 23.5, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    matrices = {}
    for i, pose in enumerate(capture.poses):
        to_world = np.vstack([np.column_stack([pose[:, :3] * [1, -1, -1], pose[:, 3]]), [0, 0, 0, 1]])
        matrices |= {f"world_mat_{i}": (calibration @ np.linalg.inv(to_world)).astype(np.float32), f"scale_mat_{i}": np.eye(4, dtype=np.float32)}
    np.savez(tmp_path / "cameras_sphere.npz", **matrices)
    scene = load_scene(dtu(tmp_path, downscale=downscale))
    x, y = np.meshgrid([0, 10, 40], [0, 20, 30])  # in pixels of the file
    pixels = (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) / downscale
    rays = Views(scene.cameras, scene.aabb, torch.device("cpu")).rays(torch.full((9,), 4), torch.tensor(pixels, dtype=torch.float32))
    local = np.linalg.inv(calibration[:3, :3]) @ [x.ravel(), y.ravel(), np.ones(9)]
    expected = (capture.poses[4, :, :3] * [1, -1, -1]) @ (local / np.linalg.norm(local, axis=0))
    assert np.allclose(rays.directions.numpy() @ scene.world.rotation, expected.T, atol=1e-5)


def test_the_unit_sphere_stays(ring):
    scene = load_scene(options(ring, data_format="auto"))
    assert "--data_format dtu, as there is cameras_sphere.npz" in scene.notes
    assert scene.bound == 1 and scene.scale == 1 and scene.aabb.tolist() == [-1] * 3 + [1] * 3
    original = read_dtu(ring, dtu(ring)).poses[:, :, 3]
    assert np.allclose(np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1), np.linalg.norm(original, axis=1), atol=1e-5)
    up = scene.cameras.poses[:, :, 1].mean(axis=0)
    assert up[2] > 0.3 and np.abs(up[:2]).max() < 1e-5


def test_masks_in_order(ring):
    scene = load_scene(dtu(ring))
    assert [int((~scene.masks.image(i, (64, 48))).sum()) for i in range(9)] == [5 * i for i in range(9)]
    (ring / "mask" / "8.png").rename(ring / "mask" / "008.png")
    (ring / "mask" / "0.png").unlink()
    masks = load_scene(dtu(ring)).masks  # no longer as many as photos, so by name
    assert masks.image(7, (64, 48)).all() and not masks.image(8, (64, 48)).all()
    half = load_scene(dtu(ring, downscale=2))
    assert np.allclose(half.cameras.intrinsics[0], [30, 30.5, 16, 12], atol=1e-3)


def test_wrong_files(ring):
    file = ring / "cameras_sphere.npz"
    whole, arrays = file.read_bytes(), dict(np.load(file))
    for content in (b"", whole[: len(whole) // 2], b"PK" + b"x" * 300):
        file.write_bytes(content)
        with pytest.raises(UserError, match="cameras_sphere.npz: cannot be read"):
            load_scene(dtu(ring))
    flat, skewed = arrays["world_mat_4"].copy(), arrays["world_mat_4"].copy()
    flat[1] = flat[0]
    skewed[0] += skewed[1]
    for changes, message in (
        ({"world_mat_4": np.full((4, 4), np.nan)}, "world_mat_4 is no 4x4 matrix"), ({"scale_mat_4": np.eye(3)}, "scale_mat_4 is no 4x4 matrix"),
        ({"world_mat_4": flat}, "world_mat_4 projects everything"), ({"world_mat_4": np.zeros((4, 4))}, "world_mat_4 projects everything"),
        ({"world_mat_4": skewed}, "world_mat_4 is that of a camera with skewed pixels"), ({"world_mat_4": np.array(["a"])}, "plain numbers"),
        ({"world_mat_9": np.eye(4)}, r"10 cameras .* not those of the 9 photos"), ({"world_mat_4": np.zeros((100, 100))}, "too many for a matrix"),
    ):
        np.savez(file, **(arrays | changes))
        with pytest.raises(UserError, match=message):
            load_scene(dtu(ring))
    np.savez(file, **arrays)
    write_photo(ring / "image" / "extra.png")
    with pytest.raises(UserError, match="9 cameras .* not those of the 10 photos"):
        load_scene(dtu(ring))
    shutil.rmtree(ring / "image")
    with pytest.raises(UserError, match="there is no folder image "):
        load_scene(dtu(ring))
