"""Compare training runs: a table, pictures side by side, and PSNR against training time.

    python scripts/compare_runs.py trial_demo/baseline trial_demo/hsm --out trial_demo/comparison
"""

import argparse
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nerf.errors import UserError
from nerf.files import write_file

SAME = ("path", "data_format", "downscale", "train_split")  # options that must agree for two PSNRs to mean the same
PANEL = 480  # pixels, the greatest width of one picture in the comparison


@dataclass(frozen=True)
class Run:
    """What one workspace tells."""

    label: str
    folder: Path
    options: dict
    history: list  # one dict a validation, in the order of training
    metrics: dict  # as nerf.evaluation.evaluate returned it; empty where the run was not evaluated at its end

    def last(self, key):
        """The newest value of `key` in the history, None where there is none."""
        return next((line[key] for line in reversed(self.history) if line.get(key) is not None), None)

    def curve(self):
        """[k, 2] float64: seconds of training and PSNR in dB, where both are known."""
        points = [(line["training_time"], line["psnr"]) for line in self.history if _known(line, "training_time", "psnr")]
        return np.array(points, dtype=np.float64).reshape(-1, 2)


def load_runs(workspaces):
    """One Run a workspace. Raises UserError where a folder is missing, is no workspace, or holds a file that cannot be read."""
    labels = _labels([Path(workspace) for workspace in workspaces])
    return [_load_run(Path(workspace), label) for workspace, label in zip(workspaces, labels, strict=True)]


def table(runs):
    """The runs' numbers as lines of text, a row a run."""
    rows = [("run", "PSNR [dB]", "SSIM", "training [s]", "steps", "ms/step", "memory [MiB]")]
    for run in runs:
        numbers = (
            _format(run.metrics.get("psnr", run.last("psnr")), ".2f"),
            _format(run.metrics.get("ssim", run.last("ssim")), ".4f"),
            _format(run.last("training_time"), ".1f"),
            _format(run.last("step"), ",d"),
            _format(_over(np.median, run, "ms_per_step"), ".2f"),
            _format(_over(max, run, "peak_memory_mib"), ",.0f"),
        )
        rows.append((run.label, *numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )


def remarks(runs):
    """What a reader must know before comparing the numbers, a sentence each."""
    found = []
    for key in SAME:
        values = [run.options.get(key) for run in runs]
        if any(value != values[0] for value in values):
            found.append(f"The runs differ in {key} ({', '.join(map(str, values))}): their numbers are not of the same pictures.")
    for run in runs:
        if not run.metrics:
            found.append(f"{run.label} has no results/metrics.json: PSNR and SSIM are those of its last validation.")
        elif run.metrics.get("non_finite"):
            count = f"{run.metrics['non_finite']} of {run.metrics['count']}"
            found.append(f"{run.label}: {count} renders are not finite and left out of its means.")
    protocols = {run.metrics["protocol"] for run in runs if run.metrics.get("protocol")}
    return found + ["PSNR and SSIM: " + protocol + "." for protocol in sorted(protocols)]


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
    height, width = rows[0][0].shape[:2]
    panel = min(width, PANEL) / 100.0
    size = panel * len(titles), (panel * height / width + 0.25) * len(rows)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, dpi=100, squeeze=False, layout="constrained")
    for row, (view, panels) in enumerate(zip(views, rows, strict=True)):
        for axis, title, image in zip(axes[row], titles, panels, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            axis.set_title(title, fontsize=9)
        axes[row][0].set_title(view, fontsize=9)
        for axis, run in zip(axes[row][1:], runs, strict=False):
            axis.set_title(f"{run.label}, {_format(_view(run, view).get('psnr'), '.2f')} dB", fontsize=9)
    _save(figure, path)


def draw_curves(runs, path):
    """A PNG with each run's held-out PSNR against its seconds of training."""
    figure, axis = plt.subplots(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    for run in runs:
        seconds, psnr = run.curve().T
        axis.plot(seconds, psnr, marker="o", markersize=3, label=run.label)
    axis.set(xlabel="training time [s]", ylabel="held-out PSNR [dB]")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def main(arguments=None):
    """Print the table and write the pictures; the exit status, 1 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workspaces", nargs="+", metavar="WORKSPACE", help="two or more folders that main.py trained into")
    parser.add_argument("--out", default="comparison", metavar="FOLDER", help="where the pictures go (default: comparison)")
    parser.add_argument("--view", action="append", default=[], metavar="NAME", help="a held-out photo to show; repeatable (default: three)")
    options = parser.parse_args(arguments)
    try:
        _compare(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _compare(options):
    if len(options.workspaces) < 2:
        raise UserError(f"Only one workspace given ({options.workspaces[0]}): name two or more to compare.")
    runs, out = load_runs(options.workspaces), Path(options.out)
    text = "\n".join([table(runs), "", *remarks(runs)]).rstrip()
    print(text)
    write_file(out / "comparison.txt", (text + "\n").encode())
    if views := common_views(runs, options.view):
        draw_pictures(runs, views, out / "pictures.png")
        print(f"Pictures: {out / 'pictures.png'}")
    else:
        print("No pictures: the runs have no evaluated view in common (run main.py with --test).")
    if any(len(run.curve()) for run in runs):
        draw_curves(runs, out / "psnr.png")
        print(f"PSNR against time: {out / 'psnr.png'}")
    else:
        print("No plot: the runs have no validation in history.jsonl.")


def _load_run(folder, label):
    if not folder.is_dir():
        raise UserError(f"No such workspace: {folder}; give folders that main.py trained into.")
    if not (folder / "options.json").is_file():
        raise UserError(f"{folder} holds no options.json and so is no workspace: give a folder that main.py trained into.")
    results = folder / "results" / "metrics.json"
    metrics = _read_json(results) if results.is_file() else {}
    return Run(label, folder, _read_json(folder / "options.json"), _read_lines(folder / "history.jsonl"), metrics)


def _read_json(path):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path} ({error}): run main.py into that workspace again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object: run main.py into that workspace again.")
    return content


def _read_lines(path):
    """The objects in a file of JSON lines; a last line cut off by a killed run is left out, as is all where there is no file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _labels(folders):
    """The folders without what their paths begin with in common; the whole path where that leaves nothing."""
    whole = [os.path.abspath(folder) for folder in folders]
    if len(set(whole)) < len(whole):
        raise UserError(f"The same workspace is given twice ({', '.join(map(str, folders))}): name each once.")
    shared = os.path.commonpath(whole)
    return [folder.name if path == shared else os.path.relpath(path, shared) for folder, path in zip(folders, whole, strict=True)]


def _known(line, *keys):
    return all(isinstance(line.get(key), int | float) for key in keys)


def _over(reduce, run, key):
    values = [line[key] for line in run.history if _known(line, key)]
    return reduce(values) if values else None


def _format(value, form):
    return "-" if value is None else format(int(value) if form.endswith("d") else value, form)


def _view(run, name):
    return next(image for image in run.metrics["images"] if image["name"] == name)


def _files(run):
    """The views with all three pictures on the disk: name -> beginning of their paths, in order."""
    found = {}
    for image in run.metrics.get("images", []):
        stem = run.folder / "results" / image["file"]
        if all(Path(f"{stem}_{kind}.png").is_file() for kind in ("photo", "rgb", "error")):
            found[image["name"]] = str(stem)
    return found


def _panels(runs, view):
    stems = [_files(run)[view] for run in runs]
    return [_read_picture(path) for path in (f"{stems[0]}_photo.png", *(f"{s}_rgb.png" for s in stems), *(f"{s}_error.png" for s in stems))]


def _read_picture(path):
    pixels = cv2.imread(path, cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"Cannot read the picture {path}: run main.py with --test into that workspace again.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _save(figure, path):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plt.close(figure)
    write_file(path, content.getvalue())


if __name__ == "__main__":
    sys.exit(main())
