"""The terms that `mvrecon train` minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mvrecon.config import LossConfig
from mvrecon.model import Rendering
from mvrecon.rays import Rand, RayBatch
from shared import ranks
from shared.field import Field, Geometry
from shared.levelset import alignment_loss
from shared.pull import pull


def color_loss(
    color: Float[Tensor, "r 3"], truth: Float[Tensor, "r 3"], mask: Float[Tensor, " r"] | None
) -> Float[Tensor, ""]:
    """L1 over the channels, mean over the rays, those inside the masks where there are masks (NeuS, eq. 15)."""
    error = (color - truth).abs().sum(dim=1)
    if mask is None:
        return ranks.part_of_mean(error, len(error))
    inside = (mask > 0.5).float()
    return ranks.part_of_mean(error * inside, inside.sum())


def eikonal_loss(gradient: Float[Tensor, "n 3"], counted: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of (|grad f| - 1)^2 (Gropp et al. 2020) over the points that count."""
    return ranks.part_of_mean((gradient.norm(dim=1) - 1).square() * counted, counted.sum())


def mask_loss(opacity: Float[Tensor, " r"], mask: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """Binary cross-entropy between the rays' opacity and the masks (NeuS, eq. 17)."""
    opacity = opacity.clamp(1e-3, 1 - 1e-3)
    # Not torch's: it ends a run that diverges before anyone can say so.
    error = -torch.where(mask > 0.5, opacity, 1 - opacity).log()
    return ranks.part_of_mean(error, len(error))


def alignment_term(
    field: Field, rendering: Rendering, chance: Float[Tensor, "r k"], active: int | None
) -> Float[Tensor, ""]:
    """Level set alignment at k samples of every ray, near the surface and far from it alike; `chance` (0..1) says
    which."""
    x, known = rendering.points, rendering.geometry
    chance, samples = chance[rendering.ray], rendering.t.shape[1]
    first = samples * torch.arange(len(chance), device=x.device)[:, None]
    picked = (first + (chance * samples).long()).reshape(-1)
    there = Geometry(known.sdf[picked], known.gradient[picked], known.feature[picked])
    pulled = pull(x[picked], there.sdf, there.gradient)
    return alignment_loss(there, field.geometry(pulled, active).gradient, counted=rendering.counted[picked])


def total_loss(
    config: LossConfig,
    field: Field,
    batch: RayBatch,
    rendering: Rendering,
    progress: float,
    rand: Rand,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The weighted sum and its terms by name. A term of weight zero is not computed."""
    terms = {"color": color_loss(rendering.color, batch.color, batch.mask)}
    total = terms["color"]
    terms["eikonal"] = eikonal_loss(rendering.geometry.gradient, rendering.counted)
    total = total + config.eikonal(progress) * terms["eikonal"]
    if batch.mask is not None and config.mask(progress) > 0:
        terms["mask"] = mask_loss(rendering.opacity, batch.mask)
        total = total + config.mask(progress) * terms["mask"]
    if batch.mask is None and config.opacity(progress) > 0:
        # What surface and background explain equally well, such as a plain table, shall be surface.
        terms["opacity"] = ranks.part_of_mean((1 - rendering.opacity) * rendering.hit, rendering.hit.sum())
        total = total + config.opacity(progress) * terms["opacity"]
    if config.alignment(progress) > 0:
        chance = rand(config.alignment_samples)
        terms["alignment"] = alignment_term(field, rendering, chance, field.active(progress))
        total = total + config.alignment(progress) * terms["alignment"]
    return total, terms
