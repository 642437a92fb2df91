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
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from shared.field import Field

FIRST, UPDATES = 0.3, 12  # progress of a run at which the field has a shape, and updates from there to its end
NEIGHBOURS = 48
AGREE = 0.3  # standard deviation of the difference between unit normals
BLOCK = 40_000  # points that are moved in an update, which bounds its time
RUN = 256  # points side by side that are moved in the same update
CHUNK = 10_000  # points whose neighbours are in memory at a time


class Bilateral:
    """Where the points of a cloud (N, 3) in field space are taken to be.

    tree: of the points. radius: standard deviation of the distance at which neighbours count. Of large clouds each
    update moves a part, spread over all of it.
    """

    def __init__(self, tree: cKDTree, points: Float[Tensor, "n 3"], radius: float) -> None:
        self.tree, self.radius = tree, radius
        self.cloud = points
        self.points = points.clone()
        self.updates = self.first = 0
        # Neighbours in space are neighbours in the tree: runs of them share theirs.
        runs = np.split(tree.indices, range(RUN, tree.n, RUN))
        self.order = np.concatenate([runs[i] for i in np.random.default_rng(0).permutation(len(runs))])

    def update(self, field: Field, progress: float, active: int | None) -> None:
        """Move the next points to where the field's normals say, if it is time to."""
        due = 1 + int((progress - FIRST) / (1 - FIRST) * UPDATES)
        if progress >= FIRST and due > self.updates:
            self.updates = due
            self._move(self.order[self.first : self.first + BLOCK], field, active)
            self.first = self.first + BLOCK if self.first + BLOCK < len(self.order) else 0

    @torch.no_grad()
    def _move(self, block: NDArray[np.int64], field: Field, active: int | None) -> None:
        for rows in np.split(block, range(CHUNK, len(block), CHUNK)):
            k = min(NEIGHBOURS, self.tree.n)
            _, index = self.tree.query(self.tree.data[rows], k=k, workers=torch.get_num_threads())
            used, around = torch.from_numpy(index).to(self.cloud.device).unique(return_inverse=True)
            points = self.cloud[used]
            normals = F.normalize(field.geometry(points, active).gradient, dim=1)
            at = torch.from_numpy(rows).to(self.cloud.device)
            self.points[at] = bilateral(points[around], normals[around], self.radius)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on; see `load_state_dict`."""
        return {"points": self.points.clone(), "first": self.first, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the same cloud."""
        self.points.copy_(state["points"])
        self.first, self.updates = state["first"], state["updates"]


def bilateral(points: Float[Tensor, "n k 3"], normals: Float[Tensor, "n k 3"], radius: float) -> Float[Tensor, "n 3"]:
    """The first of each k points, moved along its normal to the mean height of all of them (after Fleishman et al.
    2003, with differences of normals in the place of those of heights, as in Oeztireli et al. 2009).

    Normals are unit ones. That of the first point is replaced by a mean with the same kind of weights, before heights
    are. Heights are along chords, to which a sphere's curvature adds nothing (see `chord_error` in
    pointrecon/objectives.py). Distances count beside the normal alone: by those in all directions, points whose noise
    is that of the first would count most.
    """
    apart = points - points[:, :1]
    distance = apart.square().sum(dim=2)
    normal = F.normalize((_weights(distance, normals, normals[:, :1], radius)[..., None] * normals).sum(dim=1), dim=1)
    cosine = (normals * normal[:, None]).sum(dim=2)
    height = (apart * (normals + normal[:, None])).sum(dim=2) / (1 + cosine).clamp_min(0.2)
    weights = _weights((distance - height.square()).clamp_min(0), normals, normal[:, None], radius)
    return points[:, 0] + (weights * height).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True) * normal


def _weights(
    distance: Float[Tensor, "n k"], normals: Float[Tensor, "n k 3"], normal: Float[Tensor, "n 1 3"], radius: float
) -> Float[Tensor, "n k"]:
    """Gaussians of squared distances and of normals' differences."""
    differ = (normals - normal).square().sum(dim=2)
    return torch.exp(-distance / (2 * radius**2) - differ / (2 * AGREE**2))
