"""The zero set of a signed distance as a closed triangle mesh, at the price of the surface and not of the volume.

Coarse to fine: a block of the lattice is looked into only if the zero set can cross it. With |f(x) - f(y)| <= L |x - y|
and every point of a block at most half its diagonal d from the nearest corner, a zero inside needs a corner with
|f| <= L d / 2; corners of both signs are kept in any case. Where a field is steeper than L after all, `_close` follows
the surface from brick to brick, so that no hole is left.

Marching cubes (Lorensen and Cline 1987) then names each vertex by the lattice edge it lies on. The same edge is the
same vertex in whichever cell, so there are no seams to weld.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from torch import Tensor

from shared import brick_kernels
from shared.bricks import BRICK, BrickLattice, Sampler, batches
from shared.errors import UserError
from shared.mesh import (
    Mesh,
    component_count,
    is_watertight,
    keep_components,
    load_mesh,
    save_mesh,
    volume,
)

__all__ = [
    "Mesh",
    "component_count",
    "extract_mesh",
    "is_watertight",
    "keep_components",
    "load_mesh",
    "save_mesh",
    "volume",
]

CORNERS = tuple(product((0, 1), repeat=3))
END_GAP = 1e-3  # of an edge: a vertex keeps this far from the nodes, so that no face degenerates


def extract_mesh(
    sdf: Callable[[Tensor], Tensor],
    resolution: int,
    lower: tuple[float, float, float] = (-1.0, -1.0, -1.0),
    upper: tuple[float, float, float] = (1.0, 1.0, 1.0),
    chunk: int = 65536,
    device: str | torch.device = "cpu",
    lipschitz: float = 1.5,
) -> Mesh:
    """Mesh of {sdf = 0} on a lattice of `resolution` cells along each side of the box, in the field's own frame.

    sdf: (n, 3) float32 on `device` -> (n,), negative inside, n <= chunk; called without gradients. Faces look outward.
    The border of the box counts as outside, so the surface is closed; an empty zero set gives a mesh without faces.
    lipschitz: upper bound on |grad sdf| to rely on; larger is slower and safer.
    Raises UserError if the field is not finite somewhere, ValueError for a lattice without inner nodes.
    """
    spacing = (np.asarray(upper, np.float64) - lower) / resolution
    if resolution < 2 or not (spacing > 0).all():
        raise ValueError(f"no lattice of {resolution} cells between {lower} and {upper}")
    sample = _node_sampler(sdf, np.asarray(lower, np.float64), spacing, resolution, device)
    lattice = BrickLattice(sample, resolution, chunk)
    _refine(lattice, lipschitz * float(np.linalg.norm(spacing)) / 2)
    _close(lattice)
    slots = np.arange(1, len(lattice.bricks))
    edges = np.concatenate([np.empty((0, 3), np.int64), *(_triangles(lattice, part) for _, part in batches(slots))])
    keys, faces = np.unique(edges, return_inverse=True)
    return Mesh(_vertices(lattice, keys) * spacing + lower, faces.reshape(-1, 3))


def _node_sampler(
    sdf: Callable[[Tensor], Tensor],
    lower: NDArray[np.float64],
    spacing: NDArray[np.float64],
    resolution: int,
    device: str | torch.device,
) -> Sampler:
    """Values at lattice nodes. Nodes past the box repeat its border (which keeps the Lipschitz bound), and both are
    outside."""
    outside = np.finfo(np.float32).tiny

    def sample(nodes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances at lattice nodes (n, 3)."""
        points = (lower + np.minimum(nodes, resolution) * spacing).astype(np.float32)
        with torch.no_grad():
            values = sdf(torch.from_numpy(points).to(device)).float().cpu().numpy()
        if values.shape != (len(nodes),):
            raise ValueError(f"the SDF of {len(nodes)} points has shape {values.shape}")
        if not np.isfinite(values).all():
            raise UserError("SDF: the field is not finite; the fit diverged, repeat it with a smaller learning rate")
        border = ((nodes == 0) | (nodes >= resolution)).any(axis=1)
        return np.where(border, np.maximum(values, outside), values)

    return sample


def _refine(lattice: BrickLattice, reach: float) -> None:
    """Evaluate what the zero set can cross, halving the blocks from 8 cells down to 1.

    reach: L times half the diagonal of one cell.
    """
    bricks = np.argwhere(_may_cross(lattice.coarse, BRICK * reach))
    lattice.allocate_around(bricks)
    keep = np.ones((len(bricks), 1, 1, 1), bool)
    for stride in (4, 2, 1):
        lattice.request(bricks, keep, stride)
        lattice.evaluate()
        if stride > 1:
            keep = keep.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
            brick_kernels.narrow(lattice.values, lattice.slot, bricks, stride, np.float32(stride * reach), keep)


def _close(lattice: BrickLattice) -> None:
    """Follow the surface out of the known region: fill each brick with a crossed cell that is not known in full."""
    slots = np.arange(1, len(lattice.bricks))
    while len(slots):
        leaks = np.concatenate([lattice.bricks[part][lattice.patterns(part)[1]] for _, part in batches(slots)])
        slots = lattice.allocate_around(leaks)
        lattice.request(leaks, np.ones((len(leaks), *(BRICK // 2,) * 3), bool), 1)
        lattice.evaluate()


def _may_cross(nodes: NDArray[np.float32], reach: float) -> NDArray[np.bool_]:
    """Blocks (a, b, c) that the zero set can cross, from values (a+1, b+1, c+1) at their corners."""
    return _any_corner(np.abs(nodes) <= reach) | (_any_corner(nodes < 0) & _any_corner(nodes >= 0))


def _any_corner(nodes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From (a+1, b+1, c+1) nodes to (a, b, c) blocks: whether any of the eight corners is set."""
    nodes = nodes[1:] | nodes[:-1]
    nodes = nodes[:, 1:] | nodes[:, :-1]
    return nodes[..., 1:] | nodes[..., :-1]


def _case_table() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The triangles of the 256 sign patterns of a cell, taken from skimage's classic marching cubes.

    Returns edges (T, 3, 4), each as its lower node (i, j, k) and its axis, and first (257,): pattern p has the
    triangles first[p] : first[p + 1]. Bit b of a pattern is set if corner b of `CORNERS` is inside.
    """
    edges, counts = [], [0]
    for pattern in range(1, 255):
        signs = 1.0 - 2.0 * (pattern >> np.arange(8) & 1).reshape(2, 2, 2)
        corners, faces, _, _ = marching_cubes(signs, 0.0, method="lorensen", gradient_direction="descent")
        node = np.floor(corners).astype(np.int64)
        edges.append(np.column_stack([node, (corners - node).argmax(axis=1)])[faces])
        counts.append(len(faces))
    return np.concatenate(edges), np.cumsum([0, *counts, 0])


CASE_EDGES, CASE_FIRST = _case_table()


def _triangles(lattice: BrickLattice, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Triangles (T, 3) of the bricks' known cells; a vertex is 3 * (linear index of the edge's lower node) + axis."""
    pattern = lattice.patterns(slots)[0]
    row, *local = np.nonzero((pattern != 0) & (pattern != 255))
    pattern = pattern[(row, *local)]

    counts = CASE_FIRST[1:][pattern] - CASE_FIRST[pattern]
    cell = np.repeat(np.arange(len(row)), counts)
    triangle = np.arange(len(cell)) + np.repeat(CASE_FIRST[pattern] - (np.cumsum(counts) - counts), counts)
    shape = (lattice.side,) * 3
    nodes = lattice.bricks[slots[row]] * BRICK + np.stack(local, axis=-1)
    lower = np.ravel_multi_index(tuple(nodes.T), shape)
    step = CASE_EDGES[..., :3] @ np.array([lattice.side**2, lattice.side, 1])
    return 3 * lower[cell, None] + (3 * step + CASE_EDGES[..., 3])[triangle]


def _vertices(lattice: BrickLattice, keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the linear interpolant vanishes on each edge: (V, 3) in units of the lattice."""
    node, axis = np.divmod(keys, 3)
    start = np.stack(np.unravel_index(node, (lattice.side,) * 3), axis=-1)
    along = np.eye(3, dtype=np.int64)[axis]
    from_value = lattice.at(start).astype(np.float64)
    position = from_value / (from_value - lattice.at(start + along))
    return start + np.clip(position, END_GAP, 1 - END_GAP)[:, None] * along
