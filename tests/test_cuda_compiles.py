"""Every CUDA source compiles without a GPU and without a torch header; the log shows registers and spills of each kernel."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import kernel_build

ROOT = Path(kernel_build.__file__).resolve().parent
SOURCES = sorted(file for file in ROOT.glob("*/src/*.cu"))
# Bytes that kernels may spill, none if they are not listed here: a few registers outside the inner loops are the price of one more block on a multiprocessor.
MAY_SPILL = {"ngp_backward_kernels.cu": 104, "merf_kernels.cu": 16}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_compiles_and_spills_no_more_than_it_may(source, tmp_path):
    command = ["nvcc", *kernel_build.CUDA_FLAGS, "-arch=sm_90", "-Xptxas", "-v", "-c", str(source), "-o", str(tmp_path / "kernels.o")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, kernel_build.first_error(run.stderr + run.stdout)
    kernels = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", run.stderr + run.stdout, re.DOTALL
    )
    assert kernels, "no kernel was compiled"
    for name, spilled, registers in kernels:
        print(f"{source.name} {demangled(name)}: {registers} registers, {spilled} bytes spilled")
    assert max(int(spilled) for _, spilled, _ in kernels) <= MAY_SPILL.get(source.name, 0)


def demangled(name):
    """The kernel's name as in its source, or as given where c++filt is missing."""
    tool = shutil.which("c++filt")
    text = subprocess.run([tool, name], capture_output=True, text=True, check=False).stdout if tool else name
    return re.sub(r"\(.*\)$", "", text.strip().replace("(anonymous namespace)::", ""))


def test_no_cuda_source_includes_torch():
    for file in SOURCES:
        included = re.findall(r"#include\s+[<\"](torch|ATen|c10)/", file.read_text())
        assert not included, f"{file.relative_to(ROOT)} includes a header of {included[0]}"
