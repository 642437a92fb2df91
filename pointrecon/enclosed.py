"""What a cloud encloses, as far as that can be told without normals: where a field must be negative."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.survey import typical_spacing

CELLS = 64  # along an edge of the box
# What is farther than this from every point, in spacings of the cloud and in cells, is free. A free part that ends
# nowhere at the box cannot be left through a gap between points; through holes it can, and then nothing is said of it.
SPACINGS, CLEARANCE = 4.0, 1.0
SMALLEST = 50  # cells of a part: smaller ones may lie between noisy points


def enclosed(tree: cKDTree) -> Bool[NDArray, "c c c"]:
    """Cells [x, y, z] of the box [-1, 1]^3 that lie within a body, by the points (N, 3) in the tree.

    Free parts are counted from outside: behind the first surface is a body, behind the next one a cavity in it, and so
    on. What is too thin to hold a free cell does not count.
    """
    free = away(tree)
    parts, _ = ndimage.label(free)
    known, inside, body = free & np.isin(parts, _rim(parts)), np.zeros_like(free), True
    while True:
        # From what is known through what is not free: as far as the next free parts.
        regions, _ = ndimage.label(known | ~free)
        reached = np.isin(regions, np.unique(regions[known]))
        behind = np.setdiff1d(np.unique(parts[ndimage.binary_dilation(reached) & ~reached]), [0])
        front = np.isin(parts, behind[ndimage.sum_labels(free, parts, behind) >= SMALLEST])
        if not front.any():
            return inside
        known |= front
        inside |= front & body
        body = not body


def centres() -> Float[NDArray[np.float64], "c c c 3"]:
    """Of the cells [x, y, z]."""
    line = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)


def away(tree: cKDTree) -> Bool[NDArray, "c c c"]:
    """Cells with no point near."""
    clearance = max(CLEARANCE * 2 / CELLS, SPACINGS * typical_spacing(tree))
    # Infinite where nothing is as near: a bounded search is quick.
    return np.isinf(tree.query(centres(), distance_upper_bound=clearance, workers=torch.get_num_threads())[0])


def _rim(parts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels on the faces of the box."""
    faces = [np.take(parts, side, axis).ravel() for axis in range(3) for side in (0, -1)]
    return np.unique(np.concatenate(faces))


def lookup(cells: Shaped[Tensor, "c c c"], x: Float[Tensor, "n 3"]) -> Shaped[Tensor, " n"]:
    """What is in the cells that places (n, 3) of the box lie in."""
    index = ((x + 1) * (0.5 * len(cells))).long().clamp(0, len(cells) - 1)
    return cells[index[:, 0], index[:, 1], index[:, 2]]
