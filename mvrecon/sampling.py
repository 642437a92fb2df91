"""Where on a ray to spend the network: proposals from a cached volume of signed distances.

The volume is a coarse copy of the field. Reading it costs a trilinear look-up, so a ray can be scanned finely; the
network is asked only near what the scan finds. The volume is refreshed every few steps: where it is stale, a surface
that has moved is not found again.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mvrecon import propose_cpu
from mvrecon.density import logistic_alpha
from mvrecon.volume import composite
from shared.geometry import ray_sphere

SdfFunction = Callable[[Tensor], Tensor]


class SdfVolume:
    """Signed distances on the nodes of `cells`^3 cells over [-1, 1]^3, `values[x, y, z]`; an odd count is made even."""

    def __init__(self, cells: int, device: torch.device):
        cells += cells % 2
        line = torch.linspace(-1, 1, cells + 1, device=device)
        self.nodes = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)
        even = torch.arange(cells + 1, device=device) % 2 == 0
        # What is not asked within the sphere is read from even nodes around it: they must reach beyond.
        inside = self.nodes.norm(dim=1) < 1 + 8 / cells
        coarse = (even[:, None, None] & even[:, None] & even).reshape(-1)
        self.coarse = (inside & coarse).nonzero()[:, 0]
        self.between = inside & ~coarse
        self.values = torch.ones(cells + 1, cells + 1, cells + 1, device=device)

    @torch.no_grad()
    def refresh(self, sdf: SdfFunction, band: float, chunk: int = 65536) -> None:
        """Ask the field at every other node along each axis, and at those between only where their neighbours lead to
        expect the surface nearer than `band` (field units); elsewhere the expectation is good enough."""
        flat = self.values.view(-1)
        for part in self.coarse.split(chunk):
            flat[part] = sdf(self.nodes[part])
        even = self.values[None, None, ::2, ::2, ::2].contiguous()
        flat.copy_(F.interpolate(even, self.values.shape, mode="trilinear", align_corners=True).view(-1))
        for part in (self.between & (flat.abs() < band)).nonzero()[:, 0].split(chunk):
            flat[part] = sdf(self.nodes[part])

    def __call__(self, x: Float[Tensor, "r s 3"]) -> Float[Tensor, "r s"]:
        """Trilinear distances at x."""
        # grid_sample runs one thread per batch entry on a CPU, and names its axes back to front.
        parts = torch.get_num_threads() if x.shape[0] % torch.get_num_threads() == 0 else 1
        points = x.flip(-1).reshape(parts, 1, -1, x.shape[1], 3)
        values = self.values.expand(parts, 1, *self.values.shape)
        return F.grid_sample(values, points, align_corners=True, padding_mode="border").reshape(x.shape[:2])


@torch.no_grad()
def passes_near(
    volume: SdfVolume, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], scan: int, distance: float
) -> Bool[Tensor, " r"]:
    """Which rays come closer to the surface than `distance` (field units), by `scan` look-ups in the volume."""
    near, far, hit = ray_sphere(origins, directions)
    steps = (torch.arange(scan, device=origins.device) + 0.5) / scan
    t = near[:, None] + (far - near)[:, None] * steps
    return hit & (volume(origins[:, None] + t[..., None] * directions[:, None]).amin(dim=1) < distance)


@torch.no_grad()
def propose(
    volume: SdfVolume,
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    bounds: tuple[Float[Tensor, " r"], Float[Tensor, " r"]],
    counts: tuple[int, int, int],
    inverse_width: Float[Tensor, ""] | float,
    jitter: Float[Tensor, "r j"] | None = None,
) -> Float[Tensor, "r s"]:
    """Sorted distances along rays where to ask the network.

    `counts` are the steps of the scan through the volume, the samples drawn from the NeuS weights of that scan
    (stratified), and the samples spread evenly between the bounds. Of the importance + 2 columns of `jitter`, in 0..1,
    the first one shifts the scan, the last one the evenly spread samples, the others move each sample within its share
    of the weight; without it all are in the middle.
    """
    scan, importance, uniform = counts
    if jitter is None:
        jitter = torch.full((origins.shape[0], importance + 2), 0.5, device=origins.device)
    rays = torch.cat([origins, directions, torch.stack(bounds, dim=1)], dim=1)
    if rays.device.type == "cpu" and volume.values.dtype == rays.dtype == torch.float32:
        t = torch.empty(len(rays), importance + uniform)
        propose_cpu.propose(*(a.numpy() for a in (volume.values, rays, jitter)), scan, float(inverse_width), t.numpy())
        return t
    return propose_reference(volume, rays, jitter, counts, inverse_width)


def propose_reference(
    volume: SdfVolume,
    rays: Float[Tensor, "r 8"],
    jitter: Float[Tensor, "r j"],
    counts: tuple[int, int, int],
    inverse_width: Float[Tensor, ""] | float,
) -> Float[Tensor, "r s"]:
    """`propose` in torch. A ray is origin, direction, near and far."""
    scan, importance, uniform = counts
    origins, directions, near, far = rays.split([3, 3, 1, 1], dim=1)
    span, device = far - near, rays.device
    t = near + span * (torch.arange(scan, device=device) + jitter[:, :1]) / scan
    sdf = volume(origins[:, None] + t[..., None] * directions[:, None])
    weights = section_weights(t, sdf, inverse_width) + 0.02 / scan
    near_surface = draw(t, weights, (torch.arange(importance, device=device) + jitter[:, 1:-1]) / importance)
    spread = near + span * (torch.arange(uniform, device=device) + jitter[:, -1:]) / uniform
    return torch.cat([near_surface, spread], dim=1).sort(dim=1).values


def section_weights(
    t: Float[Tensor, "r n"], sdf: Float[Tensor, "r n"], inverse_width: Float[Tensor, ""] | float
) -> Float[Tensor, "r m"]:
    """NeuS weights of the m = n - 1 sections between points of known distance."""
    step = t.diff(dim=1)
    slope = sdf.diff(dim=1) / (step + 1e-5)
    # The steeper descent of two neighbouring sections, so that a surface between nodes is not missed (NeuS, supp. D.1).
    change = 0.5 * step * torch.minimum(slope, F.pad(slope[:, :-1], (1, 0))).clamp(-1e3, 0)
    middle = 0.5 * (sdf[:, 1:] + sdf[:, :-1])
    return composite(logistic_alpha(middle - change, middle + change, inverse_width))[0]


def draw(t: Float[Tensor, "r n"], weights: Float[Tensor, "r m"], share: Float[Tensor, "r k"]) -> Float[Tensor, "r k"]:
    """Where the sections' weight, summed from the start, reaches these shares (0..1) of the whole."""
    cumulative = F.pad(weights.cumsum(dim=1), (1, 0))
    wanted = share * cumulative[:, -1:]
    index = (torch.searchsorted(cumulative, wanted, right=True) - 1).clamp(0, weights.shape[1] - 1)
    fraction = (wanted - cumulative.gather(1, index)) / weights.gather(1, index)
    return t.gather(1, index) + fraction.clamp(0, 1) * t.diff(dim=1).gather(1, index)
