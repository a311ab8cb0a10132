"""What COLMAP's sparse models consist of, whichever kind of file they are in: cameras with their lenses, and registered images."""

from dataclasses import dataclass

import numpy as np

# The place in this list is COLMAP's model id.
MODEL_NAMES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV",
               "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE", "SIMPLE_DIVISION", "DIVISION",
               "SIMPLE_FISHEYE", "FISHEYE", "EUCM", "EQUIRECTANGULAR")
# Those that rays follow. FULL_OPENCV's k4 to k6, here d1 to d3, divide the radial terms, which no lens here does: they have to be zero.
DIVIDING = ("d1", "d2", "d3")
PARAMETERS = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 d1 d2 d3",
    "SIMPLE_FISHEYE": "f cx cy",
    "FISHEYE": "fx fy cx cy",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
}
MAX_SIDE = 1 << 20
REMEDY = "copy the model again or export it anew from COLMAP"
UNDISTORT = "undistort the photos with `colmap image_undistorter`"


@dataclass(frozen=True)
class ModelCamera:
    """model: a name of PARAMETERS; width, height in pixels; parameters: by the names that PARAMETERS gives, float."""

    model: str
    width: int
    height: int
    parameters: dict


@dataclass(frozen=True)
class ModelImage:
    """name: path below the photo folder; quaternion [4] (w, x, y, z) and translation [3]: world to camera, OpenCV axes;
    xy [k,2] float64 keypoints and point_ids [k] int64 the points they belong to, only those that belong to one."""

    name: str
    camera: int
    quaternion: np.ndarray
    translation: np.ndarray
    xy: np.ndarray
    point_ids: np.ndarray


class Malformed(Exception):
    """What is wrong with the file being read, and the remedy; read_model adds the file's name."""

    def __init__(self, what, remedy=REMEDY):
        super().__init__(f"{what}; {remedy}")


def make_camera(model, width, height, values):
    """A ModelCamera of the lens `model` with its parameters `values`. Raises Malformed for one that we lack or that is none."""
    if model not in PARAMETERS:
        raise Malformed(f"camera model {model} is not supported (supported: {', '.join(PARAMETERS)})", UNDISTORT)
    names = PARAMETERS[model].split()
    if len(values) != len(names):
        raise Malformed(f"a {model} camera has {len(values)} parameters where {len(names)} are expected ({', '.join(names)})")
    if not (0 < width < MAX_SIDE and 0 < height < MAX_SIDE):
        raise Malformed(f"a {model} camera is {width}x{height} pixels large, which no photo is")
    parameters = dict(zip(names, values, strict=True))
    if any(parameters.get(name) for name in DIVIDING):
        raise Malformed(f"a {model} camera has k4, k5 or k6, which rays do not follow", UNDISTORT)
    return ModelCamera(model, width, height, parameters)


def make_image(name, camera, numbers, xy, point_ids):
    """A ModelImage; numbers [7]: quaternion and translation; point_ids are -1 for keypoints without a point.

    Raises Malformed for a pose that is none.
    """
    numbers = np.array(numbers, dtype=np.float64)
    sound = np.isfinite(numbers).all() and np.abs(numbers[:4]).max() < 1e6
    length = np.linalg.norm(numbers[:4]) if sound else 0.0
    if length < 1e-6:
        raise Malformed(f"the pose of image {name} holds NaN, inf or a zero quaternion ({', '.join(f'{x:.4g}' for x in numbers)})")
    matched = point_ids >= 0
    return ModelImage(name, camera, numbers[:4] / length, numbers[4:], xy[matched], point_ids[matched])
