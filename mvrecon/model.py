"""A surface seen through volume rendering: signed distance field, colour, sharpness, and what lies around it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mvrecon.background import Background
from mvrecon.color import ColorNetwork, spherical_harmonics
from mvrecon.config import Config
from mvrecon.density import neus_alpha
from mvrecon.fused_render import FusedRender, Sections
from mvrecon.rays import Rand
from mvrecon.sampling import SdfVolume, propose
from mvrecon.upsampling import upsample
from mvrecon.volume import composite
from shared.field import Geometry, build_field
from shared.geometry import ray_sphere

# The colour of a section of less weight is not computed: each changes its ray by less than this, of a range of 0..1.
FAINT = 1e-3
# The logistic's scale, in finest cells (those that the photos ask for, of whatever field), at its narrowest. With many
# samples a ray it would narrow without end; a surface that sharp is hit by ever fewer of them, and falls apart.
NARROWEST = 0.125


class Rendering(NamedTuple):
    """r rays: colours over the background, opacity of the surface, and which rays meet the unit sphere. Of h rays, all
    that do and on a GPU the others, too (see `to_compute`): their indices, weights and middles of their s sections;
    n = h s sampled points and the field there."""

    color: Float[Tensor, "r 3"]
    opacity: Float[Tensor, " r"]
    hit: Bool[Tensor, " r"]
    ray: Int64[Tensor, " h"]
    weights: Float[Tensor, "h s"]
    t: Float[Tensor, "h s"]
    points: Float[Tensor, "n 3"]
    geometry: Geometry

    @property
    def depth(self) -> Float[Tensor, " r"]:
        """Distance along the rays, summed with the weights: the expected one times the opacity."""
        return self._every_ray((self.weights * self.t).sum(dim=1))

    @property
    def normal(self) -> Float[Tensor, "r 3"]:
        """Gradients of the field, summed with the weights."""
        return self._every_ray(torch.einsum("hs,hsa->ha", self.weights, self.geometry.gradient.view(*self.t.shape, 3)))

    @property
    def counted(self) -> Bool[Tensor, " n"]:
        """Which points are of rays that meet the sphere."""
        return self.hit[self.ray].repeat_interleave(self.t.shape[1])

    def _every_ray(self, values: Tensor) -> Tensor:
        """Values (h, ...) of the sampled rays, zero where one misses the sphere, as those of all (r, ...)."""
        return values.new_zeros(len(self.hit), *values.shape[1:]).index_copy(0, self.ray, values)


def to_compute(worth: Bool[Tensor, " n"]) -> Int64[Tensor, " k"]:
    """Indices of what is worth computing; in a training step on a GPU of everything, since the host would have to wait
    for their number."""
    if worth.device.type == "cpu" or not torch.is_grad_enabled():
        return worth.nonzero()[:, 0]
    return torch.arange(len(worth), device=worth.device)


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

    @torch.no_grad()
    def limit_sharpness(self) -> None:
        """Keep the logistic from becoming too narrow, after a step."""
        cell = 2 / self.config.field.finest
        self.sharpness.clamp_(max=-0.1 * math.log(NARROWEST * cell))

    def render(
        self,
        volume: SdfVolume,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        progress: float = 1.0,
        rand: Rand | None = None,
        anneal: float = 1.0,
    ) -> Rendering:
        """Render rays with unit directions, the samples jittered where there are random numbers. `anneal`: see
        `neus_alpha`.

        Rays that miss the unit sphere see the background alone.
        """
        near, far, hit = ray_sphere(origins, directions)
        ray = to_compute(hit)
        bounds, toward = (near[ray], far[ray]), directions[ray]
        jitter = None if rand is None else rand(self.config.sampling.importance + 2)[ray]
        t, spacing = self._sections(volume, origins[ray], toward, bounds, progress, jitter)
        x = (origins[ray][:, None] + t[..., None] * toward[:, None]).reshape(-1, 3)
        geometry = self.field.geometry(x, self.field.active(progress))
        sections = Sections(x, toward, spherical_harmonics(toward), spacing, t < bounds[1][:, None])
        shown, weights, passed = (self._fused if self._can_fuse else self._composited)(geometry, sections, anneal)
        color = torch.zeros(len(hit), 3, device=x.device).index_copy(0, ray, shown)
        light = torch.ones(len(hit), device=x.device).index_copy(0, ray, passed)
        if self.background is not None:
            color = color + light[:, None] * self.background(origins, directions, 0.5 if rand is None else rand(1))
        return Rendering(color, 1 - light, hit, ray, weights, t, x, geometry)

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
        if sampling.source == "network":
            active = self.field.active(progress)
            counts = (sampling.scan, sampling.importance)
            shift = 0.5 if jitter is None else jitter[:, :1]
            t = upsample(lambda x: self.field.sdf(x, active), origins, directions, bounds, counts, shift)
        else:
            width = self.inverse_width.detach().clamp(max=sampling.sharpest_proposal(progress))
            proposed = (sampling.scan, sampling.importance, sampling.uniform)
            t = propose(volume, origins, directions, bounds, proposed, width, jitter)
        last = ((bounds[1] - bounds[0]) / sampling.scan)[:, None]
        spacing = torch.cat([t[:, 1:] - t[:, :-1], last], dim=1)
        return t + 0.5 * spacing, spacing

    @property
    def _can_fuse(self) -> bool:
        return self.color.backend == "cpu" and self.color.table.dtype == torch.float32

    def _fused(self, geometry: Geometry, sections: Sections, anneal: float) -> tuple[Tensor, Tensor, Tensor]:
        """`_composited` in one operation."""
        layers = [p for layer in self.color.mlp if isinstance(layer, nn.Linear) for p in (layer.weight, layer.bias)]
        constants = (anneal, FAINT, self.color.grid)
        field = (part.contiguous() for part in geometry)
        return FusedRender.apply(*field, self.inverse_width, self.color.table, sections, constants, *layers)

    def _composited(self, geometry: Geometry, sections: Sections, anneal: float) -> tuple[Tensor, Tensor, Tensor]:
        """Colours before nothing, weights of the sections, and the light that passes them all."""
        rays, samples = sections.spacing.shape
        gradient = geometry.gradient.reshape(rays, samples, 3)
        cosine = (gradient * sections.directions[:, None]).sum(-1)
        sdf = geometry.sdf.reshape(rays, samples)
        alpha = neus_alpha(sdf, cosine, sections.spacing, self.inverse_width, anneal)
        weights, passed = composite(alpha * sections.within)
        visible = weights.detach().reshape(-1) > FAINT
        seen = to_compute(visible)
        ray = seen // samples
        points, harmonics = sections.points[seen], sections.harmonics[ray]
        color = self.color(points, geometry.gradient[seen], harmonics, geometry.feature[seen])
        weighted = (weights.reshape(-1) * visible)[seen][:, None] * color
        return torch.zeros(rays, 3, device=points.device).index_add(0, ray, weighted), weights, passed
