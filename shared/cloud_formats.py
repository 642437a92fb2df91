"""One function per point-cloud file format: coordinates and, where the file has them, normals and colours.

Those of PLY and PCD are in `shared.cloud_headed`.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

import laspy
import numpy as np
from numpy.typing import NDArray

from shared.cloud_columns import Columns, as_bytes, damage, first_line, first_occurrences, fixed_rows, load_text
from shared.cloud_headed import read_pcd, read_ply
from shared.errors import UserError

POINT_KEYS = ("points", "xyz", "vertices", "pos", "arr_0")
# Rows looked at or decoded at a time, so that what is temporary stays small beside the cloud.
CHUNK = 1_000_000
STL_HEADER = 84
STL_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_text(path: Path) -> Columns:
    """XYZ, TXT and CSV: a point a line, separated by spaces, commas or semicolons; `#` starts a comment.

    The first three columns are coordinates. The next three are normals if they all have unit length, colours if
    they are all whole numbers in 0..255; and likewise the three after those. Leading lines of `//` and one of names
    are skipped.
    """
    try:
        header, delimiter = _text_layout(path)
        try:
            table = np.loadtxt(path, delimiter=delimiter, skiprows=header, comments="#", ndmin=2, encoding="utf-8-sig")
        except ValueError as error:  # numpy counts rows, from 0 and without comments
            raise ValueError(_first_fault(path, header, delimiter) or first_line(error)) from error
    except ValueError as error:
        raise UserError(f"{path}: not a table of numbers ({first_line(error)}); write x y z on each line") from error
    return _from_table(path, table)


def _first_fault(path: Path, header: int, delimiter: str | None) -> str | None:
    """The first line that is not as many numbers as those before it, for people."""
    width = 0
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            content = line.split("#")[0].rstrip("\r\n")
            if number <= header or not content.strip():
                continue
            try:
                count = len([float(word) for word in content.split(delimiter)])
            except ValueError:
                return f"line {number} is {content[:40]!r}"
            if count < 3:
                return f"line {number} has less than 3 numbers: {content[:40]!r}"
            if width not in (0, count):
                return f"line {number} has {count} numbers, not {width}"
            width = count
    return None


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
        as_bytes(arrays["colors"]) if "colors" in arrays else base.colors,
    )


def read_obj(path: Path) -> Columns:
    """The `v` lines of a Wavefront OBJ, and its `vn` lines where no face pairs them with vertices otherwise."""
    rows: dict[str, list[list[str]]] = {"v": [], "vn": [], "f": []}
    with damage(path, "OBJ"):
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
    with damage(path, "OFF"), path.open(encoding="utf-8") as file:
        lines = (content for line in file if (content := line.split("#")[0].strip()))
        first = re.fullmatch(r"(?:ST)?(C?)(N?)OFF\s*([\d\s]*)", next(lines, ""))
        if first is None:
            raise ValueError("its first line is not OFF, COFF or NOFF")
        colored, normal, counts = first.groups()
        count = int((counts or next(lines, "0")).split()[0])
        table = load_text(islice(lines, count))
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
        as_bytes(colors) if colors.shape[1] == 3 else None,
    )


def read_stl(path: Path) -> Columns:
    """The corners of an STL file, binary or text. Each facet writes its own, so those at the same place are one."""
    with damage(path, "STL"), path.open("rb") as file:
        head = file.read(STL_HEADER)
        count = int.from_bytes(head[80:], "little")
        wanted, size = STL_HEADER + count * STL_FACET.itemsize, path.stat().st_size
        if head.startswith(b"solid") and size != wanted:  # binary files may begin so, too
            file.seek(0)
            corners = _text_corners(file)
        elif len(head) < STL_HEADER or size < wanted:
            raise ValueError("ends before its last facet")
        else:
            corners = fixed_rows(path, file, False, STL_FACET, count)["corners"].reshape(-1, 3).astype(np.float64)
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

    corners = load_text(vertices())
    if not ended or (len(corners) and corners.shape[1] != 3):
        raise ValueError("no `endsolid` in its last line, or vertices of other than three numbers")
    return corners.reshape(-1, 3)


def read_las(path: Path) -> Columns:
    """LAS and LAZ, in the units of their coordinate system; colours unless all are black, as those never filled in."""
    with damage(path, "LAS"), laspy.open(path) as file:
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
    return Columns(points, colors=as_bytes(colors) if colors.any() else None)


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
