"""Level set alignment (Ma et al. 2023): the gradient at a query and at its pulled point should be parallel."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from shared import ranks
from shared.field import FieldLike, Geometry
from shared.pull import pull

KINDS = ("cosine", "mse-normalised", "mse")


def alignment_loss(
    at_query: Geometry,
    at_reference: Float[Tensor, "n 3"],
    decay: float = 10.0,
    kind: str = "cosine",
    distance: Float[Tensor, " n"] | None = None,
    counted: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of exp(-decay |f(q)|) * (1 - cos(grad f(q), grad f(p))) (eqs. 6, 7 and 9), distances in field units.

    `at_reference` are the gradients at p = pull(q). Both gradients, and p itself, are differentiated; the weight is
    not, or the field could lower the loss by moving away from its own surface. `counted`: the queries to take the mean
    of, all by default.

    For ablation, after the paper's tables 7 and 8: p may be a cloud point that stays where it is ("Fixed"), `distance`
    to the cloud may take the place of |f(q)| ("Euclidean"), decay 0 leaves the weight away, and `kind` is that of
    `disagreement`.
    """
    away = at_query.sdf if distance is None else distance
    weight = torch.exp(-decay * away.detach().abs())
    apart = weight * disagreement(at_query.gradient, at_reference, kind)
    counted = torch.ones_like(apart) if counted is None else counted
    return ranks.part_of_mean(apart * counted, counted.sum())


def disagreement(here: Float[Tensor, "n 3"], there: Float[Tensor, "n 3"], kind: str = "cosine") -> Float[Tensor, " n"]:
    """How far gradients are from parallel: 1 - cos (eq. 4), or table 8's mean squared error over their coordinates.

    Of normalised gradients that is two thirds of 1 - cos; of gradients as they are ("mse") their lengths count, too.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {', '.join(KINDS)}")
    if kind == "cosine":
        return 1 - F.cosine_similarity(here, there, dim=1)
    if kind == "mse-normalised":
        here, there = F.normalize(here, dim=1), F.normalize(there, dim=1)
    return (here - there).square().mean(dim=1)


@torch.no_grad()
def parallelism(field: FieldLike, queries: Float[Tensor, "n 3"], chunk: int = 65536) -> float:
    """Mean angle in degrees between gradients at queries and at their pulled points: 0 for a true distance field."""
    angles = []
    for q in queries.split(chunk):
        there = field.geometry(q)
        here = field.geometry(pull(q, there.sdf, there.gradient))
        cosine = F.cosine_similarity(there.gradient, here.gradient, dim=1)
        angles.append(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))
    return float(torch.cat(angles).mean())
