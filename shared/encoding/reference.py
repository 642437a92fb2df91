"""The hash-grid encoding written out in torch operations: the truth that every fast backend is tested against.

Any floating type, any device, differentiable to any order by autograd. Slow and hungry: for tests and for machines
without a faster backend.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shared.encoding.grid import HashGrid


def encode(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries features"], grid: HashGrid, active: int
) -> tuple[Float[Tensor, "n channels"], Float[Tensor, "n 3 channels"]]:
    """Trilinear features of the first `active` levels and their Jacobian with respect to x.

    Outside the box the coordinates are clamped, and the clamped axes have derivative zero.
    """
    features, jacobians = [], []
    for level in range(active):
        resolution = grid.resolutions[level]
        position = (x + 1) * (resolution / 2)
        inside = ((position >= 0) & (position <= resolution)).to(x)
        cell = position.detach().nan_to_num(0).floor().clamp(0, resolution - 1)
        fraction = (position - cell).clamp(0, 1)
        weights = (1 - fraction, fraction)
        slope = inside * (resolution / 2)
        value = torch.zeros_like(table[0])
        partials = [value, value, value]
        for corner in range(8):
            bits = (corner >> 2 & 1, corner >> 1 & 1, corner & 1)
            node = cell.long() + torch.tensor(bits, device=x.device)
            entry = table[grid.entry(level, node)]
            w = [weights[bit][:, axis, None] for axis, bit in enumerate(bits)]
            sign = [2 * bit - 1 for bit in bits]
            value = value + w[0] * w[1] * w[2] * entry
            partials[0] = partials[0] + sign[0] * w[1] * w[2] * entry
            partials[1] = partials[1] + sign[1] * w[0] * w[2] * entry
            partials[2] = partials[2] + sign[2] * w[0] * w[1] * entry
        features.append(value)
        jacobians.append(torch.stack([p * slope[:, axis, None] for axis, p in enumerate(partials)], dim=1))
    return torch.cat(features, dim=-1), torch.cat(jacobians, dim=-1)
