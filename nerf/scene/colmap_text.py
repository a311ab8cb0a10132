"""The .txt files of COLMAP's sparse models (colmap.github.io/format.html)."""

import re

import numpy as np

from nerf.scene.colmap_records import Malformed, make_camera, make_image

HEADER = 500  # bytes, in which COLMAP's comments are


def _text_lines(content):
    """(line number, line) of all lines, without the mark that Windows' editors put before UTF-8."""
    try:
        return enumerate(content.decode("utf-8-sig").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not text") from None


def _is_record(line):
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(layout, number, line):
    """layout(line), or a message with the layout's docstring, which is how COLMAP's own header comments describe the line."""
    try:
        return layout(line)
    except (ValueError, IndexError, OverflowError):
        raise Malformed(f"line {number} is not '{layout.__doc__}'") from None


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


def text_cameras(file, content):
    """Camera id -> ModelCamera. Raises Malformed."""
    cameras = {}
    for number, line in _text_lines(content):
        if _is_record(line):
            key, *camera = _parse(_camera_line, number, line)
            cameras[key] = make_camera(*camera)
    return cameras


def text_count(file):
    """How many images an images.txt holds: by COLMAP's own comment, as the file may be large, else by its lines. Raises Malformed and OSError."""
    with open(file, "rb") as stream:
        stated = re.search(rb"# Number of images: (\d{1,9})\b", stream.read(HEADER))
    if stated:
        return int(stated[1])
    lines = _text_lines(file.read_bytes())
    return sum(1 for _, line in lines if _is_record(line) and next(lines, True))


def text_images(file, content):
    """The ModelImages. Raises Malformed."""
    images, lines = [], _text_lines(content)
    for number, line in lines:
        if _is_record(line):
            image = _parse(_image_line, number, line)
            keypoints = next(lines, (number + 1, ""))  # blank for an image without keypoints, so taken as it comes
            images.append(make_image(*image, *_parse(_keypoints_line, *keypoints)))
    return images


def text_points(file, content):
    """Ids [p] int64 and positions [p,3] float64 of the points. Raises Malformed."""
    rows = [_parse(_point_line, number, line) for number, line in _text_lines(content) if _is_record(line)]
    ids, points = [row[0] for row in rows], [row[1] for row in rows]
    return np.array(ids, dtype=np.int64), np.array(points, dtype=np.float64).reshape(-1, 3)
