"""The scene folder: where photos are, and what to say when something is not where it should be."""

from itertools import islice
from pathlib import Path

from nerf.errors import UserError

LISTED = 12


def scene_folder(path):
    """The folder `path`, absolute. Raises UserError where there is none."""
    folder = Path(path).expanduser()
    if folder.is_file():
        raise UserError(f"{path} is a file; pass the folder that holds the photos and the camera poses")
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; pass the folder that holds the photos and the camera poses")
    return folder.resolve()


def listing(folder):
    """What lies in `folder`, for an error message: 'images/, sparse/, notes.txt'."""
    entries = list(islice(folder.iterdir(), LISTED + 1))
    names = sorted(entry.name + "/" * entry.is_dir() for entry in entries[:LISTED])
    return (", ".join(names) or "nothing") + (", ..." if len(entries) > LISTED else "")


def reduced(root, relative, downscale):
    """Where to look for the photo `relative` (say images/a/b.jpg): in images_N where that folder exists, else where it is at full size."""
    relative = Path(relative)
    if downscale > 1 and len(relative.parts) > 1 and not relative.is_absolute():
        folder = root / f"{relative.parts[0]}_{downscale}"
        if folder.is_dir():
            return folder.joinpath(*relative.parts[1:])
    return root / relative
