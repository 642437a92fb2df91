"""Noisy points brought to the surface through those around them, whose edges stay (after Fleishman et al. 2003).

A fit takes every point for as good as the next one, and learns as much of their noise as its cells can hold. Together
the points around one know better where the surface is, if they lie on the same side of its edges: they count by how
near beside it they are, and by how well their normals agree. The normals are the field's own, so that both get better
together; a cloud's own ones, estimated before there is any surface, do not tell edges from noise.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.survey import NOISY, typical_spacing
from shared.isopoints import HasGeometry

FIRST, UPDATES = 0.3, 12  # progress of a run at which the field has a shape, and updates from there to its end
MANY, SOME = 192, 48  # neighbours; the latter where the former do not settle the points, and in little noise
RADIUS = 2.0  # of a filter in standard deviations of the noise
WIDTHS = (1.0, 1.4, 2.0)  # radii to choose from, in the given one; the first where none may be, or is, better
CAPPED = 1.5  # radii beyond which a height counts no more in that choice
AGREE = 0.3  # standard deviation of the difference between unit normals
MOST_BENT = 0.5  # deviations of the noise that curvature may account for
# A cloud is settled whose moved points are no farther than this from the mean of their FEW nearest neighbours, in
# deviations of the noise. Its moved points have queries that are closer, by this factor.
SETTLED, FEW, CLOSER = 0.14, 24, 0.5
RUN = 256  # points side by side that are moved in the same update, and tell together which radius is best
CHUNK = 16 * RUN  # points whose neighbours are in memory at a time
BLOCK = 160 * RUN  # points that are moved in an update, which bounds its time


class Bilateral:
    """Where the points of a cloud (N, 3) in field space are taken to be.

    tree: of the points. radius: standard deviation of the distance at which neighbours count, RADIUS times the noise;
    where the noise is little, the spacing of the points. Of large clouds each update moves a part, spread over all of
    it. settled: until an update finds otherwise; never in little noise, where few neighbours are enough.
    """

    def __init__(self, tree: cKDTree, points: Float[Tensor, "n 3"], radius: float) -> None:
        spacing = typical_spacing(tree)
        self.tree, self.noise = tree, radius / RADIUS
        self.cloud = points
        self.points = points.clone()
        self.updates = self.first = 0
        self.nearly_clean = self.noise <= NOISY * spacing
        self.settled = not self.nearly_clean
        self.radius = spacing if self.nearly_clean else radius
        # Neighbours in space are neighbours in the tree: runs of them share theirs.
        runs = np.split(tree.indices, range(RUN, tree.n, RUN))
        mixed = np.random.default_rng(0).permutation(len(runs) - 1)
        self.order = np.concatenate([runs[i] for i in (*mixed, -1)])  # the last one may be shorter

    def update(self, field: HasGeometry, progress: float, active: int | None) -> None:
        """Move the next points to where the field's normals say, if it is time to."""
        due = 1 + int((progress - FIRST) / (1 - FIRST) * UPDATES)
        if progress >= FIRST and due > self.updates:
            self.updates = due
            block = self.order[self.first : self.first + BLOCK]
            self._move(block, field, active)
            if self.settled and self._left(block[:CHUNK], field, active) > SETTLED:
                # The noise is more than it was taken for. Many neighbours bring together what does not belong.
                self.settled = False
                self.points.copy_(self.cloud)
                self._move(block, field, active)
            self.first = self.first + BLOCK if self.first + BLOCK < len(self.order) else 0

    def drawn_around(
        self, x: Float[Tensor, "n 3"], rows: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Queries that were drawn around the points in these rows, drawn around where these are taken to be, and those
        places. In a settled cloud those of points that were moved come closer."""
        points, moved = self.cloud[rows], self.points[rows]
        closer = (points != moved).any(dim=1, keepdim=True) & self.settled
        share = torch.where(closer, CLOSER, 1.0)
        return (moved + share * (x - points)).clamp(-1, 1), moved

    def _move(self, block: NDArray[np.int64], field: HasGeometry, active: int | None) -> None:
        for rows in np.split(block, range(CHUNK, len(block), CHUNK)):
            points, normals, _ = self._around(rows, MANY if self.settled else SOME, self.cloud, field, active)
            moved = bilateral(points, normals, self.radius, self.noise)
            self.points[torch.from_numpy(rows).to(self.cloud.device)] = moved

    def _left(self, rows: NDArray[np.int64], field: HasGeometry, active: int | None) -> float:
        """How far points are from the mean of their nearest neighbours (root mean square), in deviations of the noise,
        where all these were moved. Of exact points what curvature asks for is left, up to 0.05 of a sphere that is five
        times as large as the noise."""
        points, normals, index = self._around(rows, FEW, self.points, field, active)
        moved = (points != self.cloud[index]).any(dim=2).all(dim=1)
        apart = (bilateral(points, normals, self.radius / 2, self.noise / 2) - points[:, 0])[moved]
        return float(apart.square().sum(dim=1).mean().sqrt()) / self.noise if len(apart) else 0.0

    @torch.no_grad()
    def _around(
        self, rows: NDArray[np.int64], k: int, points: Float[Tensor, "n 3"], field: HasGeometry, active: int | None
    ) -> tuple[Float[Tensor, "m k 3"], Float[Tensor, "m k 3"], Int[Tensor, "m k"]]:
        """The k points (at most all) of the cloud that are nearest to each of m rows, itself first: where `points` has
        them, the field's normals there, and their rows."""
        _, found = self.tree.query(self.tree.data[rows], k=min(k, self.tree.n), workers=torch.get_num_threads())
        index = torch.from_numpy(found).to(points.device)
        used, around = index.unique(return_inverse=True)
        normals = F.normalize(field.geometry(points[used], active).gradient, dim=1)
        return points[index], normals[around], index

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on; see `load_state_dict`."""
        return {"points": self.points.clone(), "first": self.first, "updates": self.updates, "settled": self.settled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the same cloud."""
        self.points.copy_(state["points"])
        self.first, self.updates = state["first"], state["updates"]
        self.settled = state["settled"] and not self.nearly_clean  # in runs of before, more clouds were noisy


def bilateral(
    points: Float[Tensor, "n k 3"], normals: Float[Tensor, "n k 3"], radius: float, noise: float
) -> Float[Tensor, "n 3"]:
    """The first of each k points, the nearest to itself, moved along its normal to the mean height of all of them
    (after Fleishman et al. 2003, with differences of normals in the place of those of heights, as in Oeztireli et al.
    2009). noise: its standard deviation.

    Normals are unit ones. That of the first point is replaced by a mean with the same kind of weights, before heights
    are. Heights are along chords, to which a sphere's curvature adds nothing (see `chord_error` in
    pointrecon/objectives.py). Distances count beside the normal alone: by those in all directions, points whose noise
    is that of the first would count most. For their radius see `_best_weights`.
    """
    apart = points - points[:, :1]
    distance = apart.square().sum(dim=2)
    normal = (_weights(distance, (normals * normals[:, :1]).sum(dim=2), radius)[..., None] * normals).sum(dim=1)
    normal = F.normalize(normal, dim=1)
    cosine = (normals * normal[:, None]).sum(dim=2)
    height = (apart * (normals + normal[:, None])).sum(dim=2) / (1 + cosine).clamp_min(0.2)
    beside = (distance - height.square()).clamp_min(0)
    weights = _best_weights(beside, cosine, height, distance[:, -1].sqrt(), radius)
    move = (weights * height).sum(dim=1) - _bulge(apart, normals, normal, weights, noise)
    return points[:, 0] + move[:, None] * normal


def _weights(distance: Float[Tensor, "n k"], cosine: Float[Tensor, "n k"], radius: float) -> Float[Tensor, "n k"]:
    """Gaussians of squared distances and of normals' differences, with a sum of 1."""
    weights = torch.exp(-distance / (2 * radius**2) - (1 - cosine) / AGREE**2)
    return weights / weights.sum(dim=1, keepdim=True)


def _best_weights(
    beside: Float[Tensor, "n k"],
    cosine: Float[Tensor, "n k"],
    height: Float[Tensor, "n k"],
    farthest: Float[Tensor, " n"],
    radius: float,
) -> Float[Tensor, "n k"]:
    """`_weights` by the radius in WIDTHS that predicts the RUN best which a point is in; by no wider one than half of
    what its neighbours reach: from there on those are missing that are not near in height, too."""
    weights = _weights(beside, cosine, WIDTHS[0] * radius)
    least = _prediction_error(height, weights, radius)
    for width in WIDTHS[1:]:
        wider = _weights(beside, cosine, width * radius)
        error = _prediction_error(height, wider, radius)
        better = (error < least) & (width * radius < farthest / 2)
        weights, least = torch.where(better[:, None], wider, weights), torch.where(better, error, least)
    return weights


def _prediction_error(
    height: Float[Tensor, "n k"], weights: Float[Tensor, "n k"], radius: float
) -> Float[Tensor, " n"]:
    """Mean square over each RUN of points of how far they are from the mean of the others (cross-validation)."""
    others, most = weights[:, 1:], CAPPED * radius
    total = others.sum(dim=1)
    mean = (others * height[:, 1:]).sum(dim=1) / total.clamp_min(1e-9)
    runs = torch.where(total > 1e-9, mean.clamp(-most, most), most).square().split(RUN)
    return torch.cat([run.mean().expand(len(run)) for run in runs])


def _bulge(
    apart: Float[Tensor, "n k 3"],
    normals: Float[Tensor, "n k 3"],
    normal: Float[Tensor, "n 3"],
    weights: Float[Tensor, "n k"],
    noise: float,
) -> Float[Tensor, " n"]:
    """How far outside a bent surface its noisy points are in the mean: s^2 (k1 + k2) / 2, by the distance's Laplacian.

    Noise along the surface, of deviation s, takes points off it to the outside. The curvature is how much the
    neighbours' normals turn with the way to them. On a ball with exact normals that is too much: neighbours farther out
    are farther away, and count less. With a fit's normals, on shapes whose detail is as small as the noise, it is
    what fits swell by without it.
    """
    centred = apart - (weights[..., None] * apart).sum(dim=1, keepdim=True)
    way = centred - (centred * normal[:, None]).sum(dim=2, keepdim=True) * normal[:, None]
    turn = (weights * (normals * way).sum(dim=2)).sum(dim=1)
    curvature = turn / (weights * way.square().sum(dim=2)).sum(dim=1).clamp_min(1e-12)
    return (noise**2 * curvature).clamp(-MOST_BENT * noise, MOST_BENT * noise)
