"""The photos and masks that are given: found, opened and checked before COLMAP spends an hour on them."""

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from nerf.errors import UserError
from nerf.scene.folder import files_below, listing

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}
UNREADABLE = {".heic", ".heif", ".avif", ".webp", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
FEWEST = 3
OPENING_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

# EXIF tags that say with which camera, and at which zoom, a photo was taken.
MAKE, MODEL, ORIENTATION, EXIF_IFD = 0x10F, 0x110, 0x112, 0x8769
FOCAL_LENGTH, FOCAL_LENGTH_35MM = 0x920A, 0xA405


@dataclass(frozen=True)
class Photo:
    """name: path below the photo folder with '/' between folders; size: (width, height) as stored; lens: what tells cameras apart (size
    and the EXIF make, model and focal lengths); turned: whether EXIF asks to show the photo in another orientation than it is stored in."""

    name: str
    size: tuple
    lens: tuple
    turned: bool


def find_photos(folder, skip=0):
    """The Photos below `folder` in the order of their names, without the first `skip`; every one has been decoded.

    Raises UserError where there are fewer than 3, and for the first that does not open.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pass the folder that holds the photos.")
    names = sorted(file.relative_to(folder).as_posix() for file in files_below(folder))
    foreign = [name for name in names if Path(name).suffix.lower() in UNREADABLE]
    if foreign:
        raise UserError(f"{folder / foreign[0]}: COLMAP cannot read this kind of file ({len(foreign)} are here); convert them to JPEG or PNG.")
    names = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    if not names:
        raise UserError(f"{folder}: no photos (looked for {', '.join(sorted(SUFFIXES))}; the folder holds {listing(folder)}); "
                        "pass the folder that holds them.")
    kept = names[skip:]
    if len(kept) < FEWEST:
        left = f" after --skip_early {skip}" if skip else ""
        raise UserError(f"{folder}: {len(kept)} photo{'s' * (len(kept) != 1)}{left} cannot make a scene; give at least {FEWEST}, better fifty "
                        "or more that overlap.")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda name: _open(folder, name), kept))


def _open(folder, name):
    try:
        with Image.open(folder / name) as photo:
            exif = photo.getexif()
            details = exif.get_ifd(EXIF_IFD)
            lens = tuple(str(value) for value in (exif.get(MAKE), exif.get(MODEL), details.get(FOCAL_LENGTH), details.get(FOCAL_LENGTH_35MM)))
            photo.load()
            return Photo(name, photo.size, (photo.size, *lens), exif.get(ORIENTATION, 1) != 1)
    except OPENING_ERRORS as error:
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise UserError(f"{folder / name}: the photo does not open ({reason}); replace it, convert it to JPEG or PNG, or remove it.") from None


def cameras_of(photos):
    """Groups of names: photos of one camera and zoom each."""
    groups = defaultdict(list)
    for photo in photos:
        groups[photo.lens].append(photo.name)
    return list(groups.values())


def find_masks(folder, photos):
    """Photo name -> its mask below `folder`, for those that have one: NAME.png, or NAME.jpg.png as COLMAP wants it.

    Raises UserError for a mask that does not open or whose size is not its photo's, where one mask serves two photos, and where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"--masks {folder}: no such folder; pass the folder that holds a PNG for each photo, of the same name.")
    found, owner = {}, {}
    for photo in photos:
        short = folder / Path(photo.name).with_suffix(".png")
        file = next((file for file in (folder / f"{photo.name}.png", short) if file.is_file()), None)
        if file is None:
            continue
        if file in owner:
            raise UserError(f"{file}: is the mask of both {owner[file]} and {photo.name}; name them {owner[file]}.png and {photo.name}.png.")
        try:
            with Image.open(file) as mask:
                size = mask.size
                mask.load()
        except OPENING_ERRORS as error:
            raise UserError(f"{file}: the mask does not open ({error}); replace or remove it.") from None
        if size != photo.size:
            raise UserError(f"{file}: the mask has {size[0]}x{size[1]} pixels where its photo {photo.name} has {photo.size[0]}x{photo.size[1]}; "
                            "make it of the same size.")
        found[photo.name], owner[file] = file, photo.name
    if not found:
        raise UserError(f"--masks {folder}: no mask has the name of a photo (looked for {Path(photos[0].name).with_suffix('.png')} and others; "
                        f"the folder holds {listing(folder)}).")
    return found


def masks_for_colmap(folder, photos, masks):
    """Fills `folder` with the masks under the names that COLMAP looks for, and returns it. COLMAP 4 passes over photos that have none, so
    that those get a white one."""
    whites = {}
    for photo in photos:
        link = folder / f"{photo.name}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        if photo.name not in masks and photo.size not in whites:
            whites[photo.size] = folder / f"white_{len(whites)}"
            Image.new("L", photo.size, 255).save(whites[photo.size], format="PNG")
        link.symlink_to(masks[photo.name].resolve() if photo.name in masks else whites[photo.size])
    return folder
