"""Prints the packages of requirements.txt that this interpreter lacks, a word each; their versions may differ from the pinned ones.

    python scripts/missing_requirements.py

Uses the standard library alone, since it runs where nothing may be installed.
"""

import re
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
# The same modules under another name: either serves.
STAND_INS = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}


def required(text):
    """The names in the text of a requirements file, in order."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [re.match(r"[A-Za-z0-9._-]+", line).group() for line in lines if line]


def is_installed(name):
    for candidate in (name, *STAND_INS.get(name, ())):
        try:
            metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False


if __name__ == "__main__":
    print(" ".join(name for name in required(REQUIREMENTS.read_text()) if not is_installed(name)))
