"""Installs everything: `pip install --no-build-isolation .`, or `python setup.py build_ext --inplace` for the kernels alone."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kernel_build import VERSION, build_command, extension

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
KERNELS = sorted(file.stem for file in ROOT.glob("*/src/*.cpp") if file.stem == file.parent.parent.name)

setup(
    name="hsm-nerf",
    version=VERSION,
    description="Neural radiance fields trained on the hard samples alone",
    packages=[*find_packages(include=["nerf", "nerf.*"]), *KERNELS],
    py_modules=["kernel_build"],
    ext_modules=[extension(name, ROOT / name) for name in KERNELS],
    cmdclass={"build_ext": build_command()},
    python_requires=">=3.11",
    install_requires=["torch>=2.7", "numpy"],
)
