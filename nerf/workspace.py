"""The folder of a run: what a new run does with what an earlier one left there."""

import json

from nerf.checkpoint import later_checkpoints
from nerf.files import atomic_file, drop_broken_line, writable

HISTORY = "history.jsonl"
OF_A_RUN = ("checkpoints", "validation", "results", "mesh", "points", "run", HISTORY, "scalars.jsonl", "options.json", "poses.json")


def set_aside(folder):
    """Moves what an earlier run left in the workspace into WORKSPACE/previous_K, so that nothing of it is lost or mixed with the new run.

    Returns:
        The new folder, or None where there was nothing.
    """
    return _move(folder, [folder / name for name in OF_A_RUN if (folder / name).exists()])


def go_on_from(folder, step):
    """Prepares a workspace for a run that goes on from a step: later checkpoints are moved into WORKSPACE/previous_K, and the history ends at the step."""
    _move(folder, later_checkpoints(folder / "checkpoints", step))
    path = folder / HISTORY
    drop_broken_line(path)
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        with atomic_file(path) as file:
            file.write("".join(line + "\n" for line in lines).encode())


def last_validation(folder):
    """The step at which the history of a workspace ends, or None."""
    path = folder / HISTORY
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else None


def add_to_history(folder, line):
    """Appends a validation's numbers, a dictionary, to WORKSPACE/history.jsonl. Raises UserError where that cannot be written."""
    path = folder / HISTORY
    with writable(path), open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def _move(folder, paths):
    """Moves paths into a new folder WORKSPACE/previous_K and returns it; None where there is nothing to move."""
    if not paths:
        return None
    k = 1
    while (folder / f"previous_{k}").exists():
        k += 1
    for path in paths:
        target = folder / f"previous_{k}" / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return folder / f"previous_{k}"
