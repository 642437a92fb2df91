"""The colours of a cloud on the vertices of a surface through it."""

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from scipy.spatial import cKDTree

CHUNK = 250_000  # vertices at a time, so that neighbours and their colours stay small in memory
NEAREST = 1e-100  # the least distance, in any unit: a vertex on a point takes that point's colour


def transfer(
    cloud_points: Float64[np.ndarray, "n 3"],
    cloud_colors: UInt8[np.ndarray, "n 3"],
    vertices: Float64[np.ndarray, "v 3"],
    neighbours: int = 4,
) -> UInt8[np.ndarray, "v 3"]:
    """RGB of each vertex: the mean of the nearest points' colours, weighted by the inverse of their distances.

    Points and vertices are in one frame. The mean is taken of the bytes as they are, in sRGB: between neighbours on a
    surface the colours are too alike for linear light to make a difference that shows.
    Raises ValueError for an empty cloud or less than one neighbour.
    """
    if not len(cloud_points) or neighbours < 1:
        raise ValueError(f"colours from {neighbours} neighbours among {len(cloud_points)} points")
    tree = cKDTree(cloud_points)
    ranks = range(1, min(neighbours, len(cloud_points)) + 1)
    colors = np.empty((len(vertices), 3), np.uint8)
    for start in range(0, len(vertices), CHUNK):
        rows = slice(start, start + CHUNK)
        distances, index = tree.query(vertices[rows], ranks, workers=torch.get_num_threads())
        weights = 1 / np.maximum(distances, NEAREST)
        weights /= weights.sum(axis=1, keepdims=True)
        colors[rows] = np.rint(np.einsum("vk,vkc->vc", weights, cloud_colors[index]))
    return colors
