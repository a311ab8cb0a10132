"""scripts/doctor.py on machines that are made up: a stand-in for torch, and shell scripts for nvcc, g++ and nvidia-smi."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import doctor

TORCH = """
__version__ = {version!r}
class version:
    cuda = {cuda!r}
class cuda:
    capability = {capability!r}
    is_available = staticmethod(lambda: {available!r})
    device_count = staticmethod(lambda: int({available!r}))
    get_device_capability = staticmethod(lambda i: {capability!r})
    get_arch_list = staticmethod(lambda: {built_for!r})
    @staticmethod
    def init():
        raise RuntimeError("no CUDA-capable device is detected")
"""
CPU = {"version": "2.13.0+cpu", "cuda": None, "available": False, "capability": (0, 0), "built_for": []}
# A CUDA that no real machine has, so that a real nvcc beside these is passed over.
CUDA = {"version": "2.13.0", "cuda": "99.1", "available": True, "capability": (9, 0), "built_for": ["sm_80", "sm_90", "compute_90"]}


class Machine:
    """Commands and a torch that are there; `examine` runs the doctor and gives its exit code and its lines by subject."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("bin", "torch", "include/crt"):
            (folder / name).mkdir(parents=True)
        (folder / "include" / "crt" / "host_config.h").write_text("#if __GNUC__ > 14\n#error\n#endif\n")

    def tool(self, name, text):
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def gcc(self, version):
        self.tool("g++", f"echo 'g++ (Some {version}-1) {version}'; echo 'Copyright (C) Free Software Foundation, Inc.'")

    def nvcc(self, version, known=(80, 90)):
        listed = "; ".join(f"echo compute_{number}" for number in known)
        self.tool(
            "nvcc",
            f"case $1 in --version) echo 'release {version}, V{version}.1';; --list-gpu-arch) {listed};;"
            f" --dryrun) echo '#$ INCLUDES=\"-I{self.folder}/include\"' >&2;; esac",
        )

    def gpu(self, driver="999.10", capability="9.0"):
        self.tool("nvidia-smi", f"echo 'NVIDIA H100 80GB HBM3, {capability}, {driver}'")

    def torch(self, text=None, **facts):
        (self.folder / "torch" / "__init__.py").write_text(text or TORCH.format(**facts))

    def examine(self, **environment):
        variables = {name: value for name, value in os.environ.items() if name not in ("CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "PYTHONPATH")}
        variables |= {"PATH": str(self.folder / "bin"), "PYTHONPATH": str(self.folder), "TORCH_EXTENSIONS_DIR": str(self.folder / "cache"), **environment}
        command = [sys.executable, str(ROOT / "scripts" / "doctor.py")]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder)
        assert done.stderr == ""
        lines, subject = {}, None
        for line in done.stdout.splitlines()[:-1]:
            if line.startswith(" "):
                lines[subject] += line.strip()
            else:
                subject = line[6:20].strip()
                lines[subject] = f"{line[:4].strip()}: {line[20:]}"
        return done.returncode, lines


@pytest.fixture
def machine(tmp_path):
    """All is well: a GPU, its driver, nvcc and g++ fit torch."""
    machine = Machine(tmp_path)
    machine.torch(**CUDA)
    machine.gcc("13.2.0")
    machine.nvcc("99.1")
    machine.gpu()
    return machine


def test_a_machine_where_all_fits(machine):
    code, lines = machine.examine()
    assert code == 0
    assert [subject for subject, line in lines.items() if not line.startswith("ok")] == []
    assert "built for CUDA 99.1" in lines["torch"] and "fits torch's CUDA 99.1" in lines["nvcc"] and "takes up to 14" in lines["g++"]
    assert lines["compile for"] == "ok: 9.0" and "compute capability 9.0" in lines["GPU"] and "GiB free" in lines["cache"]
    assert {"gridencoder", "raymarching", "shencoder"} <= set(lines) and lines["gridencoder"] == "ok: will be compiled at first use"
    assert "not needed" in lines["ninja"]


def test_a_machine_without_a_gpu(machine):
    machine.torch(**CPU)
    for tool in ("nvcc", "nvidia-smi"):
        (machine.folder / "bin" / tool).unlink()
    code, lines = machine.examine()
    assert code == 0 and "training runs on the CPU" in lines["GPU"] and "for the CPU alone" in lines["torch"]
    assert all(line.startswith("ok") for line in lines.values())


def test_torch_is_missing(machine):
    machine.torch("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    code, lines = machine.examine()
    assert code == 1 and lines["torch"].startswith("STOP: not installed-> ") and "-m pip install torch==2" in lines["torch"]
    assert lines["Python"].startswith("ok")


def test_torch_cannot_be_loaded(machine):
    machine.torch("raise OSError('libcudart.so.99: cannot open shared object file')")
    code, lines = machine.examine()
    assert code == 1 and "cannot be loaded (libcudart.so.99: cannot open" in lines["torch"]


def test_torch_is_too_old(machine):
    machine.torch(**CUDA | {"version": "2.6.1"})
    code, lines = machine.examine()
    assert code == 1 and "2.7 or newer" in lines["torch"]


def test_torch_without_cuda_beside_a_gpu(machine):
    machine.torch(**CPU)
    code, lines = machine.examine()
    assert code == 0 and lines["torch"].startswith("note") and "pip install --force-reinstall torch==" in lines["torch"]


def test_the_driver_is_too_old(machine):
    machine.torch(**CUDA | {"cuda": "13.0", "available": False})
    machine.gpu(driver="570.12")
    code, lines = machine.examine()
    assert code == 0 and lines["driver"].startswith("note") and "needs driver 580 or newer" in lines["driver"]


def test_torch_sees_no_gpu(machine):
    machine.torch(**CUDA | {"available": False})
    _, lines = machine.examine()
    assert lines["torch and GPU"].startswith("note: torch sees no GPU: no CUDA-capable device is detected-> ")


def test_torch_holds_no_code_for_the_gpu(machine):
    machine.torch(**CUDA | {"capability": (7, 0)})
    machine.gpu(capability="7.0")
    code, lines = machine.examine()
    assert code == 1 and lines["torch and GPU"].startswith("STOP") and "--device cpu" in lines["torch and GPU"]


def test_nvcc_of_another_cuda(machine):
    machine.nvcc("11.8")
    code, lines = machine.examine()
    assert code == 0 and "is of CUDA 11.8 but torch was built for 99.1: install the CUDA toolkit 99.1" in lines["nvcc"]
    assert lines["gridencoder"].startswith("note: the slow PyTorch form serves")


def test_nvcc_is_missing(machine):
    (machine.folder / "bin" / "nvcc").unlink()
    _, lines = machine.examine()  # the real machine may have one of another CUDA in /usr/local/cuda
    assert lines["nvcc"].startswith("note: does not serve") and "install the CUDA toolkit 99.1 or name its folder in CUDA_HOME" in lines["nvcc"]


def test_nvcc_does_not_know_the_gpu(machine):
    machine.torch(**CUDA | {"capability": (12, 0), "built_for": ["sm_120"]})
    machine.gpu(capability="12.0")
    _, lines = machine.examine()
    assert lines["compile for"].startswith("note: 12.0-> ") and "TORCH_CUDA_ARCH_LIST=9.0+PTX" in lines["compile for"]


def test_the_list_leaves_the_gpu_out(machine):
    _, lines = machine.examine(TORCH_CUDA_ARCH_LIST="8.0")
    assert lines["compile for"].startswith("note: 8.0-> this leaves out 9.0")
    _, lines = machine.examine(TORCH_CUDA_ARCH_LIST="8.0+PTX")
    assert lines["compile for"] == "ok: 8.0+PTX"
    _, lines = machine.examine(TORCH_CUDA_ARCH_LIST="Hopper")
    assert "holds 'Hopper'" in lines["nvcc"]


def test_gcc_too_new_for_nvcc_too_old_or_missing(machine):
    machine.gcc("15.1.0")
    assert "nvcc takes at most 14: apt-get install g++-14, then export CXX=g++-14" in machine.examine()[1]["g++"]
    machine.gcc("9.4.0")
    assert "10 or newer is needed" in machine.examine()[1]["g++"]
    (machine.folder / "bin" / "g++").unlink()
    code, lines = machine.examine()
    assert code == 0 and lines["g++"].startswith("note: none-> no C++ compiler g++ is found") and lines["shencoder"].startswith("note: the slow")


def test_a_cache_that_cannot_be_written(machine):
    (machine.folder / "file").write_text("")
    _, lines = machine.examine(TORCH_EXTENSIONS_DIR=str(machine.folder / "file"))
    assert "cannot be written-> name another folder: export TORCH_EXTENSIONS_DIR" in lines["cache"]


def test_python_and_requirements(monkeypatch):
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 0))
    assert doctor.python_line().level == "STOP" and "apt-get install python3" in doctor.python_line().remedy
    monkeypatch.setattr(doctor.missing_requirements, "is_installed", lambda name: name not in ("viser", "pytest"))
    assert doctor.requirements_line()[1:3] == ("missing: viser pytest", "note")
    monkeypatch.setattr(doctor.missing_requirements, "is_installed", lambda name: name != "numpy")
    assert doctor.requirements_line()[1:3] == ("missing: numpy", "STOP")
    assert doctor.requirements_line().remedy.endswith("-m pip install numpy")


def test_compiled_packages_need_no_compiler(machine, monkeypatch):
    """What lies ready is named, and a missing compiler is then no trouble."""
    import kernel_build

    monkeypatch.setattr(doctor, "packages_ready", lambda build: {"gridencoder": "compiled, in the cache"})
    monkeypatch.setattr(kernel_build.shutil, "which", lambda *arguments, **options: None)
    lines = {line.subject: line for line in doctor.examine()}
    assert lines["g++"].level == "ok" and lines["g++"].found == "none (not needed: all is compiled)"
    assert lines["gridencoder"] == ("gridencoder", "compiled, in the cache", "ok", "")
