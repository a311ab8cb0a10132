"""Says what this machine has for the project, whether the parts fit each other, and what to type where they do not.

    python scripts/doctor.py

Each line is marked "ok"; "note" where the project works, but slower or in part; or "STOP" where it cannot train. The exit code is 1 after
any STOP, else 0. Only the standard library is needed.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import missing_requirements

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 7)
OLDEST_GCC = 10  # the first that takes -std=c++20
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}  # by major version of CUDA (NVIDIA, CUDA compatibility, table 1)
LEAST_FREE = 2**28  # bytes; all packages with CUDA for a handful of GPUs take less
NOT_FOR_TRAINING = {"fast-simplification", "imageio", "imageio-ffmpeg", "PyMCubes", "pytest", "ruff", "setuptools", "viser", "xatlas"}


class Line(NamedTuple):
    """What was found of one subject, whether it fits ("ok", "note", "STOP"), and what to type if not."""

    subject: str
    found: str
    level: str = "ok"
    remedy: str = ""


class Gpu(NamedTuple):
    name: str
    capability: tuple  # (major, minor)
    driver: str


def main():
    """Prints the lines; returns the exit code."""
    lines = examine()
    for line in lines:
        print(f"{line.level:4}  {line.subject:14}{line.found}")
        if line.remedy:
            print(f"{'':20}-> {line.remedy}")
    stops = [line.subject for line in lines if line.level == "STOP"]
    print(f"Training cannot run before this is mended: {', '.join(stops)}." if stops else "Training can run.")
    return 1 if stops else 0


def examine():
    """All lines. What needs torch is left out where there is none."""
    torch, trouble = load_torch()
    gpus = visible_gpus()
    lines = [python_line(), torch_line(torch, trouble, gpus), requirements_line()]
    kernel_build = importlib.import_module("kernel_build")
    if torch is None:
        return [*lines, *gpu_lines(gpus)]
    ready = packages_ready(kernel_build)
    compilers = [*nvcc_lines(kernel_build, torch), gcc_line(kernel_build)]
    if all(ready.values()):  # a missing compiler then stops nothing
        compilers = [line if line.level == "ok" else Line(line.subject, f"{line.found} (not needed: all is compiled)") for line in compilers]
    usable = all(line.level == "ok" for line in compilers)
    return [*lines, *gpu_lines(gpus), *cuda_lines(kernel_build, torch, gpus), *compilers, ninja_line(), cache_line(kernel_build), *package_lines(ready, usable)]


def load_torch():
    """(torch, "") or (None, why not). A torch that is there but cannot be loaded is hidden from what is imported later."""
    try:
        return importlib.import_module("torch"), ""
    except ModuleNotFoundError as error:
        return None, "not installed" if error.name == "torch" else f"lacks {error.name}"
    except (ImportError, OSError) as error:
        sys.modules["torch"] = None
        return None, f"installed but cannot be loaded ({str(error).splitlines()[0]})"


def run(*command):
    """What a program prints, with its errors; None where it cannot be run or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def python_line():
    found = "{}.{}.{} ({})".format(*sys.version_info[:3], sys.executable)
    if sys.version_info >= OLDEST_PYTHON:
        return Line("Python", found)
    return Line("Python", found, "STOP", "3.11 or newer is needed: apt-get install python3.11 python3.11-venv, then use python3.11")


def torch_line(torch, trouble, gpus):
    install = f"{sys.executable} -m pip install torch=={pinned('torch')}"
    if torch is None:
        return Line("torch", trouble, "STOP", f"{install}, or bash scripts/quickstart.sh, which installs everything into .venv")
    found = f"{torch.__version__}, {f'built for CUDA {torch.version.cuda}' if torch.version.cuda else 'for the CPU alone'}"
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_TORCH:
        return Line("torch", found, "STOP", f"2.7 or newer is needed: {install}")
    if gpus and torch.version.cuda is None:
        return Line("torch", found, "note", f"the GPU is not used; for a build with CUDA: {install.replace('install', 'install --force-reinstall', 1)}")
    return Line("torch", found)


def pinned(name):
    """The version of a package in requirements.txt."""
    return re.search(rf"^{name}==(\S+)", missing_requirements.REQUIREMENTS.read_text(), re.MULTILINE)[1]


def requirements_line():
    missing = [name for name in missing_requirements.required(missing_requirements.REQUIREMENTS.read_text())
               if name != "torch" and not missing_requirements.is_installed(name)]  # fmt: skip
    if not missing:
        return Line("packages", "all of requirements.txt")
    level = "note" if set(missing) <= NOT_FOR_TRAINING else "STOP"
    return Line("packages", f"missing: {' '.join(missing)}", level, f"{sys.executable} -m pip install {' '.join(missing)}")


def visible_gpus():
    """The GPUs that the driver names; none without nvidia-smi or a driver."""
    listed = run("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader") or ""
    rows = [[cell.strip() for cell in row.split(",")] for row in listed.splitlines()]
    return [Gpu(row[0], tuple(map(int, row[1].split("."))), row[2]) for row in rows if len(row) == 3 and re.fullmatch(r"\d+\.\d+", row[1])]


def gpu_lines(gpus):
    if not gpus:
        return [Line("GPU", "none is seen by nvidia-smi: training runs on the CPU")]
    return [Line("GPU", f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}") for gpu in gpus]


def cuda_lines(kernel_build, torch, gpus):
    """Driver and GPU against torch's CUDA."""
    if not gpus:
        return []
    driver, cuda = gpus[0].driver, torch.version.cuda
    if cuda is None:
        return [Line("driver", driver)]
    needed = OLDEST_DRIVER.get(cuda.split(".")[0])
    if needed and int(driver.split(".")[0]) < needed:
        remedy = f"torch's CUDA {cuda} needs driver {needed} or newer (apt-get install nvidia-driver-{needed}), or install a torch for an older CUDA"
        return [Line("driver", driver, "note", remedy)]
    if not torch.cuda.is_available():
        return [Line("driver", driver), Line("torch and GPU", f"torch sees no GPU: {cuda_trouble(torch)}", "note", "unset CUDA_VISIBLE_DEVICES; else restart the machine after a driver update")]  # fmt: skip
    built = [name.replace("sm_", "").replace("compute_", "") + ("p" if name.startswith("compute_") else "") for name in torch.cuda.get_arch_list()]
    lost = [gpu for gpu in gpus if not any(kernel_build.serves(entry, gpu.capability) for entry in built)]
    if lost:
        remedy = "install a torch that was built for this GPU (PyTorch's Start Locally page), or train with --device cpu"
        return [Line("driver", driver), Line("torch and GPU", f"this torch holds no code for {lost[0].name}", "STOP", remedy)]
    return [Line("driver", f"{driver}, new enough for CUDA {cuda}"), Line("torch and GPU", "torch can use the GPU")]


def cuda_trouble(torch):
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no device is visible"


def nvcc_lines(kernel_build, torch):
    """nvcc against torch's CUDA and the GPUs to compile for."""
    if torch.version.cuda is None or not (kernel_build.wants_cuda() or kernel_build.listed_architectures()):
        candidates = kernel_build.nvcc_candidates(None)
        return [Line("nvcc", f"{candidates[0]}, CUDA {kernel_build.nvcc_version(candidates[0])}" if candidates else "none; not needed without a GPU")]
    try:
        nvcc = kernel_build.cuda_compiler()
        kernel_build.architecture_flags()
    except kernel_build.BuildError as error:
        return [Line("nvcc", "does not serve", "note", str(error))]
    found = f"{nvcc}, CUDA {kernel_build.nvcc_version(nvcc)}, fits torch's CUDA {torch.version.cuda}"
    left_out = kernel_build.gpus_left_out(kernel_build.architectures())
    wanted = Line("compile for", " ".join(kernel_build.architectures()))
    if left_out:
        wanted = wanted._replace(level="note", remedy=f"this leaves out {' '.join(left_out)}: unset TORCH_CUDA_ARCH_LIST, or add it there")
    known = {int(number) for number in re.findall(r"compute_(\d+)", run(nvcc, "--list-gpu-arch") or "")}
    numbers = {entry: int(re.sub(r"\D", "", entry)) for entry in kernel_build.architectures()}
    unknown = [entry for entry, number in numbers.items() if known and number not in known]
    if unknown:
        newest = "{}.{}".format(*divmod(max(known), 10))
        remedy = f"this nvcc does not know {' '.join(unknown)}: install another CUDA toolkit {torch.version.cuda}, or export TORCH_CUDA_ARCH_LIST={newest}+PTX"
        wanted = wanted._replace(level="note", remedy=remedy)
    return [Line("nvcc", found), wanted]


def ninja_line():
    """Those who come from other trainers look for it; kernel_build.py calls the compilers itself."""
    return Line("ninja", f"{shutil.which('ninja') or 'none'}, not needed")


def gcc_line(kernel_build):
    """g++ against what the code needs and what nvcc takes."""
    try:
        compiler = kernel_build.host_compiler()
    except kernel_build.BuildError as error:
        return Line("g++", "none", "note", str(error))
    said = run(compiler, "--version") or ""
    version = re.search(r"(\d+)\.\d+", said)
    found = f"{shutil.which(compiler)}, {version[0] if version else 'of unknown version'}"
    if version is None or "Free Software Foundation" not in said:
        return Line("g++", found)
    major = int(version[1])
    if major < OLDEST_GCC:
        return Line("g++", found, "note", f"{OLDEST_GCC} or newer is needed: apt-get install g++-12, then export CXX=g++-12")
    newest = newest_gcc(kernel_build)
    if newest and major > newest:
        return Line("g++", found, "note", f"nvcc takes at most {newest}: apt-get install g++-{newest}, then export CXX=g++-{newest}")
    return Line("g++", f"{found}, fits" + (f" (nvcc takes up to {newest})" if newest else ""))


def newest_gcc(kernel_build):
    """The major version of the newest g++ that the nvcc in use takes, as its own header says; None where no nvcc is in use or it is silent."""
    if not kernel_build.wants_cuda() and not (kernel_build.torch.version.cuda and kernel_build.listed_architectures()):
        return None
    try:
        flags = kernel_build.toolkit_flags(kernel_build.cuda_compiler())
    except kernel_build.BuildError:
        return None
    headers = [Path(flag[2:], "crt", "host_config.h") for flag in flags if flag.startswith("-I")]
    limits = [re.search(r"__GNUC__ > (\d+)", header.read_text(errors="replace")) for header in headers if header.exists()]
    return next((int(limit[1]) for limit in limits if limit), None)


def cache_line(kernel_build):
    folder = kernel_build.cache_folder()
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 2**30:.1f} GiB free"
    remedy = "name another folder: export TORCH_EXTENSIONS_DIR=FOLDER"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Line("cache", f"{found}, cannot be written", "note", remedy)
    return Line("cache", found, "note", remedy) if free < LEAST_FREE else Line("cache", found)


def packages_ready(kernel_build):
    """Package -> how it is compiled already, or "" where it is not."""
    ready = {}
    for name, folder in importlib.import_module("kernel_setup").kernel_folders(ROOT).items():
        ahead = kernel_build.prebuilt_library(folder)
        cached = kernel_build.cached_library(name, folder).exists()
        ready[name] = f"compiled ahead ({ahead.name})" if ahead else "compiled, in the cache" if cached else ""
    return ready


def package_lines(ready, usable):
    later = Line("", "will be compiled at first use") if usable else Line("", "the slow PyTorch form serves, until the compilers above are mended", "note")
    return [Line(name, state) if state else later._replace(subject=name) for name, state in ready.items()]


if __name__ == "__main__":
    sys.exit(main())
