"""The hash-grid encoding, and the tables' Adam, as Triton kernels: float32 or half tables on CUDA.

One program handles BLOCK points on one level. The backward for the table adds atomically, so that sums come in another
order from run to run. On a CPU these kernels run in Triton's interpreter only (TRITON_INTERPRET=1), for tests.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.encoding.grid import PRIMES, HashGrid, gradient_of

BLOCK = 256
PRIME_Y, PRIME_Z = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])


@functools.lru_cache(maxsize=32)
def layout(grid: HashGrid, device: torch.device) -> Tensor:
    """`HashGrid.layout` on the device, int32 (levels + 1, 3); uploaded once."""
    return torch.tensor(grid.layout, dtype=torch.int32, device=device)


def encode(x: Tensor, table: Tensor, grid: HashGrid, active: int, with_jacobian: bool) -> tuple[Tensor, Tensor]:
    """Features (n, c) at x (n, 3) and, where wanted, their Jacobian (n, 3, c); else that is empty."""
    n, channels = len(x), active * grid.features
    features = torch.empty(n, channels, device=x.device)
    jacobian = torch.empty(n if with_jacobian else 0, 3, channels, device=x.device)
    if n:
        arrays = (x, table, (layout(grid, x.device), grid.levels), features, jacobian)
        _forward[triton.cdiv(n, BLOCK), active](*arrays, (n, channels), with_jacobian, BLOCK)
    return features, jacobian


def table_gradient(
    x: Tensor, table: Tensor, grid: HashGrid, d_features: Tensor, d_jacobian: Tensor | None
) -> Tensor | None:
    """The table's gradient for those of features (n, c) and Jacobian (n, 3, c).

    Where the table is a leaf that has a gradient already, it is added there in place and None is returned.
    """
    target, in_place = gradient_of(table)
    n, channels = d_features.shape
    if n:
        slopes = d_features if d_jacobian is None else d_jacobian.contiguous()
        arrays = (x, (layout(grid, x.device), grid.levels), d_features.contiguous(), slopes, target)
        programs = (triton.cdiv(n, BLOCK), channels // grid.features)
        _backward_table[programs](*arrays, (n, channels), d_jacobian is not None, BLOCK)
    return None if in_place else target


def x_gradient(x: Tensor, table: Tensor, grid: HashGrid, d_jacobian: Tensor) -> Tensor:
    """The Hessian of the features contracted with d_jacobian (n, 3, c): what x gets through the Jacobian (n, 3)."""
    n, _, channels = d_jacobian.shape
    d_x = torch.zeros(n, 3, device=x.device)
    if n:
        arrays = (x, table, (layout(grid, x.device), grid.levels), d_jacobian.contiguous(), d_x)
        _backward_x[(triton.cdiv(n, BLOCK),)](*arrays, (n, channels), channels // grid.features, BLOCK)
    return d_x


def adam(arrays: tuple[Tensor, Tensor, Tensor, Tensor], rate: float, numbers: tuple[float, ...]) -> None:
    """One lazy Adam step on (parameter, gradient, mean, square), contiguous; clears the gradient.

    `numbers` are beta1, beta2, epsilon, 1 / (1 - beta1^t) and 1 / (1 - beta2^t).
    """
    size = arrays[0].numel()
    _adam[(triton.cdiv(size, 1024),)](arrays, size, rate, numbers, 1024)


@triton.jit
def _cell(x, resolution):
    """Cell, fraction and slope (zero where clamped) of one coordinate."""
    top = resolution.to(tl.float32)
    position = (x + 1.0) * (top * 0.5)
    slope = tl.where((position >= 0.0) & (position <= top), top * 0.5, 0.0)
    cell = tl.minimum(tl.maximum(position, 0.0), top - 1.0).to(tl.int32)
    fraction = tl.minimum(tl.maximum(position - cell.to(tl.float32), 0.0), 1.0)
    return cell, tl.where(position == position, fraction, position), slope  # maximum and minimum lose what is no number


@triton.jit
def _entry(ix, iy, iz, resolution, offset, dense, hash_mask):
    """Table rows of nodes."""
    side = resolution + 1
    direct = (ix * side + iy) * side + iz
    mixed = ix.to(tl.uint32) ^ (iy.to(tl.uint32) * PRIME_Y).to(tl.uint32) ^ (iz.to(tl.uint32) * PRIME_Z).to(tl.uint32)
    return offset + tl.where(dense == 1, direct, (mixed & hash_mask.to(tl.uint32)).to(tl.int32))


@triton.jit
def _place(x, n, level, grid, BLOCK: tl.constexpr):
    """Where a block of points lies on a level: which rows are real, cells, fractions, slopes, the level's layout. grid:
    the layout of all levels, and how many they are."""
    levels, level_count = grid
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = point < n
    resolution, offset = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
    dense, hash_mask = tl.load(levels + 3 * level + 2), tl.load(levels + 3 * level_count)
    ix, wx, sx = _cell(tl.load(x + 3 * point, mask=real, other=0.0), resolution)
    iy, wy, sy = _cell(tl.load(x + 3 * point + 1, mask=real, other=0.0), resolution)
    iz, wz, sz = _cell(tl.load(x + 3 * point + 2, mask=real, other=0.0), resolution)
    return point, real, (ix, iy, iz), (wx, wy, wz), (sx, sy, sz), (resolution, offset, dense, hash_mask)


@triton.jit
def _corner(cell, fraction, shape, corner: tl.constexpr):
    """Table rows of one corner (bit 2 of its number is x, bit 0 is z), its weights and signs along the axes."""
    bx: tl.constexpr = (corner >> 2) & 1
    by: tl.constexpr = (corner >> 1) & 1
    bz: tl.constexpr = corner & 1
    row = _entry(cell[0] + bx, cell[1] + by, cell[2] + bz, shape[0], shape[1], shape[2], shape[3])
    wx = fraction[0] if bx == 1 else 1.0 - fraction[0]
    wy = fraction[1] if by == 1 else 1.0 - fraction[1]
    wz = fraction[2] if bz == 1 else 1.0 - fraction[2]
    return row, wx, wy, wz, 2.0 * bx - 1.0, 2.0 * by - 1.0, 2.0 * bz - 1.0


@triton.jit
def _forward(x, table, grid, features, jacobian, shape_of_features, WITH_JACOBIAN: tl.constexpr, BLOCK: tl.constexpr):
    """features (n, c) and, where wanted, jacobian (n, 3, c) at x (n, 3)."""
    n, channels = shape_of_features
    level = tl.program_id(1)
    point, real, cell, fraction, slope, shape = _place(x, n, level, grid, BLOCK)
    for k in tl.static_range(2):
        value = tl.zeros([BLOCK], tl.float32)
        dx, dy, dz = value, value, value
        for corner in tl.static_range(8):
            row, wx, wy, wz, gx, gy, gz = _corner(cell, fraction, shape, corner)
            entry = tl.load(table + 2 * row + k, mask=real, other=0.0).to(tl.float32)
            value += wx * wy * wz * entry
            dx += gx * wy * wz * entry
            dy += gy * wx * wz * entry
            dz += gz * wx * wy * entry
        tl.store(features + point * channels + 2 * level + k, value, mask=real)
        if WITH_JACOBIAN:
            column = jacobian + point * 3 * channels + 2 * level + k
            tl.store(column, dx * slope[0], mask=real)
            tl.store(column + channels, dy * slope[1], mask=real)
            tl.store(column + 2 * channels, dz * slope[2], mask=real)


@triton.jit
def _backward_table(
    x, grid, d_features, d_jacobian, d_table, shape_of_features, WITH_JACOBIAN: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds to d_table what d_features (n, c) and, where given, d_jacobian (n, 3, c) ask for."""
    n, channels = shape_of_features
    level = tl.program_id(1)
    point, real, cell, fraction, slope, shape = _place(x, n, level, grid, BLOCK)
    for k in tl.static_range(2):
        value = tl.load(d_features + point * channels + 2 * level + k, mask=real, other=0.0)
        jx, jy, jz = value, value, value
        if WITH_JACOBIAN:
            column = d_jacobian + point * 3 * channels + 2 * level + k
            jx = tl.load(column, mask=real, other=0.0) * slope[0]
            jy = tl.load(column + channels, mask=real, other=0.0) * slope[1]
            jz = tl.load(column + 2 * channels, mask=real, other=0.0) * slope[2]
        for corner in tl.static_range(8):
            row, wx, wy, wz, gx, gy, gz = _corner(cell, fraction, shape, corner)
            added = wx * wy * wz * value
            if WITH_JACOBIAN:
                added += gx * wy * wz * jx + gy * wx * wz * jy + gz * wx * wy * jz
            tl.atomic_add(d_table + 2 * row + k, added.to(d_table.dtype.element_ty), mask=real)


@triton.jit
def _backward_x(x, table, grid, d_jacobian, d_x, shape_of_features, active, BLOCK: tl.constexpr):
    """d_x (n, 3). Trilinear features have no second derivative along one axis: only the three mixed ones remain."""
    n, channels = shape_of_features
    sum_x = tl.zeros([BLOCK], tl.float32)
    sum_y, sum_z = sum_x, sum_x
    for level in range(active):
        point, real, cell, fraction, slope, shape = _place(x, n, level, grid, BLOCK)
        for k in tl.static_range(2):
            column = d_jacobian + point * 3 * channels + 2 * level + k
            jx = tl.load(column, mask=real, other=0.0) * slope[0]
            jy = tl.load(column + channels, mask=real, other=0.0) * slope[1]
            jz = tl.load(column + 2 * channels, mask=real, other=0.0) * slope[2]
            xy = tl.zeros([BLOCK], tl.float32)
            xz, yz = xy, xy
            for corner in tl.static_range(8):
                row, wx, wy, wz, gx, gy, gz = _corner(cell, fraction, shape, corner)
                entry = tl.load(table + 2 * row + k, mask=real, other=0.0).to(tl.float32)
                xy += gx * gy * wz * entry
                xz += gx * gz * wy * entry
                yz += gy * gz * wx * entry
            sum_x += slope[0] * (xy * jy + xz * jz)
            sum_y += slope[1] * (xy * jx + yz * jz)
            sum_z += slope[2] * (xz * jx + yz * jy)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(d_x + 3 * point, sum_x, mask=point < n)
    tl.store(d_x + 3 * point + 1, sum_y, mask=point < n)
    tl.store(d_x + 3 * point + 2, sum_z, mask=point < n)


@triton.jit
def _adam(arrays, size, rate, numbers, BLOCK: tl.constexpr):
    """Adam where the gradient is not zero, as `shared.lazy_adam` describes it; clears the gradient."""
    parameter, gradient, mean, square = arrays
    beta1, beta2, epsilon, scale1, scale2 = numbers
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gradient + index, mask=index < size, other=0.0)
    touched = g != 0.0
    m = tl.load(mean + index, mask=touched, other=0.0)
    v = tl.load(square + index, mask=touched, other=0.0)
    p = tl.load(parameter + index, mask=touched, other=0.0)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    step = m * scale1 / (tl.sqrt(v * scale2) + epsilon)
    tl.store(mean + index, m, mask=touched)
    tl.store(square + index, v, mask=touched)
    tl.store(parameter + index, p - rate * step, mask=touched)
    tl.store(gradient + index, tl.zeros_like(g), mask=touched)
