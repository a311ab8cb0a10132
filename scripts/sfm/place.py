"""The scene folder: what is there already, and how the finished parts come into it, all or none."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from nerf.errors import UserError
from sfm.frames import PATTERN
from sfm.transforms_file import POINTS

IMAGES, MASKS = "images", "masks"
DESCRIPTION = ["transforms.json", POINTS, "report.json", "report.txt", "poses.png"]


def scene_folder(out, video, images):
    """Where the scene is to be: `out` if given; else beside the video, or the folder that holds `images`; photos in a folder of another name,
    say holiday, become the scene holiday_scene beside it."""
    if out:
        return out
    if video:
        return video.absolute().parent
    images = images.absolute()
    return images.parent if images.name == IMAGES else images.with_name(f"{images.name}_scene")


def refuse_to_overwrite(folder, names, overwrite):
    """Raises UserError where one of `names` is in `folder` already, unless `overwrite`."""
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UserError(f"{folder}: has {', '.join(there)} already; pass --overwrite to replace, or another folder with --out.")


def refuse_foreign_images(folder):
    """Raises UserError where folder/images holds anything but frames of an earlier run, which alone may be replaced."""
    images = folder / IMAGES
    if not os.path.lexists(images):
        return
    plain = images.is_dir() and not images.is_symlink()
    foreign = sorted(set(images.iterdir()) - set(images.glob(PATTERN))) if plain else [images]
    if foreign:
        raise UserError(f"{foreign[0]}: is in the way of the frames and was not made by this script; pass another folder with --out.")


def refuse_to_link(folder, name, target, overwrite):
    """Raises UserError where folder/name is something else than `target`; another link may be replaced with `overwrite`."""
    place = folder / name
    if os.path.lexists(place) and place.resolve() != target.resolve() and not (place.is_symlink() and overwrite):
        raise UserError(f"{place}: is there already and is not {target}; pass another folder with --out.")


@contextlib.contextmanager
def workroom(folder):
    """A hidden folder in `folder` to work in, gone at the end; so is `folder`, if it was made for it and nothing came into it."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=".colmap2nerf_", dir=folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); pass another folder with --out.") from None
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def move_in(room, folder, names):
    """Moves `names` from `room` to `folder` in place of what is there."""
    for name in names:
        target = folder / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif os.path.lexists(target):
            target.unlink()
        os.replace(room / name, target)


def link(folder, name, target):
    """Makes folder/name the folder `target`, by a symbolic link where it is elsewhere; see refuse_to_link."""
    place = folder / name
    if place.exists() and place.resolve() == target.resolve():
        return
    place.unlink(missing_ok=True)
    place.symlink_to(target.resolve(), target_is_directory=True)
