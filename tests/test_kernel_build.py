"""The build recipe of the kernel packages: stale builds, compile errors, machines without a compiler, and setup.py."""

import contextlib
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


def write_tool(path, text):
    """A program that is a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


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


def test_what_an_editor_leaves_beside_the_sources_changes_nothing(package):
    first = kernel_build.compile_library("tiny", package)
    (package / "src" / ".tiny.cpp.swp").write_bytes(b"b0VIM 8.2\x00\xff\xfe\x00")
    (package / "src" / ".#tiny.cpp").symlink_to("nobody@nowhere.1234")
    (package / "src" / "tiny.cpp~").write_text("an older one")
    assert kernel_build.compile_library("tiny", package) == first
    assert kernel_build.sources(package, False) == [str(package / "src" / "tiny.cpp")]


def test_a_cached_library_that_does_not_load_is_compiled_again(package, capfd, recwarn):
    library = kernel_build.compile_library("tiny", package)
    library.write_bytes(b"of another machine")
    capfd.readouterr()
    assert kernel_build.load_kernels("tiny", package) is torch.ops.tiny
    assert "Compiling tiny" in capfd.readouterr().out and not recwarn


def test_a_fresh_library_that_does_not_load_is_explained(tmp_path):
    folder = write_package(tmp_path / "lonely", 'extern "C" int nowhere(); extern "C" int lonely() { return nowhere(); }\n')
    with pytest.warns(UserWarning, match=r"was compiled and does not load \(.*undefined symbol: nowhere.*doctor.py.*The slow PyTorch form"):
        assert kernel_build.load_kernels("lonely", folder) is None


@pytest.mark.parametrize("jobs", ["0", "many", "-1"])
def test_a_number_of_jobs_that_is_none_is_named(package, monkeypatch, jobs):
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(kernel_build.MachineError, match=f"MAX_JOBS is '{jobs}'"):
        kernel_build.compile_library("tiny", package)


WAITING_COMPILER = """#!/bin/sh
case "$1" in -print*) exec g++ "$@";; esac
echo $$ >> {folder}/compilers
tries=0
while [ ! -e {folder}/go ] && [ $tries -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done
exec g++ "$@"
"""
COMPILE = "import sys, kernel_build\nkernel_build.wants_cuda = lambda: False\nkernel_build.compile_library('tiny', sys.argv[1])"


def start_waiting_build(package, folder):
    """A process in the middle of compiling the package; its compiler goes on when the file `go` appears in the folder."""
    compiler = write_tool(folder / "waiting-g++", WAITING_COMPILER.format(folder=folder))
    build = subprocess.Popen([sys.executable, "-c", COMPILE, str(package)], cwd=ROOT, env=os.environ | {"CXX": str(compiler)})
    while not (folder / "compilers").exists() or not (folder / "compilers").read_text():
        time.sleep(0.01)
    return build


def test_a_killed_build_blocks_nobody_and_is_cleared_away(package, cache, tmp_path):
    killed = start_waiting_build(package, tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    build = cache / f"tiny-{kernel_build.cache_key(package, False)}"
    assert list(build.glob("objects-*")), "the killed build left nothing, so that this test shows nothing"
    start = time.monotonic()
    assert kernel_build.load_kernels("tiny", package) is torch.ops.tiny
    assert time.monotonic() - start < 30
    (tmp_path / "go").write_text("")  # now the compiler that the killed build left running ends, too
    orphan = Path("/proc", (tmp_path / "compilers").read_text().split()[0], "stat")
    with contextlib.suppress(OSError):
        while orphan.read_text().split()[2] != "Z":
            time.sleep(0.01)
    assert sorted(file.name for file in build.iterdir()) == ["build.lock", "tiny.so"]


def test_who_waits_for_another_build_says_so(package, tmp_path):
    first = start_waiting_build(package, tmp_path)
    second = subprocess.Popen([sys.executable, "-c", COMPILE, str(package)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline().startswith(f"Waiting for process {first.pid}, which is compiling ")
    (tmp_path / "go").write_text("")
    assert first.wait(TIMEOUT) == 0
    assert second.communicate(timeout=TIMEOUT)[0] == "" and second.returncode == 0


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


def test_the_standard_library_is_that_of_torch(tmp_path, cache):
    """A static copy of it crashes at the first number in an error message."""
    source = """
#include <torch/library.h>
int64_t refuse(int64_t number) { TORCH_CHECK_VALUE(false, "not ", number); return 0; }
TORCH_LIBRARY(tiny, library) { library.def("refuse(int number) -> int", refuse); }
"""
    folder = write_package(tmp_path / "strict", source)
    compiler = tmp_path / "static-compiler"
    compiler.write_text('#!/bin/sh\nexec g++ -static-libstdc++ "$@"\n')
    compiler.chmod(0o755)
    code = """
import sys, torch, kernel_build
kernel_build.wants_cuda = lambda: False
try:
    kernel_build.load_kernels("tiny", sys.argv[1]).refuse(7)
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"CXX": str(compiler)}
    run = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "not 7", run.stderr


def test_without_a_compiler_one_warning_and_the_twin_serves(cache):
    code = """
import torch, freqencoder, fusedadam, fusedfield, gridencoder, raymarching, raysampling, samplemining, shencoder
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
    assert run.stderr.count("Warning") == 1
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


@pytest.mark.parametrize(
    ("listed", "numbers"),
    [("8.0;8.6", ["80", "86"]), ("8.0 9.0", ["80", "90"]), ("9.0+PTX", ["90", "90+PTX"]), (" 8.0; 9.0a+PTX;", ["80", "90a", "90a+PTX"])],
)
def test_architectures(listed, numbers, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    names = [(number.removesuffix("+PTX"), "compute" if number.endswith("+PTX") else "sm") for number in numbers]
    assert kernel_build.architecture_flags() == [f"-gencode=arch=compute_{name},code={kind}_{name}" for name, kind in names]


def test_architectures_that_cannot_be_read_are_named(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(kernel_build.BuildError, match="TORCH_CUDA_ARCH_LIST holds 'Hopper'"):
        kernel_build.architecture_flags()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", " ; ")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(kernel_build.BuildError, match="no GPU is visible and TORCH_CUDA_ARCH_LIST is not set"):
        kernel_build.architecture_flags()


@pytest.mark.parametrize(
    ("entry", "capability", "served"),
    [
        ("8.0", (8, 0), True), ("8.0", (8, 6), True), ("8.6", (8, 0), False), ("8.0", (9, 0), False), ("8.0+PTX", (9, 0), True),
        ("80p", (12, 0), True), ("9.0+PTX", (8, 6), False), ("9.0a", (9, 0), True), ("9.0a", (9, 1), False), ("120", (12, 1), True), ("Hopper", (9, 0), False),
    ],
)  # fmt: skip
def test_which_gpu_an_architecture_serves(entry, capability, served):
    assert kernel_build.serves(entry, capability) == served


def test_a_gpu_that_the_list_leaves_out_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(8, 6), (9, 0)][i])
    monkeypatch.setattr(kernel_build, "cuda_compiler", lambda: "nvcc")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    with pytest.raises(kernel_build.BuildError, match=r"leaves out a GPU of this machine: add 9.0 to it"):
        kernel_build.check_compilers(True)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    kernel_build.check_compilers(True)
    assert kernel_build.architectures() == ["8.6", "9.0"]


def write_nvcc(home, version):
    return write_tool(home / "bin" / "nvcc", f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")


def test_nvcc_missing_or_of_another_cuda_is_named(tmp_path, monkeypatch):
    nvcc = write_nvcc(tmp_path / "old", "11.8")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernel_build, "CUDA_FOLDERS", [])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    with pytest.raises(kernel_build.BuildError, match=r"is of CUDA 11.8 but torch was built for 99.0"):
        kernel_build.cuda_compiler()
    monkeypatch.setattr(torch.version, "cuda", "11.7")
    assert kernel_build.cuda_compiler() == str(nvcc)
    monkeypatch.delenv("CUDA_HOME")
    with pytest.raises(kernel_build.BuildError, match=r"nvcc is not found: install the CUDA toolkit 11.7"):
        kernel_build.cuda_compiler()


def test_the_nvcc_that_fits_is_taken_of_several(tmp_path, monkeypatch):
    write_nvcc(tmp_path / "old", "11.8")
    fitting = write_nvcc(tmp_path / "new", "13.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'old' / 'bin'}:{tmp_path / 'new' / 'bin'}:/bin")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert kernel_build.cuda_compiler() == str(fitting)


def copy_setup(package):
    """Gives the package the setup.py of the kernel packages."""
    for name in ("kernel_build.py", "kernel_setup.py"):
        shutil.copy(ROOT / name, package.parent)
    shutil.copy(ROOT / "gridencoder" / "setup.py", package)
    (package / "__init__.py").write_text("import os, kernel_build\nkernels = kernel_build.load_kernels('tiny', os.path.dirname(__file__))\n")


def run_python(*arguments, cwd, **environment):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_setup_py_builds_in_place_and_a_changed_source_wins(package, cache):
    copy_setup(package)
    build = run_python("setup.py", "build_ext", "--inplace", cwd=package)
    assert build.returncode == 0, build.stderr
    (library,) = package.glob("_C*.so")
    assert kernel_build.prebuilt_library(package) == library
    loaded = run_python("-c", "import tiny, torch; print(tiny.kernels is torch.ops.tiny)", cwd=package.parent)
    assert loaded.stdout == "True\n", loaded.stderr
    assert not cache.exists(), "compiled although a library lay beside the package"
    (package / "src" / "tiny.cpp").write_text('extern "C" int tiny() { return 9; }\n')
    assert kernel_build.prebuilt_library(package) is None
    assert run_python("setup.py", "build_ext", "--inplace", cwd=package).returncode == 0
    (newer,) = package.glob("_C*.so")
    assert newer != library and kernel_build.prebuilt_library(package) == newer


def test_a_library_of_another_torch_or_processor_is_passed_over(package, monkeypatch):
    library = package / f"{kernel_build.prebuilt_name(package, False)}.so"
    library.write_text("")
    assert kernel_build.prebuilt_library(package) == library
    monkeypatch.setattr(kernel_build, "PORTABLE_NEEDS", {"an-instruction-set-to-come"})
    monkeypatch.setattr(kernel_build, "PORTABLE", kernel_build.PORTABLE or ["-march=some"])
    assert kernel_build.prebuilt_library(package) is None
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert kernel_build.prebuilt_library(package) is None


def test_a_library_for_other_gpus_is_passed_over(package, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;8.6+PTX")
    library = package / f"{kernel_build.prebuilt_name(package, True)}.so"
    assert library.name.endswith("_80_86p.so")
    library.write_text("")
    monkeypatch.setattr(kernel_build, "wants_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability, taken in {(8, 0): True, (9, 0): True, (7, 5): False}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i, capability=capability: capability)
        assert (kernel_build.prebuilt_library(package) == library) == taken
    monkeypatch.setattr(kernel_build, "wants_cuda", lambda: False)
    assert kernel_build.prebuilt_library(package) == library, "a CPU can use the library with CUDA"


FAKE_CUDA = """
import runpy, sys, torch
torch.version.cuda = "13.0"
torch.cuda.is_available, torch.cuda.device_count = lambda: False, lambda: 0
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
LOGGING_COMPILER = """#!/bin/sh
echo "$(basename $0) $*" >> {log}
if [ "$1" = --version ]; then echo "release 13.0, V13.0.1"; fi
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then echo made > "$2"; fi; shift; done
"""


@pytest.mark.parametrize("listed", ["8.0;9.0+PTX", ""])
def test_setup_py_builds_for_the_listed_gpus_without_a_gpu(package, tmp_path, listed):
    copy_setup(package)
    for name in ("tiny_cuda.cpp", "tiny_cuda.cu"):
        (package / "src" / name).write_text("")
    compiler = LOGGING_COMPILER.format(log=tmp_path / "log")
    write_tool(tmp_path / "cuda" / "bin" / "nvcc", compiler)
    write_tool(tmp_path / "g++", compiler)
    build = run_python("-c", FAKE_CUDA, cwd=package, CUDA_HOME=str(tmp_path / "cuda"), CXX=str(tmp_path / "g++"), TORCH_CUDA_ARCH_LIST=listed)
    assert build.returncode == 0, build.stderr
    compiled = (tmp_path / "log").read_text()
    (library,) = package.glob("_C*.so")
    if listed:
        assert library.name.startswith("_C_cuda_") and library.name.endswith("_80_90p.so")
        for flag in ("code=sm_80", "code=sm_90", "code=compute_90", "tiny_cuda.cu.o", "tiny_cuda.cpp.o", "-ltorch_cuda"):
            assert flag in compiled
    else:
        assert library.name.startswith("_C_cpu_") and "nvcc" not in compiled and "tiny_cuda" not in compiled


def test_setup_py_without_torch(package, tmp_path):
    copy_setup(package)
    hidden = "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', *sys.argv[1:]]; runpy.run_path('setup.py', run_name='__main__')"
    refused = run_python("-c", hidden, "build_ext", "--inplace", cwd=package)
    assert refused.returncode == 1 and refused.stderr == f"torch is not installed for {sys.executable}: type {sys.executable} -m pip install torch\n"
    built = run_python("-c", hidden, "build", "--build-lib", str(tmp_path / "out"), cwd=package)
    assert built.returncode == 0 and "compiled at first use" in built.stdout, built.stderr
    files = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*"))
    assert files == ["kernel_build.py", "tiny/__init__.py", "tiny/src/tiny.cpp"]
