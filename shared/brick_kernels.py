"""What meshing does to every brick, compiled and parallel over bricks.

values (slots, 8, 8, 8) and the grid `slot` are those of `shared.bricks.BrickLattice`. A brick's window is its own 8^3
nodes and the first layers of its neighbours: 9^3 nodes, the corners of its 8^3 cells. A node that was never evaluated
holds NaN, and infinity while it waits to be. Corner 4 i + 2 j + k of a cell lies i, j and k steps along the axes.
"""

import numpy as np
from numba import njit, prange

BRICK = 8
INSIDE, OUTSIDE, UNKNOWN = 1, 2, 4  # kinds of a node
END_GAP = 1e-3  # of an edge: a vertex keeps this far from the nodes, so that no face degenerates


@njit(inline="always")
def _place(slot, brick, i, j, k):
    """The slot that holds node (i, j, k), 0 to 8, of a brick's window; there it is node (i & 7, j & 7, k & 7)."""
    return slot[brick[0] + (i >> 3), brick[1] + (j >> 3), brick[2] + (k >> 3)]


@njit(parallel=True, cache=True)
def request(values, slot, bricks, keep, stride):
    """Let the unknown nodes at multiples of `stride` in the kept blocks of m bricks wait to be evaluated.

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
                            place = _place(slot, bricks[m], i, j, k)
                            if np.isnan(values[place, i & 7, j & 7, k & 7]):
                                values[place, i & 7, j & 7, k & 7] = np.inf


@njit(parallel=True, cache=True)
def count_waiting(values, count):
    """How many nodes of each slot wait, count (slots,)."""
    for s in prange(len(values)):
        count[s] = 0
        for v in values[s].flat:
            count[s] += v == np.inf


@njit(parallel=True, cache=True)
def collect_waiting(values, bricks, end, nodes, address):
    """Indices, nodes (n, 3), and places in the flat values, address (n,), of the waiting nodes; those of slot s
    before end[s]."""
    for s in prange(len(values)):
        n = end[s]
        for local in range(BRICK**3 - 1, -1, -1):
            i, j, k = local >> 6, local >> 3 & 7, local & 7
            if values[s, i, j, k] == np.inf:
                n -= 1
                address[n] = s * BRICK**3 + local
                nodes[n, 0], nodes[n, 1], nodes[n, 2] = (
                    BRICK * bricks[s, 0] + i,
                    BRICK * bricks[s, 1] + j,
                    BRICK * bricks[s, 2] + k,
                )


@njit(inline="always")
def _may_cross(corners, reach):
    """Whether the zero set can cross a block, from the values (8,) at its corners.

    It can if they have both signs. Otherwise a zero in the octant next to corner o needs |f| <= reach[c ^ o] at every
    corner c, for reach (8,) holds the bound on the slope times the farthest that a point of the octant is from c: half
    the block along each axis, and a whole block along those where c ^ o has a bit.
    """
    inside, outside = False, False
    for c in range(8):
        inside |= corners[c] < 0
        outside |= corners[c] >= 0
    if inside and outside:
        return True
    for octant in range(8):
        near = True
        for c in range(8):
            near &= np.abs(corners[c]) <= reach[c ^ octant]
        if near:
            return True
    return False


@njit(parallel=True, cache=True)
def narrow(values, slot, bricks, stride, reach, keep):
    """Drop from keep (m, a, a, a) the blocks, `stride` cells wide, that the zero set cannot cross; reach is theirs."""
    blocks = keep.shape[1]
    for m in prange(len(bricks)):
        corners = np.empty(8, values.dtype)
        for a in range(blocks):
            for b in range(blocks):
                for c in range(blocks):
                    if keep[m, a, b, c]:
                        for n in range(8):
                            i, j = stride * (a + (n >> 2)), stride * (b + (n >> 1 & 1))
                            k = stride * (c + (n & 1))
                            corners[n] = values[_place(slot, bricks[m], i, j, k), i & 7, j & 7, k & 7]
                        keep[m, a, b, c] = _may_cross(corners, reach)


@njit(parallel=True, cache=True)
def crossable(nodes, reach, keep):
    """keep (a, b, c): the blocks that the zero set can cross, from the values (a + 1, b + 1, c + 1) at their corners.

    A block with an unknown corner is kept only if others have both signs.
    """
    for i in prange(keep.shape[0]):
        corners = np.empty(8, nodes.dtype)
        for j in range(keep.shape[1]):
            for k in range(keep.shape[2]):
                for n in range(8):
                    corners[n] = nodes[i + (n >> 2), j + (n >> 1 & 1), k + (n & 1)]
                keep[i, j, k] = _may_cross(corners, reach)


@njit(inline="always")
def _kinds(values, slot, brick, kinds):
    """The kind of each node of a brick's window, in kinds (9, 9, 9), and which kinds there are."""
    seen = 0
    for i in range(BRICK + 1):
        for j in range(BRICK + 1):
            for k in range(BRICK + 1):
                v = values[_place(slot, brick, i, j, k), i & 7, j & 7, k & 7]
                kind = INSIDE if v < 0 else OUTSIDE if v >= 0 else UNKNOWN
                kinds[i, j, k] = kind
                seen |= kind
    return seen


@njit(inline="always")
def _pattern(kinds, i, j, k):
    """The sign pattern of a cell, bit c set where corner c is inside, and which kinds its corners are."""
    bits, met = 0, 0
    for c in range(8):
        kind = kinds[i + (c >> 2), j + (c >> 1 & 1), k + (c & 1)]
        bits |= (kind & INSIDE) << c
        met |= kind
    return bits, met


@njit(inline="always")
def _crossed_edges(kinds, i, j, k):
    """Bit a is set if the edge from this node along axis a has ends of both signs."""
    kind = kinds[i, j, k]
    x, y, z = kind | kinds[i + 1, j, k], kind | kinds[i, j + 1, k], kind | kinds[i, j, k + 1]
    return (x == INSIDE | OUTSIDE) | (y == INSIDE | OUTSIDE) << 1 | (z == INSIDE | OUTSIDE) << 2


@njit(parallel=True, cache=True)
def survey(values, slot, bricks, first, leaks, counts):
    """leaks (m,): whether a brick has a cell with corners of both signs and an unknown one. counts (m, 2): its edges
    with ends of both signs, and the triangles in it. first (257,): where the triangles of each sign pattern begin."""
    for m in prange(len(bricks)):
        kinds = np.empty((BRICK + 1, BRICK + 1, BRICK + 1), np.uint8)
        leak, edges, triangles = False, 0, 0
        if _kinds(values, slot, bricks[m], kinds) & (INSIDE | OUTSIDE) == INSIDE | OUTSIDE:
            for i in range(BRICK):
                for j in range(BRICK):
                    for k in range(BRICK):
                        bits, met = _pattern(kinds, i, j, k)
                        leak |= met == INSIDE | OUTSIDE | UNKNOWN
                        if met == INSIDE | OUTSIDE:
                            triangles += first[bits + 1] - first[bits]
                        crossed = _crossed_edges(kinds, i, j, k)
                        edges += (crossed & 1) + (crossed >> 1 & 1) + (crossed >> 2)
        leaks[m], counts[m, 0], counts[m, 1] = leak, edges, triangles


@njit(parallel=True, cache=True)
def place_vertices(values, slot, bricks, begin, vertices, codes):
    """Where the linear interpolant vanishes on each crossed edge: vertices (V, 3) in units of the lattice.

    Those of brick m come from begin[m] on, in the order of their lower nodes and axes. codes (m, 8, 8, 8): for each
    node how many came before its own, times 8, plus the bits of its crossed edges.
    """
    for m in prange(len(bricks)):
        kinds = np.empty((BRICK + 1, BRICK + 1, BRICK + 1), np.uint8)
        _kinds(values, slot, bricks[m], kinds)
        v = begin[m]
        for i in range(BRICK):
            for j in range(BRICK):
                for k in range(BRICK):
                    crossed = _crossed_edges(kinds, i, j, k)
                    codes[m, i, j, k] = (v - begin[m]) << 3 | crossed
                    for axis in range(3):
                        if crossed >> axis & 1:
                            u, w, t = i + (axis == 0), j + (axis == 1), k + (axis == 2)
                            start = np.float64(values[_place(slot, bricks[m], i, j, k), i, j, k])
                            end = np.float64(values[_place(slot, bricks[m], u, w, t), u & 7, w & 7, t & 7])
                            vertices[v, 0] = BRICK * bricks[m, 0] + i
                            vertices[v, 1] = BRICK * bricks[m, 1] + j
                            vertices[v, 2] = BRICK * bricks[m, 2] + k
                            vertices[v, axis] += min(max(END_GAP, start / (start - end)), 1 - END_GAP)
                            v += 1


@njit(parallel=True, cache=True)
def join_triangles(values, slot, bricks, cases, begin, row, codes, faces):
    """Faces (F, 3) of the known cells; begin (m, 2) says where the vertices and faces of a brick begin.

    cases: `first` as in `survey`, after a table (T, 3, 4) of the edges of each triangle, as lower node (i, j, k) in the
    cell and axis. row (slots,): which m a slot belongs to.
    """
    table, first = cases
    for m in prange(len(bricks)):
        kinds = np.empty((BRICK + 1, BRICK + 1, BRICK + 1), np.uint8)
        _kinds(values, slot, bricks[m], kinds)
        f = begin[m, 1]
        for i in range(BRICK):
            for j in range(BRICK):
                for k in range(BRICK):
                    bits, met = _pattern(kinds, i, j, k)
                    if met == INSIDE | OUTSIDE:
                        for triangle in range(first[bits], first[bits + 1]):
                            for n in range(3):
                                edge = table[triangle, n]
                                x, y, z = i + edge[0], j + edge[1], k + edge[2]
                                owner = row[_place(slot, bricks[m], x, y, z)]
                                code = codes[owner, x & 7, y & 7, z & 7]
                                before = 0
                                for axis in range(edge[3]):
                                    before += code >> axis & 1
                                faces[f, n] = begin[owner, 0] + (code >> 3) + before
                            f += 1
