"""From signed distances along rays to opacities: NeuS (Wang et al. 2021) and VolSDF (Yariv et al. 2021)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Steps of annealing in any case: with fewer a sphere may not become a shape.
ANNEALED = 50


def neus_alpha(
    sdf: Float[Tensor, "r s"],
    cosine: Float[Tensor, "r s"],
    spacing: Float[Tensor, "r s"],
    inverse_width: Float[Tensor, ""] | float,
    anneal: float = 1.0,
) -> Float[Tensor, "r s"]:
    """Opacity of adjoining ray sections from the distance and slope at their middles (NeuS, eqs. 10 to 13).

    `cosine` is gradient . direction, `inverse_width` the logistic's 1/s. At anneal 0 each section has NeuS's halved
    slope towards a camera-facing surface, which keeps gradients alive while the shape is still a sphere.

    At anneal 1 slopes are exact, and where two sections meet there is one distance: what both extrapolate, the shorter
    one, which errs less, weighing more. NeuS lets each section extrapolate for itself. With few samples that makes air
    opaque: of a long section before the surface, the far end comes to lie behind the surface by a small error of its
    slope. NeuS also cuts rising slopes off at zero; where a ray leaves, that would lower the distance that is shared.
    """
    exact, early = 0.5 * cosine * spacing, -0.5 * F.relu(0.5 - 0.5 * cosine) * spacing
    share = spacing[:, 1:] / (spacing[:, 1:] + spacing[:, :-1]).clamp_min(1e-9)
    between = (sdf + exact)[:, :-1] * share + (sdf - exact)[:, 1:] * (1 - share)
    entering = torch.cat([(sdf - exact)[:, :1], between], dim=1)
    leaving = torch.cat([between, (sdf + exact)[:, -1:]], dim=1)
    entering = anneal * entering + (1 - anneal) * (sdf - early)
    leaving = anneal * leaving + (1 - anneal) * (sdf + early)
    return logistic_alpha(entering, leaving, inverse_width)


def annealing(progress: float, steps: int, until: float) -> float:
    """`anneal` of `neus_alpha` after so many steps, a fraction `progress` of the run: rising to 1 at the fraction
    `until`, and over `ANNEALED` steps at least."""
    return min(1.0, steps / ANNEALED, progress / until if until > 0 else 1.0)


def logistic_alpha(
    entering: Float[Tensor, "r s"], leaving: Float[Tensor, "r s"], inverse_width: Float[Tensor, ""] | float
) -> Float[Tensor, "r s"]:
    """Opacity of ray sections from the distances at which they begin and end (NeuS, eq. 13)."""
    begin, end = torch.sigmoid(entering * inverse_width), torch.sigmoid(leaving * inverse_width)
    return ((begin - end + 1e-5) / (begin + 1e-5)).clamp(0, 1)


def volsdf_alpha(
    sdf: Float[Tensor, "r s"], spacing: Float[Tensor, "r s"], width: Float[Tensor, ""] | float
) -> Float[Tensor, "r s"]:
    """Opacity of ray sections of density (Laplace distribution of -sdf) / its width (VolSDF, eqs. 2 and 3)."""
    tail = 0.5 * torch.exp(-sdf.abs() / width)
    density = torch.where(sdf > 0, tail, 1 - tail) / width
    return 1 - torch.exp(-density * spacing)
