"""One function per point-cloud file format: coordinates and, where the file has them, normals and colours."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyParseError

from shared.errors import UserError

POINT_KEYS = ("points", "xyz", "vertices", "pos", "arr_0")
COPY_AGAIN = "copy or export it again"


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


def read_ply(path: Path) -> Columns:
    """The `vertex` element of a PLY file, ASCII or binary of either byte order."""
    try:
        vertex = PlyData.read(path)["vertex"]
    except KeyError as error:
        raise UserError(f"{path}: has no vertices; export the cloud as PLY vertices") from error
    except (PlyParseError, ValueError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{path}: broken or truncated PLY ({_first_line(error)}); {COPY_AGAIN}") from error
    names = {field.name for field in vertex.properties}
    if not names.issuperset("xyz"):
        raise UserError(f"{path}: its vertices have no x, y and z; export the cloud with coordinates")

    def columns(*wanted: str) -> NDArray[np.generic] | None:
        return np.stack([vertex[name] for name in wanted], axis=1) if names.issuperset(wanted) else None

    points, normals = columns("x", "y", "z"), columns("nx", "ny", "nz")
    assert points is not None
    colors = columns("red", "green", "blue")
    return Columns(
        points.astype(np.float64),
        None if normals is None else normals.astype(np.float64),
        None if colors is None else _colors(colors),
    )


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
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                words = line.split()
                if words and words[0] in rows:
                    rows[words[0]].append(words[1:4] if words[0] != "f" else [])
        # Rows of fewer than three numbers make a ragged or a narrow array, which is refused.
        points, normals = (np.array(rows[kind] or np.empty((0, 3)), dtype=np.float64) for kind in ("v", "vn"))
        if points.shape[1] != 3 or normals.shape[1] != 3:
            raise ValueError("vertices of two coordinates")
    except ValueError as error:
        raise UserError(f"{path}: broken OBJ ({_first_line(error)}); {COPY_AGAIN}") from error
    paired = len(normals) == len(points) and not rows["f"]
    return Columns(points, normals if paired else None)


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
    values = table.astype(np.float64)
    normals = colors = None
    for start in (3, 6):
        block = values[:, start : start + 3]
        if block.shape[1] < 3:
            break
        if normals is None and np.allclose(np.linalg.norm(block, axis=1), 1.0, rtol=0, atol=0.02):
            normals = block
        elif colors is None and np.isin(block, np.arange(256)).all():
            colors = block.astype(np.uint8)
    return Columns(values[:, :3], normals, colors)


def _colors(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Colours as bytes; floating-point ones are fractions of one."""
    if values.dtype.kind == "f":
        values = np.rint(np.nan_to_num(values.astype(np.float64)) * 255)
    return np.clip(values.astype(np.float64), 0, 255).astype(np.uint8)


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
}
