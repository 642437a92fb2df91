"""Point clouds from disk: whatever the format, finite and distinct points in float64 and in the file's own frame."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from shared.cloud_formats import READERS, Columns
from shared.errors import UserError

MINIMUM_POINTS = 50


@dataclass(frozen=True, eq=False)
class PointCloud:
    """N distinct finite points in the units of `source`. normals: unit length. colors: RGB.

    dropped: what reading took out, by reason; `unusable normals` counts rows for which all normals were dropped.
    """

    points: Float64[np.ndarray, "n 3"]
    normals: Float64[np.ndarray, "n 3"] | None
    colors: UInt8[np.ndarray, "n 3"] | None
    source: str
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.points)

    def summary(self) -> str:
        """One line: how many points, with what, how large, and what was dropped."""
        extras = [name for name in ("normals", "colors") if getattr(self, name) is not None]
        lower, upper = self.points.min(axis=0), self.points.max(axis=0)
        size = " x ".join(f"{side:.6g}" for side in upper - lower)
        parts = [f"{len(self):,} points" + (f" with {' and '.join(extras)}" if extras else ""), f"size {size}"]
        parts += [f"dropped {count:,} {reason}" for reason, count in self.dropped.items() if count]
        return f"{self.source}: {', '.join(parts)}"


def read_cloud(path: str | Path) -> PointCloud:
    """Read a PLY, XYZ, TXT, CSV, NPY, NPZ or OBJ file, chosen by suffix.

    Rows with a coordinate that is not finite and exact repetitions of earlier points are dropped and counted.
    Raises UserError for a file that is missing, broken, of another kind, or without enough distinct points.
    """
    path = Path(path)
    columns = _reader(path)(path)
    total = len(columns.points)
    if total == 0:
        raise UserError(f"{path}: holds no points; give a point cloud of at least {MINIMUM_POINTS} points")
    finite = np.asarray(np.isfinite(columns.points).all(axis=1))
    columns = columns.rows(finite)
    distinct = _first_occurrences(columns.points)
    if total >= MINIMUM_POINTS and len(columns.points) > 0 and distinct.sum() == 1:
        raise UserError(f"{path}: all points are equal; export the cloud again with its coordinates")
    dropped = {"non-finite": int((~finite).sum()), "duplicate": int((~distinct).sum())}
    columns = columns.rows(distinct)
    if len(columns.points) < MINIMUM_POINTS:
        lost = "".join(f", {count} dropped as {reason}" for reason, count in dropped.items() if count)
        raise UserError(
            f"{path}: {len(columns.points)} usable points (of {total}{lost}); at least {MINIMUM_POINTS} are needed"
        )
    normals, dropped["unusable normals"] = _unit_normals(columns.normals)
    return PointCloud(columns.points, normals, columns.colors, str(path), dropped)


def _reader(path: Path) -> Callable[[Path], Columns]:
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path of the point cloud")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the point cloud file in it")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: point clouds are not read from '{path.suffix}' files; use {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; export the cloud again")
    return reader


def _first_occurrences(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (N, 3) do not repeat an earlier row."""
    order = np.lexsort(points.T)  # stable, so the earliest of equal rows comes first
    ordered = points[order]
    distinct = np.ones(len(points), dtype=bool)
    distinct[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return distinct


def _unit_normals(normals: NDArray[np.float64] | None) -> tuple[NDArray[np.float64] | None, int]:
    """Normals at unit length; none at all, and how many rows were to blame, where some have no direction."""
    if normals is None:
        return None, 0
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    unusable = int((~np.isfinite(lengths) | (lengths == 0)).sum())
    return (None, unusable) if unusable else (normals / lengths, 0)
