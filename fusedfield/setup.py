"""Installs this package alone, beside gridencoder, raymarching and shencoder, whose mathematics it shares: `pip install --no-build-isolation ./fusedfield`,
or `python setup.py build_ext --inplace` here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernel_setup import setup_package

setup_package(__file__, "Small radiance fields in one kernel for PyTorch and CUDA")
