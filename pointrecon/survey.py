"""What a cloud is like before anything is fitted to it: spacing, noise, stray points. Settings follow from these."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Points = NDArray[np.float64]

# A cloud with more noise than this share of its spacing is noisy: its points are not on the surface but about it. With
# less, but more than CLEAN, it is nearly clean.
NOISY, CLEAN = 0.5, 0.1
SAMPLE = 4000  # points that stand for the cloud
SIZES = (8, 16, 32, 64, 128, 256, 512)  # neighbours that a plane is put through
WIDE = 5.0  # radius of a neighbourhood in standard deviations about its plane
# A point is stray whose neighbourhood is so many times wider than its neighbours' are. It is sparse if it is so many
# times wider than the cloud's median; sparse points are spread if those around them have this share of variance across.
STRAY_RATIO, SPARSE, SPREAD = 3.0, 2.5, 0.1
NEIGHBOURS = 12
# A cloud with more than this share of stray points is littered. There a point is stray, too, whose 4th neighbour is so
# many times farther than is usual among its neighbours, if it lies farther off the plane through these than is usual.
LITTERED, LONELY = 0.005, 1.5
AGAIN = 4  # looks at what is left there, at most


@dataclass(frozen=True)
class Survey:
    """spacing: typical distance between neighbours; noise: standard deviation of the points about the surface; both in
    the units of the points. crowd: how many points a point has within twice the noise, typically."""

    spacing: float
    noise: float
    crowd: int

    @property
    def noisy(self) -> bool:
        """Whether settings are those of noisy clouds."""
        return self.noise > NOISY * self.spacing

    @property
    def nearly_clean(self) -> bool:
        """Whether there is noise, but at most half of what points are apart."""
        return not self.noisy and self.noise > CLEAN * self.spacing


def survey(points: Points) -> Survey:
    """Spacing, noise and crowd of a cloud (N, 3)."""
    tree = cKDTree(points)
    some = points[:: max(1, len(points) // SAMPLE)]
    deviation = noise(points, tree)
    within = tree.query_ball_point(some, 2 * deviation, return_length=True, workers=torch.get_num_threads())
    return Survey(typical_spacing(tree), deviation, int(np.median(within)) - 1)


def typical_spacing(tree: cKDTree) -> float:
    """Median over the points (N, 3) in the tree of the mean distance to three neighbours."""
    some = tree.data[:: max(1, tree.n // SAMPLE)]
    distances, _ = tree.query(some, k=[2, 3, 4], workers=torch.get_num_threads())
    return float(np.median(distances.mean(axis=1)))


def noise(points: Points, tree: cKDTree) -> float:
    """Standard deviation of the points (N, 3) about the surface.

    The variance of neighbours about the plane through them is that of the noise, whatever the size of the
    neighbourhood, plus what curvature adds, with the fourth power of its radius: the line through the variances of
    two sizes is read at radius zero. The sizes are the smallest ones that are wide for their thickness; within the
    noise a neighbourhood is a ball, which says nothing of it.
    """
    some = points[:: max(1, len(points) // SAMPLE)]
    sizes = [k for k in SIZES if 8 * k <= len(points)]
    if len(sizes) < 2:  # a plane through a quarter of the points tells of the shape, not of noise
        return 0.0
    distance, index = tree.query(some, k=sizes[-1], workers=torch.get_num_threads())
    radius = np.array([np.median(distance[:, k - 1]) for k in sizes])
    variance = np.array([np.median(plane_variances(points[index[:, :k]])[:, 0]) * k / (k - 3) for k in sizes])
    flat = np.append(radius[:-1] > WIDE * np.sqrt(variance[:-1]), True)
    first = min(int(flat.argmax()), len(sizes) - 2)
    (r0, r1), (v0, v1) = radius[first : first + 2] ** 4, variance[first : first + 2]
    return float(np.sqrt(max(0.0, v0 - (v1 - v0) * r0 / (r1 - r0))))


def plane_variances(groups: NDArray[np.floating]) -> NDArray[np.floating]:
    """Variances (m, 3) of groups of points (m, k, 3) along their principal axes, the smallest first."""
    return np.linalg.eigvalsh(_covariances(groups)).clip(0)


def principal_axes(groups: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """`plane_variances`, and the axes (m, 3, 3), unit ones of either sign in columns."""
    variances, axes = np.linalg.eigh(_covariances(groups))
    return variances.clip(0), axes


def _covariances(groups: NDArray[np.floating]) -> NDArray[np.floating]:
    apart = groups - groups.mean(axis=1, keepdims=True)
    return np.einsum("mka,mkb->mab", apart, apart) / groups.shape[1]


def stray(points: Points, chunk: int = 200_000) -> NDArray[np.bool_]:
    """Which points (N,) belong to no surface.

    Those much sparser than their neighbours are (after Breunig et al. 2000); and of the points that are sparse for the
    cloud those that are spread in all directions, if most of them are: parts that were scanned thinly are sparse, too,
    but mostly flat. Where there are many such points there are others close to the surface: see `_beside`.
    """
    if len(points) <= 4 * NEIGHBOURS:
        return np.zeros(len(points), bool)
    reach, around = _reach(points, chunk)
    found = reach > STRAY_RATIO * around
    sparse = np.flatnonzero(reach > SPARSE * np.median(reach))
    if len(sparse) > 4 * NEIGHBOURS:
        spread = _spread(points[sparse])
        found[sparse] |= spread & (spread.mean() > 0.5)
    litter = found.sum()
    if found.mean() > LITTERED:
        for _ in range(AGAIN):  # without those, others are alone that had them for neighbours
            kept = np.flatnonzero(~found)
            reach, around = _reach(points[kept], chunk)
            alone = reach > STRAY_RATIO * around
            if not alone.any() or alone.sum() > litter:
                break
            found[kept] = alone
        for _ in range(2):  # the second time without what had made pairs of them look like a surface
            kept = np.flatnonzero(~found)
            more = _beside(points[kept]) if len(kept) > 4 * NEIGHBOURS else np.zeros(len(kept), bool)
            if more.sum() > litter:  # rather a part that was scanned thinly, beside one that was not
                break
            found[kept] = more
    return found


def _reach(points: Points, chunk: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far away the points' (N, 3) neighbours reach, and how far those of their neighbours do, typically."""
    tree, workers = cKDTree(points), torch.get_num_threads()
    reach, around = np.empty(len(points)), np.empty(len(points))
    for first in range(0, len(points), chunk):
        part = slice(first, first + chunk)
        reach[part] = tree.query(points[part], k=[NEIGHBOURS + 1], workers=workers)[0][:, 0]
    for first in range(0, len(points), chunk):
        part = slice(first, first + chunk)
        _, index = tree.query(points[part], k=[*range(2, NEIGHBOURS + 2)], workers=workers)
        around[part] = np.median(reach[index], axis=1)
    return reach, around


def _beside(points: Points) -> NDArray[np.bool_]:
    """Which points (N,) lie alone beside the surface that their neighbours lie on."""
    tree, workers = cKDTree(points), torch.get_num_threads()
    reach = tree.query(points, k=[5], workers=workers)[0][:, 0]
    found = np.zeros(len(points), bool)
    rows = np.flatnonzero(reach > np.median(reach))  # what is alone is not in the denser half
    for part in np.array_split(rows, 1 + len(rows) // 100_000):
        _, index = tree.query(points[part], k=[*range(2, NEIGHBOURS + 2)], workers=workers)
        usual = np.median(reach[index], axis=1)
        alone = reach[part] > LONELY * usual
        part, around, usual = part[alone], points[index[alone]], usual[alone]
        _, axes = principal_axes(around)
        off = np.abs(((points[part] - around.mean(axis=1)) * axes[:, :, 0]).sum(axis=1))
        found[part] = off > usual
    return found


def _spread(points: Points) -> NDArray[np.bool_]:
    """Which points (N,) lie, like those around them, among neighbours in all directions instead of on a surface."""
    _, index = cKDTree(points).query(points, k=NEIGHBOURS + 1, workers=torch.get_num_threads())
    variances = plane_variances(points[index])
    return np.asarray((variances[:, 0] / variances.sum(axis=1).clip(1e-300))[index].mean(axis=1) > SPREAD)
