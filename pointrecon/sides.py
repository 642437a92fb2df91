"""On which side of an open surface a place is, as far as its cloud tells: where a field must be positive or negative.

A pull does not tell signs. A field that starts as a ball becomes positive on both sides of an open sheet, which is then
the skin of a thin body, with a second sheet at its back. Oriented points tell more: the winding number that they give
(Barill et al. 2018) jumps by one across the surface, from the same value everywhere: a half about a body, zero about a
sheet. Where normals are not given, those of neighbouring planes are made to agree (Hoppe et al. 1992).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

from pointrecon.enclosed import CELLS, away, centres
from pointrecon.survey import principal_axes
from pointrecon.thin import thin
from shared.pointcloud import PointCloud

Rows = NDArray[np.float64]

MOST, FEWEST = 4000, 200  # points that stand for the cloud
PLANE, NEIGHBOURS = 12, 10  # neighbours that give a normal, and that it is compared with
ROUNDS = 8  # in which normals that contradict the others are turned
BESIDE = 1.5  # distance from the surface at which sides are asked for, in that to the 4th neighbour
# Share of the surface beside which sides must be right: for a sheet, with a level of winding numbers less than this, it
# may be less, for its alternative is to be doubled.
TRUSTED, TRUSTED_SHEET, SHEET = 0.97, 0.85, 0.25
# Between sheets that lie over each other the side would change once more. A surface there, where no points are, may
# have this share of the area of the sheets.
FALSE, ABOVE = 0.15, 0.7
FLAT = 0.05  # a part with less flux than this share of what it could have is a sheet
PAIRS = 500_000  # at a time, few enough for a processor's cache


def sides(points: Rows, tree: cKDTree, normals: Rows | None = None) -> Int[NDArray[np.int8], "c c c"] | None:
    """1 in cells [x, y, z] of the box [-1, 1]^3 that are outside, -1 in those inside, 0 in those too close to points
    (N, 3) and in the opening of what is not a sheet; None where the cloud does not tell, as where one sheet lies over
    another.

    Outside is where the normals look; without them outward from bodies, and up, along the last axis, from sheets.
    """
    if len(points) < FEWEST:
        return None
    some = thin(PointCloud(points, normals, colors=None, source="", dropped={}), MOST)
    here = cKDTree(some.points)
    distance, index = here.query(some.points, k=max(PLANE, NEIGHBOURS) + 1, workers=torch.get_num_threads())
    area = np.pi / 8 * distance[:, 8] ** 2
    # Axes of the planes, and which of their two directions.
    flat = principal_axes(some.points[index[:, : PLANE + 1]])[1][:, :, 0].astype(np.float64)
    if some.normals is not None:
        flat = flat * np.where((flat * some.normals).sum(axis=1) < 0, -1, 1)[:, None]
    else:
        flat = oriented(some.points, flat, index[:, 1 : NEIGHBOURS + 1], area)
    beside = BESIDE * distance[:, 4:5] * np.array([[[1]], [[-1]]])
    for _ in range(ROUNDS):
        front, back = (winding(some.points + way * flat, some.points, flat * area[:, None]) for way in beside)
        wrong = back < front
        if not wrong.any():
            break
        flat[wrong] *= -1
    level = np.average((front + back) / 2, weights=area)
    right = np.average((front < level) & (level < back), weights=area)
    if right < (TRUSTED_SHEET if level < SHEET else TRUSTED):
        return None
    far, cells = away(tree), centres()
    above = winding(cells[far], some.points, flat * area[:, None]) - level
    side = np.zeros(far.shape, np.int8)
    side[far] = np.where(np.abs(above) > max(0, level / 2), -np.sign(above), 0)
    doubled = level < SHEET and _false_sheets(side, cells, here, flat) > FALSE * area.sum()
    return None if doubled else side


def _false_sheets(side: Int[NDArray[np.int8], "c c c"], cells: Rows, tree: cKDTree, normals: Rows) -> float:
    """Area of what lies between cells of different sides, above or below points in the tree instead of beside them."""
    area = 0.0
    for axis in range(3):
        left, right = ([np.delete(each, end, axis) for each in (side, cells)] for end in (-1, 0))
        middle = (left[1] + right[1])[left[0] * right[0] < 0] / 2
        distance, nearest = tree.query(middle, workers=torch.get_num_threads())
        cosine = np.abs(((middle - tree.data[nearest]) * normals[nearest]).sum(axis=1)) / distance
        area += (2 / CELLS) ** 2 * float((cosine > ABOVE).sum())
    return area


def oriented(points: Rows, normals: Rows, index: Int[NDArray[np.int64], "n k"], area: NDArray[np.float64]) -> Rows:
    """Normals (n, 3) of either sign, turned so that those of neighbours (rows in `index`) agree, along the tree of
    least disagreement; then each connected part so that it looks outward or, a sheet, up. area: of each point."""
    row, column = np.repeat(np.arange(len(points)), index.shape[1]), index.ravel()
    cost = 1 + 1e-6 - np.abs(_agreement(points, normals, row, column))  # a zero would be no edge
    tree = minimum_spanning_tree(coo_array((cost, (row, column)), (len(points), len(points))))
    count, part = connected_components(tree, directed=False)
    normals = normals.copy()
    for number in range(count):
        members = np.flatnonzero(part == number)
        order, before = breadth_first_order(tree, members[0], directed=False)
        agreement = np.zeros(len(points))
        agreement[order[1:]] = _agreement(points, normals, before[order[1:]], order[1:])
        sign = np.ones(len(points))
        for point in order[1:]:
            sign[point] = sign[before[point]] * (-1 if agreement[point] < 0 else 1)
        normals[members] *= sign[members, None]
        if _looks_inward(points[members], normals[members], area[members]):
            normals[members] *= -1
    return normals


def _agreement(points: Rows, normals: Rows, a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.float64]:
    """Cosines (m,) of the normals of points a and b, as far as their chord allows: on a circle those at its ends are
    mirror images of each other in the plane across it."""
    chord = points[b] - points[a]
    chord /= np.linalg.norm(chord, axis=1, keepdims=True).clip(1e-300)
    mirrored = normals[b] - 2 * (normals[b] * chord).sum(axis=1, keepdims=True) * chord
    return np.asarray((normals[a] * mirrored).sum(axis=1))


def _looks_inward(points: Rows, normals: Rows, area: NDArray[np.float64]) -> bool:
    """Whether the normals of a connected part look inward or, if it is a sheet, down."""
    apart = points - np.average(points, axis=0, weights=area)
    flux, most = (area * (apart * normals).sum(axis=1)).sum(), (area * np.linalg.norm(apart, axis=1)).sum()
    return bool((flux if abs(flux) > FLAT * most else (area * normals[:, 2]).sum()) < 0)


def winding(x: Rows, points: Rows, areas: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " m"]:
    """Winding numbers at places (m, 3) of a surface given by points (n, 3) on it with their vector areas, which look
    outward; exact far from the points as compared with their distances from each other."""
    p, area = (torch.from_numpy(column.astype(np.float32)) for column in (points, areas))
    away, along = p.square().sum(dim=1), (p * area).sum(dim=1)
    numbers = []
    for part in torch.from_numpy(x.astype(np.float32)).split(max(1, PAIRS // len(p))):
        square = torch.addmm(away, part, -2 * p.T).add_(part.square().sum(dim=1, keepdim=True))
        inverse = square.clamp_min_(1e-12).rsqrt_()
        numbers.append(torch.addmm(along, part, -area.T).mul_(inverse).mul_(inverse).mul_(inverse).sum(dim=1))
    return torch.cat(numbers).numpy() / (4 * np.pi)
