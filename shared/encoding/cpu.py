"""The hash-grid encoding on a CPU: numba kernels, parallel, compiled once and cached beside the package.

Forward is parallel over points. Backward is parallel over levels, whose entries are disjoint: no atomics are needed and
the sums have one order, so that results are the same from run to run for any number of threads.
"""

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from shared.encoding.grid import PRIMES, HashGrid

f32, i32, u32 = np.float32, np.int32, np.uint32
ONE, ZERO, HALF = f32(1), f32(0), f32(0.5)
PRIME_Y, PRIME_Z = u32(PRIMES[1]), u32(PRIMES[2])
POINTS_PER_TASK = 256

Array = NDArray[np.float32]


def layout(grid: HashGrid) -> NDArray[np.int64]:
    """What the kernels need of a grid: rows of (resolution, first entry, dense) per level, then the hash mask."""
    rows = [(r, o, int(grid.is_dense(level))) for level, (r, o) in enumerate(zip(grid.resolutions, grid.offsets))]
    return np.array([*rows, (2**grid.log2_entries - 1, 0, 0)], dtype=np.int64)


@njit(inline="always")
def _axis(x, resolution):
    """Cell, fraction and slope (zero where clamped) of one coordinate."""
    position = f32((x + ONE) * f32(resolution * HALF))
    slope = f32(resolution * HALF) if ZERO <= position <= resolution else ZERO
    cell = i32(min(max(position, ZERO), f32(resolution - ONE)))
    return cell, min(max(f32(position - f32(cell)), ZERO), ONE), slope


@njit(inline="always")
def _corners(ix, iy, iz, resolution, offset, dense, mask, rows):
    """Table rows of the cell's eight corners; bit 2 of the corner's number is x, bit 1 is y, bit 0 is z."""
    if dense:
        side = i32(resolution + 1)
        base = (ix * side + iy) * side + iz + offset
        for corner in range(8):
            rows[corner] = base + ((corner >> 2) * side + (corner >> 1 & 1)) * side + (corner & 1)
    else:
        x0, x1 = u32(ix), u32(ix + 1)
        y0, z0 = u32(u32(iy) * PRIME_Y), u32(u32(iz) * PRIME_Z)
        y1, z1 = u32(y0 + PRIME_Y), u32(z0 + PRIME_Z)
        rows[0] = i32((x0 ^ y0 ^ z0) & mask) + offset
        rows[1] = i32((x0 ^ y0 ^ z1) & mask) + offset
        rows[2] = i32((x0 ^ y1 ^ z0) & mask) + offset
        rows[3] = i32((x0 ^ y1 ^ z1) & mask) + offset
        rows[4] = i32((x1 ^ y0 ^ z0) & mask) + offset
        rows[5] = i32((x1 ^ y0 ^ z1) & mask) + offset
        rows[6] = i32((x1 ^ y1 ^ z0) & mask) + offset
        rows[7] = i32((x1 ^ y1 ^ z1) & mask) + offset


@njit(parallel=True, fastmath={"contract", "arcp", "nsz"}, cache=True)
def forward(x, table, levels, features, jacobian):
    """features (n, 2 L) and, unless it is empty, jacobian (n, 3, 2 L) at x (n, 3)."""
    count, channels = features.shape
    with_jacobian = jacobian.shape[0] > 0
    mask = u32(levels[-1, 0])
    for task in prange((count + POINTS_PER_TASK - 1) // POINTS_PER_TASK):
        rows = np.empty(8, i32)
        for level in range(channels // 2):
            resolution, offset, dense = f32(levels[level, 0]), i32(levels[level, 1]), levels[level, 2] == 1
            for n in range(task * POINTS_PER_TASK, min(count, (task + 1) * POINTS_PER_TASK)):
                ix, wx, sx = _axis(x[n, 0], resolution)
                iy, wy, sy = _axis(x[n, 1], resolution)
                iz, wz, sz = _axis(x[n, 2], resolution)
                _corners(ix, iy, iz, resolution, offset, dense, mask, rows)
                ux, uy, uz = f32(ONE - wx), f32(ONE - wy), f32(ONE - wz)
                for k in range(2):
                    v0, v1, v2, v3 = table[rows[0], k], table[rows[1], k], table[rows[2], k], table[rows[3], k]
                    v4, v5, v6, v7 = table[rows[4], k], table[rows[5], k], table[rows[6], k], table[rows[7], k]
                    v00, v01 = uz * v0 + wz * v1, uz * v2 + wz * v3
                    v10, v11 = uz * v4 + wz * v5, uz * v6 + wz * v7
                    a, b = uy * v00 + wy * v01, uy * v10 + wy * v11
                    c = 2 * level + k
                    features[n, c] = ux * a + wx * b
                    if with_jacobian:
                        jacobian[n, 0, c] = (b - a) * sx
                        jacobian[n, 1, c] = (ux * (v01 - v00) + wx * (v11 - v10)) * sy
                        jacobian[n, 2, c] = (
                            ux * (uy * (v1 - v0) + wy * (v3 - v2)) + wx * (uy * (v5 - v4) + wy * (v7 - v6))
                        ) * sz


@njit(parallel=True, fastmath={"contract", "arcp", "nsz"}, cache=True)
def backward_table(x, levels, grad_features, grad_jacobian, grad_table, tasks):
    """Adds to grad_table what grad_features (n, 2 L) and, unless it is empty, grad_jacobian (n, 3, 2 L) ask for."""
    count, channels = grad_features.shape
    with_jacobian = grad_jacobian.shape[0] > 0
    mask = u32(levels[-1, 0])
    for task in prange(tasks):
        rows = np.empty(8, i32)
        # Interleaved, because fine levels cost more than coarse ones: every task gets its share of both.
        for level in range(task, channels // 2, tasks):
            resolution, offset, dense = f32(levels[level, 0]), i32(levels[level, 1]), levels[level, 2] == 1
            for n in range(count):
                ix, wx, sx = _axis(x[n, 0], resolution)
                iy, wy, sy = _axis(x[n, 1], resolution)
                iz, wz, sz = _axis(x[n, 2], resolution)
                _corners(ix, iy, iz, resolution, offset, dense, mask, rows)
                ux, uy, uz = f32(ONE - wx), f32(ONE - wy), f32(ONE - wz)
                for k in range(2):
                    c = 2 * level + k
                    value, gx, gy, gz = grad_features[n, c], ZERO, ZERO, ZERO
                    if with_jacobian:
                        gx, gy, gz = grad_jacobian[n, 0, c] * sx, grad_jacobian[n, 1, c] * sy, grad_jacobian[n, 2, c] * sz
                    x0, x1 = ux * value - gx, wx * value + gx
                    b00, b01 = uy * x0 - ux * gy, wy * x0 + ux * gy
                    b10, b11 = uy * x1 - wx * gy, wy * x1 + wx * gy
                    z00, z01, z10, z11 = ux * uy * gz, ux * wy * gz, wx * uy * gz, wx * wy * gz
                    grad_table[rows[0], k] += uz * b00 - z00
                    grad_table[rows[1], k] += wz * b00 + z00
                    grad_table[rows[2], k] += uz * b01 - z01
                    grad_table[rows[3], k] += wz * b01 + z01
                    grad_table[rows[4], k] += uz * b10 - z10
                    grad_table[rows[5], k] += wz * b10 + z10
                    grad_table[rows[6], k] += uz * b11 - z11
                    grad_table[rows[7], k] += wz * b11 + z11


@njit(parallel=True, fastmath={"contract", "arcp", "nsz"}, cache=True)
def backward_x(x, table, levels, grad_jacobian, grad_x):
    """Adds to grad_x (n, 3) the Hessian of the features contracted with grad_jacobian (n, 3, 2 L).

    Trilinear features have no second derivative along one axis: only the three mixed ones remain.
    """
    count, _, channels = grad_jacobian.shape
    mask = u32(levels[-1, 0])
    for n in prange(count):
        rows = np.empty(8, i32)
        for level in range(channels // 2):
            resolution, offset, dense = f32(levels[level, 0]), i32(levels[level, 1]), levels[level, 2] == 1
            ix, wx, sx = _axis(x[n, 0], resolution)
            iy, wy, sy = _axis(x[n, 1], resolution)
            iz, wz, sz = _axis(x[n, 2], resolution)
            _corners(ix, iy, iz, resolution, offset, dense, mask, rows)
            ux, uy, uz = f32(ONE - wx), f32(ONE - wy), f32(ONE - wz)
            for k in range(2):
                v0, v1, v2, v3 = table[rows[0], k], table[rows[1], k], table[rows[2], k], table[rows[3], k]
                v4, v5, v6, v7 = table[rows[4], k], table[rows[5], k], table[rows[6], k], table[rows[7], k]
                xy = (uz * (v6 - v4 - v2 + v0) + wz * (v7 - v5 - v3 + v1)) * sx * sy
                xz = (uy * (v5 - v4 - v1 + v0) + wy * (v7 - v6 - v3 + v2)) * sx * sz
                yz = (ux * (v3 - v2 - v1 + v0) + wx * (v7 - v6 - v5 + v4)) * sy * sz
                gx, gy, gz = grad_jacobian[n, 0, 2 * level + k], grad_jacobian[n, 1, 2 * level + k], grad_jacobian[n, 2, 2 * level + k]
                grad_x[n, 0] += xy * gy + xz * gz
                grad_x[n, 1] += xy * gx + yz * gz
                grad_x[n, 2] += xz * gx + yz * gy


@njit(parallel=True, fastmath={"contract", "nsz"}, cache=True)
def adam(parameter, gradient, mean, square, rate, beta1, beta2, epsilon, correction1, correction2):
    """One Adam step (Kingma and Ba 2015, algorithm 1) on flat arrays, only where the gradient is not zero; clears it.

    Entries that no sample touched keep their moments, as in a lazy or sparse Adam.
    """
    rate, beta1, beta2, epsilon = f32(rate), f32(beta1), f32(beta2), f32(epsilon)
    correction1, correction2 = f32(correction1), f32(correction2)
    span = 16384
    for task in prange((parameter.size + span - 1) // span):
        for i in range(task * span, min(parameter.size, (task + 1) * span)):
            g = gradient[i]
            if g != ZERO:
                m = beta1 * mean[i] + (ONE - beta1) * g
                v = beta2 * square[i] + (ONE - beta2) * g * g
                mean[i], square[i] = m, v
                parameter[i] -= rate * (m * correction1) / (np.sqrt(v * correction2) + epsilon)
                gradient[i] = ZERO


def set_threads(count: int) -> None:
    """Number of threads the kernels use, at most what the machine has."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
