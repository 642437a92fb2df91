"""The hash-grid encoding on a CPU: numba kernels, parallel, compiled once and cached beside the package.

Forward is parallel over points. Backward is parallel over levels, whose entries are disjoint: no atomics are needed and
the sums have one order, so that results are the same from run to run for any number of threads.
"""

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from shared.encoding.grid import PRIMES, HashGrid, gradient_of

f32, i32, u32 = np.float32, np.int32, np.uint32
ONE, ZERO, HALF = f32(1), f32(0), f32(0.5)
PRIME_Y, PRIME_Z = u32(PRIMES[1]), u32(PRIMES[2])
# Points encoded together, how many a thread takes level by level, and where columns lie in a block's scratch space.
BLOCK, CHUNK = 128, 2048
FRACTIONS, SLOPES, VALUES, RESULTS, SCRATCH = 3 * BLOCK, 6 * BLOCK, 9 * BLOCK, 25 * BLOCK, 33 * BLOCK
# All of fast-math but the assumption that nothing is infinite or not a number: a diverged run must be seen to diverge.
FAST = {"contract", "arcp", "nsz", "reassoc", "afn"}

Array = NDArray[np.float32]


def layout(grid: HashGrid) -> NDArray[np.int64]:
    """`HashGrid.layout` as the kernels take it."""
    return np.array(grid.layout, dtype=np.int64)


@njit(inline="always")
def _place_block(x, levels, level, first, count, scratch):
    """Where `count` points from row `first` on lie on a level: their columns of fractions, slopes and table rows."""
    numbers, rows = scratch
    for axis in range(3):
        for i in range(count):
            numbers[axis * BLOCK + i] = x[first + i, axis]
    _locate(f32(levels[level, 0]), numbers, rows)
    _columns_of_rows(levels[level], u32(levels[-1, 0]), rows)


@njit(inline="always")
def _fetch(table, scratch):
    """The block's table entries, a column for each corner and feature."""
    numbers, rows = scratch
    for corner in range(8):
        for i in range(BLOCK):
            entry = u32(rows[corner * BLOCK + i])
            numbers[VALUES + 2 * corner * BLOCK + i] = table[entry, 0]
            numbers[VALUES + (2 * corner + 1) * BLOCK + i] = table[entry, 1]


@njit(fastmath=FAST, cache=True)
def _encode_block(x, table, levels, level, first, scratch, results):
    """One level's columns of features (n, 2 L) and, unless it is empty, of jacobian (n, 3, 2 L), for the BLOCK points
    from row `first` on.

    Works on columns of BLOCK points, in scratch space that the caller provides: numbers (SCRATCH,), rows (11 BLOCK,).
    Columns at constant distances in one array are what lets the compiler vectorise over points.
    """
    numbers, (features, jacobian) = scratch[0], results
    count = min(BLOCK, features.shape[0] - first)
    _place_block(x, levels, level, first, count, scratch)
    _fetch(table, scratch)
    for k in range(2):
        _interpolate(numbers, VALUES + k * BLOCK, RESULTS + 4 * k * BLOCK)
        for i in range(count):
            features[first + i, 2 * level + k] = numbers[RESULTS + 4 * k * BLOCK + i]
        if jacobian.shape[0] > 0:
            for axis in range(3):
                for i in range(count):
                    jacobian[first + i, axis, 2 * level + k] = numbers[RESULTS + (4 * k + 1 + axis) * BLOCK + i]


@njit(inline="always")
def _locate(resolution, numbers, rows):
    """Fractions and slopes of the block's coordinates in its cells, and the cells."""
    half, top = f32(resolution * HALF), f32(resolution - ONE)
    for axis in range(3):
        for i in range(BLOCK):
            position = f32((numbers[axis * BLOCK + i] + ONE) * half)
            cell = i32(min(top, max(ZERO, position)))
            numbers[FRACTIONS + axis * BLOCK + i] = min(max(f32(position - f32(cell)), ZERO), ONE)
            numbers[SLOPES + axis * BLOCK + i] = half if (position >= ZERO and position <= resolution) else ZERO
            rows[(8 + axis) * BLOCK + i] = cell


@njit(inline="always")
def _columns_of_rows(level, mask, rows):
    """Eight columns of table rows, one a corner, from the three columns of cells behind them."""
    offset = i32(level[1])
    if level[2] == 1:
        side = i32(level[0] + 1)
        for corner in range(8):
            step = i32(((corner >> 2) * side + (corner >> 1 & 1)) * side + (corner & 1) + offset)
            for i in range(BLOCK):
                cell = i32(i32(rows[8 * BLOCK + i] * side) + rows[9 * BLOCK + i])
                rows[corner * BLOCK + i] = i32(cell * side) + rows[10 * BLOCK + i] + step
    else:
        for corner in range(8):
            dx, dy, dz = u32(corner >> 2), u32(corner >> 1 & 1), u32(corner & 1)
            for i in range(BLOCK):
                x = u32(u32(rows[8 * BLOCK + i]) + dx)
                y = u32(u32(u32(rows[9 * BLOCK + i]) + dy) * PRIME_Y)
                z = u32(u32(u32(rows[10 * BLOCK + i]) + dz) * PRIME_Z)
                rows[corner * BLOCK + i] = i32((x ^ y ^ z) & mask) + offset


@njit(inline="always")
def _interpolate(numbers, values, results):
    """One feature's value and three slopes from its eight corners, whose columns lie two apart."""
    for i in range(BLOCK):
        wx, wy, wz = numbers[FRACTIONS + i], numbers[FRACTIONS + BLOCK + i], numbers[FRACTIONS + 2 * BLOCK + i]
        ux, uy, uz = f32(ONE - wx), f32(ONE - wy), f32(ONE - wz)
        v0, v1 = numbers[values + i], numbers[values + 2 * BLOCK + i]
        v2, v3 = numbers[values + 4 * BLOCK + i], numbers[values + 6 * BLOCK + i]
        v4, v5 = numbers[values + 8 * BLOCK + i], numbers[values + 10 * BLOCK + i]
        v6, v7 = numbers[values + 12 * BLOCK + i], numbers[values + 14 * BLOCK + i]
        v00, v01, v10, v11 = uz * v0 + wz * v1, uz * v2 + wz * v3, uz * v4 + wz * v5, uz * v6 + wz * v7
        a, b = uy * v00 + wy * v01, uy * v10 + wy * v11
        numbers[results + i] = ux * a + wx * b
        numbers[results + BLOCK + i] = (b - a) * numbers[SLOPES + i]
        numbers[results + 2 * BLOCK + i] = (ux * (v01 - v00) + wx * (v11 - v10)) * numbers[SLOPES + BLOCK + i]
        dz = ux * (uy * (v1 - v0) + wy * (v3 - v2)) + wx * (uy * (v5 - v4) + wy * (v7 - v6))
        numbers[results + 3 * BLOCK + i] = dz * numbers[SLOPES + 2 * BLOCK + i]


@njit(parallel=True, fastmath=FAST, cache=True)
def forward(x, table, levels, features, jacobian):
    """features (n, 2 L) and, unless it is empty, jacobian (n, 3, 2 L) at x (n, 3)."""
    count = features.shape[0]
    for task in prange((count + CHUNK - 1) // CHUNK):
        scratch = (np.zeros(SCRATCH, f32), np.zeros(11 * BLOCK, i32))
        # Level by level: the part of the table that many points read then stays in the cache.
        for level in range(features.shape[1] // 2):
            for first in range(task * CHUNK, min(count, (task + 1) * CHUNK), BLOCK):
                _encode_block(x, table, levels, level, first, scratch, (features, jacobian))


@njit(inline="always")
def _shares(numbers, k):
    """The transpose of `_interpolate`: what feature k's value and slopes, in the columns of results, ask of the
    corners."""
    value, columns = RESULTS + 4 * k * BLOCK, VALUES + k * BLOCK
    for i in range(BLOCK):
        wx, wy, wz = numbers[FRACTIONS + i], numbers[FRACTIONS + BLOCK + i], numbers[FRACTIONS + 2 * BLOCK + i]
        ux, uy, uz = f32(ONE - wx), f32(ONE - wy), f32(ONE - wz)
        gx = numbers[value + BLOCK + i] * numbers[SLOPES + i]
        gy = numbers[value + 2 * BLOCK + i] * numbers[SLOPES + BLOCK + i]
        gz = numbers[value + 3 * BLOCK + i] * numbers[SLOPES + 2 * BLOCK + i]
        x0, x1 = ux * numbers[value + i] - gx, wx * numbers[value + i] + gx
        b00, b01 = uy * x0 - ux * gy, wy * x0 + ux * gy
        b10, b11 = uy * x1 - wx * gy, wy * x1 + wx * gy
        z00, z01, z10, z11 = ux * uy * gz, ux * wy * gz, wx * uy * gz, wx * wy * gz
        numbers[columns + i], numbers[columns + 2 * BLOCK + i] = uz * b00 - z00, wz * b00 + z00
        numbers[columns + 4 * BLOCK + i], numbers[columns + 6 * BLOCK + i] = uz * b01 - z01, wz * b01 + z01
        numbers[columns + 8 * BLOCK + i], numbers[columns + 10 * BLOCK + i] = uz * b10 - z10, wz * b10 + z10
        numbers[columns + 12 * BLOCK + i], numbers[columns + 14 * BLOCK + i] = uz * b11 - z11, wz * b11 + z11


@njit(inline="always")
def _scatter_block(grad_table, scratch, count):
    """Add the shares of the block's corners to their table rows."""
    numbers, rows = scratch
    for k in range(2):
        _shares(numbers, k)
    for corner in range(8):
        first, second = VALUES + 2 * corner * BLOCK, VALUES + (2 * corner + 1) * BLOCK
        for i in range(count):
            row = u32(rows[corner * BLOCK + i])
            grad_table[row, 0] += numbers[first + i]
            grad_table[row, 1] += numbers[second + i]


@njit(parallel=True, fastmath=FAST, cache=True)
def backward_table(x, levels, grad_features, grad_jacobian, grad_table, tasks):
    """Adds to grad_table what grad_features (n, 2 L) and, unless it is empty, grad_jacobian (n, 3, 2 L) ask for."""
    for task in prange(tasks):
        scratch = (np.zeros(SCRATCH, f32), np.zeros(11 * BLOCK, i32))
        numbers = scratch[0]
        # Interleaved, because fine levels cost more than coarse ones: every task gets its share of both.
        for level in range(task, grad_features.shape[1] // 2, tasks):
            for first in range(0, x.shape[0], BLOCK):
                count = min(BLOCK, x.shape[0] - first)
                _place_block(x, levels, level, first, count, scratch)
                for k in range(2):
                    column = RESULTS + 4 * k * BLOCK
                    for i in range(count):
                        numbers[column + i] = grad_features[first + i, 2 * level + k]
                        if grad_jacobian.shape[0] > 0:
                            for axis in range(3):
                                slope = grad_jacobian[first + i, axis, 2 * level + k]
                                numbers[column + (1 + axis) * BLOCK + i] = slope
                _scatter_block(grad_table, scratch, count)


@njit(parallel=True, fastmath=FAST, cache=True)
def backward_table_outer(x, levels, grad_features, inner, direction, grad_table, tasks):
    """`backward_table` for grad_jacobian[n, a, c] = direction[n, a] * inner[n, c], without writing that down."""
    for task in prange(tasks):
        scratch = (np.zeros(SCRATCH, f32), np.zeros(11 * BLOCK, i32))
        numbers = scratch[0]
        for level in range(task, grad_features.shape[1] // 2, tasks):
            for first in range(0, x.shape[0], BLOCK):
                count = min(BLOCK, x.shape[0] - first)
                _place_block(x, levels, level, first, count, scratch)
                for k in range(2):
                    column, c = RESULTS + 4 * k * BLOCK, 2 * level + k
                    for i in range(count):
                        numbers[column + i] = grad_features[first + i, c]
                        for axis in range(3):
                            slope = direction[first + i, axis] * inner[first + i, c]
                            numbers[column + (1 + axis) * BLOCK + i] = slope
                _scatter_block(grad_table, scratch, count)


def encode(x: Tensor, table: Tensor, grid: HashGrid, active: int, with_jacobian: bool) -> tuple[Tensor, Tensor]:
    """Features (n, c) at x (n, 3) and, where wanted, their Jacobian (n, 3, c); else that is empty."""
    n, channels = x.shape[0], active * grid.features
    features, jacobian = torch.empty(n, channels), torch.empty(n if with_jacobian else 0, 3, channels)
    forward(x.numpy(), table.numpy(), layout(grid), features.numpy(), jacobian.numpy())
    return features, jacobian


def table_gradient(
    x: Tensor, table: Tensor, grid: HashGrid, d_features: Tensor, d_jacobian: Tensor | None
) -> Tensor | None:
    """The table's gradient for those of features (n, c) and Jacobian (n, 3, c).

    Where the table is a leaf that has a gradient already, it is added there in place and None is returned.
    """
    slopes = torch.empty(0, 3, 0) if d_jacobian is None else d_jacobian.contiguous()
    target, in_place = gradient_of(table)
    arrays = (x.numpy(), layout(grid), d_features.contiguous().numpy(), slopes.numpy())
    backward_table(*arrays, target.numpy(), torch.get_num_threads())
    return None if in_place else target


def table_gradient_outer(
    x: Tensor, table: Tensor, grid: HashGrid, d_features: Tensor, inner: Tensor, direction: Tensor
) -> Tensor | None:
    """`table_gradient` where the Jacobian's is the outer product of `direction` (n, 3) and `inner` (n, c)."""
    target, in_place = gradient_of(table)
    arrays = (d_features.contiguous().numpy(), inner.numpy(), direction.contiguous().numpy())
    backward_table_outer(x.numpy(), layout(grid), *arrays, target.numpy(), torch.get_num_threads())
    return None if in_place else target


def x_gradient(x: Tensor, table: Tensor, grid: HashGrid, d_jacobian: Tensor) -> Tensor:
    """The Hessian of the features contracted with d_jacobian (n, 3, c): what x gets through the Jacobian (n, 3)."""
    d_x = torch.zeros(len(x), 3)
    backward_x(x.numpy(), table.numpy(), layout(grid), d_jacobian.contiguous().numpy(), d_x.numpy())
    return d_x


@njit(inline="always")
def _twists(numbers, k):
    """Writes into the columns of coordinates the Hessian of feature k contracted with its columns of slopes.

    Trilinear features have no second derivative along one axis: only the three mixed ones remain.
    """
    values, slopes = VALUES + k * BLOCK, RESULTS + 4 * k * BLOCK
    for i in range(BLOCK):
        wx, wy, wz = numbers[FRACTIONS + i], numbers[FRACTIONS + BLOCK + i], numbers[FRACTIONS + 2 * BLOCK + i]
        ux, uy, uz = f32(ONE - wx), f32(ONE - wy), f32(ONE - wz)
        sx, sy, sz = numbers[SLOPES + i], numbers[SLOPES + BLOCK + i], numbers[SLOPES + 2 * BLOCK + i]
        v0, v1 = numbers[values + i], numbers[values + 2 * BLOCK + i]
        v2, v3 = numbers[values + 4 * BLOCK + i], numbers[values + 6 * BLOCK + i]
        v4, v5 = numbers[values + 8 * BLOCK + i], numbers[values + 10 * BLOCK + i]
        v6, v7 = numbers[values + 12 * BLOCK + i], numbers[values + 14 * BLOCK + i]
        xy = (uz * (v6 - v4 - v2 + v0) + wz * (v7 - v5 - v3 + v1)) * sx * sy
        xz = (uy * (v5 - v4 - v1 + v0) + wy * (v7 - v6 - v3 + v2)) * sx * sz
        yz = (ux * (v3 - v2 - v1 + v0) + wx * (v7 - v6 - v5 + v4)) * sy * sz
        gx, gy = numbers[slopes + BLOCK + i], numbers[slopes + 2 * BLOCK + i]
        gz = numbers[slopes + 3 * BLOCK + i]
        numbers[i] = xy * gy + xz * gz
        numbers[BLOCK + i] = xy * gx + yz * gz
        numbers[2 * BLOCK + i] = xz * gx + yz * gy


@njit(parallel=True, fastmath=FAST, cache=True)
def backward_x(x, table, levels, grad_jacobian, grad_x):
    """Adds to grad_x (n, 3) the Hessian of the features contracted with grad_jacobian (n, 3, 2 L)."""
    points = grad_jacobian.shape[0]
    for task in prange((points + CHUNK - 1) // CHUNK):
        scratch = (np.zeros(SCRATCH, f32), np.zeros(11 * BLOCK, i32))
        numbers = scratch[0]
        for level in range(grad_jacobian.shape[2] // 2):
            for first in range(task * CHUNK, min(points, (task + 1) * CHUNK), BLOCK):
                count = min(BLOCK, points - first)
                _place_block(x, levels, level, first, count, scratch)
                _fetch(table, scratch)
                for k in range(2):
                    for axis in range(3):
                        for i in range(count):
                            slope = grad_jacobian[first + i, axis, 2 * level + k]
                            numbers[RESULTS + (4 * k + 1 + axis) * BLOCK + i] = slope
                    _twists(numbers, k)
                    for i in range(count):
                        for axis in range(3):
                            grad_x[first + i, axis] += numbers[axis * BLOCK + i]


def set_threads(count: int) -> None:
    """Number of threads the kernels use, at most what the machine has."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
