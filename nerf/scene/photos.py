"""Photos: sizes from the file headers first, then every pixel decoded once, straight into one flat uint8 array, in memory or on disk."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from nerf.errors import UserError
from nerf.scene.memory import available_memory
from nerf.scene.photo_cache import photos_on_disk
from nerf.scene.photo_file import SIDEWAYS, decode_into, read_header

SMALLEST_SIDE = 8
GIB = 2**30
MEMORY_SHARE = 0.7  # of the free memory that photos may take by themselves


@dataclass(frozen=True)
class Photos:
    """n photos that may differ in size. pixels [P,C] uint8, C = 3 (RGB) or 4 (RGB and straight alpha); offsets [n+1] int64: photo i is
    pixels[offsets[i]:offsets[i + 1]], row by row."""

    pixels: np.ndarray
    offsets: np.ndarray

    on_disk = False

    @property
    def channels(self):
        return self.pixels.shape[1]

    def __len__(self):
        return len(self.offsets) - 1

    def image(self, i, size):
        """Photo i as a view [H,W,C] uint8; size = (width, height), as in Cameras.sizes."""
        width, height = (int(side) for side in size)
        return self.pixels[self.offsets[i]:self.offsets[i + 1]].reshape(height, width, -1)

    def read(self, first, out):
        """Fills `out` [p,C] uint8 with the pixels from row `first` on."""
        out[:] = self.pixels[first:first + len(out)]


@dataclass(frozen=True)
class Headers:
    """What the headers say of n photos: sizes [n,2] int64 = width, height as stored; alpha: whether any photo has an alpha channel;
    turned [n] bool: EXIF wants the photo turned or mirrored; sideways [n] bool: by a quarter, so that width and height change places."""

    sizes: np.ndarray
    alpha: bool
    turned: np.ndarray
    sideways: np.ndarray


def read_headers(files):
    """Headers of the photos `files`, without decoding them. Raises UserError naming the first that does not open."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(read_header, files))
    sizes = np.array([(header.width, header.height) for header in headers], dtype=np.int64).reshape(-1, 2)
    orientations = np.array([header.orientation for header in headers], dtype=np.int64)
    return Headers(sizes, any(header.alpha for header in headers), orientations != 1, np.isin(orientations, SIDEWAYS))


def target_sizes(files, found, full, downscale):
    """The sizes [n,2] int64 to decode to: as found, or 1/downscale of it where the photo found is the full-size one (`full` [n] bool)."""
    sizes = np.where(full[:, None], np.maximum(np.rint(found / downscale), 1), found).astype(np.int64)
    for file, before, after in zip(files, found, sizes, strict=True):
        if after.min() < SMALLEST_SIDE:
            raise UserError(f"--downscale {downscale} leaves {after[0]}x{after[1]} pixels of {file}, which has {before[0]}x{before[1]}; "
                            "pass a smaller number" if downscale > 1 else
                            f"{file}: {after[0]}x{after[1]} pixels are too few for a photo; remove it from the scene")
    return sizes


def load_photos(files, sizes, alpha, cache="auto"):
    """Decode `files` to `sizes` ([n,2] int64) on all cores; prints what they will take before it starts.

    Greyscale, palette, CMYK and 16-bit photos become 8-bit RGB, and where any photo has alpha all get it (255 where they had none).

    Args:
        cache: --image_cache. "disk" decodes into a file, "auto" does where they would take most of the free memory, "cpu" and "gpu" never do.
    Returns:
        Photos, or nerf.scene.photo_cache.PhotosOnDisk, which are alike but for `pixels`.
    Raises:
        UserError: a photo does not decode, or memory or disk does not suffice.
    """
    channels = 4 if alpha else 3
    offsets = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))]).astype(np.int64)
    needed, available = int(offsets[-1]) * channels, available_memory()
    print(f"loading {len(files)} photos, {needed / GIB:.2f} GiB as uint8", flush=True)
    if cache == "disk" or (cache == "auto" and available is not None and needed > MEMORY_SHARE * available):
        return photos_on_disk(files, sizes, offsets, channels)
    if available is not None and needed > available:
        raise UserError(f"the photos need {needed / GIB:.1f} GiB of memory where {available / GIB:.1f} GiB are free; "
                        "pass --image_cache disk or a larger --downscale")
    photos = Photos(np.empty((int(offsets[-1]), channels), dtype=np.uint8), offsets)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda i: decode_into(photos.image(i, sizes[i]), files[i]), range(len(files))))
    return photos
