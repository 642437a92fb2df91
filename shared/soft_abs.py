"""|x| with a round bottom."""

from jaxtyping import Float
from torch import Tensor


def soft_abs(error: Float[Tensor, "*n"], softness: float) -> Float[Tensor, "*n"]:
    """sqrt(error^2 + softness^2) - softness: |error|, rounded to a parabola below `softness` (Charbonnier et al. 1994).

    Where |error| leads to the median of what is measured, the mean of small errors tells more.
    """
    return error.abs() if softness == 0 else (error.square() + softness**2).sqrt() - softness
