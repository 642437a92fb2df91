"""From signed distances along rays to opacities: NeuS (Wang et al. 2021) and VolSDF (Yariv et al. 2021)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def neus_alpha(
    sdf: Float[Tensor, "r s"],
    cosine: Float[Tensor, "r s"],
    spacing: Float[Tensor, "r s"],
    inverse_width: Float[Tensor, ""] | float,
    anneal: float = 1.0,
) -> Float[Tensor, "r s"]:
    """Opacity of ray sections from the distance and slope at their middles (NeuS, eqs. 10 to 13).

    `cosine` is gradient . direction, `inverse_width` the logistic's 1/s. At anneal 0 the slope is halved towards a
    camera-facing surface, which keeps gradients alive while the shape is still a sphere; at 1 it is exact.
    """
    slope = -(F.relu(0.5 - 0.5 * cosine) * (1 - anneal) + F.relu(-cosine) * anneal)
    step = 0.5 * slope * spacing
    entering = torch.sigmoid((sdf - step) * inverse_width)
    leaving = torch.sigmoid((sdf + step) * inverse_width)
    return ((entering - leaving + 1e-5) / (entering + 1e-5)).clamp(0, 1)


def volsdf_alpha(
    sdf: Float[Tensor, "r s"], spacing: Float[Tensor, "r s"], width: Float[Tensor, ""] | float
) -> Float[Tensor, "r s"]:
    """Opacity of ray sections of density (Laplace distribution of -sdf) / its width (VolSDF, eqs. 2 and 3)."""
    tail = 0.5 * torch.exp(-sdf.abs() / width)
    density = torch.where(sdf > 0, tail, 1 - tail) / width
    return 1 - torch.exp(-density * spacing)
