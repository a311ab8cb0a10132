"""Formats: which of them a folder is in, and what to say to a folder that is in none."""

import shlex
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from nerf.errors import UserError
from nerf.scene.colmap import MODEL_FOLDERS, find_model, read_colmap
from nerf.scene.dtu import FILES as DTU_FILES
from nerf.scene.dtu import find_dtu, read_dtu
from nerf.scene.folder import VIDEO_ENDINGS, listing, photo_files
from nerf.scene.llff import FILE as LLFF_FILE
from nerf.scene.llff import find_llff, read_llff
from nerf.scene.transforms import find_transforms, read_transforms
from nerf.scene.transforms_file import SINGLE, SPLITS

SEARCHED = 200  # entries of a folder that are looked into for scenes and photos
NAMED = 4


class Format(NamedTuple):
    """find(root) -> the file or folder that holds the cameras, or None; read(root, options) -> Capture; marks: what find looks for."""

    find: Callable
    read: Callable
    marks: str


# In the order of preference: a sparse model also knows the lens, and by its points how large the scene is and how near.
FORMATS = {
    "colmap": Format(find_model, read_colmap, f"cameras and images, .bin or .txt, in {', '.join(MODEL_FOLDERS)}"),
    "nerf": Format(find_transforms, read_transforms, f"{SINGLE} or {SPLITS[0]}"),
    "dtu": Format(find_dtu, read_dtu, " or ".join(DTU_FILES)),
    "llff": Format(find_llff, read_llff, LLFF_FILE),
}


def read_capture(root, options):
    """The Capture of the scene in folder `root`, with a note on how its format was found out.

    options: data_format ('auto' or a name of FORMATS), downscale. Raises UserError where there is no scene, saying what to do, or a broken one.
    """
    places = _places(root)
    name = options.data_format if options.data_format != "auto" else next(iter(places), None)
    if name not in places:
        raise UserError(_advice(root) if not places else
                        f"{root}: nothing here is what --data_format {name} reads (looked for {FORMATS[name].marks}; the folder holds "
                        f"{listing(root)}); pass --data_format {next(iter(places))}, or leave it out")
    capture = FORMATS[name].read(root, options)
    if options.data_format == "auto":
        others = "".join(f"; --data_format {other} would read {place.relative_to(root)}" for other, place in places.items() if other != name)
        capture.notes.insert(0, f"--data_format {name}, as there is {places[name].relative_to(root)}{others}")
    return capture


def _places(root):
    """Format name -> where its cameras are, for those that folder `root` holds."""
    found = {name: form.find(root) for name, form in FORMATS.items()}
    return {name: place for name, place in found.items() if place}


def _advice(root):
    """The one sentence for a folder that is no scene."""
    outer = next((folder for folder in list(root.parents)[:2] if _places(folder)), None)
    if outer:
        return f"{root} is a part of the scene {outer}; pass {outer}"
    entries = sorted(islice(root.iterdir(), SEARCHED))
    if not entries:
        return f"{root}: the folder is empty; pass one with photos and their cameras"
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    scenes = [folder.name for folder in folders if _places(folder)]
    if scenes:
        named = ", ".join(scenes[:NAMED]) + ", ..." * (len(scenes) > NAMED)
        return f"{root} is a folder of scenes ({named}); pass one of them, such as {shlex.quote(str(root / scenes[0]))}"
    counts = {folder: len(photo_files(folder)) for folder in (root, *folders)}
    most = max(counts, key=counts.get)
    if counts[most]:
        return f"{root}: {counts[most]} photos without cameras; find these by: {_command('--images', most)}"
    video = next((entry for entry in entries if entry.suffix.lower() in VIDEO_ENDINGS), None)
    if video:
        return f"{root}: a video without cameras; find these by: {_command('--video', video)}"
    marks = "; ".join(form.marks for form in FORMATS.values())
    return f"{root}: no scene is here (looked for {marks}; the folder holds {listing(root)}); pass another folder"


def _command(flag, path):
    return f"python scripts/colmap2nerf.py {flag} {shlex.quote(str(path))} --run_colmap"
