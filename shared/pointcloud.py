"""Point clouds from disk: whatever the format, finite and distinct points in float64 and in the file's own frame."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from numpy.typing import NDArray

from shared.cloud_columns import Columns, first_occurrences
from shared.cloud_formats import READERS, SIGNATURES
from shared.errors import UserError

MINIMUM_POINTS = 50
# Clouds of which single precision would keep the shape only to coarser than this share of their diagonal are far away.
COARSE = 1e-4


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

    def rows(self, kept: Bool[np.ndarray, " n"]) -> "PointCloud":
        """Those of the points."""
        normals, colors = (None if column is None else column[kept] for column in (self.normals, self.colors))
        return replace(self, points=self.points[kept], normals=normals, colors=colors)

    def summary(self) -> str:
        """One line: how many points, with what, how large, how far from the origin if far, and what was dropped."""
        extras = [name for name in ("normals", "colors") if getattr(self, name) is not None]
        lower, upper = self.points.min(axis=0), self.points.max(axis=0)
        size = " x ".join(f"{side:.6g}" for side in upper - lower)
        parts = [f"{len(self):,} points" + (f" with {' and '.join(extras)}" if extras else ""), f"size {size}"]
        if self.is_far():
            centre = " ".join(f"{middle:.10g}" for middle in (lower + upper) / 2)
            parts.append(f"far from the origin: around {centre}, and results stay in that frame")
        parts += [f"dropped {count:,} {reason}" for reason, count in self.dropped.items() if count]
        return f"{self.source}: {', '.join(parts)}"

    def is_far(self) -> bool:
        """Whether the origin is so far away, as in map coordinates, that single precision would spoil the shape."""
        lower, upper = self.points.min(axis=0), self.points.max(axis=0)
        coarseness = np.finfo(np.float32).eps * max(-lower.min(), upper.max())
        return bool(coarseness > COARSE * np.linalg.norm(upper - lower))


def read_cloud(path: str | Path) -> PointCloud:
    """Read a file of one of the formats in `READERS`, chosen by suffix.

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
    distinct = first_occurrences(columns.points)
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
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise UserError(f"{path}: the file is empty; export the cloud again")
    for content, marks in SIGNATURES.items():
        if start.startswith(marks) and READERS.get(content) is not reader:
            remedy = f"rename it to end in {content}" if content in READERS else f"give one of {', '.join(READERS)}"
            raise UserError(f"{path}: is really {content}, by its first bytes; {remedy}")
    return reader


def _unit_normals(normals: NDArray[np.float64] | None) -> tuple[NDArray[np.float64] | None, int]:
    """Normals at unit length; none at all, and how many rows were to blame, where some have no direction."""
    if normals is None:
        return None, 0
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    unusable = int((~np.isfinite(lengths) | (lengths == 0)).sum())
    return (None, unusable) if unusable else (normals / lengths, 0)
