"""Scenes end to end: real ones load with the right counts, sizes and conventions, and what is placed in the world fits together."""

import re
from itertools import pairwise

import numpy as np
import pytest

from nerf.errors import UserError
from nerf.options import parse_options
from nerf.scene import FISHEYE, load_scene
from nerf.scene.colmap_model import read_model
from nerf.scene.sanity import sanity_report
from scene_files import (
    options,
    ring_model,
    ring_scene,
    ring_transforms,
    write_binary,
    write_photo,
)


def project(cameras, i, points):
    """Pixels [p,2] of world points [p,3] in camera i, written out from the definition of the lenses."""
    x, y, z = ((points - cameras.poses[i, :, 3]) @ cameras.poses[i, :, :3]).T
    a, b = x / -z, y / z
    k1, k2, k3, k4, p1, p2 = cameras.distortion[i]
    if cameras.lens[i] == FISHEYE:
        r = np.hypot(a, b)
        theta = np.arctan(r)
        grow = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8) / r
        u, v = a * grow, b * grow
    else:
        r2 = a * a + b * b
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
        u = a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a)
        v = b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b
    fx, fy, cx, cy = cameras.intrinsics[i]
    return np.stack([fx * u + cx, fy * v + cy], axis=1)


def assert_sound(scene):
    n = len(scene.cameras)
    rotations = scene.cameras.poses[:, :, :3].astype(np.float64)
    assert np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max() < 1e-5
    assert np.allclose(np.linalg.det(rotations), 1)
    assert scene.cameras.poses.dtype == scene.cameras.intrinsics.dtype == scene.cameras.distortion.dtype == np.float32
    assert scene.cameras.lens.dtype == scene.cameras.sizes.dtype == np.int32
    assert scene.photos.pixels.dtype == np.uint8 and scene.photos.offsets.shape == (n + 1,) and len(scene.names) == n
    for i, (begin, end) in enumerate(pairwise(scene.photos.offsets)):
        assert end - begin == scene.cameras.sizes[i].prod()
    assert scene.aabb.dtype == np.float32 and (scene.aabb[3:] > scene.aabb[:3]).all()


def reprojection_error(scene, model_folder):
    """Median distance in pixels between COLMAP's keypoints and its points, both as they are after loading."""
    model = read_model(model_folder)
    errors = []
    for image in model.images:
        i = scene.names.index(image.name)
        camera = model.cameras[image.camera]
        keypoints = image.xy * scene.cameras.sizes[i] / (camera.width, camera.height)
        found = project(scene.cameras, i, scene.points[np.searchsorted(model.point_ids, image.point_ids)])
        errors.append(np.linalg.norm(found - keypoints, axis=1))
    return np.median(np.concatenate(errors))


@pytest.mark.parametrize("name, changes, count, size", [
    ("bonsai", {}, 292, (800, 533)),
    ("bonsai", {"downscale": 2, "enable_cam_center": True, "enable_cam_near_far": True}, 292, (400, 266)),
    ("fox", {"enable_cam_near_far": True, "scale": 0.5, "offset": (0.1, -0.2, 0.3)}, 50, (540, 960)),
    ("bust", {"contract": True}, 23, None),
])
def test_real_colmap_scene(scene_data, name, changes, count, size):
    root = scene_data(name)
    scene = load_scene(options(root, **changes))
    assert_sound(scene)
    assert len(scene.cameras) == count and scene.photos.pixels.shape[1] == 3
    assert scene.names == sorted(scene.names)
    assert scene.val.tolist() == scene.test.tolist() == list(range(0, count, 8))
    assert sorted([*scene.train, *scene.val]) == list(range(count))
    if size:
        assert (scene.cameras.sizes == size).all()
    else:
        assert len(np.unique(scene.cameras.sizes, axis=0)) == 4 and len(np.unique(scene.cameras.intrinsics, axis=0)) == 23
    assert reprojection_error(scene, root / "sparse" / "0") < 1.0
    if changes.get("enable_cam_near_far"):
        assert (scene.cameras.near > 0).all() and (scene.cameras.near < scene.cameras.far).all() and np.isfinite(scene.cameras.far).all()
    assert np.abs(scene.aabb).max() <= (128 if changes.get("contract") else scene.bound)
    if "scale" not in changes:
        assert np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1).max() <= 1 + 1e-5
    up = scene.cameras.poses[:, :, 1].mean(axis=0)
    assert up[2] > 0.3 and np.abs(up[:2]).max() < 1e-4


def test_distortion_matters_in_fox(scene_data):
    """The fox lens bends rays by several pixels, so that a reader which drops it fails the reprojection above in its mean."""
    scene = load_scene(options(scene_data("fox")))
    corner = scene.cameras.poses[0, :, 3] + scene.cameras.poses[0, :, :3] @ (0.35, 0.65, -1)
    straight = scene.cameras.select([0])
    straight.distortion[:] = 0
    assert np.abs(project(scene.cameras, 0, corner[None]) - project(straight, 0, corner[None])).max() > 2


def test_fox_as_transforms_agrees_with_colmap(scene_data):
    """Two independent reconstructions of the same photos: after the readers the camera rings differ by no more than a similarity."""
    root = scene_data("fox")
    json_scene, colmap_scene = load_scene(options(root, data_format="nerf")), load_scene(options(root))
    assert_sound(json_scene)
    assert len(json_scene.cameras) == 50 and any("17 of 67" in note for note in json_scene.notes)
    assert [name.removeprefix("images/") for name in json_scene.names] == colmap_scene.names
    assert np.allclose(json_scene.cameras.intrinsics[0], [687.76, 687.245, 277.279, 482.634])
    assert np.allclose(json_scene.cameras.distortion[0], [0.0578421, -0.0805099, 0, 0, -0.000980296, 0.00015575])
    assert np.array_equal(json_scene.photos.pixels, colmap_scene.photos.pixels)
    a, b = (s.cameras.poses[:, :, 3] - s.cameras.poses[:, :, 3].mean(axis=0) for s in (json_scene, colmap_scene))
    u, _, vt = np.linalg.svd(a.T @ b)
    turned = a @ u @ vt * (np.linalg.norm(b) / np.linalg.norm(a))
    assert np.linalg.det(u @ vt) > 0
    assert np.linalg.norm(turned - b, axis=1).max() < 0.02
    axes = json_scene.cameras.poses[:, :, 2] @ u @ vt
    assert (axes * colmap_scene.cameras.poses[:, :, 2]).sum(axis=1).min() > 0.999


def test_lego(scene_data):
    scene = load_scene(options(scene_data("lego_200"), data_format="nerf"))
    assert_sound(scene)
    assert (len(scene.train), len(scene.val), len(scene.test)) == (100, 25, 50)
    assert scene.photos.pixels.shape[1] == 4 and scene.scale == 0.8 and scene.bound == 1.0
    assert (scene.cameras.sizes == 200).all() and np.allclose(scene.cameras.intrinsics, [277.7778, 277.7778, 100, 100])
    assert np.allclose(np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1), 0.8 * 4.031, atol=0.01)
    alpha = scene.photos.image(0, scene.cameras.sizes[0])[..., 3]
    assert alpha[0, 0] == 0 and alpha[100, 100] == 255


def test_train_split(tmp_path):
    ring_scene(tmp_path, count=17)
    for split, trained in (("train", 14), ("trainval", 17), ("all", 17)):
        scene = load_scene(options(tmp_path, train_split=split))
        assert len(scene.train) == trained and scene.val.tolist() == [0, 8, 16]


def test_one_photo(tmp_path):
    ring_scene(tmp_path, count=1)
    with pytest.raises(UserError, match="--train_split all"):
        load_scene(options(tmp_path))
    assert_sound(load_scene(options(tmp_path, train_split="all")))
    scene = load_scene(options(tmp_path, train_split="all", enable_cam_center=True))
    assert_sound(scene)
    assert np.isclose(np.median(np.linalg.norm(scene.points, axis=1)), 1, atol=1e-4)


def test_all_cameras_at_one_place(tmp_path):
    ring_transforms(tmp_path, radius=0.0)
    scene = load_scene(options(tmp_path, data_format="nerf"))
    assert_sound(scene)
    assert scene.scale == 1 and np.abs(scene.cameras.poses[:, :, 3]).max() < 1e-6


@pytest.mark.parametrize("origin", [(0, 0, 0), (5e5, 5e6, 100), (4e6, 6e5, 4.9e6)])
def test_coordinates_of_a_map(tmp_path, origin):
    """Metres in UTM or about the Earth's centre: the scene is what it is elsewhere."""
    cameras, images, points = ring_model()
    images = [(name, camera, quaternion, translation - rotation_of(quaternion) @ origin, *rest) for name, camera, quaternion, translation, *rest in images]
    write_binary(tmp_path / "sparse" / "0", cameras, images, {key: xyz + origin for key, xyz in points.items()})
    for i in range(9):
        write_photo(tmp_path / "images" / f"{i:03d}.png", seed=i)
    scene, plain = load_scene(options(tmp_path)), load_scene(options(ring_scene(tmp_path / "plain")))
    assert scene.scale == pytest.approx(plain.scale, rel=1e-6) and np.allclose(scene.cameras.poses, plain.cameras.poses, atol=1e-6)
    assert np.allclose(scene.points, plain.points, atol=1e-6) and not any("warning" in note for note in scene.notes)


def rotation_of(quaternion):
    """[3,3] of (w, x, y, z)."""
    w, *axis = quaternion
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def test_a_camera_far_from_all_others_is_named(tmp_path):
    cameras, images, points = ring_model(count=20)
    name, camera, quaternion, translation, *rest = images[3]
    images[3] = (name, camera, quaternion, 100 * translation, *rest)
    ring_scene(tmp_path, count=20)
    write_binary(tmp_path / "sparse" / "0", cameras, images, points)
    line, = (note for note in load_scene(options(tmp_path)).notes if note.startswith("warning:"))
    assert line.startswith("warning: 003.png may have a wrong pose") and "99 times as far" in line
    scale = float(re.search(r"--scale ([\d.e-]+)", line).group(1))
    scene = load_scene(options(tmp_path, scale=scale))
    assert np.median(np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1)) == pytest.approx(1, abs=0.05) and not any("warning" in note for note in scene.notes)
    assert not any("--scale" in line for line in sanity_report(scene, parse_options([str(tmp_path), "--scale", str(scale)])))


def test_ring_is_centred(tmp_path):
    """Cameras that all look at the origin put it at the origin, whatever the format."""
    ring_scene(tmp_path / "a")
    ring_transforms(tmp_path / "b")
    for scene in (load_scene(options(tmp_path / "a", enable_cam_near_far=True)), load_scene(options(tmp_path / "b", data_format="nerf"))):
        towards = -scene.cameras.poses[:, :, 3] / np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1, keepdims=True)
        assert ((-scene.cameras.poses[:, :, 2]) * towards).sum(axis=1).min() > 0.99
        assert np.allclose(np.linalg.norm(scene.cameras.poses[:, :, 3], axis=1), 1, atol=0.05)


def test_scale_and_offset(tmp_path):
    ring_scene(tmp_path)
    automatic = load_scene(options(tmp_path))
    given = load_scene(options(tmp_path, scale=2 * automatic.scale, offset=(1, 2, 3)))
    assert np.allclose(given.cameras.poses[:, :, 3], 2 * automatic.cameras.poses[:, :, 3] + (1, 2, 3), atol=1e-5)
    assert np.allclose(given.points, 2 * automatic.points + (1, 2, 3), atol=1e-5)
    for scale in (0, -3, float("nan")):
        with pytest.raises(UserError, match="--scale"):
            load_scene(options(tmp_path, scale=scale))


def test_bound(tmp_path):
    ring_scene(tmp_path)
    assert load_scene(options(tmp_path)).bound == 2
    assert load_scene(options(tmp_path, scale=3.0)).bound == 4
    assert load_scene(options(tmp_path, scale=100.0)).bound == 16
    contracted = load_scene(options(tmp_path, contract=True)), load_scene(options(tmp_path, contract=True, bound=64.0))
    assert [scene.bound for scene in contracted] == [2, 2] and [scene.aabb[5] for scene in contracted] == [128, 64]
    scene = load_scene(options(tmp_path, bound=3.0))
    assert scene.bound == 3 and any("bound 3 (as given" in note for note in scene.notes)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_scene(options(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="~nobody of that name/scene: no such folder"):
        load_scene(options("~nobody of that name/scene"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load_scene(options(tmp_path / "file"))


def test_photo_that_does_not_open(tmp_path):
    ring_scene(tmp_path)
    photo = tmp_path / "images" / "004.png"
    whole = photo.read_bytes()
    for content in (b"", b"no photo at all", whole[: len(whole) // 2]):
        photo.write_bytes(content)
        with pytest.raises(UserError, match="004.png: the photo does not open"):
            load_scene(options(tmp_path))


def test_memory_is_stated_before_decoding(tmp_path, capsys, monkeypatch):
    ring_scene(tmp_path)
    monkeypatch.setattr("nerf.scene.photos.available_memory", lambda: 1000)
    with pytest.raises(UserError, match="larger --downscale"):
        load_scene(options(tmp_path, image_cache="cpu"))
    assert capsys.readouterr().out == "loading 9 photos, 0.00 GiB as uint8\n"


def test_photos_of_many_sizes(tmp_path):
    ring_scene(tmp_path)
    expected = write_photo(tmp_path / "images" / "003.png", size=(32, 24), seed=33)
    scene = load_scene(options(tmp_path))
    assert_sound(scene)
    assert np.array_equal(scene.photos.image(3, scene.cameras.sizes[3]), expected)
    assert scene.cameras.intrinsics[3].tolist() == [30, 30.5, 16, 12] and scene.cameras.intrinsics[2].tolist() == [60, 61, 32, 24]
    write_photo(tmp_path / "images" / "003.png", size=(24, 32))
    assert any("another shape" in note and "003.png" in note for note in load_scene(options(tmp_path)).notes)
