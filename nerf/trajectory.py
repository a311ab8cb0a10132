"""Camera paths for videos. Poses are camera to world, OpenGL axes (the camera looks along -z), in a world whose z is up."""

import dataclasses
from itertools import pairwise, permutations

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

KEYS = 5  # cameras that an interpolated path passes through
UP = np.array([0.0, 0.0, 1.0])
REACH = 90  # percentile of the cameras' distances from the centre that a path keeps within: a few stragglers do not widen it
WIDEST = 0.5  # extent of a spiral over the distance it looks: beyond, cameras that surround a thing would swing about it
SPIRAL_TURNS = 2  # of the spiral round the mean view, for one sway to and fro
CLOSE_SHARE = 0.25  # weight of the nearest depth in the inverse depth that a spiral looks at; infinity has the rest


def interpolated(cameras, frames=100, seed=0):
    """A smooth closed path through up to five training cameras that lie far from each other.

    The first camera is drawn with `seed`, each further one is the farthest from those chosen (in place and view direction); the
    shortest round trip orders them. Places and rotations follow periodic cubic splines, so that the path has no kink at a camera
    and an orbit stays round between two of its cameras. The frame after the last would be the first again.

    cameras: Cameras, n >= 1 rows; frames >= 1. Returns Cameras with `frames` rows: the lens of the first camera without distortion, an even
    size. Raises ValueError where there is no camera or no frame.
    """
    _check(cameras, frames)
    poses = np.asarray(cameras.poses, dtype=np.float64)
    keys = poses[_round_trip(poses, _well_spread(poses, seed))]
    return _path(cameras, _spline_poses(keys, frames))


def circle(cameras, frames=100):
    """One level turn round the point that the cameras look at, at their mean height and mean horizontal distance, looking at it.

    It begins on the side of the first camera. Cameras that turned in one place give a turn in that place, looking outwards.

    cameras: Cameras, n >= 1 rows; frames >= 1. Returns Cameras with `frames` rows, as
    `interpolated`. Raises ValueError where there is no camera or no frame.
    """
    _check(cameras, frames)
    poses = np.asarray(cameras.poses, dtype=np.float64)
    centre = attention_centre(poses)
    offsets = poses[:, :, 3] - centre
    radius = np.linalg.norm(offsets[:, :2], axis=1).mean()
    angles = np.arctan2(offsets[0, 1], offsets[0, 0]) + 2.0 * np.pi * np.arange(frames) / frames
    outwards = np.stack([np.cos(angles), np.sin(angles), np.zeros(frames)], axis=1)
    ring = radius * outwards + [0.0, 0.0, offsets[:, 2].mean()]
    directions = -ring if np.linalg.norm(ring[0]) > 1e-6 else outwards
    return _path(cameras, _looking_from(centre + ring, directions))


def ellipse(cameras, frames=100):
    """One level turn on the ellipse that the cameras stand on, looking at the point that they look at, at an even speed.

    The axes are the principal ones of the cameras' level offsets from that point; each half axis is the 90th percentile of the offsets
    along it, the height that of the mean camera. It suits rooms, which are longer than wide. After the elliptical path of mip-NeRF 360's
    published code (Barron et al. 2022).

    cameras: Cameras, n >= 1 rows; frames >= 1. Returns Cameras with `frames` rows, as
    `interpolated`. Raises ValueError where there is no camera or no frame.
    """
    _check(cameras, frames)
    poses = np.asarray(cameras.poses, dtype=np.float64)
    centre = attention_centre(poses)
    offsets = poses[:, :, 3] - centre
    _, axes = np.linalg.eigh(offsets[:, :2].T @ offsets[:, :2])
    half = np.percentile(np.abs(offsets[:, :2] @ axes), REACH, axis=0)
    fine = 2.0 * np.pi * np.arange(10 * max(frames, 100) + 1) / (10 * max(frames, 100))
    ring = np.stack([half[0] * np.cos(fine), half[1] * np.sin(fine)], axis=1) @ axes.T
    level = _evenly_along(ring, frames)
    places = np.concatenate([level, np.full((frames, 1), offsets[:, 2].mean())], axis=1)
    angles = 2.0 * np.pi * np.arange(frames) / frames
    outwards = np.stack([np.cos(angles), np.sin(angles), np.zeros(frames)], axis=1)
    away = np.linalg.norm(places, axis=1, keepdims=True) > 1e-6
    return _path(cameras, _looking_from(centre + places, np.where(away, -places, outwards)))


def spiral(cameras, frames=100):
    """A spiral of two turns about the mean view of a forward-facing capture, swaying to and fro once, looking at one point ahead.

    Its extent is the 90th percentile of the cameras' offsets in the axes of the mean view, at most half the way to that point. The point lies at the depth whose inverse is
    a quarter of the nearest one's (a weighted harmonic mean of the nearest depth and infinity), or, where the cameras turn towards
    something farther away, there. After the render path of LLFF (Mildenhall et al. 2019).

    cameras: Cameras, n >= 1 rows; frames >= 1. Returns Cameras with `frames` rows, as
    `interpolated`. Raises ValueError where there is no camera or no frame.
    """
    _check(cameras, frames)
    poses = np.asarray(cameras.poses, dtype=np.float64)
    _, up, back, place = poses.mean(axis=0).T
    if min(np.linalg.norm(back), np.linalg.norm(np.cross(up, back))) < 1e-3:  # cameras that look everywhere have no mean view: take the first
        _, up, back, place = poses[0].T
    mean = _looking(place, -back, up)
    reach = np.percentile(np.abs((poses[:, :, 3] - place) @ mean[:, :3]), REACH, axis=0)
    ahead = max((attention_centre(poses) - place) @ -mean[:, 2], cameras.near.min() / CLOSE_SHARE, 1e-3)
    reach *= min(1.0, WIDEST * ahead / max(np.linalg.norm(reach), 1e-9))
    turn = 2.0 * np.pi * np.arange(frames) / frames
    local = reach * np.stack([np.cos(SPIRAL_TURNS * turn), np.sin(SPIRAL_TURNS * turn), np.sin(turn)], axis=1)
    places = place + local @ mean[:, :3].T
    return _path(cameras, _looking_from(places, place - ahead * mean[:, 2] - places, mean[:, 1]))


PATHS = {"interp": interpolated, "circle": circle, "ellipse": ellipse, "spiral": spiral}  # what --camera_traj names


def attention_centre(poses):
    """The point nearest to all optical axes in the sense of least squares, [3] float64.

    Where the axes are parallel, or there is one only, that point is free along them: a small weight then draws it to one world unit in
    front of the cameras.

    poses: [n, 3, 4] camera to world.
    """
    forward, places = -poses[:, :, 2], poses[:, :, 3]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    pull = 1e-3 * len(poses)
    normal = across.sum(axis=0) + pull * np.eye(3)
    return np.linalg.solve(normal, np.einsum("nij,nj->i", across, places) + pull * (places + forward).mean(axis=0))


def _check(cameras, frames):
    if len(cameras) == 0:
        raise ValueError("cameras is empty: a path needs at least one camera")
    if frames < 1:
        raise ValueError(f"frames is {frames}: a path needs at least one")


def _features(poses):
    """What tells two views apart, [n, 6]: place in units of the cameras' spread, and view direction."""
    places = poses[:, :, 3] - poses[:, :, 3].mean(axis=0)
    spread = np.linalg.norm(places, axis=1).max()
    return np.concatenate([places / max(spread, 1e-9), -poses[:, :, 2]], axis=1)


def _well_spread(poses, seed):
    """Indices of up to KEYS cameras by farthest point sampling; fewer where cameras coincide."""
    features = _features(poses)
    chosen = [int(np.random.default_rng(seed).integers(len(poses)))]
    distance = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < KEYS and distance.max() > 1e-3:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return chosen


def _round_trip(poses, chosen):
    """`chosen` in the order of the shortest closed trip that starts at its first (few enough to try all)."""
    features = _features(poses)

    def length(order):
        stops = features[[*order, order[0]]]
        return np.linalg.norm(np.diff(stops, axis=0), axis=1).sum()

    return list(min(((chosen[0], *rest) for rest in permutations(chosen[1:])), key=length))


def _spline_poses(keys, frames):
    """[frames, 3, 4] poses on the closed curve through keys [k, 3, 4]."""
    if len(keys) == 1:
        return np.repeat(keys, frames, axis=0)
    # Two turns, since a rotation by 360 degrees takes a quaternion q to -q: only after two is its curve closed in any case.
    twice = np.concatenate([keys, keys, keys[:1]])
    rotations = Rotation.from_matrix(twice[:, :, :3])
    quaternions = rotations.as_quat()
    for previous, current in pairwise(quaternions):
        if previous @ current < 0:
            current *= -1
    quaternions[-1] = quaternions[0]
    gaps = np.linalg.norm(np.diff(_features(twice), axis=0), axis=1)
    knots = np.concatenate([[0.0], np.cumsum(gaps)])
    times = knots[len(keys)] * np.arange(frames) / frames
    places = CubicSpline(knots, twice[:, :, 3], bc_type="periodic")(times)
    turned = Rotation.from_quat(CubicSpline(knots, quaternions, bc_type="periodic")(times)).as_matrix()
    return np.concatenate([turned, places[:, :, None]], axis=2)


def _looking(place, direction, up=UP):
    """[3, 4] pose at `place` that looks along `direction` with `up` above (y, or else x, where it looks along that)."""
    back = -direction / np.linalg.norm(direction)
    right = np.cross(up, back)
    if np.linalg.norm(right) < 1e-2 * np.linalg.norm(up):
        right = np.cross(np.eye(3)[1 if abs(back[1]) < 0.9 else 0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back, place], axis=1)


def _looking_from(places, directions, up=UP):
    """[n, 3, 4] poses at places [n, 3] that look along directions [n, 3]."""
    return np.stack([_looking(place, direction, up) for place, direction in zip(places, directions, strict=True)])


def _evenly_along(curve, count):
    """`count` points [count, d] evenly spaced along a closed curve [k, d] whose last point is its first."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    if length[-1] < 1e-9:
        return np.repeat(curve[:1], count, axis=0)
    wanted = length[-1] * np.arange(count) / count
    return np.stack([np.interp(wanted, length, column) for column in curve.T], axis=1)


def _path(cameras, poses):
    """Cameras with `poses` [frames, 3, 4] and the first camera's lens, freed of distortion. Their limits hold for every training view."""
    frames = len(poses)
    first = cameras.select(np.zeros(frames, dtype=np.int64))
    return dataclasses.replace(
        first,
        poses=poses.astype(np.float32),
        distortion=np.zeros_like(first.distortion),
        lens=np.zeros_like(first.lens),
        sizes=np.maximum(first.sizes - first.sizes % 2, 2),  # h264 halves the colour's resolution and takes even sizes only
        near=np.full(frames, cameras.near.min(), dtype=np.float32),
        far=np.full(frames, cameras.far.max(), dtype=np.float32),
    )
