"""Checkpoints: what a run can be resumed from, whatever stopped it.

A checkpoint is one file of tensors and plain Python values, written whole or not at all, and read with `weights_only=True`, so that a file
from a stranger cannot run code. WORKSPACE/checkpoints holds `step_00001234.pth`, the newest few, and `best.pth`.
"""

import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from nerf.errors import UserError
from nerf.files import atomic_file, remove_partial_files
from nerf.option_text import flag_fields, value_text
from nerf.options import Options

FORMAT = "hsm checkpoint 3"
STEP_NAME = re.compile(r"step_(\d+)\.pth")
BEST = "best.pth"
MODEL_PARTS = ("model", "field", "sampler")
PLAIN_TYPES = (type(None), bool, int, float, str)


def checkpoint_folder(workspace):
    """Where the checkpoints of a workspace lie."""
    return Path(workspace) / "checkpoints"


def step_name(step):
    """File name of the checkpoint of a step."""
    return f"step_{step:08d}.pth"


def save_checkpoint(folder, name, state):
    """Write `state` (dict of tensors, plain values, lists, tuples and dicts of them) to FOLDER/NAME, whole or not at all; returns the path.

    What earlier, killed saves left in the folder is removed first. Raises TypeError naming the entry that is neither a tensor nor plain,
    and UserError if the file cannot be written; the checkpoint that had the name before is then untouched.
    """
    _require_plain(state, "state")
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(path.parent)
        with atomic_file(path) as file:
            torch.save({"format": FORMAT, "state": state}, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} cannot be written ({_reason(error)}); free some space or choose another --workspace.") from None
    return path


def save_step(folder, step, state):
    """Write the checkpoint of a step as `save_checkpoint` does, then remove old ones."""
    save_checkpoint(folder, step_name(step), state)
    prune(folder)


def prune(folder, keep=2):
    """Remove all step checkpoints of a folder but the `keep` newest; best.pth stays."""
    for path in _step_checkpoints(folder)[keep:]:
        path.unlink(missing_ok=True)


def later_checkpoints(folder, step):
    """The step checkpoints of a folder after `step`: what a run that goes on from there must move out of its way.

    Left in place they would stay the highest numbers, so that `prune` would take each newly written one and `latest` would go back to them.
    """
    return [path for path in _step_checkpoints(folder) if _step_of(path) > step]


def find_checkpoint(workspace, choice, note=print):
    """The file that `--ckpt choice` means, or None to start from scratch.

    `latest` is the highest step that can be read: an unreadable newer one is passed over. `best` without a readable best.pth is `latest`.
    `note` is called with a sentence for each such fallback. Raises UserError if a file is named that is absent, or if there are step
    checkpoints and none can be read.
    """
    if choice == "scratch":
        return None
    if choice == "latest":
        return _latest(workspace, note)
    if choice == "best":
        best = checkpoint_folder(workspace) / BEST
        if best.is_file() and not _trouble(best):
            return best
        latest = _latest(workspace, note)
        if latest is not None:
            note(f"{best} {'cannot be read' if best.exists() else 'is absent'}; {latest.name} is taken instead.")
        return latest
    if not Path(choice).is_file():
        raise UserError(f"--ckpt {choice} is no file; give latest, scratch, best or the path of a checkpoint.")
    return Path(choice)


def load_checkpoint(path, device):
    """The state that `save_checkpoint` was given, its tensors on `device`.

    Names under "model" and "field" lose the prefixes that torch.compile (`_orig_mod.`) and data-parallel wrappers (`module.`) put before
    them, so that a wrapped and a bare model read each other's checkpoints. Raises UserError if the file cannot be read or is no checkpoint
    of this project.
    """
    try:
        _require_intact(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 (a damaged pickle can raise anything)
        raise UserError(f"checkpoint {path} cannot be read ({_reason(error)}); give another with --ckpt, or --ckpt scratch.") from None
    if isinstance(content, dict) and str(content.get("format")).startswith("hsm checkpoint") and content["format"] != FORMAT:
        raise UserError(f"{path} was written by another version of this project ({content['format']}; this one reads {FORMAT}); use --ckpt scratch.")
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("state"), dict):
        raise UserError(f"{path} is no checkpoint of this project; give another with --ckpt, or --ckpt scratch.")
    state = content["state"]
    for part in MODEL_PARTS:
        if isinstance(state.get(part), dict):
            state[part] = {_bare_name(name): value for name, value in state[part].items()}
    return state


def check_signature(saved, own, path):
    """Raise UserError unless the network saved in `path` and its scene's place are our own, naming the first entry that differs, both values and the flag.

    saved, own: entry -> plain value for all that shapes the network or places the scene; an entry named as an option is that option's value.
    """
    flags = {entry.name for entry in flag_fields(Options)}
    for name in [*own, *(name for name in saved if name not in own)]:
        theirs, ours = (_listed(entries.get(name)) for entries in (saved, own))
        if theirs == ours:
            continue
        there, here = (value_text(entries[name]) if name in entries else "absent" for entries in (saved, own))
        remedy = f"give {_flag_text(name, theirs)}, or" if name in flags and theirs is not None else "give"
        raise UserError(f"checkpoint {path} is of another network or a scene placed otherwise: {name} is {there} there and {here} here; {remedy} --ckpt scratch.")


def _latest(workspace, note):
    candidates = _step_checkpoints(checkpoint_folder(workspace))
    troubles = []
    for path in candidates:
        if not (trouble := _trouble(path)):
            return path
        troubles.append(trouble)
        note(f"{path.name} is passed over: {trouble}")
    if troubles:
        raise UserError(f"none of the checkpoints in {checkpoint_folder(workspace)} can be read, the newest because: {troubles[0]}")
    return None


def _step_checkpoints(folder):
    """Step checkpoints of a folder, newest first."""
    return sorted((path for path in Path(folder).glob("step_*.pth") if STEP_NAME.fullmatch(path.name)), key=_step_of, reverse=True)


def _step_of(path):
    return int(STEP_NAME.fullmatch(path.name)[1])


def _trouble(path):
    """What keeps a checkpoint from being read, a sentence, or None."""
    try:
        load_checkpoint(path, "cpu")
    except UserError as error:
        return str(error)
    return None


def _require_intact(path):
    """Compare the checksums in the file, which torch.load does not: a flipped bit would load as a wrong weight."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def _require_plain(value, where):
    """Exact types: a NumPy float is a float to isinstance, yet cannot be read back with weights_only."""
    if isinstance(value, torch.Tensor) or type(value) in PLAIN_TYPES:
        return
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            if type(key) not in PLAIN_TYPES:
                raise TypeError(f"{where} has the key {key!r} of type {type(key).__name__}; a checkpoint's keys are plain values")
            _require_plain(entry, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _require_plain(entry, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is of type {type(value).__name__}; a checkpoint holds tensors and plain values only")


def _bare_name(name):
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _flag_text(name, value):
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value_text(value)}"


def _reason(error):
    """The first line of what went wrong, without the path that the sentence names anyway."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first_line = (text.strip() or type(error).__name__).splitlines()[0]
    return first_line.split(". ")[0].rstrip(".")
