"""One photo on disk: what its header says, and its pixels as 8-bit RGB or RGBA of a wanted size.

Pixels are taken as the file stores them, which is what COLMAP and most tools that find poses do. What EXIF says of turning is followed only
for a photo whose wanted size has its sides the other way round.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nerf.errors import UserError

# Pillow warns of larger photos and refuses those of twice as many pixels: by default phones' 200 million are too many for it.
Image.MAX_IMAGE_PIXELS = 2**29
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class Header:
    """width, height as stored; alpha: whether there is an alpha channel; orientation: EXIF's, 1 (upright) to 8."""

    width: int
    height: int
    alpha: bool
    orientation: int


def read_header(file):
    """The Header of the photo `file`, without decoding it. Raises UserError where it does not open."""
    return _opened(file, lambda photo: Header(*photo.size, photo.has_transparency_data, _orientation(photo)))


def decode_into(view, file):
    """Decode the photo `file` into `view` [H,W,C] uint8, C = 3 (RGB) or 4 (RGB and straight alpha, 255 where the photo has none).

    Greyscale, palette, CMYK and 16-bit photos are converted; another size is area-averaged; a photo that lies on its side is turned as EXIF
    says where `view` stands upright. Raises UserError where it does not decode.
    """
    height, width, channels = view.shape
    pixels = _opened(file, lambda photo: _as_uint8(_turned(photo, width, height), channels))
    view[:] = pixels if pixels.shape == view.shape else area_resize(pixels, width, height)


def decode_mask(file):
    """The mask `file` as [H,W] bool: True where it is not zero, whatever its mode. Raises UserError where it does not decode."""
    return _opened(file, lambda photo: np.asarray(photo.convert("L")) != 0)


def area_resize(pixels, width, height):
    """Area-average [H,W,C] uint8, C = 3 or 4, to [height,width,C]. What is transparent has no colour to lend its neighbours."""
    if pixels.shape[2] == 3:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    straight = pixels.astype(np.float32)
    straight[..., :3] *= straight[..., 3:] / 255
    small = cv2.resize(straight, (width, height), interpolation=cv2.INTER_AREA)
    small[..., :3] *= 255 / np.maximum(small[..., 3:], 1e-3)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def _opened(file, read):
    try:
        with Image.open(file) as photo:
            return read(photo)
    except Exception as error:  # noqa: BLE001 - on damaged files Pillow's decoders raise whatever comes: struct.error, KeyError, MemoryError
        raise UserError(_does_not_open(file, error)) from None


def _orientation(photo):
    if photo.format == "PNG" and "exif" not in photo.info:  # else Pillow decodes the whole photo in search of it
        return 1
    try:
        value = photo.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data leaves the photo as good as it was
        return 1
    return value if value in range(1, 9) else 1


def _turned(photo, width, height):
    on_its_side = (photo.width - photo.height) * (width - height) < 0
    return ImageOps.exif_transpose(photo) if on_its_side and _orientation(photo) in SIDEWAYS else photo


def _as_uint8(photo, channels):
    """[H,W,channels] uint8. Pillow itself clips 16-bit grey at 255 where it should divide, hence the detour."""
    if photo.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if photo.mode in DEEP_MODES:
        grey = np.clip(np.asarray(photo).astype(np.int64) + 128, 0, 65535) // 257
        photo = Image.fromarray(grey.astype(np.uint8))
    return np.asarray(photo.convert("RGBA" if channels == 4 else "RGB"))


def _does_not_open(file, error):
    if _is_heic(file):
        return f"{file}: HEIC photos are not read; convert all to JPEG (such as by `magick mogrify -format jpg *.HEIC`) and find the poses of those"
    reason = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return f"{file}: the photo does not open ({reason}); replace it, convert it to JPEG or PNG, or remove it"


def _is_heic(file):
    """By content, as phones also write HEIC into files named .jpg."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(12)
    except OSError:
        return False
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS
