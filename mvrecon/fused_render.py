"""From the field along rays to colours on a CPU, with the backward written out: opacities, paint, network, compositing.

As torch operations this is some hundred passes over small arrays, whose calls cost more than their arithmetic.
`SurfaceModel` in torch is the reference that it is tested against.

Shapes: r rays of s samples, n = r s points, m of them seen, whose colour shows.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from mvrecon.color import Clip
from shared.encoding import cpu
from shared.encoding.cpu import FAST, HALF, ONE, ZERO, f32

RAYS, ROWS = 16, 64
QUARTER, TINY, LEAST = f32(0.25), f32(1e-5), f32(1e-9)


class Sections(NamedTuple):
    """What rays bring along: sample points (n, 3), directions and their harmonics, the sections' lengths, and which
    sections lie within the bounds."""

    points: Float[Tensor, "n 3"]
    directions: Float[Tensor, "r 3"]
    harmonics: Float[Tensor, "r 9"]
    spacing: Float[Tensor, "r s"]
    within: Bool[Tensor, "r s"]


@njit(inline="always")
def _sigmoid(x):
    return ONE / (ONE + np.exp(-x))


@njit(inline="always")
def _ends(sdf, cosine, spacing, anneal, entering, leaving):
    """Distances at which the sections of one ray begin and end, see `mvrecon.density.neus_alpha`."""
    last = sdf.shape[0] - 1
    for i in range(last + 1):
        early = HALF * max(HALF - HALF * cosine[i], ZERO) * spacing[i]
        entering[i] = (ONE - anneal) * (sdf[i] + early)
        leaving[i] = (ONE - anneal) * (sdf[i] - early)
    entering[0] += anneal * (sdf[0] - HALF * cosine[0] * spacing[0])
    leaving[last] += anneal * (sdf[last] + HALF * cosine[last] * spacing[last])
    for i in range(last):
        share = spacing[i + 1] / max(LEAST, spacing[i + 1] + spacing[i])
        before = sdf[i] + HALF * cosine[i] * spacing[i]
        behind = sdf[i + 1] - HALF * cosine[i + 1] * spacing[i + 1]
        between = anneal * (before * share + behind * (ONE - share))
        leaving[i] += between
        entering[i + 1] += between


@njit(inline="always")
def _ends_backward(d_entering, d_leaving, cosine, spacing, anneal, d_sdf, d_cosine):
    """The transpose of `_ends`: d_sdf and d_cosine are written."""
    last = cosine.shape[0] - 1
    for i in range(last + 1):
        d_sdf[i] = (ONE - anneal) * (d_entering[i] + d_leaving[i])
        slope = QUARTER * spacing[i] if cosine[i] < ONE else ZERO
        d_cosine[i] = (ONE - anneal) * (d_leaving[i] - d_entering[i]) * slope
    d_sdf[0] += anneal * d_entering[0]
    d_cosine[0] -= anneal * d_entering[0] * HALF * spacing[0]
    d_sdf[last] += anneal * d_leaving[last]
    d_cosine[last] += anneal * d_leaving[last] * HALF * spacing[last]
    for i in range(last):
        share = spacing[i + 1] / max(LEAST, spacing[i + 1] + spacing[i])
        d_between = anneal * (d_leaving[i] + d_entering[i + 1])
        d_sdf[i] += d_between * share
        d_cosine[i] += d_between * share * HALF * spacing[i]
        d_sdf[i + 1] += d_between * (ONE - share)
        d_cosine[i + 1] -= d_between * (ONE - share) * HALF * spacing[i + 1]


@njit(parallel=True, fastmath=FAST, cache=True)
def weigh(field, rays, numbers, alpha, weights, passed):
    """alpha and weights (r, s) of the sections, and the light passed (r,) by all of them.

    field: distances (n,) and gradients (n, 3). rays: directions (r, 3), spacing and within (r, s). numbers: the
    inverse width and the annealing.
    """
    (sdf, gradient), (directions, spacing, within), (width, anneal) = field, rays, numbers
    count, samples = spacing.shape
    for task in prange((count + RAYS - 1) // RAYS):
        cosine, entering, leaving = np.empty(samples, f32), np.empty(samples, f32), np.empty(samples, f32)
        for r in range(task * RAYS, min(count, (task + 1) * RAYS)):
            first = r * samples
            for i in range(samples):
                g, d = gradient[first + i], directions[r]
                cosine[i] = g[0] * d[0] + g[1] * d[1] + g[2] * d[2]
            _ends(sdf[first : first + samples], cosine, spacing[r], anneal, entering, leaving)
            light = ONE
            for i in range(samples):
                begin, end = _sigmoid(entering[i] * width), _sigmoid(leaving[i] * width)
                opaque = min(max((begin - end + TINY) / (begin + TINY), ZERO), ONE)
                alpha[r, i] = opaque if within[r, i] else ZERO
                weights[r, i] = alpha[r, i] * light
                light *= ONE - alpha[r, i]
            passed[r] = light


@njit(parallel=True, fastmath=FAST, cache=True)
def weigh_backward(field, rays, numbers, alpha, d_results, d_inputs):
    """The transpose of `weigh`. d_results: those of weights (r, s) and passed (r,). d_inputs, which are written: those
    of distances (n,), of gradients (n, 3), and each ray's share of that of the inverse width (r,)."""
    (sdf, gradient), (directions, spacing, within), (width, anneal) = field, rays, numbers
    (d_weights, d_passed), (d_sdf, d_gradient, d_width) = d_results, d_inputs
    count, samples = spacing.shape
    for task in prange((count + RAYS - 1) // RAYS):
        cosine, entering, leaving = np.empty(samples, f32), np.empty(samples, f32), np.empty(samples, f32)
        light = np.empty(samples, f32)
        for r in range(task * RAYS, min(count, (task + 1) * RAYS)):
            first, d = r * samples, directions[r]
            left = ONE
            for i in range(samples):
                g = gradient[first + i]
                cosine[i] = g[0] * d[0] + g[1] * d[1] + g[2] * d[2]
                light[i] = left
                left *= ONE - alpha[r, i]
            _ends(sdf[first : first + samples], cosine, spacing[r], anneal, entering, leaving)
            d_light, total = d_passed[r], ZERO
            for i in range(samples - 1, -1, -1):
                d_alpha = light[i] * (d_weights[r, i] - d_light)
                d_light = d_weights[r, i] * alpha[r, i] + d_light * (ONE - alpha[r, i])
                begin, end = _sigmoid(entering[i] * width), _sigmoid(leaving[i] * width)
                raw, base = (begin - end + TINY) / (begin + TINY), begin + TINY
                if not (within[r, i] and raw >= ZERO and raw <= ONE):
                    d_alpha = ZERO
                d_begin = d_alpha * end / (base * base) * begin * (ONE - begin)
                d_end = -d_alpha / base * end * (ONE - end)
                total += d_begin * entering[i] + d_end * leaving[i]
                entering[i], leaving[i] = d_begin * width, d_end * width
            d_width[r] = total
            _ends_backward(entering, leaving, cosine, spacing[r], anneal, d_sdf[first : first + samples], light)
            for i in range(samples):
                for axis in range(3):
                    d_gradient[first + i, axis] = light[i] * d[axis]


@njit(parallel=True, cache=True)
def gather(seen, samples, columns, inputs):
    """inputs (m, 15 + k + p) of the colour network: point, gradient, the ray's harmonics, feature, paint.

    columns: points (n, 3), gradients (n, 3), harmonics (r, 9), features (n, k) and, of the seen alone, paint (m, p).
    """
    points, gradient, harmonics, feature, paint = columns
    first = 6 + harmonics.shape[1]
    painted = first + feature.shape[1]
    for task in prange((len(seen) + ROWS - 1) // ROWS):
        for row in range(task * ROWS, min(len(seen), (task + 1) * ROWS)):
            n = seen[row]
            inputs[row, :3], inputs[row, 3:6], inputs[row, 6:first] = points[n], gradient[n], harmonics[n // samples]
            inputs[row, first:painted], inputs[row, painted:] = feature[n], paint[row]


@njit(parallel=True, cache=True)
def gather_backward(seen, d_inputs, first, d_gradient, d_feature):
    """The transpose of `gather`: added to d_gradient (n, 3) and written to d_feature (n, k), whose column of the inputs
    is the `first`."""
    for task in prange((len(seen) + ROWS - 1) // ROWS):
        for row in range(task * ROWS, min(len(seen), (task + 1) * ROWS)):
            n = seen[row]
            for axis in range(3):
                d_gradient[n, axis] += d_inputs[row, 3 + axis]
            for k in range(d_feature.shape[1]):
                d_feature[n, k] = d_inputs[row, first + k]


class FusedRender(torch.autograd.Function):
    """(sdf, gradient, feature, inverse width, paint's table, sections, constants, layers) -> (color, weights, passed).

    Once differentiable in all tensors but the sections; float32 on a CPU.
    """

    @staticmethod
    def forward(ctx, sdf, gradient, feature, inverse_width, table, sections, constants, *layers):  # type: ignore[override]
        """Colours (r, 3) before nothing, weights (r, s) and passed light (r,).

        sdf (n,), gradient (n, 3), feature (n, k), table of the paint; constants: the annealing, the weight below which
        a colour does not show, and the paint's HashGrid; layers: weight and bias of each.
        """
        anneal, faint, grid = constants
        rays, samples = sections.spacing.shape
        numbers = (f32(inverse_width.item()), f32(anneal))
        alpha, weights, passed = torch.empty(rays, samples), torch.empty(rays, samples), torch.empty(rays)
        weigh(_numpy(sdf, gradient), _along(sections), numbers, *_numpy(alpha, weights, passed))
        seen = (weights.view(-1) > faint).nonzero()[:, 0]
        points = sections.points[seen]
        paint, _ = cpu.encode(points, table.detach(), grid, grid.levels, with_jacobian=False)
        inputs = torch.empty(len(seen), layers[0].shape[1])
        columns = _numpy(sections.points, gradient, sections.harmonics, feature, paint)
        gather(seen.numpy(), samples, columns, inputs.numpy())
        activations = [inputs]
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2]):
            activations.append(torch.addmm(bias, activations[-1], weight.t()).relu_())
        radiance = torch.addmm(layers[-1], activations[-1], layers[-2].t())
        shown = weights.view(-1)[seen][:, None] * radiance.clamp(0, 1)
        color = torch.zeros(rays, 3).index_add_(0, seen // samples, shown)
        ctx.save_for_backward(sdf, gradient, table, alpha, weights, seen, points, radiance, *layers[::2], *activations)
        ctx.sections, ctx.numbers, ctx.grid, ctx.features = sections, numbers, grid, feature.shape[1]
        return color, weights, passed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_color, d_weights, d_passed):  # type: ignore[override]
        """Gradients of the inputs for d_color (r, 3), d_weights (r, s) and d_passed (r,)."""
        sdf, gradient, table, alpha, weights, seen, points, radiance, *rest = ctx.saved_tensors
        matrices, activations = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        d_seen = d_color[seen // weights.shape[1]]
        d_weights = d_weights.clone(memory_format=torch.contiguous_format)
        d_weights.view(-1)[seen] += (d_seen * radiance.clamp(0, 1)).sum(dim=1)
        d_radiance = Clip.inward(radiance, d_seen * weights.view(-1)[seen][:, None])
        d_inputs, d_layers = _layers_backward(d_radiance, matrices, activations)
        d_sdf, d_gradient, d_width = torch.empty_like(sdf), torch.empty_like(gradient), torch.empty(len(weights))
        d_results, d_field = _numpy(d_weights, d_passed.contiguous()), _numpy(d_sdf, d_gradient, d_width)
        weigh_backward(_numpy(sdf, gradient), _along(ctx.sections), ctx.numbers, alpha.numpy(), d_results, d_field)
        d_feature = torch.zeros(len(sdf), ctx.features)
        first = 6 + ctx.sections.harmonics.shape[1]
        gather_backward(seen.numpy(), d_inputs.numpy(), first, *_numpy(d_gradient, d_feature))
        d_table = cpu.table_gradient(points, table, ctx.grid, d_inputs[:, first + ctx.features :], None)
        return d_sdf, d_gradient, d_feature, d_width.sum(), d_table, None, None, *d_layers


def _layers_backward(d_out: Tensor, matrices: list[Tensor], activations: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Through the layers of a ReLU network: the gradient of its inputs, and of each weight and bias."""
    d_layers: list[Tensor] = []
    for matrix, activation in zip(reversed(matrices), reversed(activations)):
        d_layers = [d_out.t() @ activation, d_out.sum(dim=0), *d_layers]
        d_out = d_out @ matrix
        if activation is not activations[0]:
            d_out.mul_(activation > 0)
    return d_out, d_layers


def _numpy(*tensors: Tensor) -> tuple[NDArray[np.float32], ...]:
    return tuple(tensor.detach().numpy() for tensor in tensors)


def _along(sections: Sections) -> tuple[NDArray, ...]:
    return _numpy(sections.directions, sections.spacing, sections.within)
