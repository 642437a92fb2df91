"""Where a surface is without support by its cloud: open scans are cut there, instead of ballooning."""

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy.spatial import cKDTree

from shared.mesh import Mesh, face_cross, keep_faces

# The cloud's own measure: the distance from a point to this neighbour, which grows where it is thin.
NEIGHBOUR = 8
# A scan is open if more than this share of the surface is farther from it than so many of those distances. Holes of
# closed shapes are smaller; what closes a terrain or a room is as large as that itself.
OPEN, REACH = 0.35, 4.0
CHUNK = 200_000


def support(vertices: Float64[np.ndarray, "v 3"], points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " v"]:
    """Distances from vertices to the nearest point, over the distance from that point to its 8th neighbour."""
    tree, workers = cKDTree(points, balanced_tree=False), torch.get_num_threads()
    ratio = np.empty(len(vertices))
    for first in range(0, len(vertices), CHUNK):
        part = slice(first, first + CHUNK)
        distance, nearest = tree.query(vertices[part], workers=workers)
        distinct, row = np.unique(nearest, return_inverse=True)
        own, _ = tree.query(points[distinct], k=[min(NEIGHBOUR + 1, len(points))], workers=workers)
        ratio[part] = distance / own[row, 0].clip(1e-300)
    return ratio


def trim(mesh: Mesh, points: Float64[np.ndarray, "n 3"], reach: float | None) -> Mesh:
    """The mesh without the faces of which a corner is farther from the cloud than `reach` of the cloud's own distances.

    0 cuts nothing; None cuts at 4 where that takes more than a third of the surface, which then closes an open scan.
    Points and mesh in one frame.
    """
    if reach == 0 or not len(mesh.faces):
        return mesh
    far = support(mesh.vertices, points) > (reach or REACH)
    cut = np.asarray(far[mesh.faces].any(axis=1))
    return keep_faces(mesh, ~cut) if _is_cut(cut, np.linalg.norm(face_cross(mesh), axis=1), reach) else mesh


def supported(
    places: Float64[np.ndarray, "m 3"], points: Float64[np.ndarray, "n 3"], reach: float | None
) -> Bool[np.ndarray, " m"]:
    """Which of the places (spread evenly over a surface, so that each stands for as much of it) `trim` would leave."""
    if reach == 0 or not len(places):
        return np.ones(len(places), bool)
    far = support(places, points) > (reach or REACH)
    return ~far | (not _is_cut(far, np.ones(len(far)), reach))


def _is_cut(cut: Bool[np.ndarray, " f"], areas: Float64[np.ndarray, " f"], reach: float | None) -> bool:
    """Whether the parts that are to be cut are: not if that is everything, for better a guess than nothing, nor, unless
    a reach was asked for, if they are as small as a hole."""
    return not cut.all() and (reach is not None or bool(areas[cut].sum() >= OPEN * areas.sum()))
