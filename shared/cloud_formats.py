"""One function per point-cloud file format: coordinates and, where the file has them, normals and colours."""

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import IO

import laspy
import lazrs
import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyParseError

from shared.errors import UserError

POINT_KEYS = ("points", "xyz", "vertices", "pos", "arr_0")
COPY_AGAIN = "copy or export it again"
# What reading a broken file raises, here and in the libraries.
DAMAGE = (ValueError, KeyError, IndexError, EOFError, struct.error)
LIBRARY_DAMAGE = (PlyParseError, laspy.errors.LaspyException, lazrs.LazrsError)
# No header of a PLY or PCD file is longer; a file without an end of it may be anything.
HEADER_LINES = 1000
# Rows looked at or decoded at a time, so that what is temporary stays small beside the cloud.
CHUNK = 1_000_000
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
STL_HEADER = 84
STL_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


@dataclass(frozen=True)
class Columns:
    """What a file holds, row by row and unchecked: points (N, 3), normals (N, 3), colors uint8 (N, 3)."""

    points: NDArray[np.float64]
    normals: NDArray[np.float64] | None = None
    colors: NDArray[np.uint8] | None = None

    def rows(self, keep: NDArray[np.bool_]) -> "Columns":
        if keep.all():
            return self
        normals = None if self.normals is None else self.normals[keep]
        colors = None if self.colors is None else self.colors[keep]
        return Columns(self.points[keep], normals, colors)


def first_occurrences(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (N, 3) do not repeat an earlier row, as a mask (N,). Minus zero equals zero."""
    keys = _hash_rows(points)
    ordered = np.sort(keys)
    if (ordered[1:] != ordered[:-1]).all():  # as nearly always; to sort is ten times as fast as to find the order
        return np.ones(len(points), dtype=bool)
    del ordered
    order = np.argsort(keys, kind="stable")  # so the earliest of equal rows comes first
    repeats = _repeats(points, order)
    if ((keys[order[1:]] == keys[order[:-1]]) != repeats).any():  # different rows that share a key may lie between
        order = np.lexsort(points.T)
        repeats = _repeats(points, order)
    distinct = np.ones(len(points), dtype=bool)
    distinct[order[1:]] = ~repeats
    return distinct


def _hash_rows(points: NDArray[np.float64]) -> NDArray[np.uint64]:
    """A key for each row, the same for equal rows; shifts, as coordinates in single precision end in zero bits."""
    keys = np.zeros(len(points), np.uint64)
    for column in points.T:
        keys ^= (column + 0.0).view(np.uint64)  # the sum is never minus zero
        keys ^= keys >> np.uint64(32)
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _repeats(points: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether each but the first of the rows in this order equals the one before it."""
    repeats = np.ones(max(0, len(points) - 1), dtype=bool)
    for column in points.T:
        ordered = column[order]
        repeats &= ordered[1:] == ordered[:-1]
    return repeats


def read_ply(path: Path) -> Columns:
    """The `vertex` element of a PLY file, ASCII or binary of either byte order."""
    with _damage(path, "PLY"):
        vertex = _ply_vertices(path)
    if not vertex.keys() >= {"x", "y", "z"}:
        raise UserError(f"{path}: its vertices have no x, y and z; export the cloud with coordinates")
    has_colors = vertex.keys() >= {"red", "green", "blue"}
    return Columns(
        _stacked(vertex, "x", "y", "z"),
        _stacked(vertex, "nx", "ny", "nz") if vertex.keys() >= {"nx", "ny", "nz"} else None,
        _colors(np.stack([vertex[name] for name in ("red", "green", "blue")], axis=1)) if has_colors else None,
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
            rows = _fixed_rows(path, file, *layout)
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


def _fixed_rows(path: Path, file: IO[bytes], text: bool, row: np.dtype, count: int) -> NDArray:
    """`count` rows of a structured type from where the file stands: read from text, or mapped from binary.

    Raises ValueError where the file ends before them.
    """
    start, size = file.tell(), path.stat().st_size
    if text:
        rows = _loadtxt(islice(file, count), row)
        found = len(rows)
    else:
        found = max(0, min(count, (size - start) // row.itemsize))
        rows = np.memmap(path, row, "r", start, (found,)) if found else np.empty(0, row)
    if found != count:
        raise ValueError(f"ends after {found} of {count} rows")
    return rows


def _loadtxt(lines: Iterable[bytes] | Iterable[str], row: np.dtype | type = float) -> NDArray:
    """numpy.loadtxt without its warning of no lines, of which the callers make an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return np.loadtxt(lines, row, comments=None, ndmin=2 if row is float else 1)


def read_text(path: Path) -> Columns:
    """XYZ, TXT and CSV: a point a line, separated by spaces, commas or semicolons; `#` starts a comment.

    The first three columns are coordinates. The next three are normals if they all have unit length, colours if
    they are all whole numbers in 0..255; and likewise the three after those. Leading lines of `//` and one of names
    are skipped.
    """
    try:
        header, delimiter = _text_layout(path)
        table = np.loadtxt(path, delimiter=delimiter, skiprows=header, comments="#", ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path}: not a table of numbers ({_first_line(error)}); write x y z on each line") from error
    return _from_table(path, table)


def _text_layout(path: Path) -> tuple[int, str | None]:
    """How many lines precede the numbers, and the separator (None: white space)."""
    named = False
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file):
            content = line.split("#")[0].split("//")[0].strip()
            if not content:
                continue
            delimiter = next((mark for mark in ",;" if mark in content), None)
            words = [word.strip().strip('"') for word in content.split(delimiter)]
            if named or not all(word and word[0].isalpha() and word.lower() not in ("nan", "inf") for word in words):
                return number, delimiter
            named = True
    raise UserError(f"{path}: holds no points; write x y z on each line")


def read_npy(path: Path) -> Columns:
    """An (N, 3) array, or a wider one with the columns of `read_text`."""
    table = _load_numpy(path)
    if not isinstance(table, np.ndarray):
        raise UserError(f"{path}: is an NPZ archive; rename it to .npz")
    return _from_table(path, table)


def read_npz(path: Path) -> Columns:
    """Keys `points` (or xyz, vertices, pos, arr_0) and, where given, `normals` and `colors`, each (N, 3)."""
    arrays = _load_numpy(path)
    if isinstance(arrays, np.ndarray):
        raise UserError(f"{path}: is a bare array; rename it to .npy")
    key = next((name for name in POINT_KEYS if name in arrays), None)
    if key is None:
        raise UserError(f"{path}: has no key 'points' (it has {', '.join(arrays) or 'none'}); save the cloud under it")
    base = _from_table(path, arrays[key])
    rows = (len(base.points), 3)
    for name in ("normals", "colors"):
        if name in arrays and (arrays[name].shape != rows or arrays[name].dtype.kind not in "fiu"):
            raise UserError(f"{path}: {name} is of shape {arrays[name].shape}, not {rows}; save one row per point")
    return Columns(
        base.points,
        arrays["normals"].astype(np.float64) if "normals" in arrays else base.normals,
        _colors(arrays["colors"]) if "colors" in arrays else base.colors,
    )


def read_obj(path: Path) -> Columns:
    """The `v` lines of a Wavefront OBJ, and its `vn` lines where no face pairs them with vertices otherwise."""
    rows: dict[str, list[list[str]]] = {"v": [], "vn": [], "f": []}
    with _damage(path, "OBJ"):
        with path.open(encoding="utf-8") as file:
            for line in file:
                words = line.split()
                if words and words[0] in rows:
                    rows[words[0]].append(words[1:4] if words[0] != "f" else [])
        # Rows of fewer than three numbers make a ragged or a narrow array, which is refused.
        points, normals = (np.array(rows[kind] or np.empty((0, 3)), dtype=np.float64) for kind in ("v", "vn"))
        if points.shape[1] != 3 or normals.shape[1] != 3:
            raise ValueError("vertices of two coordinates")
    paired = len(normals) == len(points) and not rows["f"]
    return Columns(points, normals if paired else None)


def read_off(path: Path) -> Columns:
    """The vertices of an OFF file in text, with the normals of NOFF and the colours of COFF.

    Columns that the first line does not announce are told apart as those of `read_text`.
    """
    with _damage(path, "OFF"), path.open(encoding="utf-8") as file:
        lines = (content for line in file if (content := line.split("#")[0].strip()))
        first = re.fullmatch(r"(?:ST)?(C?)(N?)OFF\s*([\d\s]*)", next(lines, ""))
        if first is None:
            raise ValueError("its first line is not OFF, COFF or NOFF")
        colored, normal, counts = first.groups()
        count = int((counts or next(lines, "0")).split()[0])
        table = _loadtxt(islice(lines, count))
        if len(table) != count or (count and table.shape[1] < 3):
            raise ValueError(f"ends after {len(table)} of {count} vertices, or they have fewer than three numbers")
    if not colored and not normal:
        return _from_table(path, table)
    normals = table[:, 3:6] if normal else table[:, :0]
    colors = table[:, 3 + normals.shape[1] :][:, :3] if colored else table[:, :0]
    if colors.max(initial=0) > 1:  # else fractions
        colors = colors.astype(np.int64)
    return Columns(
        table[:, :3].copy(),
        normals.copy() if normals.shape[1] == 3 else None,
        _colors(colors) if colors.shape[1] == 3 else None,
    )


def read_stl(path: Path) -> Columns:
    """The corners of an STL file, binary or text. Each facet writes its own, so those at the same place are one."""
    with _damage(path, "STL"), path.open("rb") as file:
        head = file.read(STL_HEADER)
        count = int.from_bytes(head[80:], "little")
        wanted, size = STL_HEADER + count * STL_FACET.itemsize, path.stat().st_size
        if head.startswith(b"solid") and size != wanted:  # binary files may begin so, too
            file.seek(0)
            corners = _text_corners(file)
        elif len(head) < STL_HEADER or size < wanted:
            raise ValueError("ends before its last facet")
        else:
            corners = _fixed_rows(path, file, False, STL_FACET, count)["corners"].reshape(-1, 3).astype(np.float64)
    return Columns(corners[first_occurrences(corners)])


def _text_corners(file: IO[bytes]) -> NDArray[np.float64]:
    """The numbers after each `vertex` of an STL file of text."""
    ended = False

    def vertices() -> Iterator[bytes]:
        nonlocal ended
        for line in file:
            words = line.strip().lower()
            ended = words.startswith(b"endsolid") if words else ended
            if words.startswith(b"vertex"):
                yield words.removeprefix(b"vertex")

    corners = _loadtxt(vertices())
    if not ended or (len(corners) and corners.shape[1] != 3):
        raise ValueError("no `endsolid` in its last line, or vertices of other than three numbers")
    return corners.reshape(-1, 3)


def read_pcd(path: Path) -> Columns:
    """A PCD file of text, binary or compressed: fields x y z, normal_x normal_y normal_z, and rgb or rgba, packed."""
    with _damage(path, "PCD"), path.open("rb") as file:
        encoding, row, count = _pcd_layout(file)
        if encoding == "binary_compressed":
            fields = _compressed_fields(file, row, count)
        else:
            rows = _fixed_rows(path, file, encoding == "ascii", row, count)
            fields = {name: rows[name] for name in row.names or ()}
        if not fields.keys() >= {"x", "y", "z"}:
            raise UserError(f"{path}: its fields are not x, y and z; export the cloud with coordinates")
        normals = ("normal_x", "normal_y", "normal_z")
        packed = fields.get("rgb", fields.get("rgba"))
        return Columns(
            _stacked(fields, "x", "y", "z"),
            _stacked(fields, *normals) if fields.keys() >= set(normals) else None,
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


def read_las(path: Path) -> Columns:
    """LAS and LAZ, in the units of their coordinate system; colours unless all are black, as those never filled in."""
    with _damage(path, "LAS"), laspy.open(path) as file:
        count = file.header.point_count
        has_colors = "red" in file.header.point_format.dimension_names
        points, colors = np.empty((count, 3)), np.zeros((count, 3) if has_colors else (0, 3), np.uint16)
        found = 0
        for chunk in file.chunk_iterator(CHUNK):
            rows = slice(found, found + len(chunk))
            points[rows] = np.stack([chunk.x, chunk.y, chunk.z], axis=1)
            if has_colors:
                colors[rows] = np.stack([chunk.red, chunk.green, chunk.blue], axis=1)
            found += len(chunk)
        if found != count:
            raise ValueError(f"ends after {found} of {count} points")
    return Columns(points, colors=_colors(colors) if colors.any() else None)


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    """Turn what reading a broken file raises into one line."""
    try:
        yield
    except (*DAMAGE, *LIBRARY_DAMAGE) as error:
        raise UserError(f"{path}: broken or truncated {kind} ({_first_line(error)}); {COPY_AGAIN}") from error


def _load_numpy(path: Path) -> NDArray[np.generic] | Mapping[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file:  # opened here, as NumPy leaves it open where an archive is broken
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable NumPy file, or truncated; save it again with numpy.save") from error


def _from_table(path: Path, table: NDArray[np.generic]) -> Columns:
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "fiu":
        raise UserError(f"{path}: {table.dtype} of shape {table.shape}, not rows of x y z; save an (N, 3) array")
    values = table.astype(np.float64, copy=False)
    normals = colors = None
    for start in (3, 6):
        block = values[:, start : start + 3]
        if block.shape[1] < 3:
            break
        if normals is None and _everywhere(_is_unit, block):
            normals = block.copy()
        elif colors is None and _everywhere(_is_byte, block):
            colors = block.astype(np.uint8)
    return Columns(np.ascontiguousarray(values[:, :3]), normals, colors)


def _everywhere(test: Callable[[NDArray], NDArray[np.bool_]], rows: NDArray[np.float64]) -> bool:
    """Whether a test holds for all rows (N, 3), up to the first chunk of them for which it does not."""
    return all(bool(test(rows[start : start + CHUNK]).all()) for start in range(0, len(rows), CHUNK))


def _is_unit(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(np.linalg.norm(rows, axis=1) - 1) <= 0.02


def _is_byte(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (values >= 0) & (values <= 255) & (values == np.rint(values))


def _stacked(columns: Mapping[str, NDArray[np.generic]], *names: str) -> NDArray[np.float64]:
    """Columns (N,) of these names side by side, in double precision."""
    rows = np.empty((len(columns[names[0]]), len(names)))
    for place, name in enumerate(names):
        rows[:, place] = columns[name]
    return rows


def _colors(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Colours as bytes. Floating-point ones are fractions of one; those of 16 bits may hold bytes all the same."""
    if values.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and values.max(initial=0) > 255:
        values = values.astype(np.uint16) >> 8
    return np.clip(values, 0, 255).astype(np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(";")[0]


READERS: dict[str, Callable[[Path], Columns]] = {
    ".ply": read_ply,
    ".xyz": read_text,
    ".txt": read_text,
    ".csv": read_text,
    ".npy": read_npy,
    ".npz": read_npz,
    ".obj": read_obj,
    ".off": read_off,
    ".stl": read_stl,
    ".pcd": read_pcd,
    ".las": read_las,
    ".laz": read_las,
}

# How files begin that may go by a wrong name: under the suffix that they should have, or under what they are.
SIGNATURES = {
    ".ply": (b"ply\n", b"ply\r"),
    ".npy": (b"\x93NUMPY",),
    ".npz": (b"PK\x03\x04",),
    ".off": (b"OFF\n", b"OFF\r", b"COFF", b"NOFF"),
    ".stl": (b"solid ",),
    ".pcd": (b"# .PCD",),
    ".las": (b"LASF",),
    "an image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF"),
    "a web page": (b"<!DOCTYPE", b"<html"),
    "a document": (b"%PDF",),
    "an archive": (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!"),
    "a glTF scene": (b"glTF",),
    "an E57 scan": (b"ASTM-E57",),
}
