"""Installs this package alone: `pip install --no-build-isolation ./raysampling`, or `python setup.py build_ext --inplace` here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernel_setup import setup_package

setup_package(__file__, "Where along rays to look, by proposals, for PyTorch, CPU and CUDA")
