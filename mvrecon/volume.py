"""Compositing along rays."""

import torch
from jaxtyping import Float
from torch import Tensor

# Light is not divided by less than this: what an opaque section hides has no gradient that matters.
OPAQUE = 1e-7


class Passed(torch.autograd.Function):
    """The running product of what each section lets through. In torch's backward of that a GPU waits for whether any of
    it is zero."""

    @staticmethod
    def forward(ctx, through: Tensor) -> Tensor:  # type: ignore[override]
        """Light behind each section (r, s)."""
        passed = torch.cumprod(through, dim=1)
        ctx.save_for_backward(through, passed)
        return passed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_passed: Tensor) -> Tensor:  # type: ignore[override]
        """The gradient of what each section lets through."""
        through, passed = ctx.saved_tensors
        behind = (d_passed * passed).flip(1).cumsum(dim=1).flip(1)
        return behind / through.clamp_min(OPAQUE)


def composite(alpha: Float[Tensor, "r s"]) -> tuple[Float[Tensor, "r s"], Float[Tensor, " r"]]:
    """Weights of the sections of each ray, front to back, and the light that passes all of them (Max 1995)."""
    passed: Tensor = Passed.apply(1 - alpha)
    before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1)
    return alpha * before, passed[:, -1]
