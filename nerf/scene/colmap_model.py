"""COLMAP sparse models: cameras, registered images and points from .bin or .txt files (colmap.github.io/format.html).

Nothing a file claims is believed before it is checked against the bytes that are there, so that a truncated or foreign file is one
sentence and never a crash, a hang or a huge allocation.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.scene.colmap_binary import (
    binary_cameras,
    binary_count,
    binary_images,
    binary_points,
)
from nerf.scene.colmap_records import REMEDY, Malformed
from nerf.scene.colmap_text import (
    text_cameras,
    text_count,
    text_images,
    text_points,
)

READERS = {".bin": (binary_cameras, binary_images, binary_points), ".txt": (text_cameras, text_images, text_points)}
COUNTS = {".bin": binary_count, ".txt": text_count}


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
    read_cameras, read_images, read_points = READERS[kind]
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
    for kind in READERS:
        if (folder / f"cameras{kind}").is_file() and (folder / f"images{kind}").is_file():
            return kind
    return None


def numbered_models(folder):
    """(images registered, its folder) of each sparse model in folder/0, folder/1, ..., as COLMAP's mapper leaves those that it cannot join; the
    largest first, of equals that of the smaller number."""
    places = sorted((place for place in folder.glob("*") if place.name.isdecimal() and model_kind(place)), key=lambda place: int(place.name))
    return sorted(((_registered(place), place) for place in places), key=lambda model: -model[0])


def _registered(folder):
    """How many images a model registers, 0 where its file cannot be that of a model: why is told when it is read."""
    kind = model_kind(folder)
    try:
        return COUNTS[kind](folder / f"images{kind}")
    except (OSError, Malformed):
        return 0


def _read(file, reader):
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from None
    try:
        return reader(file, content)
    except Malformed as error:
        raise UserError(f"{file}: {error}") from None
