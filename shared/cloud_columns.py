"""What all point-cloud formats come down to: columns of points, normals and colours, and the ways to read them."""

import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import laspy
import lazrs
import numpy as np
from numpy.typing import NDArray
from plyfile import PlyParseError

from shared.errors import UserError

# What reading a broken file raises, here and in the libraries.
DAMAGE = (ValueError, KeyError, IndexError, EOFError, struct.error)
LIBRARY_DAMAGE = (PlyParseError, laspy.errors.LaspyException, lazrs.LazrsError)


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


def fixed_rows(path: Path, file: IO[bytes], text: bool, row: np.dtype, count: int) -> NDArray:
    """`count` rows of a structured type from where the file stands: read from text, or mapped from binary.

    Raises ValueError where the file ends before them.
    """
    start, size = file.tell(), path.stat().st_size
    if text:
        rows = load_text(islice(file, count), row)
        found = len(rows)
    else:
        found = max(0, min(count, (size - start) // row.itemsize))
        rows = np.memmap(path, row, "r", start, (found,)) if found else np.empty(0, row)
    if found != count:
        raise ValueError(f"ends after {found} of {count} rows")
    return rows


def load_text(lines: Iterable[bytes] | Iterable[str], row: np.dtype | type = float) -> NDArray:
    """numpy.loadtxt without its warning of no lines, of which the callers make an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return np.loadtxt(lines, row, comments=None, ndmin=2 if row is float else 1)


def stacked(columns: Mapping[str, NDArray[np.generic]], *names: str) -> NDArray[np.float64]:
    """Columns (N,) of these names side by side, in double precision."""
    rows = np.empty((len(columns[names[0]]), len(names)))
    for place, name in enumerate(names):
        rows[:, place] = columns[name]
    return rows


def as_bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Colours as bytes. Floating-point ones are fractions of one; those of 16 bits may hold bytes all the same."""
    if values.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and values.max(initial=0) > 255:
        values = values.astype(np.uint16) >> 8
    return np.clip(values, 0, 255).astype(np.uint8)


@contextmanager
def damage(path: Path, kind: str) -> Iterator[None]:
    """Turn what reading a broken file raises into one line."""
    try:
        yield
    except (*DAMAGE, *LIBRARY_DAMAGE) as error:
        raise UserError(f"{path}: broken or truncated {kind} ({first_line(error)}); copy or export it again") from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(";")[0]
