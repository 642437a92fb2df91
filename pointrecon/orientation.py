"""Normals that come with a cloud: whether their sides can be trusted, and which they are."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

Rows = NDArray[np.float64]

SAMPLE = 50_000  # about as many points stand for the cloud
NEIGHBOURS = 8
ACROSS = -0.1  # cosine of neighbours that look to different sides; those at a right-angled edge do not
TRUSTED = 0.9  # share of points on the sides that prevail, from which on normals are trusted


def consistent(points: Rows, normals: Rows) -> bool:
    """Whether normals (N, 3) of points (N, 3) look to the same side all over each connected part.

    Neighbours may disagree, as they do on the two sides of a thin part, but there must be ways around. There are none
    where sides were drawn at random, and none to a region where they were guessed wrongly.
    """
    some = slice(None, None, max(1, len(points) // SAMPLE))
    points, normals = points[some], normals[some]
    count = len(points)
    neighbours = [*range(2, min(NEIGHBOURS + 2, count + 1))]
    _, index = cKDTree(points).query(points, k=neighbours, workers=torch.get_num_threads())
    alike = np.einsum("na,nka->nk", normals, normals[index]) > ACROSS
    parts, sides = (_components(index, linked) for linked in (np.ones_like(alike), alike))
    side, first, size = np.unique(sides, return_index=True, return_counts=True)
    largest = np.zeros(len(side), np.int64)
    np.maximum.at(largest, parts[first], size)  # a side lies within one part
    return bool(largest.sum() >= TRUSTED * count)


def _components(index: NDArray[np.int64], linked: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Numbers (N,) of the connected components of a graph: row n is linked to index (N, k) where `linked` says so."""
    row, column = np.nonzero(linked)
    graph = coo_array((np.ones(len(row)), (row, index[row, column])), (len(index), len(index)))
    return connected_components(graph, directed=False)[1]


def looks_inward(points: Rows, normals: Rows) -> bool:
    """Whether normals look to the middle of the points, as those of a room seen from within do.

    The flux of p through a closed surface is three times its volume; a point stands for as much area as it has room.
    """
    some = slice(None, None, max(1, len(points) // SAMPLE))
    points, normals = points[some], normals[some]
    nearest = min(NEIGHBOURS + 1, len(points))
    area = cKDTree(points).query(points, k=[nearest], workers=torch.get_num_threads())[0] ** 2
    middle = (points * area).sum(axis=0) / area.sum()
    return bool(((points - middle) * normals * area).sum() < 0)
