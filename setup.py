"""Installs everything: `pip install --no-build-isolation .`, or `python setup.py build_ext --inplace` for the kernels alone."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kernel_setup import VERSION, kernel_arguments, kernel_folders

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
KERNELS = kernel_folders(ROOT)

setup(
    name="hsm-nerf",
    version=VERSION,
    description="Neural radiance fields trained on the hard samples alone",
    packages=[*find_packages(include=["nerf", "nerf.*"]), *KERNELS],
    py_modules=["kernel_build"],
    python_requires=">=3.11",
    install_requires=["torch>=2.7", "numpy"],
    **kernel_arguments(KERNELS),
)
