"""What lies outside the unit sphere: a radiance field on inverted-sphere coordinates (NeRF++, Zhang et al. 2020).

Space beyond the sphere is folded into the shell between radius 1 and 2 (mip-NeRF 360's contraction of the same inverse
distance) and encoded by a hash grid, so that a ray sees all of it in a few samples.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mvrecon.color import HARMONICS, Clip, spherical_harmonics, start_grey
from mvrecon.config import BackgroundConfig
from mvrecon.volume import composite
from shared.encoding import HashGrid, choose_backend, interpolate


def contract(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """(2 - 1/|x|) x/|x| for |x| >= 1: infinity lands on radius 2."""
    radius = x.norm(dim=1, keepdim=True).clamp_min(1.0)
    return (2 - 1 / radius) * x / radius


class Background(nn.Module):
    """Density and colour outside the unit sphere."""

    def __init__(self, config: BackgroundConfig, backend: str, device: torch.device):
        super().__init__()
        self.samples, width = config.samples, config.width
        self.grid = HashGrid(levels=8, base=8, finest=128, log2_entries=15)
        self.backend = choose_backend(backend, device)
        self.table = nn.Parameter(torch.empty(self.grid.entries, 2).uniform_(-1e-4, 1e-4))
        self.body = nn.Sequential(nn.Linear(2 * self.grid.levels, width), nn.ReLU(), nn.Linear(width, 16))
        self.head = nn.Sequential(nn.Linear(15 + len(HARMONICS), width), nn.ReLU(), start_grey(nn.Linear(width, 3)))

    def forward(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        shift: Float[Tensor, "r 1"] | float = 0.5,
    ) -> Float[Tensor, "r 3"]:
        """Colour of the rays beyond the sphere, opaque at infinity. `shift`, in 0..1, moves the samples of a ray."""
        x, spacing = self._sample(origins, directions, shift)
        rays, samples = spacing.shape
        code = interpolate(contract(x) / 2, self.table, self.grid, backend=self.backend)
        out = self.body(code)
        density = F.softplus(out[:, 0] - 1).reshape(rays, samples)
        harmonics = spherical_harmonics(directions).repeat_interleave(samples, dim=0)
        color = Clip.apply(self.head(torch.cat([out[:, 1:], harmonics], dim=1))).reshape(rays, samples, 3)
        weights, passed = composite(1 - torch.exp(-density * spacing))
        weights = torch.cat([weights[:, :-1], weights[:, -1:] + passed[:, None]], dim=1)
        return (weights[..., None] * color).sum(dim=1)

    def _sample(self, origins: Tensor, directions: Tensor, shift: Tensor | float) -> tuple[Tensor, Tensor]:
        """Points at evenly spaced inverse radii 1 .. 1/50 behind the sphere, and the sections' lengths measured so."""
        rays, device = origins.shape[0], origins.device
        middle = -(origins * directions).sum(dim=1)
        closest = (origins + middle[:, None] * directions).square().sum(dim=1)
        inverse = 1 - (torch.arange(self.samples, device=device) + shift) / self.samples * 0.98
        inverse = inverse.expand(rays, self.samples)
        # A ray that misses the sphere starts where it comes closest.
        radius = torch.maximum(1 / inverse, closest.sqrt()[:, None] * (1 + 1e-3 / inverse))
        # A ray that starts outside and looks away has the spheres up to its origin's behind it.
        away = (middle < 0) & (origins.norm(dim=1) > 1)
        radius = torch.where(away[:, None], torch.maximum(radius, origins.norm(dim=1)[:, None] / inverse), radius)
        t = middle[:, None] + (radius.square() - closest[:, None]).clamp_min(0).sqrt()
        x = origins[:, None] + t[..., None] * directions[:, None]
        return x.reshape(-1, 3), torch.full_like(inverse, 8.0 / self.samples)
