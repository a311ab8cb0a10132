"""Camera paths: smooth, closed, orthonormal, deterministic, and sensible for degenerate rows of cameras."""


import numpy as np
import pytest

from nerf.scene.cameras import Cameras
from nerf.trajectory import (
    PATHS,
    attention_centre,
    circle,
    ellipse,
    interpolated,
    spiral,
)
from scene_files import options


def make_cameras(poses, size=(101, 75)):
    count = len(poses)
    return Cameras(
        poses=np.asarray(poses, dtype=np.float32),
        intrinsics=np.arange(4 * count, dtype=np.float32).reshape(count, 4) + 100,
        distortion=np.full((count, 6), 0.1, dtype=np.float32),
        lens=np.ones(count, dtype=np.int32),
        sizes=np.array([size] * count, dtype=np.int32),
        near=np.linspace(0.3, 0.5, count, dtype=np.float32),
        far=np.linspace(4, 9, count, dtype=np.float32),
    )


def look_at(place, target, roll=0.0):
    back = np.subtract(place, target) / np.linalg.norm(np.subtract(place, target))
    right = np.cross([np.sin(roll), 0, np.cos(roll)], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back, place], axis=1)


def orbit(count=40, radius=2.0, height=0.7, centre=(0.3, -0.2, 0.1), jitter=0.0):
    rng = np.random.default_rng(3)
    angles = 2 * np.pi * np.arange(count) / count
    places = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(count, height)], axis=1) + centre
    places += jitter * rng.standard_normal(places.shape)
    return make_cameras([look_at(place, np.add(centre, jitter * rng.standard_normal(3))) for place in places])


def check_path(path, frames):
    assert len(path) == frames
    rotations = path.poses[:, :, :3].astype(np.float64)
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-6)
    assert np.isfinite(path.poses).all()
    assert (path.sizes % 2 == 0).all() and (path.sizes > 0).all()
    assert not path.distortion.any() and not path.lens.any()
    for name in ("poses", "intrinsics", "distortion", "near", "far"):
        assert getattr(path, name).dtype == np.float32
    assert path.sizes.dtype == np.int32 and path.lens.dtype == np.int32


def steps(path):
    """Distances and angles from each frame to the next, the last one to the first."""
    following = np.roll(path.poses, -1, axis=0).astype(np.float64)
    distances = np.linalg.norm(following[:, :, 3] - path.poses[:, :, 3], axis=1)
    cosine = (np.einsum("nij,nij->n", following[:, :, :3], path.poses[:, :, :3].astype(np.float64)) - 1) / 2
    return distances, np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("make", PATHS.values())
def test_what_every_path_is(make):
    cameras = orbit(jitter=0.1)
    path = make(cameras, 60)
    check_path(path, 60)
    np.testing.assert_array_equal(path.intrinsics, np.repeat(cameras.intrinsics[:1], 60, axis=0))
    assert tuple(path.sizes[0]) == (100, 74)
    assert path.near[0] == cameras.near.min() and path.far[0] == cameras.far.max()
    np.testing.assert_array_equal(make(cameras, 60).poses, path.poses)


@pytest.mark.parametrize("make", PATHS.values())
def test_paths_are_closed_and_even(make):
    distances, angles = steps(make(orbit(jitter=0.1), 120))
    assert distances.max() < 3 * np.median(distances)
    assert angles.max() < 4 * np.median(angles) and angles.max() < 10


def test_an_orbit_is_interpolated_as_an_orbit():
    centre = np.array([0.3, -0.2, 0.1])
    path = interpolated(orbit(), 100)
    offsets = path.poses[:, :, 3] - centre
    np.testing.assert_allclose(np.linalg.norm(offsets[:, :2], axis=1), 2.0, atol=0.15)
    towards = -offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    assert np.einsum("ni,ni->n", -path.poses[:, :, 2], towards).min() > np.cos(np.radians(6))
    angles = np.unwrap(np.arctan2(offsets[:, 1], offsets[:, 0]))
    assert abs(abs(angles[-1] - angles[0]) - 2 * np.pi) < 0.3  # one full turn: the shortest round trip


def test_interpolated_passes_through_five_cameras():
    cameras = orbit(jitter=0.2)
    path = interpolated(cameras, 2000)
    gaps = np.linalg.norm(cameras.poses[:, None, :, 3] - path.poses[None, :, :, 3], axis=2).min(axis=1)
    nearest = np.sort(gaps)
    assert nearest[4] < 0.01 and nearest[10] > nearest[4]
    at = np.argmin(gaps)
    frame = np.linalg.norm(path.poses[:, :, 3] - cameras.poses[at, :, 3], axis=1).argmin()
    np.testing.assert_allclose(path.poses[frame, :, :3], cameras.poses[at, :, :3], atol=0.02)


def test_the_seed_chooses_another_path():
    cameras = orbit(jitter=0.2)
    assert not np.array_equal(interpolated(cameras, 10, seed=1).poses, interpolated(cameras, 10, seed=2).poses)


def test_the_attention_centre_is_where_the_axes_meet():
    np.testing.assert_allclose(attention_centre(orbit().poses.astype(np.float64)), [0.3, -0.2, 0.1], atol=2e-3)


def test_circle_keeps_height_radius_and_looks_at_the_centre():
    centre = np.array([0.3, -0.2, 0.1])
    path = circle(orbit(), 36)
    offsets = path.poses[:, :, 3] - centre
    np.testing.assert_allclose(offsets[:, 2], 0.7, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(offsets[:, :2], axis=1), 2.0, atol=1e-2)
    towards = -offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    np.testing.assert_allclose(np.einsum("ni,ni->n", -path.poses[:, :, 2], towards), 1, atol=1e-4)
    assert (path.poses[:, 2, 1] > 0.5).all()  # upright
    np.testing.assert_allclose(path.poses[0, :, 3], orbit().poses[0, :, 3], atol=1e-2)


def room(count=60, half=(3.0, 1.0), turn=0.5, height=0.4):
    """Cameras on an ellipse, its long axis turned by `turn` from x, looking at the origin."""
    angles = 2 * np.pi * np.arange(count) / count
    x, y = half[0] * np.cos(angles), half[1] * np.sin(angles)
    places = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), np.full(count, height)], axis=1)
    return make_cameras([look_at(place, (0, 0, 0)) for place in places])


def test_the_ellipse_follows_a_long_room_at_an_even_speed():
    path = ellipse(room(), 80)
    places = path.poses[:, :, 3].astype(np.float64)
    along = places[:, :2] @ [[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]
    share = np.percentile(np.abs(np.cos(2 * np.pi * np.arange(60) / 60)), 90)
    np.testing.assert_allclose(np.abs(along).max(axis=0), [3.0 * share, 1.0 * share], rtol=0.03)
    np.testing.assert_allclose((along[:, 0] / 3.0) ** 2 + along[:, 1] ** 2, share**2, atol=0.02)
    np.testing.assert_allclose(places[:, 2], 0.4, atol=0.01)
    distances = steps(path)[0]
    assert distances.max() < 1.05 * distances.min()
    towards = -places / np.linalg.norm(places, axis=1, keepdims=True)
    assert np.einsum("ni,ni->n", -path.poses[:, :, 2], towards).min() > 0.999


def facing_forward(target=None):
    """A wall of cameras in the plane x = 0, all looking along x, or at a target on that axis."""
    grid = [(0.0, y, z) for y in np.linspace(-1, 1, 5) for z in np.linspace(-0.5, 0.5, 3)]
    return make_cameras([look_at(place, np.add(place, (1, 0, 0)) if target is None else target) for place in grid])


def test_the_spiral_stays_in_the_wall_of_cameras_and_looks_at_one_point():
    path = spiral(facing_forward((5, 0, 0)), 120)
    places = path.poses[:, :, 3].astype(np.float64)
    np.testing.assert_allclose(np.abs(places).max(axis=0), [0.0, 1.0, 0.5], atol=0.01)
    away = np.array([5.0, 0, 0]) - places
    assert np.einsum("ni,ni->n", -path.poses[:, :, 2], away / np.linalg.norm(away, axis=1, keepdims=True)).min() > 0.999
    angles = np.unwrap(np.arctan2(2 * places[:, 2], places[:, 1]))
    assert abs(angles[-1] - angles[0]) == pytest.approx(4 * np.pi, abs=0.2)  # two turns


def test_the_spiral_of_parallel_cameras_looks_at_four_times_the_nearest_depth():
    path = spiral(facing_forward(), 40)
    places, forward = path.poses[:, :, 3].astype(np.float64), -path.poses[:, :, 2].astype(np.float64)
    met = places + forward * ((1.2 - places[:, 0]) / forward[:, 0])[:, None]  # near is 0.3
    np.testing.assert_allclose(met, np.broadcast_to([1.2, 0, 0], met.shape), atol=1e-3)


def degenerate_rows():
    straight = look_at((0, 0, 0), (1, 0, 0))
    shifted = np.array([np.concatenate([straight[:, :3], [[0], [0.1 * i], [0]]], axis=1) for i in range(7)])
    turned = np.array([look_at((0, 0, 0), (np.cos(a), np.sin(a), 0)) for a in np.linspace(0, 2 * np.pi, 9)[:-1]])
    down = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]])[None]
    return {
        "one camera": straight[None],
        "one camera looking down": down,
        "the same camera five times": np.repeat(straight[None], 5, axis=0),
        "two cameras": shifted[:2],
        "two opposite cameras": np.array([look_at((2, 0, 0), (0, 0, 0)), look_at((-2, 0, 0), (0, 0, 0))]),
        "parallel axes": shifted,
        "turning in place": turned,
        "far away": orbit().poses * np.array([1, 1, 1, 1e4]),
    }


@pytest.mark.parametrize("make", PATHS.values())
@pytest.mark.parametrize("name", degenerate_rows())
def test_degenerate_rows_of_cameras(make, name):
    check_path(make(make_cameras(degenerate_rows()[name]), 25), 25)


def test_a_photo_of_one_pixel_becomes_two():
    assert tuple(interpolated(make_cameras(orbit().poses, size=(1, 1)), 1).sizes[0]) == (2, 2)


@pytest.mark.parametrize("make", PATHS.values())
def test_nothing_to_go_through(make):
    with pytest.raises(ValueError, match="cameras is empty"):
        make(orbit().select(slice(0, 0)), 10)
    with pytest.raises(ValueError, match="frames is 0"):
        make(orbit(), 0)


@pytest.mark.parametrize(("name", "data_format"), [("bonsai", "colmap"), ("bust", "colmap"), ("fox", "nerf"), ("lego_200", "nerf")])
def test_paths_of_real_scenes_stay_among_the_cameras(scene_data, name, data_format, tmp_path):
    from nerf.scene import load_scene

    scene = load_scene(options(scene_data(name), data_format=data_format, downscale=2, workspace=str(tmp_path)))
    cameras = scene.cameras.select(scene.train)
    for make in PATHS.values():
        path = make(cameras, 100)
        check_path(path, 100)
        distances, angles = steps(path)
        assert distances.max() < 5 * np.median(distances) and angles.max() < 15
    offsets = cameras.poses[:, :, 3] - cameras.poses[:, :, 3].mean(axis=0)
    strays = interpolated(cameras, 100).poses[:, :, 3] - cameras.poses[:, :, 3].mean(axis=0)
    assert np.linalg.norm(strays, axis=1).max() < 1.5 * np.linalg.norm(offsets, axis=1).max()
