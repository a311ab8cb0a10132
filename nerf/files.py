"""Files that are either whole or absent, whatever happens to the process that writes them."""

import contextlib
import os
from pathlib import Path

from nerf.errors import UserError

TEMPORARY_MARK = ".partial"


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path` (same suffix, folder made if missing); what was written there takes `path`'s place when the block ends,
    and is dropped when the block raises.

    The contents reach the disk before the name does (fsync of the file, rename, fsync of the folder), so that neither a killed process nor
    a power cut leaves half a file under the name. A killed process may leave a file marked `.partial`: see `remove_partial_files`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{TEMPORARY_MARK}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextlib.contextmanager
def atomic_file(path):
    """A binary file to write that takes `path`'s place when the block ends; see `replacing`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_file(path, content):
    """Writes the bytes `content` to `path`, whole or not at all. Raises UserError where it cannot."""
    with writable(path), atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def writable(path):
    """Turns a failure to write `path` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error}): free some space there or choose another folder.") from error


def remove_partial_files(folder):
    """Drops what writers that were killed have left in a folder."""
    for leftover in Path(folder).glob(f".*{TEMPORARY_MARK}*"):
        leftover.unlink(missing_ok=True)


def drop_broken_line(path):
    """Cuts off the half line that a killed run, or a full disk, can leave at the end of a file; where there is no file, nothing."""
    if not Path(path).exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
