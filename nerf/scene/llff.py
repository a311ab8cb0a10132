"""Reader of LLFF scenes: poses_bounds.npy beside a folder `images` (and, for `--downscale N`, `images_N`).

Each of its rows is a 3x5 matrix, row by row, and the nearest and farthest depth that the view sees. The matrix' columns are the camera's
down, right and backward axes in the world, its position, and height, width and focal length in pixels. (Mildenhall et al., Local Light
Field Fusion, 2019; the layout is that of its imgs2poses.py.)
"""

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import LARGEST, PERSPECTIVE
from nerf.scene.capture import Capture
from nerf.scene.folder import listing, photo_files, reduced
from nerf.scene.masks import named_masks
from nerf.scene.numpy_file import parse_npy

FILE = "poses_bounds.npy"
REMEDY = "export it again"


def find_llff(root):
    """poses_bounds.npy of the scene in folder `root`, or None."""
    file = root / FILE
    return file if file.is_file() else None


def read_llff(root, options):
    """Capture of the LLFF scene in folder `root`, in file-name order.

    options: downscale. Raises UserError for a missing or malformed file, and where its rows and the photos are not equally many.
    """
    file = root / FILE
    rows = _rows(file)
    folder = _photo_folder(root, options.downscale)
    photos = photo_files(folder)
    if len(photos) != len(rows):
        sparse = "pass --data_format colmap, which knows the photos by name" if (root / "sparse").is_dir() else "remove the photos that have none"
        raise UserError(f"{file}: {len(rows)} poses are not those of the {len(photos)} photos in {folder}; {sparse}")
    names = [photo.name for photo in photos]
    matrices, depths = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    height, width, focal = matrices[:, :, 4].T
    if not ((matrices[:, :2, 4] >= 1) & (matrices[:, :2, 4] < LARGEST)).all():  # NaN compares false
        raise UserError(f"{file}: the height and width of some views are no sizes of a photo; {REMEDY}")
    down, right, back, position = (matrices[:, :, k] for k in range(4))
    masks, notes = named_masks(root, names, options.downscale)
    ranges = bool(((depths > 1 / LARGEST) & (depths < LARGEST)).all() and (depths[:, 0] < depths[:, 1]).all())
    if not ranges:
        notes.append(f"warning: {FILE} states depths that make no sense, so they are ignored")
    return Capture(
        source=file, files=photos, names=names, at_full_size=np.full(len(rows), folder == root / "images"),
        full_sizes=np.stack([width, height], axis=1), poses=np.stack([right, -down, back, position], axis=2),
        intrinsics=np.stack([focal, focal, width / 2, height / 2], axis=1), distortion=np.zeros((len(rows), 6)),
        lens=np.full(len(rows), PERSPECTIVE, dtype=np.int32), depths=depths if ranges else None, masks=masks,
        notes=[f"{len(rows)} photos from {file}, which knows no lens distortion", *notes])


def _rows(file):
    try:
        rows = parse_npy(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); {REMEDY}") from None
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows):
        raise UserError(f"{file}: {'x'.join(map(str, rows.shape))} numbers are not the 17 a photo of an LLFF file; {REMEDY}")
    return rows


def _photo_folder(root, downscale):
    folder = reduced(root, "images/photo", downscale).parent
    if folder.is_dir():
        return folder
    smaller = sorted(entry.name for entry in root.glob("images_*") if entry.is_dir() and entry.name[7:].isdecimal())
    remedy = f"pass --downscale {smaller[0][7:]} for {smaller[0]}" if smaller else "put the photos there"
    raise UserError(f"{root}: there is no folder images (the folder holds {listing(root)}); {remedy}")
