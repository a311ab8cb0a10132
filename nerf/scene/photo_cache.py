"""Photos on disk: decoded once into a file of plain pixels, from which runs of pixels are read as they are needed.

The file is read, not mapped: what has been read does not count as memory of the process, and a failing disk is an error rather than the end of it.
Its name tells the photos (paths, sizes, times) and how they were decoded, so that later runs use it again. A lock marks those that are in use.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nerf.errors import UserError
from nerf.files import TEMPORARY_MARK, replacing
from nerf.scene.photo_file import decode_into

FORMAT = 1  # of the file; another number when the same photos would be decoded to other pixels
SUFFIX = ".pixels"
KEPT = 14 * 86_400  # seconds since a run last used a file, after which the next run to write one removes it
GIB = 2**30
LEFT_FREE = GIB // 4  # of the disk
WORKING_MEMORY = 2 * GIB  # for decoding; a photo takes up to COPIES times its pixels
COPIES = 6
REMEDY = "free some there, name another folder in HSM_PHOTO_CACHE, or pass a larger --downscale"


class PhotosOnDisk:
    """n photos in a file of pixels, as nerf.scene.photos.Photos holds them in memory.

    Args:
        file: a binary file, open for reading: [P,C] uint8, photo after photo, row by row. offsets: [n+1] int64, as in Photos. channels: C.
    """

    on_disk = True

    def __init__(self, file, offsets, channels):
        self.file, self.offsets, self.channels = file, offsets, channels

    def __len__(self):
        return len(self.offsets) - 1

    def image(self, i, size):
        """Photo i, read anew: [H,W,C] uint8; size = (width, height). Raises UserError where the disk fails."""
        width, height = (int(side) for side in size)
        pixels = np.empty((height, width, self.channels), dtype=np.uint8)
        self.read(int(self.offsets[i]), pixels)
        return pixels

    def read(self, first, out):
        """Fills `out` (uint8, contiguous) with the pixels from row `first` on. Raises UserError where the disk fails."""
        rest, position = memoryview(out.reshape(-1)), first * self.channels
        while len(rest):
            try:
                count = os.preadv(self.file.fileno(), [rest], position)
            except OSError as error:
                raise UserError(f"{self.file.name}: the decoded photos cannot be read ({error.strerror}); delete the file and start again") from None
            if not count:
                raise UserError(f"{self.file.name}: the decoded photos end too early; delete the file and start again")
            rest, position = rest[count:], position + count


def cache_folder():
    """Where decoded photos are kept: HSM_PHOTO_CACHE, else `~/.cache/hsm_nerf/photos`. Raises UserError where there is neither."""
    try:
        return Path(os.environ.get("HSM_PHOTO_CACHE") or Path.home() / ".cache" / "hsm_nerf" / "photos")
    except RuntimeError:
        raise UserError("this user has no home folder to decode photos into; name a folder in HSM_PHOTO_CACHE, or pass --image_cache cpu") from None


def photos_on_disk(files, sizes, offsets, channels):
    """The PhotosOnDisk of `files` at `sizes` [n,2] int64, from the cache or decoded into it; says which.

    Raises:
        UserError: a photo does not decode, or the folder cannot be written or is too full.
    """
    path = cache_folder() / f"{_key(files, sizes, channels)}{SUFFIX}"
    needed = int(offsets[-1]) * channels
    try:
        file = _open(path, needed)
        if file is None:
            print(f"decoding them into {path}, which later runs use again", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(path.parent, needed)
            _decode(files, sizes, offsets, channels, path)
            file = _open(path, needed)
        else:
            print(f"they are decoded already, in {path}", flush=True)
        os.utime(path)
    except OSError as error:
        raise UserError(f"the photos cannot be decoded into {path.parent} ({error.strerror or error}); {REMEDY}") from None
    return PhotosOnDisk(file, offsets, channels)


def _key(files, sizes, channels):
    facts = [(str(Path(file).resolve()), os.stat(file).st_size, os.stat(file).st_mtime_ns, *map(int, size)) for file, size in zip(files, sizes, strict=True)]
    return hashlib.sha256(json.dumps([FORMAT, channels, facts]).encode()).hexdigest()[:24]


def _open(path, size):
    """The file, open and locked as in use, or None where there is none of that size."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # some network disks have no locks
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if os.fstat(file.fileno()).st_size == size:
        return file
    file.close()
    return None


def _make_room(folder, needed):
    """Removes what killed runs left and what is long unused; if that is not enough, unused files, oldest first. Raises UserError if that is not, either."""
    idle = sorted((path for path in folder.iterdir() if SUFFIX in path.name and _idle(path)), key=lambda path: path.stat().st_mtime)
    stale = [path for path in idle if TEMPORARY_MARK in path.name or path.stat().st_mtime < time.time() - KEPT]
    for path in stale:
        path.unlink(missing_ok=True)
    rest = [path for path in idle if path not in stale]
    free, could_be = shutil.disk_usage(folder).free - LEFT_FREE, sum(path.stat().st_size for path in rest)
    if needed > free + could_be:
        raise UserError(f"the photos need {needed / GIB:.1f} GiB of disk in {folder}, where {max(0, free + could_be) / GIB:.1f} GiB can be had; {REMEDY}")
    for path in rest:
        if shutil.disk_usage(folder).free - LEFT_FREE >= needed:
            break
        path.unlink(missing_ok=True)


def _idle(path):
    """Whether no process uses the file."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _decode(files, sizes, offsets, channels, path):
    """Writes the file, whole or not at all, a few photos at a time."""
    largest = int(sizes.prod(axis=1).max(initial=1)) * channels
    workers = max(1, min(os.cpu_count(), WORKING_MEMORY // (COPIES * largest)))
    with replacing(path) as partial, open(partial, "wb") as file, ThreadPoolExecutor(workers) as pool:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if offsets[-1]:
            os.posix_fallocate(file.fileno(), 0, int(offsets[-1]) * channels)

        def write(i):
            width, height = (int(side) for side in sizes[i])
            pixels = np.empty((height, width, channels), dtype=np.uint8)
            decode_into(pixels, files[i])
            rest, position = memoryview(pixels.reshape(-1)), int(offsets[i]) * channels
            while len(rest):
                count = os.pwrite(file.fileno(), rest, position)
                rest, position = rest[count:], position + count

        list(tqdm(pool.map(write, range(len(files))), total=len(files), desc="decoding photos", leave=False, disable=None))
