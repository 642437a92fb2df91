"""Level set alignment (Ma et al. 2023): the gradient at a query and at its pulled point should be parallel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shared import ranks
from shared.field import Field, Geometry
from shared.pull import pull


def alignment_loss(at_query: Geometry, at_pulled: Float[Tensor, "n 3"], decay: float = 10.0) -> Float[Tensor, ""]:
    """Mean of exp(-decay |f(q)|) * (1 - cos(grad f(q), grad f(p))) (eqs. 6, 7 and 9), distances in field units.

    `at_pulled` are the gradients at p = pull(q). Both gradients, and p itself, are differentiated; the weight is not,
    or the field could lower the loss by moving away from its own surface.
    """
    weight = torch.exp(-decay * at_query.sdf.detach().abs())
    apart = weight * (1 - F.cosine_similarity(at_query.gradient, at_pulled, dim=1))
    return ranks.part_of_mean(apart, len(apart))


@torch.no_grad()
def parallelism(field: Field, queries: Float[Tensor, "n 3"], chunk: int = 65536) -> float:
    """Mean angle in degrees between gradients at queries and at their pulled points: 0 for a true distance field."""
    angles = []
    for q in queries.split(chunk):
        there = field.geometry(q)
        here = field.geometry(pull(q, there.sdf, there.gradient))
        cosine = F.cosine_similarity(there.gradient, here.gradient, dim=1)
        angles.append(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))
    return float(torch.cat(angles).mean())
