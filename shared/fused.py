"""The grid field with one hidden layer on a CPU, its backward written out: distance, gradient and feature of points.

As torch operations the field and its second derivatives are some forty passes over memory. Here they are the encoding,
three matrix products and two passes forward, six products, two passes and the scatter to the table backward.
`GridField` in torch is the reference that it is tested against.

Shapes: n points, c features of the grid, i = 3 + c inputs of the network, w its width, 1 + k outputs.
"""

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from shared.encoding import cpu
from shared.encoding.cpu import FAST, HALF, ONE, ZERO, f32
from shared.encoding.grid import HashGrid

# Width of the activation's bend: (p + sqrt(p^2 + BEND)) / 2 is as round as softplus with sharpness 100, without exp.
BEND = 2e-4
BEND32 = f32(BEND)
# Points of a parallel task, and points whose hidden layer stays in the cache when only distances are wanted.
ROWS, CHUNK = 64, 4096


@njit(parallel=True, fastmath=FAST, cache=True)
def activate(p, w, h, a):
    """h = activation of p (n, w), and a = its slope times w (w,), which is the output's slope in p."""
    for task in prange((p.shape[0] + ROWS - 1) // ROWS):
        for n in range(task * ROWS, min(p.shape[0], (task + 1) * ROWS)):
            for k in range(p.shape[1]):
                q = np.sqrt(p[n, k] * p[n, k] + BEND32)
                h[n, k] = HALF * (p[n, k] + q)
                a[n, k] = (HALF + HALF * p[n, k] / q) * w[k]


@njit(parallel=True, fastmath=FAST, cache=True)
def activate_backward(p, w, d_sdf, da, dh):
    """In place: da (n, w) becomes its share of d loss / d w; dh (n, w), to which d_sdf (n,) times w is added, becomes
    d loss / d p."""
    for task in prange((p.shape[0] + ROWS - 1) // ROWS):
        for n in range(task * ROWS, min(p.shape[0], (task + 1) * ROWS)):
            for k in range(p.shape[1]):
                r = ONE / np.sqrt(p[n, k] * p[n, k] + BEND32)
                slope = HALF + HALF * p[n, k] * r
                dh[n, k] = (dh[n, k] + d_sdf[n] * w[k]) * slope + da[n, k] * w[k] * (HALF * BEND32 * r * r * r)
                da[n, k] *= slope


@njit(parallel=True, fastmath=FAST, cache=True)
def contract(jacobian, slopes, gradient):
    """gradient (n, 3) of a function whose slopes in x and in the features are (n, i); jacobian is (n, 3, c)."""
    for task in prange((slopes.shape[0] + ROWS - 1) // ROWS):
        for n in range(task * ROWS, min(slopes.shape[0], (task + 1) * ROWS)):
            for axis in range(3):
                total = ZERO
                for c in range(jacobian.shape[2]):
                    total += jacobian[n, axis, c] * slopes[n, 3 + c]
                gradient[n, axis] = slopes[n, axis] + total


@njit(parallel=True, fastmath=FAST, cache=True)
def spread(jacobian, d_gradient, d_slopes):
    """The transpose of `contract`: d_slopes (n, i) from d_gradient (n, 3)."""
    for task in prange((d_slopes.shape[0] + ROWS - 1) // ROWS):
        for n in range(task * ROWS, min(d_slopes.shape[0], (task + 1) * ROWS)):
            d0, d1, d2 = d_gradient[n, 0], d_gradient[n, 1], d_gradient[n, 2]
            d_slopes[n, 0], d_slopes[n, 1], d_slopes[n, 2] = d0, d1, d2
            for c in range(jacobian.shape[2]):
                d_slopes[n, 3 + c] = jacobian[n, 0, c] * d0 + jacobian[n, 1, c] * d1 + jacobian[n, 2, c] * d2


class FusedGeometry(torch.autograd.Function):
    """(x, table, w1, b1, w2, b2, constants) -> (sdf, gradient, feature), once differentiable in all but the constants;
    float32 on a CPU."""

    @staticmethod
    def forward(ctx, x, table, w1, b1, w2, b2, constants: tuple[HashGrid, int]):  # type: ignore[override]
        """Distances (n,), their gradients (n, 3) and features (n, k) at x (n, 3); constants: the grid, and how many of
        its levels are open."""
        grid, active = constants
        count, channels = x.shape[0], 2 * active
        features, jacobian = torch.empty(count, channels), torch.empty(count, 3, channels)
        points = x.detach().contiguous()
        cpu.forward(
            *(t.numpy() for t in (points, table.detach())), cpu.layout(grid), features.numpy(), jacobian.numpy()
        )
        inputs, w1 = torch.cat([points, features], dim=1), w1[:, : 3 + channels]
        hidden = torch.addmm(b1, inputs, w1.t())
        h, a, gradient = torch.empty_like(hidden), torch.empty_like(hidden), torch.empty_like(points)
        activate(*(t.detach().numpy() for t in (hidden, w2[0], h, a)))
        sdf, feature, slopes = torch.mv(h, w2[0]).add_(b2[0]), torch.addmm(b2[1:], h, w2[1:].t()), a @ w1
        contract(*(t.numpy() for t in (jacobian, slopes, gradient)))
        ctx.save_for_backward(points, table, w1, w2, inputs, jacobian, hidden, h, a, slopes)
        ctx.grid = grid
        return sdf, gradient, feature

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_sdf, d_gradient, d_feature):  # type: ignore[override]
        """Gradients of the inputs for d_sdf (n,), d_gradient (n, 3) and d_feature (n, k)."""
        x, table, w1, w2, inputs, jacobian, hidden, h, a, slopes = ctx.saved_tensors
        d_gradient, d_slopes = d_gradient.contiguous(), torch.empty_like(inputs)
        spread(*(t.numpy() for t in (jacobian, d_gradient, d_slopes)))
        d_a, d_hidden = d_slopes @ w1.t(), d_feature @ w2[1:]
        activate_backward(*(t.detach().numpy() for t in (hidden, w2[0], d_sdf.contiguous(), d_a, d_hidden)))
        d_inputs = d_hidden @ w1
        d_w1 = x.new_zeros(w1.shape[0], 3 + 2 * ctx.grid.levels)
        d_w1[:, : w1.shape[1]] = torch.addmm(a.t() @ d_slopes, d_hidden.t(), inputs)
        d_w2 = torch.cat([torch.addmv(d_a.sum(dim=0), h.t(), d_sdf)[None], d_feature.t() @ h])
        d_b2 = torch.cat([d_sdf.sum()[None], d_feature.sum(dim=0)])
        inner = slopes[:, 3:].contiguous()
        d_table = cpu.table_gradient_outer(x, table, ctx.grid, d_inputs[:, 3:], inner, d_gradient)
        d_x = _d_x(x, table, ctx.grid, d_inputs, jacobian, inner, d_gradient) if ctx.needs_input_grad[0] else None
        return d_x, d_table, d_w1, d_hidden.sum(dim=0), d_w2, d_b2, None


def _d_x(
    x: Tensor, table: Tensor, grid: HashGrid, d_inputs: Tensor, jacobian: Tensor, inner: Tensor, d_gradient: Tensor
):
    """Through the inputs themselves, through the features, and through the Jacobian of the features."""
    d_x = d_inputs[:, :3] + (jacobian * d_inputs[:, None, 3:]).sum(dim=2)
    outer = d_gradient[:, :, None] * inner[:, None, :]
    cpu.backward_x(x.numpy(), table.detach().numpy(), cpu.layout(grid), outer.numpy(), d_x.numpy())
    return d_x


@torch.no_grad()
def fused_sdf(
    x: Float[Tensor, "n 3"], table: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], grid: HashGrid, active: int
) -> Float[Tensor, " n"]:
    """Distances alone, outside of any graph; `weights` are (w1, b1, w2, b2) as for `FusedGeometry`."""
    w1, b1, w2, b2 = weights
    w1, levels = w1[:, : 3 + 2 * active], cpu.layout(grid)
    sdf, features, no_jacobian = (
        torch.empty(len(x)),
        torch.empty(min(len(x), CHUNK), 2 * active),
        torch.empty(0, 3, 2 * active),
    )
    for points, result in zip(x.split(CHUNK), sdf.split(CHUNK)):
        part = features[: len(points)]
        cpu.forward(points.contiguous().numpy(), table.numpy(), levels, part.numpy(), no_jacobian.numpy())
        hidden = torch.addmm(b1, part, w1[:, 3:].t()).addmm_(points, w1[:, :3].t())
        distances(*(t.numpy() for t in (hidden, w2[0], b2, result)))
    return sdf


@njit(parallel=True, fastmath=FAST, cache=True)
def distances(p, w, b, sdf):
    """sdf (n,): activation of p (n, w), times w (w,), plus b[0]."""
    for task in prange((p.shape[0] + ROWS - 1) // ROWS):
        for n in range(task * ROWS, min(p.shape[0], (task + 1) * ROWS)):
            total = b[0]
            for k in range(p.shape[1]):
                total += w[k] * HALF * (p[n, k] + np.sqrt(p[n, k] * p[n, k] + BEND32))
            sdf[n] = total


def smooth_relu(p: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """(p + sqrt(p^2 + BEND)) / 2: a ReLU with a bend, so that gradients of the field have gradients."""
    return 0.5 * (p + (p.square() + BEND).sqrt())


def smooth_step(p: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """The derivative of `smooth_relu`."""
    return 0.5 + 0.5 * p / (p.square() + BEND).sqrt()
