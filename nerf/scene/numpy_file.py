"""Numbers from .npy and .npz files, which are believed no further than their bytes go: no pickles, no allocation that a header asks for."""

import lzma
import math
import re
import zipfile
import zlib

import numpy as np

MAGIC = b"\x93NUMPY"
HEADER = re.compile(rb"\{\s*'descr':\s*'([<>=|][fiu][1248])',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(([\d, ]*)\),?\s*\}\s*")
MEMBER_LIMIT = 4096  # bytes; a 4x4 matrix of doubles has 128 and a header of as many


def parse_npy(content):
    """The array [...] float64 of a .npy file with the bytes `content`. Raises ValueError that says what is wrong."""
    start = 10 if content[6:7] == b"\x01" else 12
    if not content.startswith(MAGIC) or len(content) < start:
        raise ValueError("it is no .npy file")
    end = start + int.from_bytes(content[8:start], "little")
    header = HEADER.fullmatch(content[start:end])
    if not header:
        raise ValueError("its header does not describe an array of plain numbers")
    kind, order, shape = header[1].decode(), "F" if header[2] == b"True" else "C", [int(side) for side in header[3].split(b",") if side.strip()]
    count = math.prod(shape)
    if count * np.dtype(kind).itemsize != len(content) - end:
        raise ValueError(f"its header promises {'x'.join(map(str, shape))[:40]} numbers, which are not the {len(content) - end} bytes that follow")
    return np.frombuffer(content, kind, count, end).reshape(shape, order=order).astype(np.float64)


def parse_npz(file, wanted):
    """The small arrays of the .npz `file` whose names the pattern `wanted` matches in full: name -> [...] float64. Raises ValueError, OSError."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {info.filename[:-4]: _member(archive, info) for info in archive.infolist() if re.fullmatch(f"(?:{wanted})\\.npy", info.filename)}
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:  # RuntimeError: encrypted, or a method we lack
        raise ValueError(f"it is no sound .npz file: {str(error)[:100]}") from None


def _member(archive, info):
    if info.file_size > MEMBER_LIMIT:
        raise ValueError(f"{info.filename[:40]} has {info.file_size} bytes, too many for a matrix")
    with archive.open(info) as stream:
        content = stream.read(MEMBER_LIMIT + 1)
    try:
        return parse_npy(content)
    except ValueError as error:
        raise ValueError(f"of {info.filename[:40]}, {error}") from None
