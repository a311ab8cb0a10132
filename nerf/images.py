"""Pictures for a person: PNG files, coloured depth and coloured error. Pictures are [H, W, 3] RGB, uint8 or floats in [0, 1]."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nerf.files import write_file

FULL_ERROR = 0.25  # the absolute error that gets the brightest colour; the same in every picture, so that pictures compare
VISIBLE = 0.5  # opacity from which a pixel's depth means a surface
THUMBNAIL = 320  # pixels, the greatest side of a picture in a contact sheet
CAPTION = 22  # pixels, the height of a line of text there
GAP = 4


def write_png(path, image):
    """Write `image` ([H, W, 3] RGB or [H, W] grey, uint8 or floats in [0, 1]) as PNG, atomically. Raises UserError where it cannot."""
    pixels = to_uint8(image)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    write_file(path, cv2.imencode(".png", pixels)[1].tobytes())


def to_uint8(image):
    """Floats in [0, 1] (clipped, rounded half up; NaN becomes 0) or uint8 (as it is) to contiguous uint8 of the same shape."""
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    clipped = np.clip(np.nan_to_num(image.astype(np.float32)), 0.0, 1.0)
    return np.floor(clipped * 255.0 + 0.5).astype(np.uint8)


def depth_limits(depth, opacity):
    """The distances between which nearly all of what is visible lies: the 1st and 99th percentile where there is a surface.

    depth, opacity: [H, W] floats, world units and [0, 1]. Returns (near, far) with 0 < near < far, or None where nothing is visible.
    """
    seen = np.isfinite(depth) & (depth > 0) & (opacity > VISIBLE)
    if not seen.any():
        return None
    near, far = np.percentile(np.asarray(depth, dtype=np.float64)[seen], (1, 99))
    return float(near), float(max(far, near * 1.001))


def depth_picture(depth, opacity, limits=None):
    """Depth as colours: near is red, far is blue (turbo colour map), what is transparent fades to white.

    Colours are even in 1/depth, since in an unbounded scene the far half of the range holds nearly nothing.

    depth, opacity: [H, W] floats, world units and [0, 1]; limits: (near, far) in world units, the same for each frame of a sequence, by
    default those of this picture. Returns [H, W, 3] uint8. Raises ValueError unless 0 < near < far.
    """
    near, far = limits or depth_limits(depth, opacity) or (1.0, 2.0)
    if not 0 < near < far:
        raise ValueError(f"limits are ({near}, {far}): they must be two distances, 0 < near < far")
    opacity = np.clip(np.nan_to_num(opacity), 0.0, 1.0)[..., None]
    distance = np.clip(np.nan_to_num(np.asarray(depth, dtype=np.float64), nan=far), near, far)
    closeness = (1.0 / distance - 1.0 / far) / (1.0 / near - 1.0 / far)
    return to_uint8(_coloured(closeness, cv2.COLORMAP_TURBO) * opacity + (1.0 - opacity))


def error_picture(prediction, target):
    """Absolute error, mean of the channels, magnified: black is none, the brightest colour is FULL_ERROR or more, or not finite.

    prediction, target: [H, W, 3] floats in [0, 1]. Returns [H, W, 3] uint8.
    """
    error = np.abs(np.asarray(prediction, dtype=np.float32) - np.asarray(target, dtype=np.float32)).mean(axis=-1)
    return to_uint8(_coloured(np.nan_to_num(error, nan=FULL_ERROR) / FULL_ERROR, cv2.COLORMAP_INFERNO))


def thumbnail(image):
    """`image` ([H, W, 3], uint8 or floats in [0, 1]) as uint8, reduced so that no side is longer than THUMBNAIL."""
    pixels = to_uint8(image)
    share = THUMBNAIL / max(pixels.shape[:2])
    if share >= 1:
        return pixels
    height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def contact_sheet(titles, rows):
    """One picture with a row for each of `rows`, under a line of column titles.

    titles: k strings; rows: (caption, k pictures [H, W, 3] uint8) each, sizes may differ. Returns [H, W, 3] uint8.
    """
    column = max((picture.shape[1] for _, pictures in rows for picture in pictures), default=THUMBNAIL) + GAP
    heights = [CAPTION + max(picture.shape[0] for picture in pictures) + GAP for _, pictures in rows]
    sheet = Image.new("RGB", (column * len(titles) + GAP, CAPTION + sum(heights)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for place, title in enumerate(titles):
        pen.text((GAP + place * column, 3), title, "black", font)
    top = CAPTION
    for (caption, pictures), height in zip(rows, heights, strict=True):
        pen.text((GAP, top + 3), caption, "black", font)
        for place, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (GAP + place * column, top + CAPTION))
        top += height
    return np.asarray(sheet)


def _coloured(values, colour_map):
    """[H, W] floats, clipped to [0, 1], to [H, W, 3] RGB floats in [0, 1]."""
    return cv2.cvtColor(cv2.applyColorMap(to_uint8(values), colour_map), cv2.COLOR_BGR2RGB) / np.float32(255.0)
