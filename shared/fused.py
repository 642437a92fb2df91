"""The grid field with one hidden layer in one pass on a CPU: distance, gradient and feature, and their backward.

Written out, the pass over a point is short: encode, one matrix, one activation, two small products. As separate tensor
operations it is bound by memory and by the start of some forty parallel regions; here it is two. `GridField` in torch
is the reference that it is tested against.
"""

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from shared.encoding import cpu
from shared.encoding.cpu import BLOCK, FAST, HALF, ONE, SCRATCH, ZERO, encode_block, f32, i32
from shared.encoding.grid import HashGrid

# Width of the activation's bend: (p + sqrt(p^2 + BEND)) / 2 is as round as softplus with sharpness 100, without exp.
BEND = 2e-4
BEND32 = f32(BEND)


@njit(parallel=True, fastmath=FAST, cache=True)
def forward(x, table, levels, w1t, b1, w2, b2, features, jacobian, hidden, inner, out, gradient):
    """Fill features (n, c), jacobian (n, 3, c), hidden pre-activations (n, w), inner = d out_0 / d features (n, c),
    out (n, 1 + k) and gradient (n, 3), for x (n, 3); w1t is (3 + c, w), w2 is (1 + k, w)."""
    count, channels, width, outputs = x.shape[0], features.shape[1], b1.shape[0], b2.shape[0]
    for task in prange((count + BLOCK - 1) // BLOCK):
        first = task * BLOCK
        last = min(count, first + BLOCK)
        p, h, a = np.empty(width, f32), np.empty(width, f32), np.empty(width, f32)
        numbers, rows = np.zeros(SCRATCH, f32), np.zeros(11 * BLOCK, i32)
        encode_block(x, table, levels, first, last - first, numbers, rows, features, jacobian)
        for n in range(first, last):
            x0, x1, x2 = x[n, 0], x[n, 1], x[n, 2]
            for k in range(width):
                p[k] = b1[k] + x0 * w1t[0, k] + x1 * w1t[1, k] + x2 * w1t[2, k]
            for c in range(0, channels, 2):
                f0, f1 = features[n, c], features[n, c + 1]
                for k in range(width):
                    p[k] += f0 * w1t[3 + c, k] + f1 * w1t[4 + c, k]
            for k in range(width):
                q = np.sqrt(p[k] * p[k] + BEND32)
                hidden[n, k] = p[k]
                h[k] = HALF * (p[k] + q)
                a[k] = (HALF + HALF * p[k] / q) * w2[0, k]
            for o in range(outputs):
                total = ZERO
                for k in range(width):
                    total += w2[o, k] * h[k]
                out[n, o] = total + b2[o]
            for axis in range(3):
                total = ZERO
                for k in range(width):
                    total += w1t[axis, k] * a[k]
                gradient[n, axis] = total
            for c in range(channels):
                total = ZERO
                for k in range(width):
                    total += w1t[3 + c, k] * a[k]
                inner[n, c] = total
            for axis in range(3):
                total = ZERO
                for c in range(channels):
                    total += jacobian[n, axis, c] * inner[n, c]
                gradient[n, axis] += total


@njit(parallel=True, fastmath=FAST, cache=True)
def distances(x, table, levels, channels, w1t, b1, w2, b2, sdf):
    """Fill sdf (n,): out_0 of `forward` alone, with nothing kept."""
    count, width = x.shape[0], b1.shape[0]
    for task in prange((count + BLOCK - 1) // BLOCK):
        first = task * BLOCK
        size = min(BLOCK, count - first)
        p, features = np.empty(width, f32), np.empty((BLOCK, channels), f32)
        numbers, rows = np.zeros(SCRATCH, f32), np.zeros(11 * BLOCK, i32)
        encode_block(
            x[first : first + size], table, levels, 0, size, numbers, rows, features, np.empty((0, 3, channels), f32)
        )
        for i in range(size):
            x0, x1, x2, total = x[first + i, 0], x[first + i, 1], x[first + i, 2], b2[0]
            for k in range(width):
                p[k] = b1[k] + x0 * w1t[0, k] + x1 * w1t[1, k] + x2 * w1t[2, k]
            for c in range(0, channels, 2):
                f0, f1 = features[i, c], features[i, c + 1]
                for k in range(width):
                    p[k] += f0 * w1t[3 + c, k] + f1 * w1t[4 + c, k]
            for k in range(width):
                total += w2[0, k] * HALF * (p[k] + np.sqrt(p[k] * p[k] + BEND32))
            sdf[first + i] = total


@njit(inline="always")
def _tangents(n, x, features, jacobian, d_gradient, inputs, d_slopes):
    """The first layer's inputs (3 + c,) at point n, and d loss / d (d out_0 / d inputs)."""
    d0, d1, d2 = d_gradient[n, 0], d_gradient[n, 1], d_gradient[n, 2]
    inputs[0], inputs[1], inputs[2] = x[n, 0], x[n, 1], x[n, 2]
    d_slopes[0], d_slopes[1], d_slopes[2] = d0, d1, d2
    for c in range(features.shape[1]):
        inputs[3 + c] = features[n, c]
        d_slopes[3 + c] = jacobian[n, 0, c] * d0 + jacobian[n, 1, c] * d1 + jacobian[n, 2, c] * d2


@njit(inline="always")
def _activations(n, hidden, w2, da, dh, h, a, dp):
    """Activations h, a = d out_0 / d pre-activation, and d loss / d pre-activation dp at point n; da becomes its share
    of d_w2[0]."""
    for k in range(h.shape[0]):
        p = hidden[n, k]
        q = np.sqrt(p * p + BEND32)
        r = ONE / q
        slope = HALF + HALF * p * r
        bend = HALF * BEND32 * r * r * r
        h[k] = HALF * (p + q)
        a[k] = slope * w2[0, k]
        dp[k] = dh[k] * slope + da[k] * w2[0, k] * bend
        da[k] *= slope


@njit(parallel=True, fastmath=FAST, cache=True)
def backward(x, w1t, w2, features, jacobian, hidden, d_out, d_gradient, d_features, d_x, d_w1t, d_b1, d_w2):
    """Fill d_features (n, c) and d_x (n, 3), without the terms through the Jacobian, and the weights' gradients.

    The last three have a leading axis of tasks; the caller sums over it, always in the same order.
    """
    count, channels, width, outputs = x.shape[0], features.shape[1], hidden.shape[1], d_out.shape[1]
    tasks = d_w1t.shape[0]
    span = (count + tasks - 1) // tasks
    for task in prange(tasks):
        g1, gb, g2 = d_w1t[task], d_b1[task], d_w2[task]
        inputs, dg = np.empty(3 + channels, f32), np.empty(3 + channels, f32)
        a, da, dh = np.empty(width, f32), np.empty(width, f32), np.empty(width, f32)
        dp, h = np.empty(width, f32), np.empty(width, f32)
        for n in range(task * span, min(count, (task + 1) * span)):
            _tangents(n, x, features, jacobian, d_gradient, inputs, dg)
            for k in range(width):
                da[k] = ZERO
                dh[k] = ZERO
            for j in range(3 + channels):
                v = dg[j]
                for k in range(width):
                    da[k] += v * w1t[j, k]
            for o in range(outputs):
                v = d_out[n, o]
                for k in range(width):
                    dh[k] += v * w2[o, k]
            _activations(n, hidden, w2, da, dh, h, a, dp)
            for k in range(width):
                g2[0, k] += da[k]
                gb[k] += dp[k]
            for o in range(outputs):
                v = d_out[n, o]
                for k in range(width):
                    g2[o, k] += v * h[k]
            for j in range(3 + channels):
                u, v, total = inputs[j], dg[j], ZERO
                for k in range(width):
                    g1[j, k] += u * dp[k] + v * a[k]
                    total += w1t[j, k] * dp[k]
                if j < 3:
                    d_x[n, j] = total
                else:
                    d_features[n, j - 3] = total
            for axis in range(3):
                total = ZERO
                for c in range(channels):
                    total += jacobian[n, axis, c] * d_features[n, c]
                d_x[n, axis] += total


class FusedGeometry(torch.autograd.Function):
    """(x, table, w1, b1, w2, b2) -> (out, gradient), once differentiable in all of them; float32 on a CPU."""

    @staticmethod
    def forward(ctx, x, table, w1, b1, w2, b2, grid: HashGrid, active: int):  # type: ignore[override]
        n, channels, width = x.shape[0], 2 * active, b1.shape[0]
        x, w1t = x.detach().contiguous(), w1.detach()[:, : 3 + channels].t().contiguous()
        features, jacobian, hidden = torch.empty(n, channels), torch.empty(n, 3, channels), torch.empty(n, width)
        inner, out, gradient = torch.empty(n, channels), torch.empty(n, b2.shape[0]), torch.empty(n, 3)
        levels = cpu.layout(grid)
        weights = (w1t, b1.detach(), w2.detach(), b2.detach())
        results = (features, jacobian, hidden, inner, out, gradient)
        forward(*(t.numpy() for t in (x, table.detach())), levels, *(t.numpy() for t in (*weights, *results)))
        ctx.save_for_backward(x, table, w1t, w1, w2, features, jacobian, hidden, inner)
        ctx.grid = grid
        return out, gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_gradient):  # type: ignore[override]
        x, table, w1t, w1, w2, features, jacobian, hidden, inner = ctx.saved_tensors
        d_out, d_gradient = d_out.contiguous(), d_gradient.contiguous()
        threads = torch.get_num_threads()
        d_features, d_x = torch.empty_like(features), torch.empty_like(x)
        d_w1t, d_b1 = torch.zeros(threads, *w1t.shape), torch.zeros(threads, w1t.shape[1])
        d_w2 = torch.zeros(threads, *w2.shape)
        known = (x, w1t, w2.detach(), features, jacobian, hidden, d_out, d_gradient)
        wanted = (d_features, d_x, d_w1t, d_b1, d_w2)
        backward(*(t.numpy() for t in (*known, *wanted)))
        d_table = cpu.table_gradient(table, x, ctx.grid, d_features, inner, d_gradient)
        if ctx.needs_input_grad[0]:
            outer = d_gradient[:, :, None] * inner[:, None, :]
            cpu.backward_x(x.numpy(), table.detach().numpy(), cpu.layout(ctx.grid), outer.numpy(), d_x.numpy())
        d_w1 = torch.zeros_like(w1)
        d_w1[:, : w1t.shape[0]] = d_w1t.sum(dim=0).t()
        return d_x, d_table, d_w1, d_b1.sum(dim=0), d_w2.sum(dim=0), d_out.sum(dim=0), None, None


@torch.no_grad()
def fused_sdf(
    x: Float[Tensor, "n 3"], table: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], grid: HashGrid, active: int
) -> Float[Tensor, " n"]:
    """Distances alone, outside of any graph; `weights` are (w1, b1, w2, b2) as for `FusedGeometry`."""
    w1, *others = (w.detach() for w in weights)
    w1t = w1[:, : 3 + 2 * active].t().contiguous()
    sdf = torch.empty(x.shape[0])
    arrays = [t.numpy() for t in (w1t, *others, sdf)]
    distances(x.contiguous().numpy(), table.detach().numpy(), cpu.layout(grid), 2 * active, *arrays)
    return sdf


def smooth_relu(p: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """(p + sqrt(p^2 + BEND)) / 2: a ReLU with a bend, so that gradients of the field have gradients."""
    return 0.5 * (p + (p.square() + BEND).sqrt())


def smooth_step(p: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """The derivative of `smooth_relu`."""
    return 0.5 + 0.5 * p / (p.square() + BEND).sqrt()
