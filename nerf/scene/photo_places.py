"""Photo places: which file to load for each photo that a scene names, where `--downscale N` finds smaller copies beside the photos."""

import os
from collections import Counter
from pathlib import Path

from nerf.scene.folder import PHOTO_ENDINGS, photos_below, reduced


def photo_places(root, names, downscale):
    """Where each photo lies, and notes.

    With `downscale` N a photo is taken from images_N, where that folder exists: by its name, else by its name with another ending. Where images_N has
    none of the names, as in LLFF's scenes, but as many photos as images, one stands for the other in the order of names, as other programs have it.
    What images_N lacks is taken at full size.

    names [n]: paths of the photos below `root`, say images/a/b.jpg, or absolute. Returns [n] Path, of which some need not exist.
    """
    places = [reduced(root, name, downscale) for name in names]
    lacking = {}
    for i, (name, place) in enumerate(zip(names, places, strict=True)):
        if place != root / name and not os.path.isfile(place):
            lacking.setdefault(Path(name).parts[0], []).append(i)
    notes = []
    for folder, rows in lacking.items():
        originals = {i: root / names[i] for i in rows}
        found, told = _otherwise_named(root / folder, root / f"{folder}_{downscale}", originals, set(places))
        fallback = {i: place for i, place in originals.items() if i not in found and os.path.isfile(place)}
        if fallback:
            told.append(f"{len(fallback)} photos are not in {folder}_{downscale} and are reduced from those in {folder}")
        for i, place in (found | fallback).items():
            places[i] = place
        notes += told
    return places, notes


def _otherwise_named(folder, smaller, originals, taken):
    """Row -> the file in `smaller` that stands for the photo originals[row] in `folder`, and notes. taken: files that stand for another photo."""
    held = photos_below(smaller)
    free = [place for place in held if place not in taken]
    stems = {i: _stem(photo.relative_to(folder)) for i, photo in originals.items()}
    by_stem = {_stem(place.relative_to(smaller)): place for place in free}
    once = Counter(stems.values()) + Counter(_stem(place.relative_to(smaller)) for place in free)
    found = {i: by_stem[stem] for i, stem in stems.items() if stem in by_stem and once[stem] == 2}
    if found or len(free) < len(held):
        return found, []
    photos = photos_below(folder) if folder.is_dir() else []
    pairs = dict(zip(photos, held, strict=True)) if len(photos) == len(held) else {}
    found = {i: pairs[photo] for i, photo in originals.items() if photo in pairs}
    if not found:
        return {}, []
    photo, place = next((originals[i], place) for i, place in found.items())
    return found, [(f"{smaller.name} has other names than {folder.name}, so its photos are taken in the order of names, "
                    f"such as {place.name} for {photo.name}")]


def _stem(path):
    return path.with_suffix("") if path.suffix.lower() in PHOTO_ENDINGS else path
