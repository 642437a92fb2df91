"""The zero set of a signed distance as a closed triangle mesh, at the price of the surface and not of the volume.

Coarse to fine: a block of the lattice is looked into only if the zero set can cross it. With |f(x) - f(y)| <= L |x - y|
a zero at x needs |f(c)| <= L |x - c| at every corner c of its block, which is asked of each octant of the block. Blocks
with corners of both signs are kept in any case. Where a field is steeper than L after all, `_close` follows the surface
from brick to brick, so that no hole is left.

Marching cubes (Lorensen and Cline 1987) then numbers each vertex by the lattice edge it lies on. The same edge is the
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
from shared.brick_kernels import BRICK
from shared.bricks import BrickLattice, Sampler
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

CORNERS = np.array(list(product((0, 1), repeat=3)), bool)  # of a cell, in the order of its sign pattern


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
    octant = np.where(CORNERS, spacing, spacing / 2)
    _refine(lattice, (lipschitz * np.linalg.norm(octant, axis=1)).astype(np.float32))
    _close(lattice)
    mesh = _triangulate(lattice)
    return Mesh(mesh.vertices * spacing + lower, mesh.faces)


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

    def sample(nodes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Distances at lattice nodes (n, 3)."""
        points = (lower + np.minimum(nodes, resolution) * spacing).astype(np.float32)
        with torch.no_grad():
            values = sdf(torch.from_numpy(points).to(device)).float().cpu().numpy()
        if values.shape != (len(nodes),):
            raise ValueError(f"the SDF of {len(nodes)} points has shape {values.shape}")
        if not np.isfinite(values).all():
            raise UserError("SDF: the field is not finite; the fit diverged, repeat it with a smaller learning rate")
        x, y, z = nodes.T  # by columns: numpy is slow along rows of three
        border = (np.minimum(np.minimum(x, y), z) == 0) | (np.maximum(np.maximum(x, y), z) >= resolution)
        return np.where(border, np.maximum(values, outside), values)

    return sample


def _refine(lattice: BrickLattice, reach: NDArray[np.float32]) -> None:
    """Evaluate what the zero set can cross, halving the blocks down to single cells.

    reach (8,): L times the farthest that a point of a cell's octant is from a corner, see `brick_kernels.narrow`.
    """
    bricks = np.argwhere(_crossable_bricks(lattice, BRICK * reach))
    lattice.allocate(bricks)
    keep = np.ones((len(bricks), 1, 1, 1), bool)
    for stride in (4, 2, 1):
        lattice.request(bricks, keep, stride)
        lattice.evaluate()
        if stride > 1:
            keep = _halved(keep, first_axis=1)
            brick_kernels.narrow(lattice.values, lattice.slot, bricks, stride, np.float32(stride) * reach, keep)


def _crossable_bricks(lattice: BrickLattice, reach: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The bricks that the zero set can cross, from their corners; `reach` is that of one brick."""
    stride = lattice.stride
    wanted = np.ones(((len(lattice.coarse) - 1) // stride + 1,) * 3, bool)
    while True:
        nodes = lattice.evaluate_coarse(wanted, stride)
        keep = np.empty(np.subtract(nodes.shape, 1), bool)
        brick_kernels.crossable(nodes, np.float32(stride) * reach, keep)
        if stride == 1:
            return keep
        stride //= 2
        wanted = _corners_of(_halved(keep, first_axis=0))


def _halved(blocks: NDArray[np.bool_], first_axis: int) -> NDArray[np.bool_]:
    """The same set in blocks of half the width, along three axes."""
    for axis in range(first_axis, first_axis + 3):
        blocks = blocks.repeat(2, axis)
    return blocks


def _corners_of(blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From blocks (a, b, c) to nodes (a + 1, b + 1, c + 1): the corners of those that are set."""
    blocks = np.pad(blocks, 1)
    blocks = blocks[1:] | blocks[:-1]
    blocks = blocks[:, 1:] | blocks[:, :-1]
    return blocks[..., 1:] | blocks[..., :-1]


def _close(lattice: BrickLattice) -> None:
    """Follow the surface out of the known region: fill each brick with a crossed cell that is not known in full."""
    changed = lattice.bricks[1:]
    while len(changed):
        bricks = lattice.around(changed)
        changed = bricks[_survey(lattice, bricks)[0]]
        lattice.allocate(changed)
        lattice.request(changed, np.ones((len(changed), *(BRICK // 2,) * 3), bool), 1)
        lattice.evaluate()


def _survey(lattice: BrickLattice, bricks: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which bricks (m, 3) the surface leaves for unknown nodes, and their numbers of vertices and triangles (m, 2)."""
    leaks, counts = np.empty(len(bricks), bool), np.empty((len(bricks), 2), np.int64)
    brick_kernels.survey(lattice.values, lattice.slot, bricks, CASE_FIRST, leaks, counts)
    return leaks, counts


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


def _triangulate(lattice: BrickLattice) -> Mesh:
    """The surface in units of the lattice."""
    counts = _survey(lattice, lattice.bricks[1:])[1]
    used = np.flatnonzero(counts.any(axis=1))
    bricks, counts = lattice.bricks[1 + used], counts[used]
    begin = np.cumsum(counts, axis=0) - counts
    row = np.zeros(len(lattice.bricks), np.int32)
    row[1 + used] = np.arange(len(used))
    vertices, faces = (np.empty((n, 3), kind) for n, kind in zip(counts.sum(axis=0), (np.float64, np.int64)))
    codes = np.empty((len(used), BRICK, BRICK, BRICK), np.uint16)
    brick_kernels.place_vertices(lattice.values, lattice.slot, bricks, begin[:, 0], vertices, codes)
    brick_kernels.join_triangles(
        lattice.values, lattice.slot, bricks, (CASE_EDGES, CASE_FIRST), begin, row, codes, faces
    )
    return Mesh(vertices, faces)
