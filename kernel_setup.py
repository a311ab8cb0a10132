"""Installing the kernel packages with setuptools: what the setup.py of each, and the one of the whole project, have in common."""

import os
import sys
from pathlib import Path

from kernel_build import PORTABLE, BuildError, build_library, listed_architectures, prebuilt_name, sources, torch, wants_cuda

VERSION = "0.1.0"


def kernel_folders(root):
    """The kernel packages of the project in `root`: name -> folder, those that hold src/NAME.cpp."""
    return {file.stem: file.parent.parent for file in sorted(Path(root).glob("*/src/*.cpp")) if file.stem == file.parent.parent.name}


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
        python_requires=">=3.11",
        install_requires=["torch>=2.7"],
        **kernel_arguments({name: folder}),
    )


def kernel_arguments(folders):
    """The arguments of setuptools.setup that concern kernel packages (name -> folder).

    The sources are installed too, so that a library which does not fit (another torch, another GPU) is compiled anew at first use. Without
    torch, as where pip builds in isolation, nothing is compiled ahead and everything at first use.
    """
    arguments = {"package_data": {name: ["src/*"] for name in folders}}
    if torch is None:
        if "build_ext" in sys.argv:
            raise SystemExit(f"torch is not installed for {sys.executable}: type {sys.executable} -m pip install torch")
        print("torch is not seen here: the kernels will be compiled at first use (pip's --no-build-isolation compiles them now).")
        return arguments
    modules = [extension(name, folder) for name, folder in folders.items()]
    return arguments | {"ext_modules": modules, "cmdclass": {"build_ext": build_command()}}


def extension(name, folder):
    """The setuptools extension of a kernel package, which also needs `cmdclass={"build_ext": build_command()}`.

    It has the CUDA form where a GPU is visible or TORCH_CUDA_ARCH_LIST says what to compile for, as when a container is built."""
    from setuptools import Extension

    cuda = wants_cuda() or (torch.version.cuda is not None and bool(listed_architectures()))
    form = Extension(f"{name}.{prebuilt_name(folder, cuda)}", [os.path.relpath(file) for file in sources(folder, cuda)])
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
            library = Path(self.get_ext_fullpath(ext.name)).resolve()
            try:
                build_library(files, folder, library, ext.cuda, PORTABLE)
            except BuildError as error:
                raise SystemExit(f"{ext.name.split('.')[0]}: {error}") from error
            remove_others(library)

        def copy_extensions_to_source(self):
            super().copy_extensions_to_source()
            for ext in self.extensions:
                package, _, name = ext.name.rpartition(".")
                remove_others(Path(self.get_finalized_command("build_py").get_package_dir(package), f"{name}.so").resolve())

    return BuildKernels


def remove_others(library):
    """Removes the libraries of the same form beside a new one: they were made from other sources or for another torch."""
    form = "_".join(library.name.split("_")[:3])
    for other in library.parent.glob(f"{form}_*.so"):
        if other.name != library.name:
            other.unlink()
