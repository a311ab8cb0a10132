"""Camera paths as files, in the dialect of JSON that nerfstudio's viewer and renderer exchange.

    {"camera_type": "perspective", "render_width": 1920, "render_height": 1080, "fps": 24, "seconds": 4,
     "camera_path": [{"camera_to_world": [16 numbers, row by row], "fov": 50}, ...]}

Every entry of `camera_path` is a frame. `camera_to_world` is a pose as in nerf.scene.cameras (OpenGL axes), in this project's world: z up,
all training cameras within the unit ball, as in the viewer, in poses.json and in the file that each video leaves beside itself. `fov` is
the vertical angle of view in degrees. The frames a second are `fps`, or else the number of frames divided by `seconds`, or else 24. All
other keys (keyframes, crop, aspect, smoothness, ...) are passed over.
"""

import json
import math
from typing import NamedTuple

import numpy as np

from nerf.errors import UserError
from nerf.files import write_file
from nerf.scene.cameras import PERSPECTIVE, Cameras, rigid_poses

FPS = 24
LARGEST_SIDE = 16_384  # pixels
MOST_FPS = 1000
TURNED = 1e-6  # share of its last number that the others of a matrix's last row may be, by rounding


class CameraPath(NamedTuple):
    """Cameras of the frames, in order, and how many of them make a second."""

    cameras: Cameras
    fps: float


def load_camera_path(path, cameras):
    """The CameraPath of a file.

    path: of a file as above; cameras: Cameras of the training views, whose limits (the least near, the greatest far) hold on the path.
    Raises UserError for a file that cannot be read or says something else.
    """
    content = _read(path)
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise UserError(f"{path}: camera_type is {str(kind)[:40]!r}; only perspective paths can be rendered.")
    frames = content.get("camera_path")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path}: camera_path must be a list of one frame or more.")
    width, height = (int(_number(path, content, key, 1, LARGEST_SIDE)) for key in ("render_width", "render_height"))
    labels = [f"{path}, frame {k}" for k in range(len(frames))]
    poses = rigid_poses(np.stack([_matrix(label, frame) for label, frame in zip(labels, frames, strict=True)]), labels)[0]
    angles = np.radians([_number(label, frame, "fov", 0.1, 179.0) for label, frame in zip(labels, frames, strict=True)])
    focal = 0.5 * height / np.tan(0.5 * angles)
    count, even = len(frames), (width + width % 2, height + height % 2)  # h264 takes even sizes only
    return CameraPath(
        Cameras(
            poses=poses.astype(np.float32),
            intrinsics=np.stack([focal, focal, np.full(count, even[0] / 2), np.full(count, even[1] / 2)], axis=1).astype(np.float32),
            distortion=np.zeros((count, 6), np.float32),
            lens=np.full(count, PERSPECTIVE, np.int32),
            sizes=np.full((count, 2), even, np.int32),
            near=np.full(count, cameras.near.min(), np.float32),
            far=np.full(count, cameras.far.max(), np.float32),
        ),
        _fps(path, content, count),
    )


def save_camera_path(path, cameras, fps):
    """Writes Cameras with pictures of one size as such a file, a template for paths of one's own. Raises UserError where it cannot be written."""
    width, height = (int(side) for side in cameras.sizes[0])
    frames = [
        {
            "camera_to_world": [*pose.ravel().tolist(), 0.0, 0.0, 0.0, 1.0],
            "fov": math.degrees(2.0 * math.atan(0.5 * height / focal)),
            "aspect": width / height,
        }
        for pose, focal in zip(np.float64(cameras.poses), np.float64(cameras.intrinsics[:, 1]), strict=True)
    ]
    head = {"camera_type": "perspective", "render_width": width, "render_height": height, "fps": fps, "seconds": len(frames) / fps}
    write_file(path, (json.dumps({**head, "camera_path": frames}, indent=1) + "\n").encode())


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read the camera path {path} ({getattr(error, 'strerror', None) or error}): give a file in nerfstudio's JSON.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a camera path is an object: give a file in nerfstudio's JSON.")
    return content


def _fps(path, content, count):
    if "fps" in content:
        return _number(path, content, "fps", 1e-3, MOST_FPS)
    if "seconds" in content:
        return min(count / _number(path, content, "seconds", 1e-3, 1e9), MOST_FPS)
    return FPS


def _matrix(label, frame):
    """[3, 4] float64 of a frame's camera_to_world: 16 numbers, or 4 rows of 4, the last of them 0 0 0 1 or a multiple."""
    try:
        matrix = np.array(frame["camera_to_world"], dtype=np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{label}: camera_to_world must be 16 numbers, a 4x4 matrix row by row.") from None
    *turned, factor = matrix[3]
    if not (factor and np.abs(turned).max() <= TURNED * abs(factor)):  # NaN compares false
        row = " ".join(f"{number:g}" for number in matrix[3])
        raise UserError(f"{label}: the last row of camera_to_world is {row} in place of 0 0 0 1; write the matrix row by row: is it transposed?")
    return matrix[:3] / factor


def _number(label, content, key, least, most):
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{label}: {key} is {str(value)[:40]}; it must be a number from {least:g} to {most:g}.")
    return value
