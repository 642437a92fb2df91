"""Clouds with more points than a field can resolve, made smaller without losing what it can."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shared.pointcloud import PointCloud

# The finest grid that a fit chooses has some million cells on a surface: of more points only the mean is seen.
MOST = 4_000_000
FIRST = 2048  # cells along the longest side that are tried first
GROW = 1.03  # beyond what the count asks for, so that few tries suffice


def thin(cloud: PointCloud, most: int = MOST) -> PointCloud:
    """A cloud of at most `most` points: as it is, or the mean of the points in each of many small cubes.

    Normals and colours are means, too. Averaged points have less noise.
    """
    if len(cloud) <= most:
        return cloud
    edge = float(np.ptp(cloud.points, axis=0).max()) / FIRST
    while True:
        cell, count = _cells(cloud.points, edge)
        if count <= most:
            break
        edge *= GROW * np.sqrt(count / most)  # cells on a surface: their number falls with the square of the edge
    share = 1 / np.bincount(cell, minlength=count)
    points, normals, colors = _means(cloud.points, cell, share), cloud.normals, cloud.colors
    if normals is not None:
        normals = _means(normals, cell, share)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.where(length > 0, normals / length.clip(1e-300), [0.0, 0.0, 1.0])
    if colors is not None:
        colors = np.rint(_means(colors, cell, share)).astype(np.uint8)
    dropped = {**cloud.dropped, "merged with close ones": len(cloud) - count}
    return replace(cloud, points=points, normals=normals, colors=colors, dropped=dropped)


def _cells(points: NDArray[np.float64], edge: float) -> tuple[NDArray[np.int64], int]:
    """Which of the cubes that hold points each point (N, 3) is in, and how many there are."""
    lower = points.min(axis=0)
    sides = (np.ptp(points, axis=0) / edge).astype(np.int64) + 1
    key = np.zeros(len(points), np.int64)
    for axis in range(3):
        key = key * sides[axis] + ((points[:, axis] - lower[axis]) / edge).astype(np.int64)
    kept, cell = np.unique(key, return_inverse=True)
    return cell, len(kept)


def _means(columns: NDArray, cell: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rows (count, 3) of the cubes."""
    return np.stack([np.bincount(cell, weights=column, minlength=len(share)) * share for column in columns.T], axis=1)
