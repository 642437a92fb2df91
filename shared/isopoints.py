"""Iso-points: an even, oriented cloud on a field's zero level set, and what it does for a fit (Yifan et al. 2021).

Seeds come down to the surface by Newton's method, are thinned to half of the points wanted, spread evenly, doubled
where the surface is sparse or bends, and spread again (section 3.1). What a fit to a noisy cloud asks of them is in
`shared.iso_losses`.

All is in field space. The paper compares squared distances with D / N, a bounding box's diagonal over a number of
points: a length in the place of an area, which suits shapes of one size only. Here it is measured: `Ring.patches`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from shared.field import Geometry

CHUNK = 32768  # points that a field is asked about at once, which bounds an MLP's memory
NEAR, FAR = 8, 16  # neighbours of a point: for its own place, and for what is averaged
STEPS = 10  # of Newton's method
LONGEST = 0.1  # of these steps, in field units


@runtime_checkable
class HasGeometry(Protocol):
    """A field, whatever its backbone."""

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        """Distances, gradients and features at x."""


@dataclass(frozen=True, eq=False)
class IsoPoints:
    """n points of a field's zero level set in field space, and the unit normals that its gradients give there."""

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def patch(self) -> float:
        """The mean of their `Ring.patches`; infinite for a single point."""
        return float(others(self.points, NEAR).patches.mean()) if len(self) > 1 else math.inf

    def nearest(self, points: Float[Tensor, "m 3"]) -> Int[Tensor, " m"]:
        """The row of the iso-point nearest to each point. Raises ValueError where there are none, or for nan."""
        if len(self) == 0:
            raise ValueError("no iso-points to be near to")
        return _nearest(finite(points), self._tree, 1)[:, 0]

    @cached_property
    def _tree(self) -> cKDTree:
        return _tree(self.points)


class Ring(NamedTuple):
    """The k nearest of a set of points around each of n places, by distance: rows, ways there, squared lengths."""

    rows: Int[Tensor, "n k"]
    way: Float[Tensor, "n k 3"]
    squared: Float[Tensor, "n k"]

    @property
    def areas(self) -> Float[Tensor, "n 1"]:
        """Area of surface that a point around each place stands for: k of them share a disc out to the k-th.

        Coincident points have a little, too, so that nothing is divided by zero.
        """
        return (math.pi * self.squared[:, -1:] / self.squared.shape[1]).clamp_min(1e-20)

    @property
    def patches(self) -> Float[Tensor, "n 1"]:
        """0.4 of these areas, for the paper's D / N, which is as much on an even sphere of radius 0.7.

        On an ellipsoid with axes 0.8, 0.4 and 0.15 D / N is twice as much, and points pushed by it never settle. Nor
        do those of a crowd by the mean of all areas.
        """
        return 0.4 * self.areas


@torch.no_grad()
def project(
    field: HasGeometry, points: Float[Tensor, "n 3"], active: int | None = None, tolerance: float = 1e-5
) -> IsoPoints:
    """Bring points to the zero level set by Newton's method (eq. 1), and leave out those that do not arrive.

    At most 10 steps, none longer than 0.1, until |f| < tolerance. Points that leave the box [-1, 1]^3, on which
    fields are defined, do not arrive. Raises ValueError for points that are not finite.
    """
    landed, arrived = _newton(field, finite(points), active, tolerance)
    return IsoPoints(landed.points[arrived], landed.normals[arrived])


@torch.no_grad()
def resample(
    field: HasGeometry, iso: IsoPoints, active: int | None = None, rounds: int = 4, tolerance: float = 1e-5
) -> IsoPoints:
    """As many iso-points, spread more evenly: each round pushes them apart (eq. 2) and projects them again.

    A point that does not find back to the surface stays where it was.
    """
    for _ in range(rounds if len(iso) > 1 else 0):
        moved, arrived = _newton(field, iso.points + repulsion(iso), active, tolerance)
        found = arrived[:, None]
        iso = IsoPoints(torch.where(found, moved.points, iso.points), torch.where(found, moved.normals, iso.normals))
    return iso


def repulsion(iso: IsoPoints) -> Float[Tensor, "n 3"]:
    """Where its neighbours push each of n >= 2 points, within its tangent plane (eqs. 2 to 4)."""
    ring = others(iso.points, NEAR)
    push = (torch.exp(-ring.squared / ring.patches)[..., None] * F.normalize(-ring.way, dim=2)).sum(dim=1)
    push = ring.patches.sqrt() * push
    return push - (push * iso.normals).sum(dim=1, keepdim=True) * iso.normals


@torch.no_grad()
def wlop(
    points: Float[Tensor, "n 3"], count: int, generator: np.random.Generator, rounds: int = 3, mu: float = 0.5
) -> Float[Tensor, "m 3"]:
    """`count` points evenly in the middle of a cloud: weighted locally optimal projection (Huang et al. 2009).

    A random part of the cloud moves to medians of the cloud and, times mu, away from each other. Every cloud point
    counts for the area it stands for, also when the part is drawn: what Newton's method brings down crowds where the
    surface bulges. Raises ValueError unless 1 <= count <= n / 2, and for points that are not finite.
    """
    if not 1 <= count <= len(finite(points)) / 2:
        raise ValueError(f"{count} of {len(points)} points: WLOP leaves at least one and at most half of them")
    points = points[_rows(_tree(points).indices, points)]  # neighbours in space are neighbours in memory
    areas = others(points, FAR).areas[:, 0]
    chances = areas.double().cpu().numpy()
    drawn = generator.choice(len(points), count, replace=False, p=chances / chances.sum())
    x, tree = points[_rows(np.sort(drawn), points)], _tree(points)
    for _ in range(rounds):
        x = x + _attraction(x, points, tree, areas) + mu * _separation(x)
    return x


@torch.no_grad()
def smooth_normals(
    points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], degrees: float = 15.0
) -> Float[Tensor, "n 3"]:
    """Each of n >= 2 unit normals becomes the mean of those around it that differ little (EAR, Huang et al. 2013).

    Little is below some `degrees`: a sharp edge keeps the normals of its two sides.
    """
    return _filtered(normals, others(points, NEAR), degrees)


@torch.no_grad()
def insertions(iso: IsoPoints, count: int, edge_sensitivity: float = 1.0) -> Float[Tensor, "m 3"]:
    """Places near the surface for at most `count` more points, most urgent first, one beside each of n >= 2.

    The priority of a pair of neighbours is (2 - n . n_i)^edge_sensitivity times the distance from their midpoint to
    the points around, taken along these points' tangent planes (EAR): high where points are few or the surface bends.
    The best pair of each point gets a point a third of the way (section 3.1): at the middle, two often get the same.
    """
    ring = others(iso.points, NEAR)
    normals = _filtered(iso.normals, ring, 15.0)
    bend = 2 - (normals[:, None] * normals[ring.rows]).sum(dim=2)
    priority, partner = (_room(ring, normals) * bend**edge_sensitivity).max(dim=1)
    best = priority.topk(min(count, len(iso))).indices
    return iso.points[best] + ring.way[best, partner[best]] / 3


@torch.no_grad()
def upsample(
    field: HasGeometry,
    iso: IsoPoints,
    count: int,
    active: int | None = None,
    edge_sensitivity: float = 1.0,
    tolerance: float = 1e-5,
) -> IsoPoints:
    """The iso-points with new ones between them, `count` in all; fewer where a field has hardly any surface there.

    Parts of the surface that are far from all iso-points stay without, and a single point stays alone. Each round
    proposes a tenth more, where they are needed most, and keeps what arrives at places of its own.
    """
    area = iso.patch * len(iso)
    # Twice as many points take 8 rounds, a thousand times as many 75: more means that hardly any arrive.
    for _ in range(100):
        missing = count - len(iso)
        if missing <= 0 or len(iso) < 2:
            break
        # Not only as many as are missing: those that never arrive would be tried again and again.
        new = project(field, insertions(iso, math.ceil(len(iso) / 10), edge_sensitivity), active, tolerance)
        # In a crease the same pair is the best one again, and its point would land where the last one did.
        clear = _clear_of(new.points, iso.points, 0.25 * math.sqrt(area / len(iso)))
        if not clear.any():
            break
        points, normals = new.points[clear][:missing], new.normals[clear][:missing]
        iso = IsoPoints(torch.cat([iso.points, points]), torch.cat([iso.normals, normals]))
    return iso


@torch.no_grad()
def extract(
    field: HasGeometry,
    seeds: Float[Tensor, "m 3"],
    count: int,
    active: int | None,
    generator: np.random.Generator,
    tolerance: float = 1e-5,
) -> IsoPoints:
    """`count` even iso-points; fewer, or none, where the seeds find hardly any surface.

    seeds: points in the box [-1, 1]^3: four times `count` random ones at first, later the last iso-points. Equal
    generators give equal points. Raises ValueError for no seeds, for seeds that are not finite, and for count < 1.
    """
    if count < 1 or len(seeds) == 0:
        raise ValueError(f"{count} iso-points from {len(seeds)} seeds: at least one of each is needed")
    iso = project(field, seeds, active, tolerance)
    half = min(count, len(iso)) // 2
    if half > NEAR:  # fewer have no neighbourhoods to be even in
        iso = project(field, wlop(iso.points, half, generator), active, tolerance)
    iso = IsoPoints(iso.points[:count], iso.normals[:count])
    # Pushing moves points by their spacing at most: wide gaps close while these are few.
    iso = resample(field, iso, active, tolerance=tolerance)
    iso = upsample(field, iso, count, active, tolerance=tolerance)
    return resample(field, iso, active, tolerance=tolerance)


def _newton(field: HasGeometry, points: Tensor, active: int | None, tolerance: float) -> tuple[IsoPoints, Tensor]:
    """Where Newton's method brings the points, with normals, and which of them (n,) arrived."""
    points, normals = points.clone(), torch.zeros_like(points)
    arrived = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    rows = torch.arange(len(points), device=points.device)
    for _ in range(1 + STEPS):
        # What is not a number is not inside either: compiled kernels must never be asked about it.
        rows = rows[(points[rows].abs() <= 1).all(dim=1)]
        if len(rows) == 0:
            break
        sdf, gradient = _ask(field, points[rows], active)
        steepness = gradient.square().sum(dim=1)
        done = (sdf.abs() < tolerance) & (steepness > 0)
        arrived[rows[done]], normals[rows[done]] = True, F.normalize(gradient[done], dim=1)
        step = (sdf / steepness)[:, None] * gradient
        step = step * (LONGEST / step.norm(dim=1, keepdim=True)).clamp_max(1)
        rows, step = rows[~done], step[~done]
        points[rows] -= step
    return IsoPoints(points, normals), arrived


def _ask(field: HasGeometry, points: Tensor, active: int | None) -> tuple[Tensor, Tensor]:
    """Distances and gradients, piece by piece."""
    parts = [field.geometry(part, active) for part in points.split(CHUNK)]
    return torch.cat([part.sdf for part in parts]), torch.cat([part.gradient for part in parts])


def _attraction(x: Tensor, points: Tensor, tree: cKDTree, areas: Tensor) -> Tensor:
    """From each x to the median of the cloud around it, every cloud point counting for its area."""
    ring = _ring(x, points, _nearest(x, tree, min(FAR, len(points))))
    # Two areas of an x: with those of cloud points in their place, each x would see but a few, and keep their noise.
    bandwidth = 2 * float(areas.mean()) * len(points) / len(x)
    # One over the distance makes it a median; softened, or no x would leave the cloud point that it began on.
    weight = areas[ring.rows] * torch.exp(-ring.squared / bandwidth) / (ring.squared + bandwidth / 4).sqrt()
    return _weighted_mean(weight, ring.way)


def _separation(x: Tensor) -> Tensor:
    """To each x from those around it, crowded ones counting more."""
    if len(x) < 2:
        return torch.zeros_like(x)
    ring = others(x, FAR)
    theta = torch.exp(-ring.squared / ring.patches)
    crowd = 1 + theta.sum(dim=1)
    return -_weighted_mean(crowd[ring.rows] * theta / ring.squared.clamp_min(1e-12).sqrt(), ring.way)


def _weighted_mean(weight: Tensor, way: Tensor) -> Tensor:
    return (weight[..., None] * way).sum(dim=1) / weight.sum(dim=1, keepdim=True).clamp_min(1e-30)


def _filtered(normals: Tensor, ring: Ring, degrees: float) -> Tensor:
    around = normals[ring.rows]
    # Two areas of a point, as for WLOP's attraction: in a patch there would be hardly any neighbour.
    weight = torch.exp(-ring.squared / (2 * ring.areas)) * agreement((normals[:, None] * around).sum(dim=2), degrees)
    return F.normalize(normals + (weight[..., None] * around).sum(dim=1), dim=1)


def agreement(cosine: Tensor, degrees: float) -> Tensor:
    """1 for equal normals, 1/e for those that differ by `degrees` (EAR's psi)."""
    return torch.exp(-((1 - cosine) / (1 - math.cos(math.radians(degrees)))).square())


def _room(ring: Ring, normals: Tensor) -> Tensor:
    """How far (n, k) the middle of the way to each neighbour is from the point and all its neighbours, along planes.

    With ways w_i, and n_j at w_j, it is the least |w_i / 2 - w_j|^2 - (n_j . (w_i / 2 - w_j))^2.
    """
    way = torch.cat([torch.zeros_like(ring.way[:, :1]), ring.way], dim=1)
    planes = torch.cat([normals[:, None], normals[ring.rows]], dim=1)
    middle = ring.way.mT / 2
    apart = ring.squared[:, None] / 4 - 2 * way @ middle + way.square().sum(dim=2, keepdim=True)
    height = planes @ middle - (planes * way).sum(dim=2, keepdim=True)
    return (apart - height.square()).amin(dim=1).clamp_min(0).sqrt()


def _clear_of(new: Tensor, old: Tensor, distance: float) -> Tensor:
    """Which new points are farther than this from all old and all other new ones."""
    points = torch.cat([old, new])
    other = points[_nearest(new, _tree(points), 2)[:, 1]]
    return (other - new).square().sum(dim=1) > distance**2


def others(points: Tensor, k: int) -> Ring:
    """The k nearest others of each of two or more points, or all others where these are fewer."""
    return _ring(points, points, _nearest(points, _tree(points), min(k, len(points) - 1) + 1)[:, 1:])


def _ring(places: Tensor, points: Tensor, rows: Tensor) -> Ring:
    way = points[rows] - places[:, None]
    return Ring(rows, way, way.square().sum(dim=2))


def _nearest(places: Tensor, tree: cKDTree, k: int) -> Tensor:
    """Rows (n, k) of the k points of the tree that are nearest to each place, by distance."""
    _, rows = tree.query(places.detach().cpu().numpy(), k=list(range(1, k + 1)), workers=torch.get_num_threads())
    return _rows(rows, places)


def _rows(rows: NDArray[np.int64], points: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(points.device)


def _tree(points: Tensor) -> cKDTree:
    return cKDTree(points.detach().cpu().numpy())


def finite(points: Tensor) -> Tensor:
    if not torch.isfinite(points).all():
        raise ValueError("points that are not finite")
    return points
