"""Normalisation: one turn, shift, scale and offset that bring cameras and sparse points from file units into the world.

In the world z is up, the region of interest surrounds the origin and all cameras are within the unit ball, unless --scale or --offset
say otherwise.
"""

from dataclasses import dataclass

import numpy as np

from nerf.errors import UserError
from nerf.scene.capture import landmarks

SYNTHETIC_SCALE = 0.8
AUTO = -1.0

# Below this share of agreement the cameras' up axes cancel and their mean says nothing (a ring of cameras looking straight down).
LEAST_AGREEMENT = 0.05

# Smallest eigenvalue of the mean of I - d d^T, about the mean squared sine of the angle between the optical axes: under 2 degrees
# the point nearest to all axes is decided by noise.
LEAST_CONVERGENCE = 1e-3

# Cameras are at one place where they are no farther apart than this in file units, or, as far as rounding goes, of the greatest coordinate: it
# may be millions of metres where poses are in those of a map.
ONE_PLACE, ROUNDING = 1e-6, 1e-11

# A camera this many times as far as nearly all others was probably placed wrong.
STRAY, NEARLY_ALL = 5, 0.95

# Share of the sparse points cut off at each end of each axis before averaging: a few mistriangulated points lie very far away.
TRIMMED = 0.01


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation (x - centre) + offset. rotation [3,3], centre [3], offset [3] float64."""

    rotation: np.ndarray
    centre: np.ndarray
    scale: float
    offset: np.ndarray

    def points(self, points):
        """[...,3] file units -> [...,3] world."""
        return self.scale * (points - self.centre) @ self.rotation.T + self.offset

    def poses(self, poses):
        """Camera-to-world [n,3,4] file units -> [n,3,4] world; the rotations stay orthonormal."""
        return np.concatenate([self.rotation @ poses[:, :, :3], self.points(poses[:, :, 3])[:, :, None]], axis=2)


def world_transform(capture, poses, options):
    """The Similarity for a Capture with rigid poses [n,3,4], and notes on how it was found. Raises UserError for a senseless --scale."""
    if options.scale != AUTO and not (np.isfinite(options.scale) and options.scale > 0):
        raise UserError(f"--scale {options.scale}: the scale has to be positive, or -1 for an automatic one")
    offset = np.array(options.offset, dtype=np.float64)
    positions = poses[:, :, 3]
    if capture.framed:
        rotation, up = upright(poses)
        centre, scale, how = np.zeros(3), 1.0, "that of the file, whose unit sphere holds the object"
        notes = [f"world axes: {up}"]
    elif capture.synthetic:
        rotation, centre, notes = np.eye(3), np.zeros(3), []
        scale, how = SYNTHETIC_SCALE, "the usual one for NeRF-synthetic scenes"
    else:
        rotation, up = upright(poses)
        marks = landmarks(capture, poses)
        centre, where = _centre(marks, poses, options.enable_cam_center)
        scale, how = _unit_scale(positions, centre, marks)
        notes = [f"world axes: {up}", f"world centre: {where}", *(_stray(capture.names, positions, centre) if options.scale == AUTO else [])]
    if options.scale != AUTO:
        scale, how = options.scale, "as given"
    notes.append(f"scale {scale:.6g} ({how}; --scale changes it)")
    if offset.any():
        notes.append(f"offset {offset[0]:g} {offset[1]:g} {offset[2]:g} is added after scaling")
    return Similarity(rotation, centre, float(scale), offset), notes


def upright(poses):
    """Rotation [3,3] that takes the cameras' mean up axis to +z, and a note."""
    up = poses[:, :, 1].mean(axis=0)
    length = np.linalg.norm(up)
    if length < LEAST_AGREEMENT:
        return np.eye(3), "as in the file, because the cameras' up axes cancel"
    return rotation_between(up / length, np.array([0.0, 0.0, 1.0])), "the cameras' mean up axis is +z"


def rotation_between(a, b):
    """The smallest rotation [3,3] that takes unit vector a to unit vector b (Rodrigues: I + K + K^2 / (1 + a.b), K = [a x b])."""
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:  # opposite: half a turn about any axis square to a
        axis = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    x, y, z = np.cross(a, b)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + k + k @ k / (1 + cosine)


def nearest_to_axes(poses):
    """The point [3] with the least sum of squared distances to all optical axes, or None where the axes are too parallel to have one."""
    axes, positions = poses[:, :, 2], poses[:, :, 3]
    square = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    if np.linalg.eigvalsh(square.mean(axis=0))[0] < LEAST_CONVERGENCE:
        return None
    return np.linalg.solve(square.sum(axis=0), np.einsum("nij,nj->i", square, positions))


def trimmed_mean(points):
    """Mean [3] of the points within the inner 98 % of every axis, points [p,3]."""
    low, high = np.quantile(points, [TRIMMED, 1 - TRIMMED], axis=0)
    inside = ((points >= low) & (points <= high)).all(axis=1)
    return points[inside].mean(axis=0) if inside.any() else np.median(points, axis=0)


def _centre(marks, poses, at_cameras):
    mean = poses[:, :, 3].mean(axis=0)
    if at_cameras:
        return mean, "the mean camera"
    if marks is not None:
        return trimmed_mean(marks.points), f"the mean {marks.noun}, outliers apart (--enable_cam_center takes the mean camera)"
    point = nearest_to_axes(poses)
    if point is None:
        return mean, "the mean camera, because the optical axes are nearly parallel (--offset shifts the scene)"
    return point, "the point nearest to all optical axes (--enable_cam_center takes the mean camera)"


def _unit_scale(positions, centre, marks):
    radius = np.linalg.norm(positions - centre, axis=1).max()
    negligible = ONE_PLACE + ROUNDING * np.abs(positions).max()
    if radius > negligible:
        return 1 / radius, "the farthest camera is at distance 1"
    if marks is not None:
        distance = np.median(np.linalg.norm(marks.points - centre, axis=1))
        if distance > negligible:
            return 1 / distance, f"all cameras are at the centre; the median {marks.noun} is at distance 1"
    return 1.0, "that of the file, because all cameras are at one place and nothing else tells the size"


def _stray(names, positions, centre):
    """A warning where the farthest camera alone decides on the scale, else nothing. names [n], positions [n,3]."""
    distances = np.linalg.norm(positions - centre, axis=1)
    usual, farthest = np.quantile(distances, NEARLY_ALL, method="lower"), int(np.argmax(distances))
    if distances[farthest] <= STRAY * usual or usual <= ONE_PLACE + ROUNDING * np.abs(positions).max():
        return []
    others = int((distances > STRAY * usual).sum()) - 1
    who, ratio = names[farthest] + f" and {others} others" * bool(others), distances[farthest] / usual
    return [(f"warning: {who} may have a wrong pose: {ratio:.0f} times as far from the centre as nearly all others, which makes "
             f"all else small; remove that photo, or, if it is right, pass --scale {1 / usual:.3g}")]
