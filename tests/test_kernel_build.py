"""The build recipe of the kernel packages: stale builds, compile errors, machines without a compiler, and setup.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import kernel_build

ROOT = Path(kernel_build.__file__).resolve().parent
TIMEOUT = 120  # seconds; a build that hangs is what these tests are about


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of compiled libraries, and no GPU to compile for: the recipe is the subject, not the kernels."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_build, "wants_cuda", lambda: False)
    return tmp_path / "cache"


def write_package(folder, text):
    """A kernel package of one source file, without torch headers so that it compiles at once."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "tiny.cpp").write_text(text)
    return folder


@pytest.fixture
def package(tmp_path):
    return write_package(tmp_path / "tiny", 'extern "C" int tiny() { return 7; }\n')


def test_compiles_once_and_loads(package, capfd, monkeypatch):
    assert kernel_build.load_kernels("tiny", package) is torch.ops.tiny
    assert "Compiling tiny" in capfd.readouterr().out
    monkeypatch.setattr(kernel_build, "build_library", lambda *arguments: pytest.fail("compiled again"))
    assert kernel_build.load_kernels("tiny", package) is torch.ops.tiny
    assert capfd.readouterr().out == ""


def test_a_changed_source_is_compiled_again(package):
    first = kernel_build.compile_library("tiny", package)
    (package / "src" / "tiny.cpp").write_text('extern "C" int tiny() { return 8; }\n')
    assert kernel_build.compile_library("tiny", package) != first


def test_what_a_killed_build_leaves_behind_blocks_nobody(package, cache):
    build = cache / f"tiny-{kernel_build.cache_key(package, False)}"
    code = """
import sys, time, kernel_build, pathlib
with kernel_build.build_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(build)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    for name in ("lock", "tiny.so.part", "tiny.cpp.o"):
        (build / name).write_text("half made")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    assert kernel_build.load_kernels("tiny", package) is torch.ops.tiny
    assert time.monotonic() - start < 30


def test_two_processes_compile_once(package):
    code = "import sys, kernel_build\nkernel_build.wants_cuda = lambda: False\nprint(kernel_build.compile_library('tiny', sys.argv[1]))"
    runs = [subprocess.Popen([sys.executable, "-c", code, str(package)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=TIMEOUT)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert "".join(outputs).count("Compiling tiny") == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]


def test_a_compile_error_shows_the_first_error(tmp_path):
    folder = write_package(tmp_path / "broken", "int first = no_such_name;\nint second = nor_this;\n")
    with pytest.raises(kernel_build.BuildError, match=r"tiny.cpp:1:.*error: .*no_such_name"):
        kernel_build.compile_library("broken", folder)
    with pytest.warns(UserWarning, match=r"broken: .*no_such_name.* PyTorch form") as warned:
        assert kernel_build.load_kernels("broken", folder) is None
    assert len(warned) == 1


def test_without_a_compiler_one_warning_and_the_twin_serves(cache):
    code = """
import torch, gridencoder
encoder = gridencoder.GridEncoder(levels=2)
encoder(torch.rand(5, 3)).sum().backward()
print(encoder.table.grad.sum().item())
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert float(run.stdout) == pytest.approx(20, rel=1e-4)
    assert run.stderr.count("no C++ compiler no-such-compiler is found: install one") == 1


def test_a_cache_that_cannot_be_written_is_named(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(kernel_build.BuildError, match=r"cannot be written.*TORCH_EXTENSIONS_DIR"):
        kernel_build.compile_library("tiny", package)


def test_no_sources_is_named(tmp_path):
    with pytest.raises(kernel_build.BuildError, match="install the package again"):
        kernel_build.compile_library("nothing", tmp_path)


def test_first_error():
    assert kernel_build.first_error("note: x\n  a.cu(3): error: bad\nb.cpp:1: error: worse") == "a.cu(3): error: bad"
    assert kernel_build.first_error("ld: cannot find -lcudart\ncollect2: error: ld returned 1 exit status") == "ld: cannot find -lcudart"
    assert kernel_build.first_error("killed\n") == "killed"
    assert kernel_build.first_error("") == "no output"


def test_cuda_sources_only_with_cuda(tmp_path):
    folder = write_package(tmp_path / "mixed", "")
    for name in ("tiny_cuda.cpp", "tiny_cuda.cu", "tiny_cuda.h"):
        (folder / "src" / name).write_text("")
    names = [[Path(file).name for file in kernel_build.sources(folder, cuda)] for cuda in (False, True)]
    assert names == [["tiny.cpp"], ["tiny.cpp", "tiny_cuda.cpp", "tiny_cuda.cu"]]


def test_architectures(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0; 9.0a+PTX")
    flags = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_90a,code=compute_90a"]
    assert kernel_build.architecture_flags() == flags
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(kernel_build.BuildError, match="TORCH_CUDA_ARCH_LIST holds 'Hopper'"):
        kernel_build.architecture_flags()


def test_nvcc_missing_or_of_another_cuda_is_named(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(kernel_build.BuildError, match=r"is of CUDA 11.8 but torch was built for 13.0"):
        kernel_build.cuda_compiler()
    monkeypatch.setattr(torch.version, "cuda", "11.7")
    assert kernel_build.cuda_compiler() == str(nvcc)
    monkeypatch.setattr(kernel_build.shutil, "which", lambda *arguments, **options: None)
    with pytest.raises(kernel_build.BuildError, match=r"nvcc is not found: install the CUDA toolkit 11.7"):
        kernel_build.cuda_compiler()


def test_setup_py_builds_in_place_and_a_newer_source_wins(package, cache):
    shutil.copy(ROOT / "kernel_build.py", package.parent)
    shutil.copy(ROOT / "gridencoder" / "setup.py", package)
    (package / "__init__.py").write_text(
        "import kernel_build, os\nkernels = kernel_build.load_kernels('tiny', os.path.dirname(__file__))\n"
    )
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    run = subprocess.run(build, cwd=package, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert run.returncode == 0, run.stderr
    libraries = list(package.glob("_C*.so"))
    assert len(libraries) == 1
    code = "import tiny, torch; print(tiny.kernels is torch.ops.tiny)"
    run = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert run.stdout == "True\n", run.stderr
    assert not cache.exists(), "compiled although a library lay beside the package"
    os.utime(libraries[0], (1, 1))
    assert not kernel_build.load_prebuilt(package)
