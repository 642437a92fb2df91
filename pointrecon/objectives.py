"""What a field is asked to be around a cloud: one function a term, each on its own (n,) queries.

Neural-Pull's terms first, then those that SIREN (Sitzmann et al. 2020, eq. 6) and IGR (Gropp et al. 2020, eq. 2) are
made of besides |f| = 0 on the surface.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shared import ranks
from shared.field import Geometry

# How fast SIREN's penalty of surface where there is no cloud falls with the distance.
SHARPNESS = 100.0


def pull_loss(pulled: Float[Tensor, "n 3"], targets: Float[Tensor, "n 3"], squared: bool) -> Float[Tensor, " n"]:
    """Distance, or its square (Neural-Pull, eq. 2), between pulled queries and their nearest cloud points."""
    error = (pulled - targets).square().sum(dim=1)
    return error if squared else (error + 1e-12).sqrt()


def depth_error(
    x: Float[Tensor, "n 3"], depth: Float[Tensor, " n"], nearest: Float[Tensor, "n 3"], squared: bool
) -> Float[Tensor, " n"]:
    """How far the depth at places within a body is from that to the nearest cloud points, or the square of that.

    Deep within a body the nearest point may be anywhere around. A pull there has no direction to learn, is smallest
    where the field is zero, and turns a thick body inside out.
    """
    error = depth - (x - nearest).norm(dim=1)
    return error.square() if squared else error.abs()


def chord_error(
    queries: Float[Tensor, "n 3"],
    geometry: Geometry,
    targets: Float[Tensor, "n 3"],
    target_gradient: Float[Tensor, "n 3"],
) -> Float[Tensor, " n"]:
    """How far the pulled queries are from the surface through their targets, along normals, with its sign.

    A cloud's points are not where the queries' perpendiculars meet the surface, but beside. The pull takes that for an
    error of the direction, noise as large as the distances themselves; here it does not count. Measured along the
    normals of the queries alone, a convex body would shrink by what its surface falls off to the side. A chord of a
    sphere is perpendicular to the sum of the normals at its ends, so along that sum curvature costs nothing (the
    symmetric objective of Rusinkiewicz 2019).

    Pairs whose normals disagree lie across an edge or on two sides of a thin part, and count less: by the cosine. By
    its higher powers edges come out sharper, but then nothing pulls on a wrong surface that fills a corner between thin
    parts, where the points within have no normals that agree.
    """
    here, there = (F.normalize(g.detach(), dim=1) for g in (geometry.gradient, target_gradient))
    cosine = (here * there).sum(dim=1)
    height = ((queries - targets) * (here + there)).sum(dim=1) / (1 + cosine).clamp_min(0.2)
    return cosine.clamp_min(0) * (height - geometry.sdf)


def soft_abs(error: Float[Tensor, " n"], softness: float) -> Float[Tensor, " n"]:
    """|error|, rounded to a parabola below `softness`: the mean of noisy errors tells more than their median."""
    return error.abs() if softness == 0 else (error.square() + softness**2).sqrt() - softness


def beside(
    x: Float[Tensor, "n 3"], gradient: Float[Tensor, "n 3"], step: float, noise: Float[Tensor, "n 3"]
) -> Float[Tensor, "n 3"]:
    """Places at distance `step` from x along the level sets there, in the directions of `noise`, within the box."""
    return (x + step * F.normalize(along(gradient, noise), dim=1)).clamp(-1, 1)


def along(gradient: Float[Tensor, "n 3"], noise: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """The part of `noise` that lies in the planes across the gradients."""
    normal = F.normalize(gradient.detach(), dim=1)
    return noise - (noise * normal).sum(dim=1, keepdim=True) * normal


def bend_loss(here: Float[Tensor, "n 3"], there: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Mean length of the difference between the normals of a place and of one beside it (Oechsle et al. 2021, eq. 9).

    Not squared: a sharp edge costs no more than a round one, so that noise is bent flat and edges stay.
    """
    return ranks.part_of_mean(smooth_error(here, there), len(here))


def smooth_error(here: Float[Tensor, "n 3"], there: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Length of the difference between normals, rounded near zero."""
    apart = (F.normalize(here, dim=1) - F.normalize(there, dim=1)).square().sum(dim=1)
    return (apart + 1e-4).sqrt()


def eikonal_error(gradient: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """| |grad f| - 1 |, as in SIREN; IGR and Neural-Pull's ablation (its table 8) take the square."""
    return (gradient.norm(dim=1) - 1).abs()


def off_surface_error(sdf: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """exp(-100 |f|) (SIREN, eq. 6): places away from the cloud are not on the surface."""
    return torch.exp(-SHARPNESS * sdf.abs())


def direction_error(gradient: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """1 - cos(grad f, n) (SIREN, eq. 6): gradients point to the side that the cloud's normals do."""
    return 1 - F.cosine_similarity(gradient, normals, dim=1)


def gradient_error(gradient: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """|grad f - n| (IGR, eq. 2), for unit normals."""
    return (gradient - normals).norm(dim=1)
