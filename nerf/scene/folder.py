"""The scene folder: where photos are, and what to say when something is not where it should be."""

import os
import shlex
from itertools import islice
from pathlib import Path

from nerf.errors import UserError

LISTED = 12
PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def scene_folder(path):
    """The folder `path`, absolute. Raises UserError where there is none."""
    try:
        folder = Path(path).expanduser()
    except RuntimeError:  # ~ of nobody
        folder = Path(path)
    if folder.is_file() and folder.suffix.lower() in VIDEO_ENDINGS:
        raise UserError(f"{path} is a video; make a scene of it by: python scripts/colmap2nerf.py --video {shlex.quote(str(path))} --run_colmap")
    if folder.is_file():
        raise UserError(f"{path} is a file; pass the folder that holds the photos and the camera poses")
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; pass the folder that holds the photos and the camera poses")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{path}: the folder may not be read by this user; change its permissions or copy it")
    return folder.resolve()


def listing(folder):
    """What lies in `folder`, for an error message: 'images/, sparse/, notes.txt'."""
    entries = list(islice(folder.iterdir(), LISTED + 1))
    names = sorted(entry.name + "/" * entry.is_dir() for entry in entries[:LISTED])
    return (", ".join(names) or "nothing") + (", ..." if len(entries) > LISTED else "")


def photo_files(folder):
    """The files in `folder` (not below) whose names end as photos' do, sorted by name; hidden ones, such as macOS' ._ copies, left out."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.suffix.lower() in PHOTO_ENDINGS and entry.is_file())


def files_below(folder):
    """The files in `folder` and its sub-folders, hidden ones left out, in the order of their paths.

    Linked sub-folders count, but for those that lead back.
    """

    def walk(place, above):
        real = os.path.realpath(place)
        entries = [] if real in above else [entry for entry in place.iterdir() if not entry.name.startswith(".")]
        inner = [file for entry in entries if entry.is_dir() for file in walk(entry, {*above, real})]
        return inner + [entry for entry in entries if entry.is_file()]

    return sorted(walk(folder, set()))


def photos_below(folder):
    """Of files_below those whose names end as photos' do."""
    return [file for file in files_below(folder) if file.suffix.lower() in PHOTO_ENDINGS]


def reduced(root, relative, downscale):
    """Where to look for the photo `relative` (say images/a/b.jpg): in images_N where that folder exists, else where it is at full size."""
    relative = Path(relative)
    if downscale > 1 and len(relative.parts) > 1 and not relative.is_absolute():
        folder = root / f"{relative.parts[0]}_{downscale}"
        if folder.is_dir():
            return folder.joinpath(*relative.parts[1:])
    return root / relative
