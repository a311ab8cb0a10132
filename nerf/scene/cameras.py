"""Cameras: where each photo was taken from and through which lens.

Camera axes are OpenGL's (x right, y up, looking along -z), poses are camera-to-world, pixels are (x right, y down) with centres at +0.5.
Two lens families cover what the readers accept; r and theta are measured on undistorted rays:
  PERSPECTIVE  radial 1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8, then the tangential p1, p2 of OpenCV's calib3d
  FISHEYE      theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), OpenCV's fisheye module
"""

from dataclasses import dataclass, fields

import numpy as np

from nerf.errors import UserError

PERSPECTIVE, FISHEYE = 0, 1
ACROSS = np.array([1 / 6, 1 / 2, 5 / 6])  # of width and height: places that stand for a picture
OPENCV_TO_OPENGL = np.array([1.0, -1.0, -1.0])

# A rotation block further than this from a rotation times a number is no camera pose but a file of something else.
MAX_SHEAR = 0.05

# Beyond this a coordinate, a focal length or a distortion is not a measurement, and float32 has no room to compute with it.
LARGEST = 1e15
REMEDY = "correct that view or remove it from the scene"


@dataclass(frozen=True)
class Cameras:
    """n cameras, a row each.

    poses [n,3,4] float32 camera-to-world; intrinsics [n,4] float32 = fx, fy, cx, cy in pixels of the photo as loaded;
    distortion [n,6] float32 = k1, k2, k3, k4, p1, p2; lens [n] int32 = PERSPECTIVE or FISHEYE; sizes [n,2] int32 = width, height;
    near, far [n] float32: where the view starts and ends, as distances along the ray in world units; far is inf where there is no limit.
    """

    poses: np.ndarray
    intrinsics: np.ndarray
    distortion: np.ndarray
    lens: np.ndarray
    sizes: np.ndarray
    near: np.ndarray
    far: np.ndarray

    def __len__(self):
        return len(self.poses)

    def select(self, indices):
        """The cameras at `indices` (integers, a boolean mask or a slice), in that order."""
        return Cameras(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})


def spread_directions(intrinsics, sizes):
    """[n,9,3] directions in camera axes, with depth 1, through nine places spread evenly over each picture. What the lens bends is left out of account.

    intrinsics [n,4] and sizes [n,2] as rows of Cameras; float64.
    """
    x, y = ((sizes[:, None] * ACROSS[:, None] - intrinsics[:, None, 2:]) / intrinsics[:, None, :2]).transpose(2, 0, 1)
    return np.stack(np.broadcast_arrays(x[:, :, None], -y[:, None, :], -1.0), axis=-1).reshape(len(sizes), -1, 3)


def in_picture(pose, intrinsics, size, points):
    """[p] bool: whether a camera has points [p,3] in its picture. What stands between and what the lens bends are left out of account.

    pose [3,4] camera-to-world, intrinsics [4] and size [2] as a row of Cameras; float64.
    """
    local = (points - pose[:, 3]) @ pose[:, :3]
    depth = np.maximum(-local[:, 2], 1e-9)
    x, y = intrinsics[0] * local[:, 0] / depth + intrinsics[2], -intrinsics[1] * local[:, 1] / depth + intrinsics[3]
    return (local[:, 2] < 0) & (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])


def rigid_poses(matrices, labels):
    """Camera-to-world matrices with their rotation made exactly orthonormal.

    matrices [n,3,4] float64, labels [n] names for the messages -> poses [n,3,4] float64, and how many had a scale divided out of them.
    Raises UserError for a pose that is not finite, is singular, mirrors, or shears.
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    for label, matrix in zip(labels, matrices, strict=True):
        if not (np.abs(matrix) < LARGEST).all():  # NaN compares false
            raise UserError(f"{label}: the camera pose holds NaN, inf or an absurd number; {REMEDY}")
    u, stretch, vt = np.linalg.svd(matrices[:, :, :3])
    rotation = u @ vt
    determinant = np.linalg.det(rotation)
    for label, s, sign in zip(labels, stretch, determinant, strict=True):
        if s[2] < 1e-9 or s[0] - s[2] > MAX_SHEAR * s[0]:
            raise UserError(f"{label}: the camera pose is singular or skewed (axis lengths {s[0]:.3g}, {s[1]:.3g}, {s[2]:.3g}); {REMEDY}")
        if sign < 0:
            raise UserError(f"{label}: the camera pose mirrors space (its rotation has determinant -1); {REMEDY}")
    rescaled = int((np.abs(stretch[:, 0] - 1) > 1e-3).sum())
    return np.concatenate([rotation, matrices[:, :, 3:]], axis=2), rescaled


def check_intrinsics(intrinsics, distortion, labels):
    """Raises UserError unless every focal length is positive and every number of a sensible size.

    intrinsics [n,4], distortion [n,6], labels [n] names for the messages.
    """
    for label, row, lens_row in zip(labels, intrinsics, distortion, strict=True):
        values = np.concatenate([row, lens_row])
        if not ((np.abs(values) < LARGEST).all() and row[:2].min() > 1 / LARGEST):  # NaN compares false
            values = ", ".join(f"{value:.6g}" for value in values)
            raise UserError(f"{label}: the intrinsics fx, fy, cx, cy, k1..k4, p1, p2 = {values} are not those of a camera; {REMEDY}")
