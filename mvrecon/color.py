"""The colour of a surface point seen from a direction."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvrecon.config import ColorConfig
from shared.encoding import HashGrid, choose_backend, interpolate
from shared.field import FieldConfig

# Cells along an edge of the box on the coarsest level of the paint.
COARSEST = 32


def spherical_harmonics(d: Float[Tensor, "n 3"]) -> Float[Tensor, "n 16"]:
    """The 16 real spherical harmonics up to degree 3 of unit directions (Sloan 2008, appendix A2)."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, 0.28209479),
            -0.48860251 * y,
            0.48860251 * z,
            -0.48860251 * x,
            1.09254843 * x * y,
            -1.09254843 * y * z,
            0.31539157 * (3 * zz - 1),
            -1.09254843 * x * z,
            0.54627422 * (xx - yy),
            -0.59004359 * y * (3 * xx - yy),
            2.89061144 * x * y * z,
            -0.45704580 * y * (5 * zz - 1),
            0.37317633 * z * (5 * zz - 3),
            -0.45704580 * x * (5 * zz - 1),
            1.44530572 * z * (xx - yy),
            -0.59004359 * x * (xx - 3 * yy),
        ],
        dim=-1,
    )


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
        sizes = [3 + 3 + 16 + field.feature + painted] + [config.width] * config.layers
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(config.width, 3))

    def forward(
        self,
        x: Float[Tensor, "n 3"],
        gradient: Float[Tensor, "n 3"],
        harmonics: Float[Tensor, "n 16"],
        feature: Float[Tensor, "n k"],
    ) -> Float[Tensor, "n 3"]:
        """Colours in 0..1."""
        paint = interpolate(x, self.table, self.grid, backend=self.backend)
        return torch.sigmoid(self.layers(torch.cat([x, gradient, harmonics, feature, paint], dim=1)))
