"""The .bin files of COLMAP's sparse models (colmap.github.io/format.html)."""

import os
import struct

import numpy as np

from nerf.scene.colmap_records import (
    MODEL_NAMES,
    PARAMETERS,
    Malformed,
    make_camera,
    make_image,
)

KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
SMALLEST_IMAGE = 64 + 2 + 8  # bytes: numbers, a name of one letter, the number of keypoints


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
            raise Malformed(f"the file ends at byte {len(self.content)} inside {what}; it is truncated or not {self.records}")
        return start

    def count(self, smallest, what):
        """A u64 count of things of at least `smallest` bytes each."""
        value = self.take("Q", f"the number of {what}")[0]
        if value * smallest > len(self.content) - self.at:
            raise Malformed(f"it claims {value} {what}, more than its {len(self.content)} bytes can hold; "
                             f"it is truncated or not {self.records}")
        return value

    def name(self, what):
        end = self.content.find(b"\0", self.at)
        if end <= self.at:
            raise Malformed(f"{what} has no name; the file is truncated or not {self.records}")
        start, self.at = self.at, end + 1
        return os.fsdecode(self.content[start:end])

    def finish(self):
        if self.at != len(self.content):
            raise Malformed(f"{len(self.content) - self.at} bytes follow the last record; it is not {self.records}")


def binary_cameras(file, content):
    """Camera id -> ModelCamera. Raises Malformed."""
    data = _Bytes(file, content)
    total, cameras = data.count(24 + 3 * 8, "cameras"), {}
    for i in range(total):
        what = f"camera {i + 1} of {total}"
        key, model_id, width, height = data.take("IiQQ", what)
        model = MODEL_NAMES[model_id] if 0 <= model_id < len(MODEL_NAMES) else f"number {model_id}"
        values = data.take(f"{len(PARAMETERS[model].split())}d", what) if model in PARAMETERS else ()
        cameras[key] = make_camera(model, width, height, values)
    data.finish()
    return cameras


def binary_count(file):
    """How many images an images.bin holds, by its beginning and its size. Raises Malformed and OSError."""
    with open(file, "rb") as stream:
        count = _Bytes(file, stream.read(8)).take("Q", "the number of images")[0]
    if count * SMALLEST_IMAGE > os.path.getsize(file):
        raise Malformed(f"it claims {count} images, more than it can hold")
    return count


def binary_images(file, content):
    """The ModelImages. Raises Malformed."""
    data = _Bytes(file, content)
    total, images = data.count(SMALLEST_IMAGE, "images"), []
    for i in range(total):
        what = f"image {i + 1} of {total}"
        _, *numbers, camera = data.take("I7dI", what)
        name = data.name(what)
        keypoints = data.count(KEYPOINT.itemsize, f"keypoints of {what}")
        start = data.skip(keypoints * KEYPOINT.itemsize, what)
        table = np.frombuffer(content, dtype=KEYPOINT, count=keypoints, offset=start)
        images.append(make_image(name, camera, numbers, table["xy"], table["point"]))
    data.finish()
    return images


def binary_points(file, content):
    """Ids [p] int64 and positions [p,3] float64 of the points. Raises Malformed."""
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
