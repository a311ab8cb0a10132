"""Photos: sizes from the file headers first, then every pixel decoded once, straight into one flat uint8 array."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from nerf.errors import UserError

SMALLEST_SIDE = 8
GIB = 2**30
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class Photos:
    """n photos that may differ in size. pixels [P,C] uint8, C = 3 (RGB) or 4 (RGB and straight alpha); offsets [n+1] int64: photo i is
    pixels[offsets[i]:offsets[i + 1]], row by row."""

    pixels: np.ndarray
    offsets: np.ndarray

    def __len__(self):
        return len(self.offsets) - 1

    def image(self, i, size):
        """Photo i as a view [H,W,C] uint8; size = (width, height), as in Cameras.sizes."""
        width, height = (int(side) for side in size)
        return self.pixels[self.offsets[i]:self.offsets[i + 1]].reshape(height, width, -1)


@dataclass(frozen=True)
class Headers:
    """What the headers say of n photos: sizes [n,2] int64 = width, height; alpha: whether any photo has an alpha channel."""

    sizes: np.ndarray
    alpha: bool


def read_headers(files):
    """Headers of the photos `files`, without decoding them. Raises UserError naming the first that does not open."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(_read_header, files))
    sizes = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
    return Headers(sizes, any(row[2] for row in rows))


def target_sizes(files, found, full, downscale):
    """The sizes [n,2] int64 to decode to: as found, or 1/downscale of it where the photo found is the full-size one (`full` [n] bool)."""
    sizes = np.where(full[:, None], np.maximum(np.rint(found / downscale), 1), found).astype(np.int64)
    for file, before, after in zip(files, found, sizes, strict=True):
        if after.min() < SMALLEST_SIDE:
            raise UserError(f"--downscale {downscale} leaves {after[0]}x{after[1]} pixels of {file}, which has {before[0]}x{before[1]}; "
                            "pass a smaller number" if downscale > 1 else
                            f"{file}: {after[0]}x{after[1]} pixels are too few for a photo; remove it from the scene")
    return sizes


def load_photos(files, sizes, alpha):
    """Decode `files` to `sizes` ([n,2] int64) on all cores into one array; prints what it will take before it starts.

    Greyscale, palette, CMYK and 16-bit photos become 8-bit RGB, and where any photo has alpha all get it (255 where they had none).
    Raises UserError for a photo that does not decode and where memory does not suffice.
    """
    channels = 4 if alpha else 3
    offsets = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))]).astype(np.int64)
    needed = int(offsets[-1]) * channels
    print(f"loading {len(files)} photos, {needed / GIB:.2f} GiB as uint8", flush=True)
    _check_memory(needed)
    photos = Photos(np.empty((int(offsets[-1]), channels), dtype=np.uint8), offsets)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda i: _decode_into(photos.image(i, sizes[i]), files[i]), range(len(files))))
    return photos


def _read_header(file):
    try:
        with Image.open(file) as photo:
            return *photo.size, photo.has_transparency_data
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(_does_not_open(file, error)) from None


def _decode_into(view, file):
    try:
        with Image.open(file) as photo:
            pixels = _as_uint8(photo, view.shape[2])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(_does_not_open(file, error)) from None
    if pixels.shape != view.shape:
        pixels = _area_resize(pixels, view.shape[1], view.shape[0])
    view[:] = pixels


def _as_uint8(photo, channels):
    """[H,W,channels] uint8. Pillow itself clips 16-bit grey at 255 where it should divide, hence the detour."""
    if photo.mode in DEEP_MODES:
        grey = np.clip(np.asarray(photo).astype(np.int64) + 128, 0, 65535) // 257
        photo = Image.fromarray(grey.astype(np.uint8))
    return np.asarray(photo.convert("RGBA" if channels == 4 else "RGB"))


def _area_resize(pixels, width, height):
    """Area-average to [height,width,C] uint8. Colours are weighted by alpha: what is transparent has no colour to lend its neighbours."""
    if pixels.shape[2] == 3:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    straight = pixels.astype(np.float32)
    straight[..., :3] *= straight[..., 3:] / 255
    small = cv2.resize(straight, (width, height), interpolation=cv2.INTER_AREA)
    small[..., :3] *= 255 / np.maximum(small[..., 3:], 1e-3)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def _does_not_open(file, error):
    reason = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return f"{file}: the photo does not open ({reason}); replace it, convert it to JPEG or PNG, or remove it"


def _check_memory(needed):
    available = _available_memory()
    if available is not None and needed > available:
        raise UserError(f"the photos need {needed / GIB:.1f} GiB of memory where {available / GIB:.1f} GiB are free; "
                        "pass a larger --downscale")


def _available_memory():
    """Bytes that can be had without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
