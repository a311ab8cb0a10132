"""How the kernel packages are compiled: one recipe, for the build at first use and for every setup.py (kernel_setup.py).

A kernel package holds `src/*.cpp` (CPU form and registration), `src/*_cuda.cpp` (tensors to pointers) and `src/*.cu` (kernels that take
raw pointers and a stream and see no torch header). Compiling yields one shared library that registers operators under `torch.ops.NAME`;
it needs no Python header, so the same library serves every Python version. The compilers are called directly, one process a file: no
ninja, no lock file of another tool that a killed build leaves behind, and the compiler's own words are at hand when it refuses.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:  # pip builds in isolation, without torch, and scripts/doctor.py also serves where it is missing
    torch = None

HOST_FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
CUDA_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-lineinfo", "--expt-relaxed-constexpr"]
# What is compiled at first use serves this processor; what is compiled ahead may be carried to another one, so it asks for no more than
# the x86-64-v3 level (2013 and later), whose instruction sets /proc/cpuinfo names so.
NATIVE = ["-march=native"]
PORTABLE = ["-march=x86-64-v3"] if platform.machine() == "x86_64" else []
PORTABLE_NEEDS = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
CUDA_FOLDERS = ["/usr/local/cuda/bin"]
SOURCES = {".cpp", ".cu", ".cuh", ".h"}  # other files in src/ belong to an editor
warned = set()  # the warnings that were given: what holds for the machine is said once, not by each package


class BuildError(RuntimeError):
    """A kernel package could not be compiled; the message is one sentence that names the remedy."""


class MachineError(BuildError):
    """What is missing is the machine's: every package would fail for the same reason."""


def load_kernels(name, folder):
    """The operators of the kernel package NAME, compiled when need be.

    A library that a setup.py left beside the package is taken first (if it fits, see `prebuilt_library`), then one from the cache, else it
    is compiled now (a minute, once).

    Args:
        name: the package and operator namespace, such as "gridencoder".
        folder: the package's folder.
    Returns:
        `torch.ops.NAME`, or None where nothing can be compiled or loaded (one warning says why): the caller then uses its PyTorch twin.
    """
    try:
        if not load_prebuilt(folder):
            load_compiled(name, folder)
    except (BuildError, OSError) as error:
        reason = str(error) if isinstance(error, MachineError) else f"{name}: {error}"
        if reason not in warned:
            warned.add(reason)
            warnings.warn(f"{reason} The slow PyTorch form is used instead.", stacklevel=2)
        return None
    return getattr(torch.ops, name)


def load_compiled(name, folder):
    """Loads the library from the cache, compiled when need be. One that another system left there, and that does not load here, is compiled anew.

    Raises:
        BuildError: as of `compile_library`, or what was compiled does not load.
    """
    for _ in range(2):
        library = compile_library(name, folder)
        try:
            return torch.ops.load_library(str(library))
        except OSError as error:
            reason = error.__cause__ or error
            library.unlink(missing_ok=True)
    raise BuildError(f"{library} was compiled and does not load ({reason}): python scripts/doctor.py looks for the reason.")


def load_prebuilt(folder):
    """Loads the library that a setup.py put beside the package. False where there is none that fits."""
    library = prebuilt_library(folder)
    if library:
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(library))
            return True
    return False


def prebuilt_library(folder):
    """Path of the library that a setup.py put beside the package, None where there is none that fits.

    Its name holds what it was made from (sources, flags, torch) and the GPUs that it serves, so that one of another torch, of older
    sources or for other GPUs is passed over. A CPU can use the library with CUDA, not the other way round.
    """
    for form in ["cuda"] if wants_cuda() else ["cpu", "cuda"]:
        for library in sorted(Path(folder).glob(f"_C_{form}_{prebuilt_key(folder)}*.so")):
            built_for = [entry for entry in library.stem.split("_")[4:] if entry]
            if fits_processor() and (not wants_cuda() or not gpus_left_out(built_for)):
                return library
    return None


def prebuilt_name(folder, cuda):
    """The name, less its suffix, of a library that is compiled ahead, such as _C_cpu_0123456789abcdef or _C_cuda_..._80_90p."""
    served = [entry.replace(".", "").replace("+PTX", "p") for entry in architectures()] if cuda else []
    return "_".join(["_C", "cuda" if cuda else "cpu", prebuilt_key(folder), *served])


def prebuilt_key(folder):
    """What a library compiled ahead depends on, as 16 hexadecimal digits."""
    return digest((torch.__version__, HOST_FLAGS, PORTABLE, CUDA_FLAGS), folder)


def fits_processor():
    """True where this processor has what PORTABLE asks for."""
    return not PORTABLE or set(processor().split()) >= PORTABLE_NEEDS


def gpus_left_out(built_for):
    """The visible GPUs' capabilities, such as ["9.0"], that no entry of built_for ("9.0", "90", "9.0+PTX" or "90p") serves.

    Machine code serves its own major version from its minor version on (a letter, as in 9.0a, binds it to that one), PTX all later GPUs.
    """
    visible = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    return ["{}.{}".format(*capability) for capability in visible if not any(serves(entry, capability) for entry in built_for)]


def serves(entry, capability):
    """Does code for an architecture entry (as of `gpus_left_out`) run on a GPU of this (major, minor) capability?"""
    number = re.fullmatch(r"(\d+?)\.?(\d)([af]?)(p|\+PTX)?", entry)
    if number is None:
        return False
    built = int(number[1]), int(number[2])
    if number[3]:
        return capability == built
    return (capability[0] == built[0] and capability >= built) or (bool(number[4]) and capability >= built)


def compile_library(name, folder):
    """Path of the compiled library of the package, from the cache where its sources, flags, machine and torch are unchanged.

    Builds are serialised by an advisory file lock, which the system releases when a process dies, so that it cannot go stale. Objects lie in
    a folder of their own for each build, and the library appears under its name only when it is complete: what a killed build leaves
    behind, even compilers that still run, harms nobody and is removed by the next one.

    Raises:
        BuildError: no compiler, or the compiler refused; the message holds its first error.
    """
    library = cached_library(name, folder)
    if library.exists():
        return library
    with build_lock(library.parent):
        if not library.exists():
            cuda = wants_cuda()
            check_compilers(cuda)
            for leftover in library.parent.glob("objects-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            print(f"Compiling {name} ({'CPU and CUDA' if cuda else 'CPU'}), once; this takes about a minute.", flush=True)
            build_library(sources(folder, cuda), library.parent, library, cuda, NATIVE)
    return library


def cached_library(name, folder):
    """Where the cache holds, or will hold, the library of the package for this machine."""
    return cache_folder() / f"{name}-{cache_key(folder, wants_cuda())}" / f"{name}.so"


@contextlib.contextmanager
def build_lock(build):
    """Makes the folder `build` and holds an exclusive advisory lock in it; the system drops the lock with the process."""
    try:
        build.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(build / "build.lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise MachineError(f"{cache_folder()} cannot be written ({error.strerror}): name another folder in TORCH_EXTENSIONS_DIR.") from error
    try:
        take_lock(descriptor, build)
        yield
    finally:
        os.close(descriptor)


def take_lock(descriptor, build):
    """Locks the open file and writes this process's number into it; says so where another process has to be waited for."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for process {os.pread(descriptor, 20, 0).decode()}, which is compiling {build}.", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except OSError as error:
        raise MachineError(f"{cache_folder()} cannot be locked ({error.strerror}): name a local folder in TORCH_EXTENSIONS_DIR.") from error


def build_library(files, build, library, cuda, processor_flags):
    """Compiles `files` in a folder of its own in `build` and links them into `library`, whose name appears only when it is whole.

    Raises:
        BuildError: a compiler is missing or does not fit torch, or it refused; the message holds its first error.
    """
    compiler = host_compiler()
    torch_folder = Path(torch.__file__).parent
    host = [compiler, *HOST_FLAGS, *processor_flags, f"-I{torch_folder / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    link = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", *shared_standard_library(compiler)]
    if cuda:
        nvcc = cuda_compiler()
        device = [nvcc, "-ccbin", compiler, *CUDA_FLAGS, *architecture_flags(), f"--threads={len(architectures())}"]
        toolkit = toolkit_flags(nvcc)
        host += [flag for flag in toolkit if flag.startswith("-I")]
        link += [*(flag for flag in toolkit if flag.startswith("-L")), "-lc10_cuda", "-ltorch_cuda", "-lcudart"]
    build.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="objects-", dir=build) as folder, ThreadPoolExecutor(max_workers=build_jobs()) as pool:
        objects = [f"{folder}/{Path(file).name}.o" for file in files]
        commands = [
            [*(device if file.endswith(".cu") else host), "-c", file, "-o", target] for file, target in zip(files, objects, strict=True)
        ]
        list(pool.map(run_compiler, commands))
        linked = f"{folder}/{library.name}"
        run_compiler([compiler, "-shared", "-fopenmp", *objects, *link, "-o", linked])
        shutil.copy(linked, f"{library}.part")
        os.replace(f"{library}.part", library)


def shared_standard_library(compiler):
    """The path of the shared C++ library, as a list to link with; empty where the compiler knows none by that name.

    Left to itself, a compiler whose installation lacks the link libstdc++.so takes the static library. Its copy of what streams share then stays as
    it was loaded, since torch's is the one that is set up, and the first error message with a number in it crashes.
    """
    try:
        said = subprocess.run([compiler, "-print-file-name=libstdc++.so.6"], check=False, capture_output=True, text=True).stdout.strip()
    except OSError:
        return []
    return [said] if os.path.isabs(said) else []


def run_compiler(command):
    """Runs one compiler command. Raises BuildError with the compiler's first error."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise MachineError(f"{command[0]} cannot be started ({error.strerror}).") from error
    if done.returncode:
        raise BuildError(
            f"compiling failed ({shlex.join(command[:1])} ended with {done.returncode}): {first_error(done.stderr + done.stdout)}."
        )


def first_error(output):
    """The first line of a compiler's output that states an error, else its first line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    stated = (line for line in lines if re.search(r"error\s*:|fatal\s*:|undefined reference|cannot find -l", line))
    return next(stated, lines[0] if lines else "no output")


def sources(folder, cuda):
    """The files to compile: every `src/*.cpp`, and with `cuda` also `src/*_cuda.cpp` and `src/*.cu`. Raises BuildError for none."""
    files = [file for file in source_files(folder) if file.suffix in (".cpp", ".cu")]
    if not files:
        raise BuildError(f"{folder} holds neither a library for this machine nor its sources: install the package again on this machine.")
    return [str(file) for file in files if cuda or not (file.suffix == ".cu" or file.stem.endswith("_cuda"))]


def source_files(folder):
    """The package's sources and headers, in the order of their names."""
    return sorted(file for file in (Path(folder) / "src").glob("*") if file.suffix in SOURCES and not file.name.startswith("."))


def cache_key(folder, cuda):
    """What a compiled library depends on, as 16 hexadecimal digits: sources, flags, torch, processor and the GPUs' architectures."""
    return digest((torch.__version__, HOST_FLAGS, NATIVE, CUDA_FLAGS, processor(), cuda and architectures()), folder)


def digest(facts, folder):
    """16 hexadecimal digits of the facts, of every source of the package and of the sources of packages whose headers it includes."""
    key = hashlib.sha256(repr(facts).encode())
    own = source_files(folder)
    named = sorted({found for file in own for found in re.findall(r'#include "\.\./\.\./(\w+)/src/', file.read_text())})
    for file in [*own, *(file for name in named for file in source_files(Path(folder).parent / name))]:
        key.update(file.read_bytes())
    return key.hexdigest()[:16]


def processor():
    """The instruction sets of this processor, which -march=native compiles for: a home folder may be shared by different machines."""
    with contextlib.suppress(OSError):
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.lower().startswith(("flags", "features"))), "")
    return platform.machine()


def wants_cuda():
    """True where the CUDA form is needed: torch has CUDA and a GPU is visible."""
    return torch.version.cuda is not None and torch.cuda.is_available()


def check_compilers(cuda):
    """Raises MachineError where a compiler is missing, nvcc does not fit torch, or a visible GPU is left out."""
    host_compiler()
    if cuda:
        cuda_compiler()
        left_out = gpus_left_out(architectures())
        if left_out:
            raise MachineError(f"TORCH_CUDA_ARCH_LIST leaves out a GPU of this machine: add {' '.join(left_out)} to it, or unset it.")


def host_compiler():
    """The C++ compiler: CXX, else g++. Raises MachineError where there is none."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MachineError(f"no C++ compiler {compiler} is found: install one (apt-get install g++) or name it in CXX.")
    return compiler


def cuda_compiler():
    """The nvcc whose CUDA has the major version of torch's. Raises MachineError where there is none."""
    wanted = torch.version.cuda
    found = [(nvcc, nvcc_version(nvcc)) for nvcc in nvcc_candidates(wanted)]
    for nvcc, version in found:
        if version and version.split(".")[0] == wanted.split(".")[0]:
            return nvcc
    remedy = f"install the CUDA toolkit {wanted} or name its folder in CUDA_HOME."
    if not found:
        raise MachineError(f"nvcc is not found: {remedy}")
    nvcc, version = found[0]
    raise MachineError(f"{nvcc} is of {f'CUDA {version}' if version else 'an unknown CUDA'} but torch was built for {wanted}: {remedy}")


def nvcc_candidates(wanted):
    """Every nvcc of CUDA_HOME, the PATH and the usual places, first the one that is preferred; `wanted` is a CUDA version or None."""
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"),) if home]
    folders += [*os.environ.get("PATH", "").split(os.pathsep), *CUDA_FOLDERS, *([f"/usr/local/cuda-{wanted}/bin"] if wanted else [])]
    found = (shutil.which("nvcc", path=str(folder)) for folder in folders if str(folder))
    return list(dict.fromkeys(nvcc for nvcc in found if nvcc))


def nvcc_version(nvcc):
    """The CUDA version that an nvcc states, such as "13.0"; None where it states none."""
    try:
        said = subprocess.run([nvcc, "--version"], check=False, capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", said)
    return found and found[1]


def architectures():
    """What nvcc compiles for, such as ["9.0"]: TORCH_CUDA_ARCH_LIST, else the capability of each visible GPU."""
    visible = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    return listed_architectures() or ["{}.{}".format(*capability) for capability in visible]


def listed_architectures():
    """The entries of TORCH_CUDA_ARCH_LIST, which may be parted by spaces, semicolons or commas."""
    return [entry for entry in re.split(r"[\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if entry]


def architecture_flags():
    """nvcc's -gencode flags for `architectures()`; "9.0+PTX" adds the portable form. Raises MachineError on an entry it cannot read."""
    flags = []
    for entry in architectures():
        number = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", entry)
        if number is None:
            raise MachineError(f"TORCH_CUDA_ARCH_LIST holds {entry!r}: write numbers, such as 9.0 or 9.0+PTX.")
        name = number[1] + number[2]
        flags += [f"-gencode=arch=compute_{name},code=sm_{name}"]
        flags += [f"-gencode=arch=compute_{name},code=compute_{name}"] if number[3] else []
    if not flags:
        raise MachineError("no GPU is visible and TORCH_CUDA_ARCH_LIST is not set: set it, such as 9.0.")
    return flags


def toolkit_flags(nvcc):
    """-I and -L flags of the CUDA toolkit, as nvcc itself states them: the nvcc on the PATH may be a script or a link from anywhere."""
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], check=False, capture_output=True, text=True).stderr
    return [flag for line in re.findall(r"^#\$ (?:INCLUDES|LIBRARIES)=(.*)$", said, re.MULTILINE) for flag in shlex.split(line)]


def build_jobs():
    """How many compilers run at once: MAX_JOBS, else the cores that this process may use. Raises MachineError where it is no such number."""
    wanted = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise MachineError(f"MAX_JOBS is {wanted!r}: write a whole number from 1 on, or unset it.")
    return int(wanted)


def cache_folder():
    """Where compiled libraries are kept: TORCH_EXTENSIONS_DIR, else `~/.cache/hsm_nerf`."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "hsm_nerf")
