"""Masks: which pixels of each photo may be learned from and measured.

A mask is a picture beside the photo, zero where the photo is to be left out. By convention it lies in `masks/`, named as the photo is in the
scene or below `images/`, with .png appended (as COLMAP has it) or in the place of the photo's ending.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from nerf.errors import UserError
from nerf.scene.folder import reduced
from nerf.scene.photo_file import decode_mask

ALLOWED = 0.999  # of what a reduced pixel covers: one masked pixel in it masks it
REMEDY = "make it anew from that photo, or remove it"


@dataclass(frozen=True)
class Masks:
    """The allowed pixels of n photos as runs of neighbours: masks are blobs, and their runs take a hundredth of the photos' memory.

    starts, lengths [R] int64: pixels starts[r] ... starts[r] + lengths[r] - 1 of its photo are allowed, counted row by row; the runs of a
    photo ascend, do not touch and hold at least one pixel; first [n+1] int64: photo i has the runs first[i] ... first[i + 1] - 1.
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray

    def __len__(self):
        return len(self.first) - 1

    def image(self, i, size):
        """[H,W] bool, True where photo i may be used; size = (width, height), as in Cameras.sizes."""
        width, height = (int(side) for side in size)
        runs = slice(self.first[i], self.first[i + 1])
        change = np.zeros(width * height + 1, dtype=np.int8)
        change[self.starts[runs]] = 1
        change[self.starts[runs] + self.lengths[runs]] = -1
        return change[:-1].cumsum(dtype=np.int8).astype(bool).reshape(height, width)


def masks_of(images):
    """Masks of `images`, a list of [H,W] bool with at least one True each."""
    runs = [_runs(image) for image in images]
    return Masks(*(np.concatenate([run[k] for run in runs]) for k in (0, 1)), np.cumsum([0, *(len(run[0]) for run in runs)]).astype(np.int64))


def named_masks(root, names, downscale, folder="masks"):
    """Where the masks of photos lie by convention, and notes.

    names [n]: paths of the photos as the scene states them: below images/, below `root`, or absolute; folder: that of the masks; with
    `downscale` N, masks_N where there is one. Returns [n] Path or None, or None for no mask at all. Raises UserError where two photos share one.
    """
    if not (root / folder).is_dir():
        return None, []
    places = [_places(root, name) for name in names]
    masks = [_named_mask(root, folder, place, downscale) for place in places]
    shared = next((mask for mask, count in Counter(masks).items() if mask and count > 1), None)
    if shared:
        one, other = [place[0] for place, mask in zip(places, masks, strict=True) if mask == shared][:2]
        raise UserError(f"{shared} could be the mask of {one} and of {other}; name the masks {one}.png and {other}.png")
    if not any(masks):
        return None, [f"warning: no file in {root / folder} is named after a photo (looked for {places[0][-1]}.png and others), so nothing is masked"]
    return masks, []


def load_masks(files, photos, found, sizes):
    """Masks for decoded photos, and notes that say how much they leave out.

    files [n]: Path or None (everything is allowed), or None where there is no mask at all, which gives None; photos [n]: for messages;
    found, sizes [n,2] int64: width and height of the photo as it lies on disk and as decoded. Raises UserError for a mask that does not
    open, has another shape than its photo, or leaves nothing.
    """
    if files is None:
        return None, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda row: _runs(_load_mask(*row)), zip(files, photos, found, sizes, strict=True)))
    starts, lengths = (np.concatenate([run[k] for run in runs]) for k in (0, 1))
    first = np.cumsum([0, *(len(run[0]) for run in runs)]).astype(np.int64)
    share = 100 * (1 - lengths.sum() / sizes.prod(axis=1).sum())
    count = sum(file is not None for file in files)
    folder = next(file for file in files if file).parent
    note = f"masks for {count} of {len(files)} photos ({folder}): {share:.1f} % of all pixels are neither learned nor measured"
    return Masks(starts, lengths, first), [note]


def _places(root, name):
    """Where the mask of the photo `name` may be below the folder of masks, the more exact first: a photo in the scene has its path there, with
    and without the photo folder; one that lies elsewhere its path in its own photo folder, else its bare name."""
    path = Path(os.path.normpath(root / name))
    inside = path.is_relative_to(root)
    parts = path.relative_to(root).parts if inside else path.parts
    folders = [i for i, part in enumerate(parts[:-1]) if part.split("_")[0] == "images"]
    if inside:
        return [Path(*parts), *(Path(*parts[1:]) for i in folders if i == 0)]
    return [Path(*parts[folders[-1] + 1:]) if folders else Path(path.name)]


def _named_mask(root, folder, places, downscale):
    for place in places:
        for candidate in (f"{place}.png", place.with_suffix(".png"), place):
            mask = reduced(root, Path(folder) / candidate, downscale)
            if os.path.isfile(mask):
                return mask
    return None


def _load_mask(file, photo, found, size):
    width, height = (int(side) for side in size)
    if file is None:
        return np.ones((height, width), dtype=bool)
    mask = decode_mask(file)
    rows, columns = mask.shape
    if abs(columns * int(found[1]) - rows * int(found[0])) > found.max():  # a pixel of rounding
        raise UserError(f"{file}: the mask is {columns}x{rows} pixels where its photo {photo} is {found[0]}x{found[1]}; {REMEDY}")
    if mask.shape != (height, width):
        if columns >= width and rows >= height:
            mask = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= ALLOWED
        else:
            mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    if not mask.any():
        raise UserError(f"{file}: the mask leaves no pixel of {photo} (zero means: leave out); correct it, or remove that photo from the scene")
    return mask


def _runs(mask):
    """Starts and lengths of the runs of True in [H,W] bool, counted row by row."""
    edges = np.flatnonzero(np.diff(mask.ravel().view(np.int8), prepend=0, append=0))
    return edges[::2].astype(np.int64), (edges[1::2] - edges[::2]).astype(np.int64)
