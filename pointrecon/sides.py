"""On which side of an open surface a place is, as far as its cloud tells: where a field must be positive or negative.

A pull does not tell signs. A field that starts as a ball becomes positive on both sides of an open sheet, which is then
the skin of a thin body, with a second sheet at its back. Oriented points tell more: the winding number that they give
(Barill et al. 2018, eq. 2) jumps by one across the surface, from the same value everywhere: a half about a body, zero
about a sheet. Where normals are not given, those of neighbouring planes are made to agree (Hoppe et al. 1992, section
3.3).
"""

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

from pointrecon.enclosed import CELLS, away, centres
from pointrecon.survey import principal_axes
from pointrecon.thin import thin
from pointrecon.winding import winding
from shared.pointcloud import PointCloud

Rows = NDArray[np.float64]

MOST, FEWEST = 4000, 200  # points that stand for the cloud
PLANE, NEIGHBOURS, DISC = 12, 10, 8  # neighbours that give a normal, that it is compared with, and that give an area
ROUNDS = 8  # in which normals that contradict the others are turned
BESIDE = 1.5  # distance from the surface at which sides are asked for, in that to the 4th neighbour
# A sheet has winding numbers about zero at its middle, up to this; about its middle it may be right on a smaller share
# of its surface, for its alternative is to be doubled.
SHEET, TRUSTED_SHEET, TRUSTED = 0.25, 0.85, 0.97
# Between sheets that lie over each other the side would change once more. A surface there, where no points are, may
# have this share of the area of the sheets.
FALSE, ABOVE = 0.15, 0.7
FLAT = 0.6  # what the areas of a connected sheet add up to as vectors, at least; of half a ball 0.5
UPRIGHT = 0.1  # a sheet whose vector area is less upward than this share of it looks to no side of the ground


def sides(points: Rows, tree: cKDTree, normals: Rows | None = None) -> Int[NDArray[np.int8], "c c c"] | None:
    """1 in cells [x, y, z] of the box [-1, 1]^3 that are outside, -1 in those inside, 0 in those too close to points
    (N, 3) of the box, and in the opening of what is not a sheet; None where the cloud does not tell, as where one sheet
    lies over another.

    Outside is where the normals (N, 3) look; without them outward from bodies, and up, along the last axis, from
    sheets, or to the positive end of another axis if they are upright.
    """
    some = thin(PointCloud(points, normals, colors=None, source="", dropped={}), MOST)
    if len(some) < FEWEST:
        return None
    here = cKDTree(some.points)
    distance, index = here.query(some.points, k=max(PLANE, NEIGHBOURS) + 1, workers=torch.get_num_threads())
    size = np.pi / DISC * distance[:, DISC] ** 2  # so many points in a disc of that radius
    areas = principal_axes(some.points[index[:, : PLANE + 1]])[1][:, :, 0] * size[:, None]
    beside = BESIDE * distance[:, 4]
    if some.normals is not None:
        areas[(areas * some.normals).sum(axis=1) < 0] *= -1
    else:
        areas = _without_contradictions(some.points, oriented(some.points, areas, index[:, 1 : NEIGHBOURS + 1]), beside)
    front, back = _about(some.points, areas, beside)
    level = float(np.average((front + back) / 2, weights=size))
    sheet = abs(level) < SHEET
    level = 0.0 if sheet else level
    if np.average((front < level) & (level < back), weights=size) < (TRUSTED_SHEET if sheet else TRUSTED):
        return None
    far, cells = away(tree), centres()
    above = winding(cells[far], some.points, areas) - level
    side = np.zeros(far.shape, np.int8)
    side[far] = np.where(np.abs(above) > abs(level) / 2, -np.sign(above), 0)
    doubled = sheet and _false_area(side, here, areas) > FALSE * size.sum()
    return None if doubled else side


def oriented(points: Rows, areas: Rows, index: Int[NDArray[np.int64], "n k"]) -> Rows:
    """Vector areas (n, 3) of either sign at points (n, 3), turned so that those of neighbours (rows in `index`) agree,
    along the tree of least disagreement; then each connected part so that it looks outward or, a sheet, up."""
    row, column = np.repeat(np.arange(len(points)), index.shape[1]), index.ravel()
    cost = 1 + 1e-6 - np.abs(_agreement(points, areas, row, column))  # a zero would be no edge
    tree = minimum_spanning_tree(coo_array((cost, (row, column)), (len(points), len(points))))
    count, part = connected_components(tree, directed=False)
    areas = areas.copy()
    for number in range(count):
        members = np.flatnonzero(part == number)
        order, before = breadth_first_order(tree, members[0], directed=False)
        agreement = np.zeros(len(points))
        agreement[order[1:]] = _agreement(points, areas, before[order[1:]], order[1:])
        sign = np.ones(len(points))
        for point in order[1:]:
            sign[point] = sign[before[point]] * (-1 if agreement[point] < 0 else 1)
        areas[members] *= sign[members, None]
        if _looks_inward(points[members], areas[members]):
            areas[members] *= -1
    return areas


def _unit(vectors: Rows) -> Rows:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-300)


def _agreement(points: Rows, areas: Rows, a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.float64]:
    """Cosines (m,) of the normals at points a and b (rows), as far as their chord allows: on a circle, normals at the
    ends of a chord are mirror images of each other in the plane across it."""
    normals = _unit(areas)
    chord = _unit(points[b] - points[a])
    mirrored = normals[b] - 2 * (normals[b] * chord).sum(axis=1, keepdims=True) * chord
    return np.asarray((normals[a] * mirrored).sum(axis=1))


def _looks_inward(points: Rows, areas: Rows) -> bool:
    """Whether a connected part with vector areas (n, 3) looks inward or, if it is a sheet, down."""
    size, total = np.linalg.norm(areas, axis=1), areas.sum(axis=0)
    if np.linalg.norm(total) < FLAT * size.sum():
        return bool(((points - np.average(points, axis=0, weights=size)) * areas).sum() < 0)
    up = 2 if abs(total[2]) > UPRIGHT * np.linalg.norm(total) else int(np.abs(total).argmax())
    return bool(total[up] < 0)


def _without_contradictions(points: Rows, areas: Rows, beside: NDArray[np.float64]) -> Rows:
    """The vector areas, those turned across which the winding number of all of them falls; most are as before."""
    turned = areas
    for _ in range(ROUNDS):
        front, back = _about(points, turned, beside)
        if (back >= front).all():
            break
        turned = np.where((back < front)[:, None], -turned, turned)
    return turned if (turned * areas).sum() >= 0 else -turned


def _about(points: Rows, areas: Rows, beside: NDArray[np.float64]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Winding numbers (n,) at so great a distance in front of points (n, 3) and behind them."""
    way = _unit(areas) * beside[:, None]
    return winding(points + way, points, areas), winding(points - way, points, areas)


def _false_area(side: Int[NDArray[np.int8], "c c c"], tree: cKDTree, areas: Rows) -> float:
    """Area (field units) of the faces between cells of different sides that lie above or below points in the tree, by
    their vector areas, instead of beside them."""
    normals = _unit(areas)
    area = 0.0
    for axis in range(3):
        left, right = ([np.delete(each, end, axis) for each in (side, centres())] for end in (-1, 0))
        middle = (left[1] + right[1])[left[0] * right[0] < 0] / 2
        distance, nearest = tree.query(middle, workers=torch.get_num_threads())
        cosine = np.abs(((middle - tree.data[nearest]) * normals[nearest]).sum(axis=1)) / distance
        area += (2 / CELLS) ** 2 * float((cosine > ABOVE).sum())
    return area
