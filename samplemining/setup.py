"""Installs this package alone: `pip install --no-build-isolation ./samplemining`, or `python setup.py build_ext --inplace` here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernel_setup import setup_package

setup_package(__file__, "Choice of the hard samples of a training step for PyTorch, CPU and CUDA")
