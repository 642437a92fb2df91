"""One step of Neural-Pull on one cloud, and all the state that a later step depends on."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pointrecon.config import Config
from pointrecon.queries import Queries, QuerySampler
from shared.field import Geometry, build_field
from shared.levelset import alignment_loss
from shared.optim import Optimisers
from shared.pull import pull
from shared.ranks import part_of_mean, shard


def pull_loss(pulled: Float[Tensor, "n 3"], targets: Float[Tensor, "n 3"], squared: bool) -> Float[Tensor, " n"]:
    """Distance, or its square (Neural-Pull, eq. 2), between pulled queries and their nearest cloud points."""
    error = (pulled - targets).square().sum(dim=1)
    return error if squared else (error + 1e-12).sqrt()


def plane_error(
    queries: Float[Tensor, "n 3"], geometry: Geometry, targets: Float[Tensor, "n 3"]
) -> Float[Tensor, " n"]:
    """How far the pulled queries are from their targets along the normals, with its sign.

    A cloud's points are not where the queries' perpendiculars meet the surface, but up to half a spacing beside. The
    pull takes that for an error of the direction, noise as large as the distances themselves; here it does not count.
    """
    normal = F.normalize(geometry.gradient.detach(), dim=1)
    return ((queries - targets) * normal).sum(dim=1) - geometry.sdf


def chord_error(
    queries: Float[Tensor, "n 3"],
    geometry: Geometry,
    targets: Float[Tensor, "n 3"],
    target_gradient: Float[Tensor, "n 3"],
) -> Float[Tensor, " n"]:
    """`plane_error` for targets far beside the queries: along the mean of the normals at both ends.

    A chord of a sphere is perpendicular to the sum of the normals at its ends, so that curvature costs nothing (the
    symmetric objective of Rusinkiewicz 2019). Pairs whose normals disagree lie across an edge or on two sides of a
    thin part, and count less.
    """
    here, there = (F.normalize(g.detach(), dim=1) for g in (geometry.gradient, target_gradient))
    cosine = (here * there).sum(dim=1)
    height = ((queries - targets) * (here + there)).sum(dim=1) / (1 + cosine).clamp_min(0.2)
    return cosine.clamp_min(0) ** AGREE * (height - geometry.sdf)


def soft_abs(error: Float[Tensor, " n"], softness: float) -> Float[Tensor, " n"]:
    """|error|, rounded to a parabola below `softness`: the mean of noisy errors tells more than their median."""
    return error.abs() if softness == 0 else (error.square() + softness**2).sqrt() - softness


# Power of the cosine between the normals at both ends of a chord: what disagrees by 45 degrees counts a quarter.
AGREE = 4


class Trainer:
    """Field, queries and optimisers of one fit, in field space."""

    def __init__(self, config: Config, points: NDArray[np.float64], device: torch.device):
        torch.manual_seed(config.train.seed)
        self.config, self.device = config, device
        self.field = build_field(config.field, device)
        q = config.queries
        if q.neighbours is None or config.loss.target == "auto":
            raise ValueError("settings are open that follow from the cloud; see pointrecon.adapt")
        generator = np.random.default_rng(config.train.seed)
        self.queries = QuerySampler(points, generator, q.neighbours, q.factor, q.space_share, q.pool)
        self.optimisers = Optimisers(self.field, config.optim)
        self.steps = 0

    def step(self, progress: float) -> dict[str, Tensor]:
        """Pull a batch of queries and move every parameter once. Returns the loss terms, detached, on the device."""
        queries, loss = self.config.queries, self.config.loss
        if self.steps and self.steps % queries.refresh == 0:
            self.queries.refresh(queries.renewed)
        batch = Queries(*(shard(t) for t in self.queries.batch(queries.batch)))
        near = int((~batch.in_space).sum())  # they come first
        batch = Queries(*(t.to(self.device) for t in batch))
        x, targets, active = batch.x, batch.nearest, self.field.active(progress)
        geometry = self.field.geometry(x, active)
        around, beyond = (Geometry(*(part[rows] for part in geometry)) for rows in (slice(near), slice(near, None)))
        terms = {"pull": part_of_mean(self._near_error(batch, around, progress), near)}
        total = terms["pull"]
        if queries.space_share > 0:
            pulled = pull(x[near:], beyond.sdf, beyond.gradient)
            terms["space"] = part_of_mean(pull_loss(pulled, targets[near:], loss.squared), len(x) - near)
            total = total + loss.space(progress) * terms["space"]
        if loss.alignment(progress) > 0:
            n = len(shard(range(loss.alignment_points)))
            there = Geometry(*(part[:n] for part in geometry))
            pulled = pull(x[:n], there.sdf, there.gradient)
            terms["alignment"] = alignment_loss(there, self.field.geometry(pulled, active).gradient)
            total = total + loss.alignment(progress) * terms["alignment"]
        self.optimisers.step(total, progress)
        self.steps += 1
        return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}

    def _near_error(self, batch: Queries, geometry: Geometry, progress: float) -> Float[Tensor, " n"]:
        """What the n queries near the cloud are off, of which geometry speaks."""
        loss, near = self.config.loss, len(geometry.sdf)
        x, nearest, origin = (part[:near] for part in batch[:3])
        if progress < loss.plane:
            return pull_loss(pull(x, geometry.sdf, geometry.gradient), nearest, loss.squared)
        if loss.target == "nearest":
            error = plane_error(x, geometry, nearest)
        else:
            with torch.no_grad():
                there = self.field.geometry(origin, self.field.active(progress)).gradient
            error = chord_error(x, geometry, origin, there)
        return error.square() if loss.squared else soft_abs(error, loss.softness or 0.0)

    def finish(self) -> bool:
        """The run is over: bring the weights to their final values; returns whether that changed them."""
        return self.optimisers.finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; see `load_state_dict`."""
        return {
            "field": self.field.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "queries": self.queries.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.field.load_state_dict(state["field"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.queries.load_state_dict(state["queries"])
        self.steps = state["steps"]
