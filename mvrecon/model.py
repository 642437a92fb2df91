"""A surface seen through volume rendering: signed distance field, colour, sharpness, and what lies around it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvrecon.background import Background
from mvrecon.color import ColorNetwork, spherical_harmonics
from mvrecon.config import Config
from mvrecon.density import neus_alpha
from mvrecon.sampling import SdfVolume, propose
from mvrecon.volume import composite
from shared.field import Geometry, build_field
from shared.geometry import ray_sphere

# A section of less weight cannot change a pixel by one grey level: its colour is not computed.
FAINT = 1e-3


class Rendering(NamedTuple):
    """r rays: colours over the background, opacity of the surface, expected depth, normals (field space, weighted)."""

    color: Float[Tensor, "r 3"]
    opacity: Float[Tensor, " r"]
    depth: Float[Tensor, " r"]
    normal: Float[Tensor, "r 3"]
    points: Float[Tensor, "n 3"]
    geometry: Geometry


class SurfaceModel(nn.Module):
    """All that is learnt of a scene."""

    def __init__(self, config: Config, with_background: bool, device: torch.device):
        super().__init__()
        self.config = config
        self.field = build_field(config.field, device)
        self.color = ColorNetwork(config.field.feature, config.color, config.field.finest, device)
        self.sharpness = nn.Parameter(torch.tensor(0.3))
        self.background = (
            Background(config.background.width, config.background.samples, device) if with_background else None
        )
        self.to(device)

    @property
    def inverse_width(self) -> Float[Tensor, ""]:
        """1/s of NeuS's logistic, as exp(10 v) so that Adam moves it fast enough."""
        return torch.exp(10 * self.sharpness).clamp(1e-6, 1e6)

    def render(
        self,
        volume: SdfVolume,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Render rays with unit directions. With a generator the samples are jittered, as in training."""
        sampling = self.config.sampling
        active = self.field.active(progress)
        near, far, hit = ray_sphere(origins, directions)
        proposal_width = float(self.inverse_width.detach().clamp(min(32.0, sampling.sharpest_proposal), sampling.sharpest_proposal))
        counts = (sampling.scan, sampling.importance, sampling.uniform)
        t = propose(volume, origins, directions, (near, far), counts, proposal_width, generator)
        last = ((far - near) / sampling.scan)[:, None]
        spacing = torch.cat([t[:, 1:] - t[:, :-1], last], dim=1)
        middle = t + 0.5 * spacing
        x = (origins[:, None] + middle[..., None] * directions[:, None]).reshape(-1, 3)
        geometry = self.field.geometry(x, active)
        cosine = (geometry.gradient.reshape(*t.shape, 3) * directions[:, None]).sum(-1)
        anneal = min(1.0, progress / sampling.anneal) if sampling.anneal > 0 else 1.0
        alpha = neus_alpha(geometry.sdf.reshape(t.shape), cosine, spacing, self.inverse_width, anneal)
        alpha = alpha * (hit[:, None] & (middle < far[:, None]))
        weights, passed = composite(alpha)
        color = self._shade(x, geometry, directions, weights)
        if self.background is not None:
            color = color + passed[:, None] * self.background(origins, directions, generator)
        depth = (weights * middle).sum(dim=1)
        normal = (weights[..., None] * geometry.gradient.reshape(*t.shape, 3)).sum(dim=1)
        return Rendering(color, weights.sum(dim=1), depth, normal, x, geometry)

    def _shade(self, x: Tensor, geometry: Geometry, directions: Tensor, weights: Tensor) -> Tensor:
        """Colours weighted and summed along rays, computed only where they show."""
        rays, samples = weights.shape
        seen = (weights.detach().reshape(-1) > FAINT).nonzero()[:, 0]
        ray = seen // samples
        harmonics = spherical_harmonics(directions)[ray]
        color = self.color(x[seen], geometry.gradient[seen], harmonics, geometry.feature[seen])
        weighted = weights.reshape(-1)[seen][:, None] * color
        return torch.zeros(rays, 3, device=x.device).index_add(0, ray, weighted)
