"""Points of a PLY file: the x, y, z of its vertices, ASCII or little-endian binary, and such files written. (Turk, The PLY Polygon File Format, 1994.)"""

import numpy as np

HEADER_LIMIT = 65_536
KINDS = {"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4", "double": "<f8",
         "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4", "float32": "<f4", "float64": "<f8"}


def parse_ply(content):
    """Points [p,3] float64 of a PLY file with the bytes `content`. Raises ValueError that says what is wrong."""
    end = content.find(b"end_header", 0, HEADER_LIMIT)
    if not content.startswith(b"ply") or end < 0:
        raise ValueError("it is no PLY file")
    words = [line.split() for line in content[:end].decode("ascii", "replace").splitlines()]
    body = content[content.find(b"\n", end) + 1:]
    form = next((line[1] for line in words if len(line) == 3 and line[0] == "format"), None)
    count, fields = _vertices(words)
    if form == "ascii":
        return _ascii(body, count, [name for name, _ in fields])
    if form != "binary_little_endian":
        raise ValueError(f"its format {form} is neither ascii nor binary_little_endian")
    row = np.dtype(fields)
    if count * row.itemsize > len(body):
        raise ValueError(f"it promises {count} vertices, more than its bytes can hold")
    table = np.frombuffer(body, row, count)
    return np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)


def coloured_ply(points, colours):
    """The bytes of a little-endian PLY file of points [p,3], written as float, with colours [p,3] uint8."""
    table = np.empty(len(points), dtype=[*((axis, "<f4") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))])
    for name, column in zip(table.dtype.names, [*np.transpose(points), *np.transpose(colours)], strict=True):
        table[name] = column
    properties = "".join(f"property {'float' if name in 'xyz' else 'uchar'} {name}\n" for name in table.dtype.names)
    return f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n".encode() + table.tobytes()


def _vertices(words):
    """Number of vertices and [(property, dtype)], which must be the first element."""
    elements = [line for line in words if line[:1] == ["element"]]
    if not elements or len(elements[0]) != 3 or elements[0][1] != "vertex" or not elements[0][2].isdecimal() or len(elements[0][2]) > 12:
        raise ValueError("its first element is no number of vertices")
    first = words.index(elements[0]) + 1
    last = words.index(elements[1]) if len(elements) > 1 else len(words)
    properties = [line for line in words[first:last] if line[:1] == ["property"]]
    fields = [(line[2], KINDS[line[1]]) for line in properties if len(line) == 3 and line[1] in KINDS]
    if len(fields) != len(properties) or len({name for name, _ in fields}) != len(fields) or not {"x", "y", "z"} <= {name for name, _ in fields}:
        raise ValueError("its vertices have no plain x, y and z")
    return int(elements[0][2]), fields


def _ascii(body, count, names):
    rows = [line.split() for line in body.splitlines() if line.strip()][:count]
    if len(rows) < count or any(len(row) != len(names) for row in rows):
        raise ValueError(f"it promises {count} vertices of {len(names)} numbers, which do not follow")
    columns = [names.index(axis) for axis in "xyz"]
    return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(-1, 3)
