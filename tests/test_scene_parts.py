"""The parts of a scene: photos of every kind, poses that are none, turning and centring, limits of views."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nerf.errors import UserError
from nerf.scene.cameras import check_intrinsics, rigid_poses
from nerf.scene.extent import (
    MIN_NEAR,
    OVERLAP_STEP,
    no_distances,
    overlap_distance,
    scene_box,
    seen_distances,
    view_limits,
)
from nerf.scene.normalise import (
    nearest_to_axes,
    rotation_between,
    trimmed_mean,
    upright,
)
from nerf.scene.photos import load_photos, read_headers, target_sizes
from scene_files import options, write_photo


def load(*files, downscale=1):
    headers = read_headers(files)
    sizes = target_sizes(files, headers.sizes, np.ones(len(files), dtype=bool), downscale)
    photos = load_photos(files, sizes, headers.alpha)
    return [photos.image(i, size) for i, size in enumerate(sizes)]


def test_kinds_of_photos(tmp_path):
    rgba, grey, rgb = (write_photo(tmp_path / f"{mode}.png", mode=mode) for mode in ("RGBA", "L", "RGB"))
    Image.fromarray(rgb).quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    write_photo(tmp_path / "cmyk.jpg", mode="CMYK")
    palette = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB"))
    loaded = load(*(tmp_path / name for name in ("RGBA.png", "L.png", "RGB.png", "palette.png", "deep.png", "cmyk.jpg")))
    assert all(image.shape == (48, 64, 4) for image in loaded)
    assert np.array_equal(loaded[0], rgba)
    assert np.array_equal(loaded[1], np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    assert np.array_equal(loaded[2][..., :3], rgb) and (loaded[2][..., 3] == 255).all()
    assert np.array_equal(loaded[3][..., :3], palette)
    assert np.array_equal(loaded[4], loaded[1])
    assert all(image.shape == (48, 64, 3) for image in load(tmp_path / "L.png", tmp_path / "cmyk.jpg"))


def test_area_reduction(tmp_path):
    pixels = write_photo(tmp_path / "a.png")
    small, = load(tmp_path / "a.png", downscale=2)
    expected = pixels.reshape(24, 2, 32, 2, 3).astype(float).mean(axis=(1, 3))
    assert small.shape == (24, 32, 3) and np.abs(small - expected).max() <= 0.51


def test_transparent_pixels_lend_no_colour(tmp_path):
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, ::2] = (200, 100, 50, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small, = load(tmp_path / "a.png", downscale=2)
    assert np.abs(small.astype(int) - (200, 100, 50, 128)).max() <= 1


def test_downscale_too_large(tmp_path):
    write_photo(tmp_path / "a.png")
    with pytest.raises(UserError, match="--downscale 30 leaves 2x2 pixels"):
        load(tmp_path / "a.png", downscale=30)


def test_photo_claiming_a_huge_size(tmp_path):
    write_photo(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = b"\x00\x0f\xff\xff\x00\x0f\xff\xff"
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="does not open"):
        load(tmp_path / "a.png")


def test_photo_of_a_telephone(tmp_path):
    """200 million pixels, which Pillow by itself refuses."""
    Image.new("1", (16320, 12240), 1).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        headers = read_headers([tmp_path / "a.png"])
    assert headers.sizes.tolist() == [[16320, 12240]]


def test_rigid_poses():
    pose = np.eye(4)[None, :3] * 1.0
    noisy, rescaled = rigid_poses(pose + 1e-3 * np.random.default_rng(0).normal(size=(1, 3, 4)), ["a"])
    assert np.allclose(noisy[0, :, :3] @ noisy[0, :, :3].T, np.eye(3), atol=1e-12)
    scaled, rescaled = rigid_poses(pose * 3, ["a"])
    assert rescaled == 1 and np.allclose(scaled[0, :, :3], np.eye(3))
    for bad, message in ((pose * np.nan, "NaN"), (pose + np.inf, "NaN"), (pose * 1e20, "absurd"), (pose * 0, "singular"),
                         (pose * [[1], [1], [2]], "skewed"), (pose * [[1], [1], [-1]], "mirrors")):
        with pytest.raises(UserError, match=f"view 7: .*{message}"):
            rigid_poses(bad, ["view 7"])


@pytest.mark.parametrize("row", [[0, 1, 1, 1], [1, -1, 1, 1], [np.nan, 1, 1, 1], [1, 1, np.inf, 1]])
def test_intrinsics_of_no_camera(row):
    with pytest.raises(UserError, match="view 7: the intrinsics"):
        check_intrinsics(np.array([row]), np.zeros((1, 6)), ["view 7"])


def test_rotation_between():
    random = np.random.default_rng(1)
    pairs = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in random.normal(size=(50, 2, 3))]
    z = np.array([0.0, 0.0, 1.0])
    for a, b in [*pairs, (z, z), (z, -z), (-z, z), (np.array([1e-9, 0, -1]), z)]:
        rotation = rotation_between(a, b)
        assert np.allclose(rotation @ a, b, atol=1e-8) and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-8)
        assert np.linalg.det(rotation) > 0


def look_at(positions, target):
    back = positions - target
    back = back / np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross([0.1, 0.2, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, positions], axis=2)


def test_nearest_to_axes():
    random = np.random.default_rng(2)
    target = np.array([1.0, -2.0, 0.5])
    poses = look_at(random.normal(size=(20, 3)) * 3, target)
    assert np.allclose(nearest_to_axes(poses), target)
    assert nearest_to_axes(look_at(random.normal(size=(20, 3)), np.array([0, 0, 1e4]))) is None
    assert nearest_to_axes(poses[:1]) is None


def test_upright():
    poses = look_at(np.random.default_rng(3).normal(size=(20, 3)), np.zeros(3))
    rotation, _ = upright(poses)
    up = rotation @ poses[:, :, 1].mean(axis=0)
    assert np.allclose(up / np.linalg.norm(up), [0, 0, 1])
    poses[10:, :, 1] = -poses[:10, :, 1]
    rotation, note = upright(poses)
    assert np.array_equal(rotation, np.eye(3)) and "cancel" in note


def test_trimmed_mean_survives_an_outlier():
    points = np.random.default_rng(4).normal(size=(1000, 3))
    points[0] = 1e7
    assert np.abs(trimmed_mean(points)).max() < 0.2
    assert np.allclose(trimmed_mean(np.ones((1, 3))), 1)


def limits(points, seen, positions, options):
    return view_limits(seen_distances(points, seen, positions), options)


def test_view_limits_survive_an_outlier():
    random = np.random.default_rng(5)
    points = np.concatenate([random.uniform(-1, 1, size=(100, 3)), [[1e5, 0, 0], [0, 0, 10.001]]])
    seen, positions = [np.arange(102), np.arange(3), np.zeros(0, dtype=int)], np.array([[0, 0, 10.0]] * 3)
    near, far, notes = limits(points, seen, positions, SimpleNamespace(min_near=0.1, enable_cam_near_far=True))
    assert 0.9 * 8.9 < near[0] < 0.9 * 10 and 1.1 * 10 < far[0] < 1.1 * 12
    distances = np.linalg.norm(points[:3] - (0, 0, 10), axis=1)
    assert np.isclose(near[1], 0.9 * distances.min()) and np.isclose(far[1], 1.1 * distances.max())
    assert near[2] == np.float32(0.1) and far[2] == np.inf and "1 see no sparse point" in notes[0] and near.dtype == far.dtype == np.float32


def test_views_start_before_the_nearest_point_of_all():
    points, seen = np.array([[0, 0, 0], [0, 0, 0.5], [0, 0, 1]]), [np.arange(3), np.array([0, 1]), np.zeros(0, dtype=int)]
    positions = np.array([[0, 0, 10.0], [0, 0, 8.0], [0, 0, 1.1]])  # the last is next to a point, but does not see it
    start = SimpleNamespace(min_near=None, enable_cam_near_far=False)
    near, far, notes = limits(points, seen, positions, start)
    assert (near == 0.75 * 7.5).all() and (far == np.inf).all() and "nearest sparse point" in notes[0]
    near, far, _ = limits(points, seen, positions, SimpleNamespace(min_near=None, enable_cam_near_far=True))
    assert np.allclose(near, [8.1, 6.75, 0.75 * 7.5]) and np.allclose(far, [11, 8.8, np.inf])
    near, _, notes = limits(points, seen, positions, SimpleNamespace(min_near=7.0, enable_cam_near_far=False))
    assert (near == 7).all() and "as given" in notes[0]
    assert (limits(points / 1e3, seen, positions / 1e3, start)[0] == np.float32(MIN_NEAR)).all()
    assert (view_limits(no_distances(3), start)[0] == np.float32(MIN_NEAR)).all()


def row_of_cameras(count, apart, depth=5.0):
    """Poses, intrinsics and sizes of cameras side by side that look the same way, each 90 degrees wide, `depth` behind the centre."""
    positions = np.outer(apart * np.arange(count), [1, 0, 0]) + [0, 0, depth]
    poses = np.concatenate([np.tile(np.eye(3), (count, 1, 1)), positions[:, :, None]], axis=2)
    return poses, np.tile([50.0, 50, 50, 50], (count, 1)), np.full((count, 2), 100)


def test_views_start_where_others_see_the_same():
    """Of the nine rays of a view, the fifth to be in three other pictures is in the middle column: at depth 2, where the second next views see it."""
    for apart in (0.1, 0.3):
        distance = 2 * apart * np.hypot(1, 2 / 3)
        assert distance <= overlap_distance(*row_of_cameras(60, apart)) < distance * OVERLAP_STEP
    assert overlap_distance(*row_of_cameras(60, 0.3, depth=0.8)) == pytest.approx(0.4)
    assert overlap_distance(*row_of_cameras(60, 1e-3)) == MIN_NEAR
    assert overlap_distance(*row_of_cameras(60, 10)) is None and overlap_distance(*row_of_cameras(3, 0.1)) is None and overlap_distance(*row_of_cameras(1, 0.1)) is None
    start = options("", min_near=None)
    near, far, notes = view_limits(no_distances(2), start, 0.2)
    assert (near == np.float32(0.2)).all() and np.isinf(far).all() and "few other views" in notes[0]
    assert (view_limits(no_distances(2), options("", min_near=0.1), 0.2)[0] == np.float32(0.1)).all()
    for overlap in (None, MIN_NEAR):
        assert (view_limits(no_distances(2), start, overlap)[0] == np.float32(MIN_NEAR)).all()


def test_scene_box():
    points = np.random.default_rng(6).uniform(-1, 1, size=(5000, 3)) * (1, 2, 0.5)
    box = scene_box(points, np.array([[0, 0, 3.0]]), 2.5, options("."))
    assert np.allclose(box, [-1.1, -2.2, -0.67, 1.1, 2.2, 2.5], atol=0.05)
    cube = [-2.5] * 3 + [2.5] * 3
    assert scene_box(None, np.zeros((1, 3)), 2.5, options(".")).tolist() == cube
    assert scene_box(points + 100, np.full((1, 3), 100.0), 2.5, options(".")).tolist() == cube
    assert scene_box(points, np.zeros((1, 3)), 2, options(".", contract=True)).tolist() == [-128] * 3 + [128] * 3
