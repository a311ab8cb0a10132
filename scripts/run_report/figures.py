"""Figures of runs, by matplotlib: curves, held-out pictures side by side, and a picture as it becomes clear."""

import io
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from nerf.errors import UserError
from nerf.files import write_file

from .tables import text

PANEL = 320  # pixels, the greatest width of one picture
MOMENTS = 5  # columns of the picture that becomes clear
CURVES = (
    ("training_time", "psnr", "training time [s]", "held-out PSNR [dB]"), ("step", "psnr", "steps", "held-out PSNR [dB]"),
    ("training_time", "ms_per_step", "training time [s]", "ms/step"), ("training_time", "peak_memory_mib", "training time [s]", "peak memory [MiB]"),
    ("training_time", "hard_fraction", "training time [s]", "b/B, samples learned from"), ("training_time", "tau", "training time [s]", "tau"),
)  # fmt: skip


def draw_curves(runs, path):
    """A PNG of what changes while runs train: PSNR against seconds and steps, ms a step, memory, b/B, tau. False where nothing is known."""
    shown = [(x, y, *names) for x, y, *names in CURVES if any(len(run.curve(x, y)) for run in runs)]
    if not shown:
        return False
    rows = (len(shown) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.4 * rows), dpi=120, squeeze=False, layout="constrained")
    for axis, (x, y, xlabel, ylabel) in zip(axes.flat, shown, strict=False):
        for run in runs:
            points = run.curve(x, y)
            axis.plot(*points.T, marker="o" if len(points) < 30 else None, markersize=3, label=run.label)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        if y not in ("psnr", "tau"):
            axis.set_ylim(0, 1.08 * max(run.curve(x, y)[:, 1].max(initial=0) for run in runs) or 1)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    axes[0][0].legend()
    _save(figure, path)
    return True


def common_views(runs, wanted=()):
    """Names of views that all runs have pictures of: those `wanted`, or three spread evenly. UserError for a wanted one they lack."""
    files = [_files(run) for run in runs]
    common = [name for name in files[0] if all(name in others for others in files[1:])]
    for name in wanted:
        if name not in common:
            choice = ", ".join(common) or "none (run main.py with --test)"
            raise UserError(f"No view {name} in the results of all runs: choose from {choice}.")
    rows = min(3, len(common))
    return list(wanted) or [common[(2 * row + 1) * len(common) // (2 * rows)] for row in range(rows)]


def draw_pictures(runs, views, path):
    """A PNG with a row a view: the held-out photo, each run's render, each run's error."""
    titles = ["held-out photo", *(run.label for run in runs), *(f"error of {run.label}" for run in runs)]
    rows = [_panels(runs, view) for view in views]
    captions = [[view, *(f"{run.label}, {text(_psnr(run, view), '.2f')} dB" for run in runs), *titles[1 + len(runs) :]] for view in views]
    _draw_grid(rows, captions, path)


def draw_moments(films, path):
    """A PNG with a row a run: its picture of one held-out photo at up to five moments of its training.

    films: label -> [(seconds, PSNR or None, [H, W, 3] uint8)], in the order of training, one or more each.
    """
    rows, captions = [], []
    for label, film in films.items():
        chosen = [film[k] for k in np.unique(np.linspace(0, len(film) - 1, MOMENTS).round().astype(int))]
        rows.append([picture for _, _, picture in chosen])
        captions.append([f"{label}, {seconds:.1f} s, {text(psnr, '.2f')} dB" for seconds, psnr, _ in chosen])
    _draw_grid(rows, captions, path)


def read_picture(path):
    """[H, W, 3] uint8 RGB of a PNG. Raises UserError where it cannot be read."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"Cannot read the picture {path}: run main.py with --test into that workspace again.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _draw_grid(rows, captions, path):
    """Pictures with a caption each, in rows that may differ in length."""
    columns = max(map(len, rows))
    height, width = rows[0][0].shape[:2]
    panel = min(width, PANEL) / 100.0
    size = max(panel, 2.0) * columns, (max(panel, 2.0) * height / width + 0.25) * len(rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, dpi=100, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for line, pictures, titles in zip(axes, rows, captions, strict=True):
        for axis, picture, title in zip(line, pictures, titles, strict=False):
            axis.imshow(picture)
            axis.set_title(title, fontsize=8)
    _save(figure, path)


def _files(run):
    """The views with all three pictures on the disk: name -> beginning of their paths, in order."""
    found = {}
    for image in run.metrics.get("images", []):
        stem = run.folder / "results" / image["file"]
        if all(Path(f"{stem}_{kind}.png").is_file() for kind in ("photo", "rgb", "error")):
            found[image["name"]] = str(stem)
    return found


def _psnr(run, view):
    return next(image.get("psnr") for image in run.metrics["images"] if image["name"] == view)


def _panels(runs, view):
    stems = [_files(run)[view] for run in runs]
    return [read_picture(path) for path in (f"{stems[0]}_photo.png", *(f"{s}_rgb.png" for s in stems), *(f"{s}_error.png" for s in stems))]


def _save(figure, path):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plt.close(figure)
    write_file(path, content.getvalue())
