"""The folder that a reconstruction is made in, and what both forms of COLMAP are told."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Stop criteria of the bundle adjustment: COLMAP's own (0) spend most of the time on digits that no photo can tell.
GLOBAL_TOLERANCE = 1e-6
# Frames or photos this far apart in the order of names are matched by `sequential`, and, by COLMAP's default, those at powers of two.
OVERLAP = 10


class ColmapError(Exception):
    """A step of COLMAP failed; the message is its reason, the log has the rest. status: the program's exit status, or None."""

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Work:
    """folder: holds what is being made. images: the photo folder; masks: a folder with NAME.jpg.png, or None; log: what COLMAP says, appended."""

    folder: Path
    images: Path
    masks: Path | None
    log: Path

    @property
    def database(self):
        return self.folder / "colmap.db"


@dataclass(frozen=True)
class Features:
    """camera_model: COLMAP's name; affine: estimate affine shapes (slow, for wide baselines); longest: photos are reduced to this many pixels a
    side for the search, not for training; gpu: use it."""

    camera_model: str
    affine: bool
    longest: int
    gpu: bool


def has_nvidia_gpu():
    """Whether the driver lists a GPU, and CUDA_VISIBLE_DEVICES does not hide all."""
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    listed = subprocess.run([tool, "-L"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return listed.returncode == 0 and b"GPU" in listed.stdout


def last_words(log, start):
    """The last line of `log` from byte `start` on, shortened: mostly the reason why a step failed."""
    with open(log, "rb") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "it said nothing"
