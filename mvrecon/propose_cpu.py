"""The proposals of `mvrecon.sampling` on a CPU: one pass over each ray, instead of some fifty over all of them."""

import numpy as np
from numba import njit, prange

from shared.encoding.cpu import FAST, HALF, ONE, ZERO, f32

RAYS = 16
FAINT, TINY, STEEP, FLAT = f32(0.02), f32(1e-5), f32(-1e3), f32(1e-5)


@njit(inline="always")
def _trilinear(values, x, y, z):
    """The volume over [-1, 1]^3 at a point, clamped to its border."""
    size = values.shape[0]
    half, top = f32(f32(size - 1) * HALF), f32(size - 2)
    px, py, pz = (x + ONE) * half, (y + ONE) * half, (z + ONE) * half
    # Constants first, as in `shared.encoding.cpu`: what is not a number must not become an index.
    i, j, k = int(min(top, max(ZERO, px))), int(min(top, max(ZERO, py))), int(min(top, max(ZERO, pz)))
    u, v, w = min(max(px - i, ZERO), ONE), min(max(py - j, ZERO), ONE), min(max(pz - k, ZERO), ONE)
    v00 = values[i, j, k] * (ONE - w) + values[i, j, k + 1] * w
    v01 = values[i, j + 1, k] * (ONE - w) + values[i, j + 1, k + 1] * w
    v10 = values[i + 1, j, k] * (ONE - w) + values[i + 1, j, k + 1] * w
    v11 = values[i + 1, j + 1, k] * (ONE - w) + values[i + 1, j + 1, k + 1] * w
    return f32((v00 * (ONE - v) + v01 * v) * (ONE - u) + (v10 * (ONE - v) + v11 * v) * u)


@njit(fastmath=FAST, cache=True)
def _weigh(sdf, step, inverse_width, weights):
    """NeuS weights of the sections between scanned distances, plus a little everywhere; returns their sum."""
    passed, before, total = ONE, ZERO, ZERO
    for i in range(weights.shape[0]):
        slope = (sdf[i + 1] - sdf[i]) / (step + FLAT)
        steepest = min(slope, before)
        before = slope
        change = HALF * step * min(max(steepest, STEEP), ZERO)
        middle = HALF * (sdf[i] + sdf[i + 1])
        entering = ONE / (ONE + np.exp((change - middle) * inverse_width))
        leaving = ONE / (ONE + np.exp((-change - middle) * inverse_width))
        alpha = min(max((entering - leaving + TINY) / (entering + TINY), ZERO), ONE)
        weights[i] = alpha * passed + FAINT / f32(weights.shape[0] + 1)
        passed *= ONE - alpha
        total += weights[i]
    return total


@njit(fastmath=FAST, cache=True)
def _insert(t, count, value):
    """Put `value` in its place among the first `count` sorted entries of t."""
    i = count
    while i > 0 and t[i - 1] > value:
        t[i] = t[i - 1]
        i -= 1
    t[i] = value


@njit(parallel=True, fastmath=FAST, cache=True)
def propose(values, rays, jitter, scan, inverse_width, t):
    """Fill t (r, importance + uniform) for rays (r, 8: origin, direction, near, far) and jitter (r, importance + 2).

    The first column of jitter shifts the scan, the last one the evenly spread samples, the others move each sample
    within its share of the weight.
    """
    width, importance = f32(inverse_width), jitter.shape[1] - 2
    uniform = t.shape[1] - importance
    for task in prange((t.shape[0] + RAYS - 1) // RAYS):
        sdf, weights = np.empty(scan, f32), np.empty(scan - 1, f32)
        for r in range(task * RAYS, min(t.shape[0], (task + 1) * RAYS)):
            ox, oy, oz, dx, dy, dz, near, far = rays[r]
            step = f32((far - near) / f32(scan))
            first = near + step * jitter[r, 0]
            for i in range(scan):
                s = first + step * f32(i)
                sdf[i] = _trilinear(values, ox + s * dx, oy + s * dy, oz + s * dz)
            total = _weigh(sdf, step, width, weights)
            i, reached = 0, ZERO
            for k in range(importance):
                wanted = (f32(k) + jitter[r, 1 + k]) / f32(importance) * total
                while i < scan - 2 and reached + weights[i] <= wanted:
                    reached += weights[i]
                    i += 1
                inside = min(max((wanted - reached) / weights[i], ZERO), ONE)
                t[r, k] = first + step * (f32(i) + inside)
            for k in range(uniform):
                spread = near + (far - near) * (f32(k) + jitter[r, importance + 1]) / f32(uniform)
                _insert(t[r], importance + k, spread)
