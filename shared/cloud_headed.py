"""PLY and PCD: a header names the columns of the rows, and their types, in text or binary."""

from collections.abc import Iterable
from itertools import islice, takewhile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData

from shared.cloud_columns import Columns, as_bytes, damage, fixed_rows, stacked
from shared.errors import UserError

# No header of a PLY or PCD file is longer; a file without an end of it may be anything.
HEADER_LINES = 1000
PLY_NAMES = {
    "i1": (b"char", b"int8"),
    "u1": (b"uchar", b"uint8"),
    "i2": (b"short", b"int16"),
    "u2": (b"ushort", b"uint16"),
    "i4": (b"int", b"int32"),
    "u4": (b"uint", b"uint32"),
    "f4": (b"float", b"float32"),
    "f8": (b"double", b"float64"),
}
PLY_TYPES = {name: code for code, names in PLY_NAMES.items() for name in names}
PLY_ORDERS = {b"ascii": "=", b"binary_little_endian": "<", b"binary_big_endian": ">"}


def read_ply(path: Path) -> Columns:
    """The `vertex` element of a PLY file, ASCII or binary of either byte order."""
    with damage(path, "PLY"):
        vertex = _ply_vertices(path)
    if not vertex.keys() >= {"x", "y", "z"}:
        raise UserError(f"{path}: its vertices have no x, y and z; export the cloud with coordinates")
    has_colors = vertex.keys() >= {"red", "green", "blue"}
    return Columns(
        stacked(vertex, "x", "y", "z"),
        stacked(vertex, "nx", "ny", "nz") if vertex.keys() >= {"nx", "ny", "nz"} else None,
        as_bytes(np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)) if has_colors else None,
    )


def _ply_vertices(path: Path) -> dict[str, NDArray[np.generic]]:
    """The columns of the vertices by name; those of a binary file are mapped, not read.

    plyfile reads every PLY, but takes text and lists, as those of faces, value by value. Nearly all files begin with
    vertices of plain numbers, and these are read here.
    """
    with path.open("rb") as file:
        lines = (line.split() for line in islice(file, HEADER_LINES))
        layout = _ply_layout(takewhile(lambda words: words != [b"end_header"], lines))
        if layout is not None:
            rows = fixed_rows(path, file, *layout)
            return {name: rows[name] for name in rows.dtype.names or ()}
    elements = PlyData.read(path)
    if "vertex" not in elements:
        raise UserError(f"{path}: has no vertices; export the cloud as PLY vertices")
    return {field.name: elements["vertex"][field.name] for field in elements["vertex"].properties}


def _ply_layout(header: Iterable[list[bytes]]) -> tuple[bool, np.dtype, int] | None:
    """Whether a PLY file is of text, and type and number of its vertices if these come first, without lists."""
    match [words for words in header if words and words[0] not in (b"comment", b"obj_info")]:
        case [[b"ply"], [b"format", kind, b"1.0"], [b"element", b"vertex", count], *rest] if kind in PLY_ORDERS:
            fields = list(takewhile(lambda words: words[0] == b"property", rest))
            if not fields or not all(len(words) == 3 and words[1] in PLY_TYPES for words in fields):
                return None
            names = [(words[2].decode(), PLY_ORDERS[kind] + PLY_TYPES[words[1]]) for words in fields]
            return kind == b"ascii", np.dtype(names), int(count)
    return None


def read_pcd(path: Path) -> Columns:
    """A PCD file of text, binary or compressed: fields x y z, normal_x normal_y normal_z, and rgb or rgba, packed."""
    with damage(path, "PCD"), path.open("rb") as file:
        encoding, row, count = _pcd_layout(file)
        if encoding == "binary_compressed":
            fields = _compressed_fields(file, row, count)
        else:
            rows = fixed_rows(path, file, encoding == "ascii", row, count)
            fields = {name: rows[name] for name in row.names or ()}
        if not fields.keys() >= {"x", "y", "z"}:
            raise UserError(f"{path}: its fields are not x, y and z; export the cloud with coordinates")
        normals = ("normal_x", "normal_y", "normal_z")
        packed = fields.get("rgb", fields.get("rgba"))
        return Columns(
            stacked(fields, "x", "y", "z"),
            stacked(fields, *normals) if fields.keys() >= set(normals) else None,
            None if packed is None else _unpacked(packed),
        )


def _pcd_layout(file: IO[bytes]) -> tuple[str, np.dtype, int]:
    """Encoding, row type and number of rows by the header of a PCD file, which is read up to its data."""
    header: dict[str, list[str]] = {}
    for line in islice(file, HEADER_LINES):
        words = line.decode("latin-1").split()
        if words:
            header[words[0]] = words[1:]
        if words[:1] == ["DATA"]:
            break
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA") if not header.get(key)]
    if missing:
        raise ValueError(f"no {missing[0]} in its header")
    if header["DATA"][0] not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(f"data in unknown encoding {header['DATA'][0]}")
    names, counts = header["FIELDS"], header.get("COUNT", ["1"] * len(header["FIELDS"]))
    # Fields that fill gaps all have the same name.
    unique = [name if names.index(name) == place else f"{name} {place}" for place, name in enumerate(names)]
    row = [
        (name, f"<{kind.lower()}{size}", () if many == "1" else (int(many),))
        for name, kind, size, many in zip(unique, header["TYPE"], header["SIZE"], counts, strict=True)
    ]
    try:
        return header["DATA"][0], np.dtype(row), int(header["POINTS"][0])
    except TypeError as error:  # a number of bytes that no type has
        raise ValueError(f"fields of unknown type ({error})") from error


def _compressed_fields(file: IO[bytes], row: np.dtype, count: int) -> dict[str, NDArray[np.generic]]:
    """The columns of a compressed PCD file: compressed and true size in bytes, then LZF of one field after another."""
    packed, size = (int(number) for number in np.frombuffer(file.read(8), "<u4", 2))
    if size != count * row.itemsize:
        raise ValueError(f"{size} bytes for {count} points of {row.itemsize}")
    data = _lzf(file.read(packed), size)
    fields, start = {}, 0
    for name in row.names or ():
        kind = row[name]
        fields[name] = np.frombuffer(data, kind, count, start)
        start += count * kind.itemsize
    return fields


def _lzf(packed: bytes, size: int) -> bytearray:
    """`size` bytes out of the LZF compression of M. Lehmann's liblzf.

    A byte below 32 precedes one byte more than it says, to be copied; any other gives, in its upper three bits (7: plus
    the next byte), how many bytes less two are repeated, and in its lower five and a further byte from how far back.
    """
    data, at = bytearray(), 0
    while at < len(packed) and len(data) < size:
        control = packed[at]
        at += 1
        if control < 32:
            data += packed[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[at]
            at += 1
        start = len(data) - ((control & 31) << 8) - packed[at] - 1
        at += 1
        if start < 0:
            raise ValueError("a repetition from before the first byte")
        length += 2
        again = data[start : start + length]  # a stretch that repeats itself is shorter
        data += (again * (length // len(again) + 1))[:length]
    if len(data) != size:
        raise ValueError(f"ends after {len(data)} of {size} bytes")
    return data


def _unpacked(packed: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Colours from red << 16 | green << 8 | blue, as an integer or as the bits of a number in single precision."""
    if packed.dtype.itemsize != 4:
        raise ValueError("rgb of other than four bytes")
    bits = np.ascontiguousarray(packed).view("<u4")
    return np.stack([bits >> np.uint32(shift) & np.uint32(255) for shift in (16, 8, 0)], axis=1).astype(np.uint8)
