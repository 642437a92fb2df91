"""What iso-points ask of a fit, and how far they trust its cloud (Yifan et al. 2021, section 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shared import ranks
from shared.isopoints import FAR, IsoPoints, agreement, finite, others


@torch.no_grad()
def pca_normals(points: Float[Tensor, "n 3"], neighbours: int = FAR) -> Float[Tensor, "n 3"]:
    """Unit normals by principal components of each point with its neighbours: the more of these, the smoother.

    To which of the two sides they point is left open. Raises ValueError for fewer than 3 points or 2 neighbours, and
    for points that are not finite.
    """
    if len(finite(points)) < 3 or neighbours < 2:
        raise ValueError(f"{len(points)} points with {neighbours} neighbours each do not span planes")
    way = others(points, neighbours).way.double()
    way = torch.cat([torch.zeros_like(way[:, :1]), way], dim=1)
    way = way - way.mean(dim=1, keepdim=True)
    _, axes = torch.linalg.eigh(way.mT @ way)  # by rising variance
    return axes[:, :, 0].to(points.dtype)


def iso_sdf_loss(sdf: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of |f| over iso-points (eq. 8), in field units."""
    return ranks.part_of_mean(sdf.abs(), len(sdf))


def iso_normal_loss(gradient: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Mean of 1 - |cos| between the field's gradients at iso-points and their normals by `pca_normals` (eq. 9)."""
    return ranks.part_of_mean(1 - F.cosine_similarity(gradient, normals, dim=1).abs(), len(gradient))


@torch.no_grad()
def bilateral_weights(
    points: Float[Tensor, "m 3"],
    normals: Float[Tensor, "m 3"],
    iso: IsoPoints,
    nearest: Int[Tensor, " m"],
    reach: float = 4.0,
    degrees: float = 60.0,
) -> Float[Tensor, " m"]:
    """How far each point of a noisy cloud is to be trusted, from 0 to 1 (eqs. 10 and 11). Not differentiated.

    normals: the field's gradients at the points, of any length. nearest: `iso.nearest(points)`, good for as long as
    the iso-points are. reach: sigma_p is reach^2 times their `patch`; the paper has 16 D / N.

    The paper's minimum over iso-points would be zero nearly everywhere: the nearest one counts. Its eq. 11 has the 1
    outside of the fraction, by which equal normals weigh less than others; EAR, where it comes from, has it inside.
    """
    height = ((iso.points[nearest] - points) * iso.normals[nearest]).sum(dim=1)
    cosine = F.cosine_similarity(normals, iso.normals[nearest], dim=1)
    return torch.exp(-height.square() / (reach**2 * iso.patch)) * agreement(cosine, degrees)
