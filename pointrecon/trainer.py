"""One step of Neural-Pull on one cloud, and all the state that a later step depends on."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pointrecon.config import Config
from pointrecon.queries import QuerySampler
from shared.field import Geometry, build_field
from shared.levelset import alignment_loss
from shared.optim import Optimisers
from shared.pull import pull
from shared.ranks import part_of_mean, shard


def pull_loss(pulled: Float[Tensor, "n 3"], targets: Float[Tensor, "n 3"], squared: bool) -> Float[Tensor, " n"]:
    """Distance, or its square (Neural-Pull, eq. 2), between pulled queries and their nearest cloud points."""
    error = (pulled - targets).square().sum(dim=1)
    return error if squared else (error + 1e-12).sqrt()


def plane_loss(
    queries: Float[Tensor, "n 3"], geometry: Geometry, targets: Float[Tensor, "n 3"], squared: bool
) -> Float[Tensor, " n"]:
    """How far the pulled queries are from their targets along the normals, or its square.

    A cloud's points are not where the queries' perpendiculars meet the surface, but up to half a spacing beside. The
    pull takes that for an error of the direction, noise as large as the distances themselves; here it does not count.
    """
    normal = F.normalize(geometry.gradient.detach(), dim=1)
    error = ((queries - targets) * normal).sum(dim=1) - geometry.sdf
    return error.square() if squared else error.abs()


class Trainer:
    """Field, queries and optimisers of one fit, in field space."""

    def __init__(self, config: Config, points: NDArray[np.float64], device: torch.device):
        torch.manual_seed(config.train.seed)
        self.config, self.device = config, device
        self.field = build_field(config.field, device)
        q = config.queries
        generator = np.random.default_rng(config.train.seed)
        self.queries = QuerySampler(points, generator, q.neighbours, q.factor, q.space_share, q.pool)
        self.optimisers = Optimisers(self.field, config.optim)
        self.steps = 0

    def step(self, progress: float) -> dict[str, Tensor]:
        """Pull a batch of queries and move every parameter once. Returns the loss terms, detached, on the device."""
        queries, loss = self.config.queries, self.config.loss
        if self.steps and self.steps % queries.refresh == 0:
            self.queries.refresh(queries.renewed)
        x, targets, in_space = (shard(t) for t in self.queries.batch(queries.batch))
        near = int((~in_space).sum())  # they come first
        x, targets, active = x.to(self.device), targets.to(self.device), self.field.active(progress)
        geometry = self.field.geometry(x, active)
        around, beyond = (Geometry(*(part[rows] for part in geometry)) for rows in (slice(near), slice(near, None)))
        if progress >= loss.plane:
            error = plane_loss(x[:near], around, targets[:near], loss.squared)
        else:
            error = pull_loss(pull(x[:near], around.sdf, around.gradient), targets[:near], loss.squared)
        terms = {"pull": part_of_mean(error, near)}
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
