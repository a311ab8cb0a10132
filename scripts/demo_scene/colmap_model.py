"""COLMAP's binary model: cameras.bin, images.bin, points3D.bin (little-endian, as its documentation of the output format states)."""

import struct

import numpy as np

from .views import LENSES


def quaternion(rotation):
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix [3, 3]. The largest component comes first, against rounding."""
    diagonal = np.diag(rotation)
    squares = np.array([1 + diagonal.sum(), *(1 + 2 * diagonal - diagonal.sum())]) / 4
    largest = int(np.argmax(squares))
    r = rotation
    rows = (
        (4 * squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]),
        (r[2, 1] - r[1, 2], 4 * squares[1], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]),
        (r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], 4 * squares[2], r[1, 2] + r[2, 1]),
        (r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 4 * squares[3]),
    )
    q = np.array(rows[largest]) / (4 * np.sqrt(squares[largest]))
    return q if q[0] >= 0 else -q


def cameras_bytes(lens):
    parameters = lens.parameters
    head = struct.pack("<QIiQQ", 1, 1, LENSES[lens.model][0], lens.width, lens.height)
    return head + struct.pack(f"<{len(parameters)}d", *parameters)


def images_bytes(views, keypoints):
    parts = [struct.pack("<Q", len(views))]
    for number, (view, points) in enumerate(zip(views, keypoints, strict=True), 1):
        translation = [-sum(view.rotation[i, axis] * view.centre[axis] for axis in range(3)) for i in range(3)]
        parts.append(struct.pack("<I7dI", number, *quaternion(view.rotation), *translation, 1))
        parts.append(view.name.encode() + b"\0" + struct.pack("<Q", len(points)))
        parts += [struct.pack("<ddq", u, v, point + 1) for u, v, point in points]
    return b"".join(parts)


def points_bytes(points):
    parts = [struct.pack("<Q", len(points.tracks))]
    for number, (position, colour, track) in enumerate(zip(points.positions, points.colours, points.tracks, strict=True), 1):
        parts.append(struct.pack("<Q3d3BdQ", number, *position, *colour, 0.0, len(track)))
        parts += [struct.pack("<II", view + 1, row) for view, row in track]
    return b"".join(parts)


def write_model(folder, lens, views, points):
    """Writes the three files into `folder`; points3D.bin comes last, so a folder that has it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.bin").write_bytes(cameras_bytes(lens))
    (folder / "images.bin").write_bytes(images_bytes(views, points.keypoints))
    unfinished = folder / "points3D.part"
    unfinished.write_bytes(points_bytes(points))
    unfinished.replace(folder / "points3D.bin")
