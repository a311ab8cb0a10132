"""The LLFF reader: its axes, sizes and depths, scenes that face forward, and files that are not what they should be."""

import shutil

import numpy as np
import pytest

from nerf.errors import UserError
from nerf.scene import load_scene
from nerf.scene.colmap import read_colmap
from nerf.scene.llff import read_llff
from scene_files import options, ring_scene, write_llff, write_mask, write_photo


def llff(root, **changes):
    return options(root, data_format="llff", **changes)


@pytest.fixture
def ring(tmp_path):
    """A ring of nine cameras as poses_bounds.npy alone."""
    ring_scene(tmp_path, camera=("SIMPLE_PINHOLE", 64, 48, [60, 32, 24]))
    write_llff(tmp_path, read_colmap(tmp_path, options(tmp_path)), (2.0, 4.0))
    shutil.rmtree(tmp_path / "sparse")
    return tmp_path


def forward_facing(root, near=1.2, far=60.0, count=12):
    """Cameras on a small plane that all look along -z, as a hand-held LLFF capture has them."""
    x, y = np.random.default_rng(0).uniform(-0.5, 0.5, (2, count))
    rows = []
    for i in range(count):
        matrix = np.column_stack([[0, -1, 0], [1, 0, 0], [0, 0, 1], [x[i], y[i], 0.02 * i], [48, 64, 50]])
        rows.append([*matrix.ravel(), near, far])
        write_photo(root / "images" / f"IMG {i:03d}.JPG", seed=i)
    np.save(root / "poses_bounds.npy", np.array(rows))
    return root


def test_the_same_as_colmap(tmp_path):
    ring_scene(tmp_path, camera=("SIMPLE_PINHOLE", 64, 48, [60, 32, 24]))
    colmap = read_colmap(tmp_path, options(tmp_path))
    write_llff(tmp_path, colmap)
    capture = read_llff(tmp_path, llff(tmp_path))
    assert capture.names == colmap.names and capture.files == colmap.files
    assert np.allclose(capture.poses, colmap.poses) and np.allclose(capture.intrinsics, colmap.intrinsics)
    assert np.array_equal(capture.full_sizes, colmap.full_sizes)
    scene = load_scene(options(tmp_path, data_format="auto"))
    assert scene.points is not None and "--data_format colmap, as there is sparse/0; --data_format llff would read poses_bounds.npy" in scene.notes


def test_depths_place_the_scene(ring):
    scene = load_scene(options(ring, data_format="auto"))
    assert "--data_format llff, as there is poses_bounds.npy" in scene.notes and scene.points is None
    positions = scene.cameras.poses[:, :, 3]
    assert np.allclose(np.linalg.norm(positions, axis=1), 1, atol=0.2) and scene.bound == 2
    assert np.allclose(scene.cameras.near, 0.75 * 2 * scene.scale) and np.isinf(scene.cameras.far).all()
    limited = load_scene(llff(ring, enable_cam_near_far=True)).cameras
    assert np.allclose(limited.near, 0.9 * 2 * scene.scale) and (limited.far > 4.4 * scene.scale).all() and (limited.far < 6 * scene.scale).all()


def test_forward_facing(tmp_path):
    """The centre lies before the cameras, near excludes nothing that the file says is there, and the bound holds most of it."""
    scene = load_scene(options(forward_facing(tmp_path / "Blüte im Hof"), data_format="auto"))
    position, forward = scene.cameras.poses[0, :, 3], -scene.cameras.poses[0, :, 2]
    assert forward @ -position > 0.8 and np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1).max() <= 1 + 1e-5
    assert 0.05 < scene.cameras.near[0] < 1.2 * scene.scale and scene.bound in (4, 8, 16)
    assert any("depth points are inside" in note for note in scene.notes)
    assert (scene.aabb[3:] > scene.aabb[:3]).all() and np.abs(scene.aabb).max() <= scene.bound


def test_reduced_folder_and_masks(ring):
    for i in range(9):
        write_photo(ring / "images_2" / f"{i:03d}.png", size=(32, 24))
    mask = np.arange(64 * 48).reshape(48, 64) % 5 > 0
    write_mask(ring / "masks" / "004.png", mask)
    scene = load_scene(llff(ring, downscale=2))
    assert np.allclose(scene.cameras.intrinsics, [30, 30, 16, 12]) and not scene.masks.image(4, (32, 24)).all()
    shutil.rmtree(ring / "images")
    with pytest.raises(UserError, match="there is no folder images .*pass --downscale 2 for images_2"):
        load_scene(llff(ring))


def test_depths_that_make_no_sense(ring):
    rows = np.load(ring / "poses_bounds.npy")
    for depths in ((0, 4), (4, 2), (np.nan, 4), (-1, np.inf)):
        rows[3, 15:] = depths
        np.save(ring / "poses_bounds.npy", rows)
        scene = load_scene(llff(ring))
        assert scene.bound == 2 and any("depths that make no sense" in note for note in scene.notes)


def test_wrong_files(ring):
    file = ring / "poses_bounds.npy"
    rows, whole = np.load(file), file.read_bytes()
    for content, message in ((b"", "no .npy file"), (whole[:-1], "its header promises"), (whole[:50], "its header"), (b"x" * 500, "no .npy file")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"poses_bounds.npy: cannot be read .*{message}"):
            load_scene(llff(ring))
    for array, message in ((rows[:, :16], "9x16 numbers are not the 17"), (rows[:0], "0x17"), (rows.astype(object), "plain numbers"),
                           (rows[:8], "8 poses are not those of the 9 photos .*remove the photos that have none"), (rows * np.nan, "no sizes of a photo")):
        np.save(file, array, allow_pickle=True)
        with pytest.raises(UserError, match=message):
            load_scene(llff(ring))
    rows[2, 3] = np.nan
    np.save(file, rows)
    with pytest.raises(UserError, match=r"002.png: the camera pose holds NaN"):
        load_scene(llff(ring))
