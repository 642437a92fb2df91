"""Noisy points brought to the surface through those around them, whose edges stay (after Fleishman et al. 2003).

A fit takes every point for as good as the next one, and learns as much of their noise as its cells can hold. Together
the points around one know better where the surface is, if they lie on the same side of its edges: they count by how
near beside it they are, and by how well their normals agree. The normals are the field's own, so that both get better
together; a cloud's own ones, estimated before there is any surface, do not tell edges from noise.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from shared.field import Field

NEIGHBOURS = 48
AGREE = 0.3  # standard deviation of the difference between unit normals
BLOCK = 40_000  # points that are moved at a time, which bounds an update's time
CHUNK = 10_000  # points whose neighbours are in memory at a time


class Bilateral:
    """Where the points of a cloud (N, 3) in field space are taken to be.

    tree: of the points. radius: standard deviation of the distance at which neighbours count.
    """

    def __init__(self, tree: cKDTree, points: Float[Tensor, "n 3"], radius: float) -> None:
        self.tree, self.radius = tree, radius
        self.cloud = points
        self.points = points.clone()
        self.first = 0

    @torch.no_grad()
    def update(self, field: Field, active: int | None) -> None:
        """Move the next block of the points to where the field's normals say."""
        order = torch.from_numpy(self.tree.indices)  # neighbours in space are neighbours in memory
        block = order[self.first : self.first + BLOCK]
        self.first = self.first + BLOCK if self.first + BLOCK < len(order) else 0
        for rows in block.split(CHUNK):
            k = min(NEIGHBOURS, len(self.cloud))
            _, index = self.tree.query(self.tree.data[rows.numpy()], k=k, workers=torch.get_num_threads())
            used, beside = torch.from_numpy(index).unique(return_inverse=True)
            points = self.cloud[used.to(self.cloud.device)]
            normals = F.normalize(field.geometry(points, active).gradient, dim=1)
            beside = beside.to(points.device)
            self.points[rows.to(points.device)] = bilateral(points[beside], normals[beside], self.radius)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on; see `load_state_dict`."""
        return {"points": self.points, "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the same cloud."""
        self.points, self.first = state["points"].to(self.points.device), state["first"]


def bilateral(points: Float[Tensor, "n k 3"], normals: Float[Tensor, "n k 3"], radius: float) -> Float[Tensor, "n 3"]:
    """The first of each k points, moved along its normal to the mean height of all of them.

    Normals are unit ones. The first one's own is that of all first, weighted alike. Heights are along chords, to which
    a sphere's curvature adds nothing (see `chord_error` in pointrecon/objectives.py). Distances count beside the normal
    alone: by those in all directions, points whose noise is that of the first would count most.
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
