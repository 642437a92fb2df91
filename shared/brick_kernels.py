"""What meshing does to every brick, compiled and parallel over bricks. NaN is a node that was never evaluated.

values (slots, 8, 8, 8) and the grid `slot` are those of `shared.bricks.BrickLattice`. A brick's window is its own 8^3
nodes and the first layers of its neighbours: 9^3 nodes, the corners of its 8^3 cells.
"""

import numpy as np
from numba import njit, prange

BRICK = 8


@njit(inline="always")
def _place(slot, brick, i, j, k):
    """The slot that holds node (i, j, k), 0 to 8, of a brick's window; there it is node (i & 7, j & 7, k & 7)."""
    return slot[brick[0] + (i >> 3), brick[1] + (j >> 3), brick[2] + (k >> 3)]


@njit(parallel=True, cache=True)
def request(slot, bricks, keep, stride, wanted):
    """Mark in wanted (slots, 8, 8, 8) the nodes at multiples of `stride` in the kept blocks of m bricks.

    keep (m, a, a, a): its blocks are two strides wide.
    """
    blocks = keep.shape[1]
    for m in prange(len(bricks)):
        for a in range(blocks):
            for b in range(blocks):
                for c in range(blocks):
                    if keep[m, a, b, c]:
                        for step in range(27):
                            i = (2 * a + step // 9) * stride
                            j = (2 * b + step // 3 % 3) * stride
                            k = (2 * c + step % 3) * stride
                            wanted[_place(slot, bricks[m], i, j, k), i & 7, j & 7, k & 7] = True


@njit(parallel=True, cache=True)
def narrow(values, slot, bricks, stride, reach, keep):
    """Drop from keep (m, a, a, a) the blocks, `stride` cells wide, that the zero set cannot cross.

    All corners of those are on one side of it and farther than `reach` from it.
    """
    blocks = keep.shape[1]
    for m in prange(len(bricks)):
        for a in range(blocks):
            for b in range(blocks):
                for c in range(blocks):
                    if keep[m, a, b, c]:
                        inside, outside, near = False, False, False
                        for corner in range(8):
                            i, j = stride * (a + (corner >> 2)), stride * (b + (corner >> 1 & 1))
                            k = stride * (c + (corner & 1))
                            v = values[_place(slot, bricks[m], i, j, k), i & 7, j & 7, k & 7]
                            inside |= v < 0
                            outside |= v >= 0
                            near |= np.abs(v) <= reach
                        keep[m, a, b, c] = near or (inside and outside)


@njit(parallel=True, cache=True)
def patterns(values, slot, bricks, pattern, leaks):
    """Sign patterns (m, 8, 8, 8) of the bricks' cells, bit b set where corner b is inside, 0 where one is unknown.

    leaks (m,): whether a brick has a cell with corners of both signs and an unknown one.
    """
    for m in prange(len(bricks)):
        leaks[m] = False
        pattern[m] = 0
        # By node of the window: 1 inside, 2 outside, 4 unknown.
        kinds, seen = np.empty((BRICK + 1, BRICK + 1, BRICK + 1), np.uint8), 0
        for i in range(BRICK + 1):
            for j in range(BRICK + 1):
                for k in range(BRICK + 1):
                    v = values[_place(slot, bricks[m], i, j, k), i & 7, j & 7, k & 7]
                    kind = 1 if v < 0 else 2 if v >= 0 else 4
                    kinds[i, j, k] = kind
                    seen |= kind
        if seen & 3 == 3:
            leaks[m] = _cells(kinds, pattern[m])


@njit(inline="always")
def _cells(kinds, pattern):
    """The patterns of one brick; whether a crossed cell has an unknown corner."""
    leak = False
    for i in range(BRICK):
        for j in range(BRICK):
            for k in range(BRICK):
                bits, met = 0, 0
                for corner in range(8):
                    kind = kinds[i + (corner >> 2), j + (corner >> 1 & 1), k + (corner & 1)]
                    bits |= (kind & 1) << corner
                    met |= kind
                leak |= met == 7
                pattern[i, j, k] = bits if met < 4 else 0
    return leak
