"""The colour of a surface point seen from a direction."""

from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mvrecon.config import ColorConfig
from shared.encoding import HashGrid, choose_backend, interpolate
from shared.field import FieldConfig

# Cells along an edge of the box on the coarsest level of the paint.
COARSEST = 32


# The real spherical harmonics up to degree 2 as sums of products of at most two coordinates. Higher degrees tell the
# training views apart and guess the light of others worse (docs/log.md).
HARMONICS: tuple[dict[str, float], ...] = (
    {"": 0.28209479},
    {"y": -0.48860251},
    {"z": 0.48860251},
    {"x": -0.48860251},
    {"xy": 1.09254843},
    {"yz": -1.09254843},
    {"zz": 0.94617471, "": -0.31539157},
    {"xz": -1.09254843},
    {"xx": 0.54627422, "yy": -0.54627422},
)


def _harmonics_of_products() -> Tensor:
    """(16, 9): what the product a b, each factor one of (1, x, y, z), adds to every harmonic, in row 4 a + b."""
    matrix = torch.zeros(4, 4, len(HARMONICS), dtype=torch.float64)
    for column, terms in enumerate(HARMONICS):
        for product, coefficient in terms.items():
            matrix[(*("1xyz".index(factor) for factor in product.rjust(2, "1")), column)] = coefficient
    return matrix.reshape(16, -1)


@cache
def _from_products(device: torch.device, dtype: torch.dtype) -> Tensor:
    """`_harmonics_of_products` on the device, kept there: if it were copied in every step, a GPU would wait for it."""
    return _harmonics_of_products().to(device, dtype)


def spherical_harmonics(d: Float[Tensor, "n 3"]) -> Float[Tensor, "n 9"]:
    """The 9 real spherical harmonics up to degree 2 of unit directions (Sloan 2008, appendix A2).

    All products of two factors and one matrix: few operations, for the sake of small batches.
    """
    factors = F.pad(d, (1, 0), value=1.0)
    return (factors[:, :, None] * factors[:, None]).reshape(-1, 16) @ _from_products(d.device, d.dtype)


class Clip(torch.autograd.Function):
    """Radiance as a photo shows it: clipped at black, 0, and at white, 1.

    Much of a bright object is white in its photos. A sigmoid reaches white nowhere, and bends all radiance near it.
    """

    @staticmethod
    def forward(ctx, radiance: Tensor) -> Tensor:  # type: ignore[override]
        """Colours in 0..1."""
        ctx.save_for_backward(radiance)
        return radiance.clamp(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_color: Tensor) -> Tensor:  # type: ignore[override]
        """The gradient of the radiance."""
        return Clip.inward(ctx.saved_tensors[0], d_color)

    @staticmethod
    def inward(radiance: Tensor, d_color: Tensor) -> Tensor:
        """Without what would drive clipped radiance farther out; what brings it back passes."""
        outward = ((radiance > 1) & (d_color < 0)) | ((radiance < 0) & (d_color > 0))
        return d_color.masked_fill(outward, 0)


def start_grey(last: nn.Linear) -> nn.Linear:
    """The last layer of a network whose output is radiance, so that it starts in the middle of what photos show."""
    with torch.no_grad():
        last.bias.add_(0.5)
    return last


class ColorNetwork(nn.Module):
    """RGB from position, gradient, direction and the field's feature (NeuS, section 3.1; IDR's renderer).

    Paint has detail that the shape has not: it gets a hash grid of its own, read at the position.
    """

    def __init__(self, field: FieldConfig, config: ColorConfig, device: torch.device):
        super().__init__()
        self.grid = HashGrid(config.levels, COARSEST, max(field.finest, COARSEST), config.log2_entries)
        self.backend = choose_backend(field.backend, device)
        self.table = nn.Parameter(torch.empty(self.grid.entries, self.grid.features).uniform_(-1e-4, 1e-4))
        painted = config.levels * self.grid.features
        sizes = [3 + 3 + len(HARMONICS) + field.feature + painted] + [config.width] * config.layers
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.mlp = nn.Sequential(*hidden, start_grey(nn.Linear(config.width, 3)))

    def forward(
        self,
        x: Float[Tensor, "n 3"],
        gradient: Float[Tensor, "n 3"],
        harmonics: Float[Tensor, "n 9"],
        feature: Float[Tensor, "n k"],
    ) -> Float[Tensor, "n 3"]:
        """Colours in 0..1."""
        paint = interpolate(x, self.table, self.grid, backend=self.backend)
        return Clip.apply(self.mlp(torch.cat([x, gradient, harmonics, feature, paint], dim=1)))
