"""Compositing along rays."""

import torch
from jaxtyping import Float
from torch import Tensor


def composite(alpha: Float[Tensor, "r s"]) -> tuple[Float[Tensor, "r s"], Float[Tensor, " r"]]:
    """Weights of the sections of each ray, front to back, and the light that passes all of them (Max 1995)."""
    passed = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1)
    return alpha * before, passed[:, -1]
