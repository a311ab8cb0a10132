"""How the kernel packages are compiled: one recipe, for the build at first use and for every setup.py.

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
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

VERSION = "0.1.0"
HOST_FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fopenmp", "-march=native", "-fno-math-errno", "-fno-trapping-math"]
CUDA_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-lineinfo", "--expt-relaxed-constexpr"]


class BuildError(RuntimeError):
    """A kernel package could not be compiled; the message is one sentence that names the remedy."""


def load_kernels(name, folder):
    """The operators of the kernel package NAME, compiled when need be.

    A library that `setup.py` left beside the package is taken first (unless a source is newer), then one from the cache, else it is
    compiled now (a minute, once).

    Args:
        name: the package and operator namespace, such as "gridencoder".
        folder: the package's folder.
    Returns:
        `torch.ops.NAME`, or None where nothing can be compiled or loaded (one warning says why): the caller then uses its PyTorch twin.
    """
    try:
        if not load_prebuilt(folder):
            torch.ops.load_library(str(compile_library(name, folder)))
    except (BuildError, OSError) as error:
        warnings.warn(f"{name}: {error} The slow PyTorch form is used instead.", stacklevel=2)
        return None
    return getattr(torch.ops, name)


def load_prebuilt(folder):
    """Loads the library that a setup.py put beside the package. False where there is none, or it is older than a source, lacks the CUDA
    form that this machine needs, or was built for another torch."""
    newest = max((file.stat().st_mtime for file in (Path(folder) / "src").glob("*")), default=0.0)
    for name in ["_C_cuda.so"] if wants_cuda() else ["_C_cpu.so", "_C_cuda.so"]:
        library = Path(folder) / name
        if library.exists() and library.stat().st_mtime >= newest:
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(library))
                return True
    return False


def compile_library(name, folder):
    """Path of the compiled library of the package, from the cache where its sources, flags, machine and torch are unchanged.

    Builds are serialised by an advisory file lock, which the system releases when a process dies, and the library appears under its name
    only when it is complete: a killed build blocks nobody and leaves nothing half made.

    Raises:
        BuildError: no compiler, or the compiler refused; the message holds its first error.
    """
    cuda = wants_cuda()
    build = cache_folder() / f"{name}-{cache_key(folder, cuda)}"
    library = build / f"{name}.so"
    if library.exists():
        return library
    with build_lock(build):
        if not library.exists():
            check_compilers(cuda)
            print(f"Compiling {name} ({'CPU and CUDA' if cuda else 'CPU'}), once; this takes about a minute.", flush=True)
            build_library(sources(folder, cuda), build, library, cuda)
    return library


@contextlib.contextmanager
def build_lock(build):
    """Makes the folder `build` and holds an exclusive advisory lock in it; the system drops the lock with the process."""
    try:
        build.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(build / "build.lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise BuildError(f"{build} cannot be written ({error.strerror}): name another folder in TORCH_EXTENSIONS_DIR.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def setup_package(script, description):
    """All that the setup.py of a kernel package does; `script` is its `__file__`, the package is the folder that it lies in."""
    from setuptools import setup

    folder = Path(script).resolve().parent
    name = folder.name
    os.chdir(folder)
    setup(
        name=name,
        version=VERSION,
        description=description,
        packages=[name],
        package_dir={name: ".", "": ".."},
        py_modules=["kernel_build"],
        ext_modules=[extension(name, folder)],
        cmdclass={"build_ext": build_command()},
        python_requires=">=3.11",
        install_requires=["torch>=2.7"],
    )


def extension(name, folder):
    """The setuptools extension of the kernel package for a setup.py, which also needs `cmdclass={"build_ext": build_command()}`."""
    from setuptools import Extension

    cuda = wants_cuda()
    form = Extension(f"{name}._C_{'cuda' if cuda else 'cpu'}", [os.path.relpath(file) for file in sources(folder, cuda)])
    form.cuda = cuda
    return form


def build_command():
    """The setuptools command that compiles extensions by this recipe; their library names no Python version, for they need none."""
    from setuptools.command.build_ext import build_ext

    class BuildKernels(build_ext):
        def get_ext_filename(self, fullname):
            return fullname.replace(".", os.sep) + ".so"

        def build_extension(self, ext):
            files = [str(Path(file).resolve()) for file in ext.sources]
            folder = Path(self.build_temp).resolve() / ext.name
            try:
                build_library(files, folder, Path(self.get_ext_fullpath(ext.name)).resolve(), ext.cuda)
            except BuildError as error:
                raise SystemExit(f"{ext.name}: {error}") from error

    return BuildKernels


def build_library(files, build, library, cuda):
    """Compiles `files` in the folder `build` and links them into `library`, whose name appears only when it is whole.

    Raises:
        BuildError: a compiler is missing or does not fit torch, or it refused; the message holds its first error.
    """
    compiler = host_compiler()
    torch_folder = Path(torch.__file__).parent
    host = [compiler, *HOST_FLAGS, f"-I{torch_folder / 'include'}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    link = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    if cuda:
        nvcc = cuda_compiler()
        device = [nvcc, "-ccbin", compiler, *CUDA_FLAGS, *architecture_flags()]
        toolkit = toolkit_flags(nvcc)
        host += [flag for flag in toolkit if flag.startswith("-I")]
        link += [*(flag for flag in toolkit if flag.startswith("-L")), "-lc10_cuda", "-ltorch_cuda", "-lcudart"]
    build.mkdir(parents=True, exist_ok=True)
    objects = [str(build / f"{Path(file).name}.o") for file in files]
    commands = [
        [*(device if file.endswith(".cu") else host), "-c", file, "-o", target] for file, target in zip(files, objects, strict=True)
    ]
    with ThreadPoolExecutor(max_workers=build_jobs()) as pool:
        list(pool.map(run_compiler, commands))
    unfinished = build / f"{library.name}.{os.getpid()}"
    run_compiler([compiler, "-shared", "-fopenmp", *objects, *link, "-o", str(unfinished)])
    library.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(unfinished, f"{library}.part")
    os.replace(f"{library}.part", library)
    for file in (*objects, unfinished):
        Path(file).unlink()


def run_compiler(command):
    """Runs one compiler command. Raises BuildError with the compiler's first error."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started ({error.strerror}).") from error
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
    files = sorted((*(Path(folder) / "src").glob("*.cpp"), *(Path(folder) / "src").glob("*.cu")))
    if not files:
        raise BuildError(f"{folder} holds neither a library for this machine nor its sources: install the package again on this machine.")
    return [str(file) for file in files if cuda or not (file.suffix == ".cu" or file.stem.endswith("_cuda"))]


def cache_key(folder, cuda):
    """What a compiled library depends on, as 16 hexadecimal digits: sources, flags, torch, processor and the GPUs' architectures."""
    facts = (torch.__version__, HOST_FLAGS, CUDA_FLAGS, processor(), cuda and architectures())
    key = hashlib.sha256(repr(facts).encode())
    for file in sorted((Path(folder) / "src").glob("*")):
        key.update(file.read_bytes())
    return key.hexdigest()[:16]


def processor():
    """The instruction sets of this processor, which -march=native compiles for: a home folder may be shared by different machines."""
    with contextlib.suppress(OSError):
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.lower().startswith(("flags", "features"))), "")
    return platform.machine()


def wants_cuda():
    """True where the CUDA form is compiled: torch has CUDA, and a GPU is visible or TORCH_CUDA_ARCH_LIST says what to compile for."""
    return torch.version.cuda is not None and (torch.cuda.is_available() or bool(os.environ.get("TORCH_CUDA_ARCH_LIST")))


def check_compilers(cuda):
    """Raises BuildError where a compiler is missing or nvcc does not fit torch."""
    host_compiler()
    if cuda:
        cuda_compiler()


def host_compiler():
    """The C++ compiler: CXX, else g++. Raises BuildError where there is none."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BuildError(f"no C++ compiler {compiler} is found: install one (apt-get install g++) or name it in CXX.")
    return compiler


def cuda_compiler():
    """nvcc: of CUDA_HOME, the PATH or /usr/local/cuda. Raises BuildError where there is none or it is of another CUDA than torch."""
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"),) if home]
    candidates = [*folders, *os.environ.get("PATH", "").split(os.pathsep), "/usr/local/cuda/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(str(folder) for folder in candidates))
    wanted = torch.version.cuda
    if nvcc is None:
        raise BuildError(f"nvcc is not found: install the CUDA toolkit {wanted} or name its folder in CUDA_HOME.")
    said = subprocess.run([nvcc, "--version"], check=False, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found is None or found[1] != wanted.split(".")[0]:
        have = f"of CUDA {found[1]}.{found[2]}" if found else "of an unknown CUDA"
        raise BuildError(
            f"{nvcc} is {have} but torch was built for {wanted}: install the CUDA toolkit {wanted} or name its folder in CUDA_HOME."
        )
    return nvcc


def architectures():
    """What nvcc compiles for, such as ["9.0"]: TORCH_CUDA_ARCH_LIST, else the capability of each visible GPU."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if listed:
        return re.split(r"[\s;,]+", listed.strip())
    return sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())})


def architecture_flags():
    """nvcc's -gencode flags for `architectures()`; "9.0+PTX" adds the portable form. Raises BuildError on an entry it cannot read."""
    flags = []
    for entry in architectures():
        number = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", entry)
        if number is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST holds {entry!r}: write numbers, such as 9.0 or 9.0+PTX.")
        name = number[1] + number[2]
        flags += [f"-gencode=arch=compute_{name},code=sm_{name}"]
        flags += [f"-gencode=arch=compute_{name},code=compute_{name}"] if number[3] else []
    if not flags:
        raise BuildError("no GPU is visible and TORCH_CUDA_ARCH_LIST is not set: set it, such as 9.0.")
    return flags


def toolkit_flags(nvcc):
    """-I and -L flags of the CUDA toolkit, as nvcc itself states them: the nvcc on the PATH may be a script or a link from anywhere."""
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], check=False, capture_output=True, text=True).stderr
    return [flag for line in re.findall(r"^#\$ (?:INCLUDES|LIBRARIES)=(.*)$", said, re.MULTILINE) for flag in shlex.split(line)]


def build_jobs():
    """How many compilers run at once: MAX_JOBS, else the cores that this process may use."""
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))


def cache_folder():
    """Where compiled libraries are kept: TORCH_EXTENSIONS_DIR, else `~/.cache/hsm_nerf`."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "hsm_nerf")
