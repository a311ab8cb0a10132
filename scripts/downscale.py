"""Makes smaller copies of a scene's photos: images/ area-averaged into images_N, on all cores.

    python scripts/downscale.py SCENE --downscale 4

`main.py SCENE --downscale 4` then reads images_4 and need not shrink large photos at each start. Names, sub-folders and EXIF stay, pixels are kept
as they are stored: a photo that EXIF turns is turned by the same tag as before. images_N appears whole or not at all.
"""

import argparse
import contextlib
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nerf.errors import UserError, tells_user_errors
from nerf.scene.folder import PHOTO_ENDINGS, photos_below
from nerf.scene.photo_file import decode_into
from nerf.scene.photos import read_headers, target_sizes

JPEG_QUALITY = 95


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Copy a scene's photos into images_N, 1/N of their size.")
    parser.add_argument("scene", type=Path, metavar="DIR", help="folder of the scene, which holds images/")
    parser.add_argument("--downscale", type=int, default=2, choices=range(2, 65), metavar="N", help="divide width and height by this, 2 to 64 (2)")
    parser.add_argument("--overwrite", action="store_true", help="replace images_N if it is there")
    return parser.parse_args(argv)


def downscale(scene, number, overwrite):
    """Writes SCENE/images_N and returns (folder, number of photos). Raises UserError, and leaves everything as it was then."""
    source, target = scene / "images", scene / f"images_{number}"
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the folder that holds images/.")
    files = photos_below(source)
    if not files:
        raise UserError(f"{source}: no photos are there ({', '.join(PHOTO_ENDINGS)}).")
    if target.exists() and not overwrite:
        raise UserError(f"{target} is there already; add --overwrite to replace it.")
    headers = read_headers(files)
    sizes = target_sizes(files, headers.sizes, np.ones(len(files), dtype=bool), number)
    partial = scene / f".images_{number}.partial"
    try:
        with _whole_or_not_at_all(partial, target), ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = pool.map(lambda file, size: _shrink(file, partial / file.relative_to(source), size), files, sizes)
            list(tqdm(jobs, total=len(files), desc=f"photos into {target.name}", leave=False, disable=None))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); make room or the folder writable.") from None
    return target, len(files)


@contextlib.contextmanager
def _whole_or_not_at_all(partial, target):
    """An empty folder `partial` to fill, which takes the place of `target` at the end and vanishes where the block raises."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield
        before = partial.with_name(f".{target.name}.before")
        if target.exists():
            target.rename(before)
        partial.rename(target)
        shutil.rmtree(before, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _shrink(file, target, size):
    """Writes one photo, reduced to size = (width, height), in the format that its name says."""
    with Image.open(file) as photo:
        alpha, kept = photo.has_transparency_data, {}
        for name in ("exif", "icc_profile") if photo.mode in ("RGB", "RGBA") else ("exif",):  # other colours than RGB are converted
            if photo.info.get(name):
                kept[name] = photo.info[name]
    format = Image.registered_extensions().get(target.suffix.lower())
    if format not in Image.SAVE:
        raise UserError(f"{file}: this format cannot be written; convert the photo to JPEG or PNG.")
    if format == "JPEG":
        alpha, kept = False, {**kept, "quality": JPEG_QUALITY}
    pixels = np.empty((int(size[1]), int(size[0]), 4 if alpha else 3), dtype=np.uint8)
    decode_into(pixels, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(target, format, **kept)


@tells_user_errors
def main():
    arguments = parse()
    target, count = downscale(arguments.scene, arguments.downscale, arguments.overwrite)
    print(f"{target}: {count} photos, 1/{arguments.downscale} of their size.")


if __name__ == "__main__":
    sys.exit(main())
