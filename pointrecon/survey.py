"""What a cloud is like before anything is fitted to it: spacing, noise, stray points. Settings follow from these."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Points = NDArray[np.float64]

SAMPLE = 4000  # points that stand for the cloud
SIZES = (8, 16, 32, 64, 128, 256, 512)  # neighbours that a plane is put through
WIDE = 5.0  # radius of a neighbourhood in standard deviations about its plane
# A stray point has a neighbourhood so many times wider than its neighbours have; or so many times wider than the
# cloud's median, and as thick as this share of its variance.
STRAY_RATIO, STRAY_DISTANCE, STRAY_THICKNESS = 2.2, 2.5, 0.05
NEIGHBOURS = 12


@dataclass(frozen=True)
class Survey:
    """spacing: typical distance between neighbours; noise: standard deviation of the points about the surface; both in
    the units of the points."""

    spacing: float
    noise: float


def survey(points: Points) -> Survey:
    """Spacing and noise of a cloud (N, 3)."""
    tree = cKDTree(points)
    some = points[:: max(1, len(points) // SAMPLE)]
    distances, _ = tree.query(some, k=[2, 3, 4], workers=torch.get_num_threads())
    return Survey(float(np.median(distances.mean(axis=1))), noise(points, tree))


def noise(points: Points, tree: cKDTree) -> float:
    """Standard deviation of the points (N, 3) about the surface.

    The variance of neighbours about the plane through them is that of the noise, whatever the size of the
    neighbourhood, plus what curvature adds, with the fourth power of its radius: the line through the variances of
    two sizes is read at radius zero. The sizes are the smallest ones that are wide for their thickness; within the
    noise a neighbourhood is a ball, which says nothing of it.
    """
    some = points[:: max(1, len(points) // SAMPLE)]
    sizes = [k for k in SIZES if 8 * k <= len(points)]
    distance, index = tree.query(some, k=sizes[-1], workers=torch.get_num_threads())
    radius = np.array([np.median(distance[:, k - 1]) for k in sizes])
    variance = np.array([np.median(plane_variances(points[index[:, :k]])[:, 0]) * k / (k - 3) for k in sizes])
    flat = np.append(radius[:-1] > WIDE * np.sqrt(variance[:-1]), True)
    first = min(int(flat.argmax()), len(sizes) - 2)
    (r0, r1), (v0, v1) = radius[first : first + 2] ** 4, variance[first : first + 2]
    return float(np.sqrt(max(0.0, v0 - (v1 - v0) * r0 / (r1 - r0))))


def plane_variances(groups: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variances (m, 3) of groups of points (m, k, 3) along their principal axes, the smallest first."""
    apart = groups - groups.mean(axis=1, keepdims=True)
    return np.linalg.eigvalsh(np.einsum("mka,mkb->mab", apart, apart) / groups.shape[1]).clip(0)


def stray(points: Points, chunk: int = 200_000) -> NDArray[np.bool_]:
    """Which points (N,) belong to no surface.

    Either much sparser than their neighbours are (after Breunig et al. 2000), or sparse for the cloud and spread in
    all directions: parts that were scanned thinly are sparse, but flat, and lie among their like.
    """
    if len(points) <= 4 * NEIGHBOURS:
        return np.zeros(len(points), bool)
    tree, parts = cKDTree(points), range(0, len(points), chunk)
    reach, around = np.empty(len(points)), np.empty((len(points), NEIGHBOURS), np.int32)
    for first in parts:
        distance, index = tree.query(points[first : first + chunk], k=NEIGHBOURS + 1, workers=torch.get_num_threads())
        reach[first : first + chunk], around[first : first + chunk] = distance[:, -1], index[:, 1:]
    sparse = reach > STRAY_DISTANCE * np.median(reach)
    found = np.zeros(len(points), bool)
    for first in parts:
        rows = np.arange(first, min(first + chunk, len(points)))
        found[rows] = reach[rows] > STRAY_RATIO * np.median(reach[around[rows]], axis=1)
        rows = rows[sparse[rows] & ~found[rows]]
        variances = plane_variances(points[around[rows]])
        found[rows] = variances[:, 0] > STRAY_THICKNESS * variances.sum(axis=1)
    return found
