"""The pull projection: the one place where space is moved onto a level set (Neural-Pull, eq. 1)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pull(x: Float[Tensor, "n 3"], sdf: Float[Tensor, " n"], gradient: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """x - f(x) * grad f(x) / |grad f(x)|: onto the zero level set, from outside and inside alike.

    The sign of f does the work: Level Set Alignment prints |f| (its eq. 8), which only holds outside.
    """
    return x - sdf[:, None] * F.normalize(gradient, dim=1)
