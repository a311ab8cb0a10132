"""Render held-out views, measure them against their photos, and write pictures and numbers with the protocol they were made by."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nerf.files import write_file
from nerf.images import (
    contact_sheet,
    depth_picture,
    error_picture,
    thumbnail,
    write_png,
)
from nerf.metrics import SSIM_WINDOW, lpips, lpips_missing, psnr, quantise, ssim, to_device
from nerf.option_checks import PHOTO_FLAGS

MEASURES = {"psnr": psnr, "ssim": ssim, "lpips": lpips}
SHEET = {"photo": "photo", "rgb": "render", "error": "error", "depth": "depth"}  # columns of a contact sheet: kind of picture -> title
PAINTERS = 2  # pictures of a view that are made at once; four took a third more memory for photos of 12 megapixels and no less time
SHEET_ROWS = 50  # of a contact sheet at most; of more views it shows some, evenly spread
LONGEST_NAME = 50  # characters; with an ending and up to four bytes a character this stays below the 255 bytes of a file name


class Rendered(NamedTuple):
    """One rendered view: what `render(cameras, index)` returns, on the host."""

    rgb: np.ndarray  # [H, W, 3] float32, [0, 1] or a little beyond, over the background
    depth: np.ndarray  # [H, W] float32, distance along the ray in world units
    opacity: np.ndarray  # [H, W] float32, [0, 1]


class Progress:
    """Says how far a row of pictures is, at most once in `every` seconds; says nothing where `report` is None."""

    def __init__(self, report, total, noun, every=5.0):
        self.report, self.total, self.noun, self.every = report, total, noun, every
        self.started = self.said = time.perf_counter()

    def update(self, done, extra=""):
        now = time.perf_counter()
        if self.report is None or done == self.total or now - self.said < self.every:
            return
        self.said = now
        left = (now - self.started) / done * (self.total - done)
        self.report(f"{done} of {self.total} {self.noun}{extra}, {left:.0f} s left")


def measured_under(options, step, seconds):
    """What tells measurements of one run apart, plain values: the step and the seconds of training, and the options that choose the photos.

    options: nerf.options.Options.
    """
    return {"step": step, "training_time": round(seconds, 3), **{name: getattr(options, name) for name in PHOTO_FLAGS}}


def evaluate(render, scene, indices, folder=None, report=None, pictures=None, conditions=None):
    """Render the views `indices` of `scene` and compare each with its photo.

    render: callable, (Cameras, index) -> Rendered, with a white background; scene: Scene; indices: [k] integers into its cameras;
    folder: where NAME_rgb.png, NAME_depth.png, NAME_error.png, NAME_photo.png (the photo as compared) and metrics.json go, None for none;
    report: print or alike, for progress; pictures: how many of the views, from the first, get pictures,
    None for all and a contact_sheet.png of them (metrics.json has every view); conditions: of `measured_under`, or None.

    Where the scene has masks, PSNR is that of the allowed pixels; the others count as perfect in SSIM and LPIPS, which look at windows.

    Returns what metrics.json holds: the conditions, protocol, count, non_finite (pictures with a NaN or infinite colour; their metrics are None and
    they are left out of the means), mean psnr [dB], ssim, lpips (None where its weights are not on the machine) and seconds (rendering
    alone), frames_per_second (of the median view, so that what the first one loads does not count), and images, a list of {name, file,
    psnr, ssim, lpips, seconds, non_finite (pixels)}. A mean of nothing is None. Raises ValueError where a render has another size than its
    photo, UserError where the folder cannot be written.
    """
    indices = [int(index) for index in indices]
    files = file_names(scene.names)
    progress = Progress(report, len(indices), "held-out views")
    missing = lpips_missing()
    measures = {name: measure for name, measure in MEASURES.items() if name != "lpips" or missing is None}
    if missing and report is not None:
        report(missing)
    images, rows = [], []
    shown = set(np.linspace(0, len(indices) - 1, min(len(indices), SHEET_ROWS)).round().astype(int).tolist())
    with ThreadPoolExecutor(PAINTERS) as painters:  # a view's pictures side by side, but never while one renders, since that is timed
        for place, index in enumerate(indices):
            drawn = folder is not None and (pictures is None or place < pictures)
            numbers, thumbnails = _evaluate_view(render, scene, index, measures, painters.map, Path(folder) / files[index] if drawn else None)
            images.append({"name": scene.names[index], "file": files[index], **numbers})
            if drawn and pictures is None and place in shown:
                rows.append((f"{scene.names[index]}, {_written(numbers['psnr'], '.2f')} dB", thumbnails))
            progress.update(len(images), f", PSNR {_written(_mean(images, 'psnr'), '.2f')} so far")
    result = {
        **(conditions or {}),
        "protocol": protocol(indices, len(scene.names)),
        "count": len(images),
        "non_finite": sum(image["non_finite"] > 0 for image in images),
        **{name: _mean(images, name) for name in MEASURES},
        "seconds": _mean(images, "seconds"),
        "frames_per_second": 1.0 / float(np.median([image["seconds"] for image in images])) if images else None,
        "images": images,
    }
    if rows:
        write_png(Path(folder) / "contact_sheet.png", contact_sheet(SHEET.values(), rows))
    if folder is not None:
        write_file(Path(folder) / "metrics.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    if report is not None:
        report(summary(result))
    return result


def summary(result):
    """One line of text for what `evaluate` returned."""
    line = f"{result['count']} held-out views: PSNR {_written(result['psnr'], '.2f')} dB, SSIM {_written(result['ssim'], '.4f')}"
    if result["lpips"] is not None:
        line += f", LPIPS {result['lpips']:.4f}"
    line += f", {_written(result['frames_per_second'], '.1f')} frames/s"
    if result["non_finite"]:
        line += f"; {result['non_finite']} of them hold values that are not finite and are left out of the means"
    return line


def protocol(indices, total):
    """The sentence that belongs to the numbers: how they were made, and on which of the scene's `total` views."""
    return (
        f"predictions rounded to uint8; alpha on white; SSIM {SSIM_WINDOW}x{SSIM_WINDOW} gaussian, mirrored border, data range 1; LPIPS vgg; "
        f"means of the values of each view; {_chosen(indices, total)}"
    )


def photo_on_white(scene, index):
    """The photo of view `index` as [H, W, 3] float32 in [0, 1], an alpha channel composited on white."""
    image = scene.photos.image(index, scene.cameras.sizes[index]).astype(np.float32) / np.float32(255.0)
    if image.shape[-1] == 3:
        return image
    return image[..., :3] * image[..., 3:] + (1.0 - image[..., 3:])


def file_names(names):
    """A file name without ending for each photo name: no folders, nothing odd, all different also where case is ignored.

    Names are made from the whole scene's list, so that a view has the same file whichever views are evaluated with it.
    """
    taken, files = set(), []
    for name in names:
        stem = re.sub(r"[^\w.-]", "_", re.sub(r"\.\w+$", "", str(name)))[-LONGEST_NAME:].lstrip(".-") or "view"
        file, copy = stem, 1
        while file.lower() in taken:
            copy += 1
            file = f"{stem}-{copy}"
        taken.add(file.lower())
        files.append(file)
    return files


def _evaluate_view(render, scene, index, measures, each, stem):
    """The numbers of a view, and thumbnails of its pictures, which are written to files that begin with `stem` (None: no pictures). each: map or alike."""
    started = time.perf_counter()
    rendered = render(scene.cameras, index)
    seconds = time.perf_counter() - started
    photo = photo_on_white(scene, index)
    if rendered.rgb.shape != photo.shape:
        raise ValueError(f"the render of {scene.names[index]} has shape {rendered.rgb.shape}, its photo {photo.shape}: they must be equal")
    rgb, target = to_device(rendered.rgb), to_device(photo)
    prediction = quantise(rgb)
    allowed = torch.ones_like(rgb[..., 0], dtype=torch.bool) if scene.masks is None else to_device(scene.masks.image(index, scene.cameras.sizes[index]))
    wrong = allowed & ~rgb.isfinite().all(dim=-1)
    judged = torch.where(allowed[..., None], prediction, target)
    pairs = dict.fromkeys(measures, (judged, target)) | {"psnr": (prediction[allowed], target[allowed])}
    numbers = {name: None if wrong.any() or name not in measures else _number(measures[name](*pairs[name])) for name in MEASURES}
    paintings = {
        "photo": lambda: photo,
        "rgb": lambda: prediction.cpu().numpy(),
        "error": lambda: error_picture(judged.masked_fill(wrong[..., None], torch.nan).cpu(), photo),
        "depth": lambda: depth_picture(rendered.depth, rendered.opacity),
    }

    def paint(kind):
        picture = paintings[kind]()
        write_png(f"{stem}_{kind}.png", picture)
        return thumbnail(picture)

    return {**numbers, "seconds": seconds, "non_finite": int(wrong.sum())}, list(each(paint, SHEET)) if stem else []


def _chosen(indices, total):
    gaps = set(np.diff(indices).tolist())
    if len(gaps) == 1 and (gap := gaps.pop()) > 0 and indices[0] == 0 and indices[-1] + gap >= total:
        ending = "th" if gap % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(gap % 10, "th")
        return "every image" if gap == 1 else f"every {gap}{ending} image"
    return f"{len(indices)} of {total} images"


def _mean(images, key):
    values = [image[key] for image in images if image[key] is not None]
    return float(np.mean(values)) if values else None


def _number(value):
    return value if np.isfinite(value) else None


def _written(value, form):
    return "none" if value is None else format(value, form)
