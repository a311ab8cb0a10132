"""Files that are either whole or absent, whatever happens to the process that writes them."""

import contextlib
import os
from pathlib import Path

TEMPORARY_SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_file(path):
    """A binary file to write that takes `path`'s place when the block ends, and is dropped when the block raises.

    The contents reach the disk before the name does (fsync of the file, rename, fsync of the folder), so that neither a killed process nor
    a power cut leaves half a file under the name. A killed process may leave a file ending in `.partial`: see `remove_partial_files`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_partial_files(folder):
    """Drop what writers that were killed have left in a folder."""
    for leftover in Path(folder).glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _sync_folder(folder):
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
