"""A surface seen through volume rendering: signed distance field, colour, sharpness, and what lies around it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mvrecon.background import Background
from mvrecon.color import ColorNetwork, spherical_harmonics
from mvrecon.config import Config
from mvrecon.density import neus_alpha
from mvrecon.rays import Rand
from mvrecon.sampling import SdfVolume, propose
from mvrecon.upsampling import upsample
from mvrecon.volume import composite
from shared.field import Geometry, build_field
from shared.geometry import ray_sphere

# The colour of a section of less weight is not computed: all that a ray has of them change it by a grey level or two.
FAINT = 1e-3
# A picture is rendered once: its rays get this many times the samples that training spends near the surface.
FINER = 2


class Rendering(NamedTuple):
    """r rays: colours over the background, opacity of the surface, expected depth, normals (field space, weighted), and
    which rays meet the unit sphere; n sampled points and the field there."""

    color: Float[Tensor, "r 3"]
    opacity: Float[Tensor, " r"]
    depth: Float[Tensor, " r"]
    normal: Float[Tensor, "r 3"]
    hit: Bool[Tensor, " r"]
    points: Float[Tensor, "n 3"]
    geometry: Geometry


class SurfaceModel(nn.Module):
    """All that is learnt of a scene."""

    def __init__(self, config: Config, with_background: bool, device: torch.device):
        super().__init__()
        self.config = config
        self.field = build_field(config.field, device)
        self.color = ColorNetwork(config.field, config.color, device)
        self.sharpness = nn.Parameter(torch.tensor(0.3))
        self.background = Background(config.background, config.field.backend, device) if with_background else None
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
        rand: Rand | None = None,
    ) -> Rendering:
        """Render rays with unit directions: with random numbers as in training, the samples jittered; without as a
        picture, with `FINER` times the samples near the surface.

        Rays that miss the unit sphere see the background alone.
        """
        near, far, hit = ray_sphere(origins, directions)
        ray = hit.nonzero()[:, 0]
        bounds, toward = (near[ray], far[ray]), directions[ray]
        jitter = None if rand is None else rand(self.config.sampling.importance + 2)[ray]
        t, spacing = self._sections(volume, origins[ray], toward, bounds, progress, jitter)
        x = (origins[ray][:, None] + t[..., None] * toward[:, None]).reshape(-1, 3)
        geometry = self.field.geometry(x, self.field.active(progress))
        gradient = geometry.gradient.reshape(*t.shape, 3)
        anneal = min(1.0, progress / max(1e-9, self.config.sampling.anneal))
        cosine = (gradient * toward[:, None]).sum(-1)
        alpha = neus_alpha(geometry.sdf.reshape(t.shape), cosine, spacing, self.inverse_width, anneal)
        weights, passed = composite(alpha * (t < bounds[1][:, None]))
        normal = (weights[..., None] * gradient).sum(dim=1)
        depth = (weights * t).sum(dim=1, keepdim=True)
        seen = [self._shade(x, geometry, toward, weights), weights.sum(dim=1, keepdim=True), normal, depth]
        every = torch.zeros(len(hit), 8, device=x.device).index_add(0, ray, torch.cat(seen, dim=1))
        color = every[:, :3]
        if self.background is not None:
            light = torch.ones(len(hit), device=x.device).index_copy(0, ray, passed)
            color = color + light[:, None] * self.background(origins, directions, 0.5 if rand is None else rand(1))
        return Rendering(color, every[:, 3], every[:, 7], every[:, 4:7], hit, x, geometry)

    def _sections(
        self,
        volume: SdfVolume,
        origins: Tensor,
        directions: Tensor,
        bounds: tuple[Tensor, Tensor],
        progress: float,
        jitter: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Middles and lengths (r, s) of the sections of rays at which the network is asked."""
        sampling = self.config.sampling
        importance = sampling.importance * (FINER if jitter is None else 1)
        if sampling.source == "network":
            active = self.field.active(progress)
            counts = (sampling.scan, importance)
            shift = 0.5 if jitter is None else jitter[:, :1]
            t = upsample(lambda x: self.field.sdf(x, active), origins, directions, bounds, counts, shift)
        else:
            width = float(self.inverse_width.detach().clamp(max=sampling.sharpest_proposal(progress)))
            proposed = (sampling.scan, importance, sampling.uniform)
            t = propose(volume, origins, directions, bounds, proposed, width, jitter)
        last = ((bounds[1] - bounds[0]) / sampling.scan)[:, None]
        spacing = torch.cat([t[:, 1:] - t[:, :-1], last], dim=1)
        return t + 0.5 * spacing, spacing

    def _shade(self, x: Tensor, geometry: Geometry, directions: Tensor, weights: Tensor) -> Tensor:
        """Colours weighted and summed along rays, computed only where they show."""
        rays, samples = weights.shape
        seen = (weights.detach().reshape(-1) > FAINT).nonzero()[:, 0]
        ray = seen // samples
        harmonics = spherical_harmonics(directions)[ray]
        color = self.color(x[seen], geometry.gradient[seen], harmonics, geometry.feature[seen])
        weighted = weights.reshape(-1)[seen][:, None] * color
        return torch.zeros(rays, 3, device=x.device).index_add(0, ray, weighted)
