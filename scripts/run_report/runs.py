"""What workspaces tell: options, history and results of training runs, grouped by scene."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.errors import UserError
from nerf.option_checks import PHOTO_FLAGS

MATTERS = {  # what does not compare where runs differ in it
    "data_format": "their photos may not be the same",
    "downscale": "their numbers are not of the same pictures",
    "train_split": "their held-out photos are others, or were learned from",
    "device": "their times and memory do not compare",
}


@dataclass(frozen=True)
class Run:
    """What one workspace tells."""

    label: str
    folder: Path
    options: dict
    history: list  # one dict a validation, in the order of training
    metrics: dict  # as nerf.evaluation.evaluate returned it: the newest results/metrics.json; empty where there is none

    def last(self, key):
        """The newest value of `key` in the history, None where there is none."""
        return next((line[key] for line in reversed(self.history) if line.get(key) is not None), None)

    def result(self, key):
        """What results/metrics.json says, if it is of the run's end, else the last validation, else None."""
        return self.last(key) if self.outdated() else self.metrics.get(key, self.last(key))

    def outdated(self):
        """Whether the run went on after the step that results/metrics.json is of, as far as is known."""
        return self.metrics.get("step", math.inf) < (self.last("step") or 0)

    def condition(self, key):
        """The value under which the run's results were measured: of an option that chooses photos (PHOTO_FLAGS), or the device."""
        if key == "device":
            return self.last(key)
        return self.options.get(key) if self.outdated() else self.metrics.get(key, self.options.get(key))

    def curve(self, x, y):
        """[k, 2] float64: the values of two keys of the history, where both are known."""
        points = [(line[x], line[y]) for line in self.history if known(line, x, y)]
        return np.array(points, dtype=np.float64).reshape(-1, 2)

    def over(self, reduce, key):
        """`reduce` of all values of a key in the history, None where there is none."""
        values = [line[key] for line in self.history if known(line, key)]
        return reduce(values) if values else None

    def training_memory(self):
        """Peak memory less what was there before the first step, in MiB; None where that is not known, as on a CPU."""
        peak, before = self.over(max, "peak_memory_mib"), self.over(max, "memory_before_mib")
        return peak - before if peak is not None and before else None


@dataclass(frozen=True)
class SceneRuns:
    """The runs of one scene, the first of which is what the others are compared with."""

    name: str
    runs: list


def load_scenes(workspaces):
    """One SceneRuns a scene, in the order in which the scenes first occur.

    Raises UserError where a folder is missing, is given twice, is no workspace, or holds a file that cannot be read.
    """
    folders = [Path(workspace) for workspace in workspaces]
    whole = [os.path.abspath(folder) for folder in folders]
    if len(set(whole)) < len(whole):
        raise UserError(f"The same workspace is given twice ({', '.join(map(str, folders))}): name each once.")
    groups = {}
    for folder in folders:
        options = _options(folder)
        groups.setdefault(os.path.normpath(str(options.get("path"))), []).append((folder, options))
    names = _apart(list(groups))
    scenes = []
    for path, members in groups.items():
        labels = _apart([os.path.abspath(folder) for folder, _ in members])
        scenes.append(SceneRuns(names[path], [_load_run(folder, labels[os.path.abspath(folder)], options) for folder, options in members]))
    return scenes


def remarks(scene):
    """What a reader must know before comparing the numbers of a SceneRuns, a sentence each."""
    runs, found = scene.runs, []
    for key, what in MATTERS.items():
        values = [run.condition(key) for run in runs]
        if any(value != values[0] for value in values):
            found.append(f"The runs differ in {key} ({', '.join(map(str, values))}): {what}.")
    for run in runs:
        found += _remarks_on(run)
    if len(runs) > 1:
        seeds = sorted({str(run.options.get("seed", 0)) for run in runs})
        found.append(f"Each run was made once (seed {', '.join(seeds)}), so that small differences may be chance.")
    found += [f"Measured on {run.last('device')}." for run in runs[:1] if run.last("device")]
    protocols = {run.metrics["protocol"] for run in runs if run.metrics.get("protocol")}
    return found + ["PSNR and SSIM: " + protocol + "." for protocol in sorted(protocols)]


def _remarks_on(run):
    """What must be known of the numbers of one Run, a sentence each."""
    if not run.metrics:
        return [f"{run.label} has no results/metrics.json: PSNR and SSIM are those of its last validation."]
    if run.outdated():
        steps = f"of step {run.metrics['step']}, its last validation of step {run.last('step')}"
        return [f"{run.label}: results/metrics.json and the pictures are {steps}, whose PSNR and SSIM these are (main.py with --test measures the newest)."]
    found = []
    if run.history and "step" not in run.metrics:
        found.append(f"{run.label}: results/metrics.json does not say at which step it was measured (main.py with --test measures it again).")
    if run.metrics.get("non_finite"):
        found.append(f"{run.label}: {run.metrics['non_finite']} of {run.metrics['count']} renders are not finite and left out of its means.")
    for key in PHOTO_FLAGS:
        if run.condition(key) != run.options.get(key):
            found.append(f"{run.label} was measured at its end with {key} {run.condition(key)}, and trained and validated with {run.options.get(key)}.")
    return found


def known(line, *keys):
    """Whether a line of the history has numbers for all keys."""
    return all(isinstance(line.get(key), int | float) for key in keys)


def _options(folder):
    if not folder.is_dir():
        raise UserError(f"No such workspace: {folder}; give folders that main.py trained into.")
    if not (folder / "options.json").is_file():
        raise UserError(f"{folder} holds no options.json and so is no workspace: give a folder that main.py trained into.")
    return read_json(folder / "options.json")


def _load_run(folder, label, options):
    results = folder / "results" / "metrics.json"
    return Run(label, folder, options, _read_history(folder / "history.jsonl"), read_json(results) if results.is_file() else {})


def read_json(path):
    """The object in a JSON file. Raises UserError where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path} ({error}): run main.py into that workspace again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object: run main.py into that workspace again.")
    return content


def _read_history(path):
    """The objects in a file of JSON lines, the later of two of one step; a last line cut off by a killed run is left out."""
    if not path.is_file():
        return []
    lines = {}
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines[line.get("step")] = line
    return list(lines.values())


def _apart(paths):
    """path -> what tells it from the others: its last part, with as many before that as are needed; all of it where that is not enough."""
    count = 1
    while count < max(len(Path(path).parts) for path in paths):
        short = {path: "/".join(Path(path).parts[-count:]) for path in paths}
        if len(set(short.values())) == len(paths):
            return short
        count += 1
    return {path: path for path in paths}
