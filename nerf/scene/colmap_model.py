"""COLMAP sparse models: cameras, registered images and points from .bin or .txt files (colmap.github.io/format.html).

Nothing a file claims is believed before it is checked against the bytes that are there, so that a truncated or foreign file is one
sentence and never a crash, a hang or a huge allocation.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.errors import UserError

REMEDY = "copy the model again or export it anew from COLMAP"
# The place in this list is COLMAP's model id.
MODEL_NAMES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV",
               "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE")
PARAMETERS = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
}
KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
MAX_SIDE = 1 << 20


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


@dataclass(frozen=True)
class Model:
    """cameras: id -> ModelCamera; images: list of ModelImage; point_ids [p] int64 ascending; points [p,3] float64, all finite;
    dropped: how many were not."""

    folder: Path
    cameras: dict
    images: list
    point_ids: np.ndarray
    points: np.ndarray
    dropped: int


def read_model(folder):
    """The Model in `folder`, from the .bin files where they are there, else from .txt.

    points3D may be absent. Raises UserError naming the file that is malformed or has a camera model we lack.
    """
    kind = model_kind(folder)
    read_cameras, read_images, read_points = _BINARY if kind == ".bin" else _TEXT
    cameras = _read(folder / f"cameras{kind}", read_cameras)
    images = _read(folder / f"images{kind}", read_images)
    points_file = folder / f"points3D{kind}"
    ids, points = _read(points_file, read_points) if points_file.is_file() else (np.zeros(0, np.int64), np.zeros((0, 3)))
    for image in images:
        if image.camera not in cameras:
            raise UserError(f"{folder / ('images' + kind)}: image {image.name} names camera {image.camera}, "
                            f"which cameras{kind} lacks; {REMEDY}")
    finite = (np.abs(points) < 1e15).all(axis=1)  # NaN compares false
    order = np.argsort(ids[finite], kind="stable")
    return Model(folder, cameras, images, ids[finite][order], points[finite][order], int((~finite).sum()))


def model_kind(folder):
    """'.bin', '.txt' or None: what a sparse model in `folder` is written as."""
    for kind in (".bin", ".txt"):
        if (folder / f"cameras{kind}").is_file() and (folder / f"images{kind}").is_file():
            return kind
    return None


def _read(file, reader):
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from None
    try:
        return reader(file, content)
    except _Malformed as error:
        raise UserError(f"{file}: {error}; {REMEDY}") from None


class _Malformed(Exception):
    """What is wrong with the file being read; _read adds its name and the remedy."""


def _camera(model, width, height, values):
    if model not in PARAMETERS:
        raise _Malformed(f"camera model {model} is not supported (supported: {', '.join(PARAMETERS)}); "
                         "undistort the photos with `colmap image_undistorter`, or else")
    names = PARAMETERS[model].split()
    if len(values) != len(names):
        raise _Malformed(f"a {model} camera has {len(values)} parameters where {len(names)} are expected ({', '.join(names)})")
    if not (0 < width < MAX_SIDE and 0 < height < MAX_SIDE):
        raise _Malformed(f"a {model} camera is {width}x{height} pixels large, which no photo is")
    return ModelCamera(model, width, height, dict(zip(names, values, strict=True)))


def _image(name, camera, numbers, xy, point_ids):
    numbers = np.array(numbers, dtype=np.float64)
    sound = np.isfinite(numbers).all() and np.abs(numbers[:4]).max() < 1e6
    length = np.linalg.norm(numbers[:4]) if sound else 0.0
    if length < 1e-6:
        raise _Malformed(f"the pose of image {name} holds NaN, inf or a zero quaternion ({', '.join(f'{x:.4g}' for x in numbers)})")
    matched = point_ids >= 0
    return ModelImage(name, camera, numbers[:4] / length, numbers[4:], xy[matched], point_ids[matched])


class _Bytes:
    """A reading position in a little-endian binary file that refuses to pass its end."""

    def __init__(self, file, content):
        self.content, self.at = content, 0
        self.records = f"a COLMAP {file.name}"

    def take(self, layout, what):
        start = self.skip(struct.calcsize("<" + layout), what)
        return struct.unpack_from("<" + layout, self.content, start)

    def skip(self, size, what):
        start, self.at = self.at, self.at + size
        if self.at > len(self.content):
            raise _Malformed(f"the file ends at byte {len(self.content)} inside {what}; it is truncated or not {self.records}")
        return start

    def count(self, smallest, what):
        """A u64 count of things of at least `smallest` bytes each."""
        value = self.take("Q", f"the number of {what}")[0]
        if value * smallest > len(self.content) - self.at:
            raise _Malformed(f"it claims {value} {what}, more than its {len(self.content)} bytes can hold; "
                             f"it is truncated or not {self.records}")
        return value

    def name(self, what):
        end = self.content.find(b"\0", self.at)
        if end <= self.at:
            raise _Malformed(f"{what} has no name; the file is truncated or not {self.records}")
        start, self.at = self.at, end + 1
        return os.fsdecode(self.content[start:end])

    def finish(self):
        if self.at != len(self.content):
            raise _Malformed(f"{len(self.content) - self.at} bytes follow the last record; it is not {self.records}")


def _binary_cameras(file, content):
    data = _Bytes(file, content)
    total, cameras = data.count(24 + 3 * 8, "cameras"), {}
    for i in range(total):
        what = f"camera {i + 1} of {total}"
        key, model_id, width, height = data.take("IiQQ", what)
        model = MODEL_NAMES[model_id] if 0 <= model_id < len(MODEL_NAMES) else f"number {model_id}"
        values = data.take(f"{len(PARAMETERS[model].split())}d", what) if model in PARAMETERS else ()
        cameras[key] = _camera(model, width, height, values)
    data.finish()
    return cameras


def _binary_images(file, content):
    data = _Bytes(file, content)
    total, images = data.count(64 + 2 + 8, "images"), []
    for i in range(total):
        what = f"image {i + 1} of {total}"
        _, *numbers, camera = data.take("I7dI", what)
        name = data.name(what)
        keypoints = data.count(KEYPOINT.itemsize, f"keypoints of {what}")
        start = data.skip(keypoints * KEYPOINT.itemsize, what)
        table = np.frombuffer(content, dtype=KEYPOINT, count=keypoints, offset=start)
        images.append(_image(name, camera, numbers, table["xy"], table["point"]))
    data.finish()
    return images


def _binary_points(file, content):
    data = _Bytes(file, content)
    total = data.count(43 + 8, "points")
    ids, points = np.empty(total, dtype=np.int64), np.empty((total, 3))
    for i in range(total):
        what = f"point {i + 1} of {total}"
        ids[i], *points[i] = data.take("q3d", what)
        data.skip(11, what)  # colour and reprojection error
        data.skip(8 * data.count(8, f"observations of point {i + 1}"), what)
    data.finish()
    return ids, points


def _text_lines(content):
    """(line number, line) of all lines."""
    try:
        return enumerate(content.decode("utf-8").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise _Malformed(f"byte {error.start} is not text") from None


def _is_record(line):
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(layout, number, line):
    """layout(line), or a message with the layout's docstring, which is how COLMAP's own header comments describe the line."""
    try:
        return layout(line)
    except (ValueError, IndexError, OverflowError):
        raise _Malformed(f"line {number} is not '{layout.__doc__}'") from None


def _camera_line(line):
    """CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]"""
    key, model, width, height, *values = line.split()
    return int(key), model, int(width), int(height), [float(value) for value in values]


def _image_line(line):
    """IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"""
    _, qw, qx, qy, qz, tx, ty, tz, camera, name = line.split(maxsplit=9)
    return name.rstrip(), int(camera), [float(number) for number in (qw, qx, qy, qz, tx, ty, tz)]


def _keypoints_line(line):
    """POINTS2D[] as (X, Y, POINT3D_ID)"""
    values = np.array(line.split(), dtype=object).reshape(-1, 3)
    return values[:, :2].astype(np.float64), values[:, 2].astype(np.int64)


def _point_line(line):
    """POINT3D_ID X Y Z R G B ERROR TRACK[]"""
    key, x, y, z, *_ = line.split(maxsplit=4)
    return np.int64(key), (float(x), float(y), float(z))


def _text_cameras(file, content):
    cameras = {}
    for number, line in _text_lines(content):
        if _is_record(line):
            key, *camera = _parse(_camera_line, number, line)
            cameras[key] = _camera(*camera)
    return cameras


def _text_images(file, content):
    images, lines = [], _text_lines(content)
    for number, line in lines:
        if _is_record(line):
            image = _parse(_image_line, number, line)
            keypoints = next(lines, (number + 1, ""))  # blank for an image without keypoints, so taken as it comes
            images.append(_image(*image, *_parse(_keypoints_line, *keypoints)))
    return images


def _text_points(file, content):
    rows = [_parse(_point_line, number, line) for number, line in _text_lines(content) if _is_record(line)]
    ids, points = [row[0] for row in rows], [row[1] for row in rows]
    return np.array(ids, dtype=np.int64), np.array(points, dtype=np.float64).reshape(-1, 3)


_BINARY = _binary_cameras, _binary_images, _binary_points
_TEXT = _text_cameras, _text_images, _text_points
