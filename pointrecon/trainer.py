"""One step of Neural-Pull on one cloud, and all the state that a later step depends on."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pointrecon.config import Config
from pointrecon.objectives import bend_loss, beside, chord_error, plane_error, pull_loss, soft_abs
from pointrecon.queries import Queries, QuerySampler
from shared.field import Geometry, build_field
from shared.levelset import alignment_loss
from shared.optim import Optimisers
from shared.pull import pull
from shared.ranks import part_of_mean, shard


class Trainer:
    """Field, queries and optimisers of one fit, in field space."""

    def __init__(self, config: Config, points: NDArray[np.float64], device: torch.device):
        torch.manual_seed(config.train.seed)
        self.config, self.device = config, device
        self.field = build_field(config.field, device)
        q, loss = config.queries, config.loss
        if q.neighbours is None or loss.plane is None or loss.space is None or loss.target == "auto":
            raise ValueError("settings are open that follow from the cloud; see pointrecon.adapt")
        self.plane, self.space = loss.plane, loss.space
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
            total = total + self.space(progress) * terms["space"]
        if loss.alignment(progress) > 0:
            n = len(shard(range(loss.alignment_points)))
            there = Geometry(*(part[:n] for part in geometry))
            pulled = pull(x[:n], there.sdf, there.gradient)
            terms["alignment"] = alignment_loss(there, self.field.geometry(pulled, active).gradient)
            total = total + loss.alignment(progress) * terms["alignment"]
        if loss.bend and progress >= self.plane:
            n = len(shard(range(loss.alignment_points)))
            there = Geometry(*(part[:n] for part in geometry))
            noise = shard(self.queries.noise(loss.alignment_points)).to(self.device)
            moved = beside(x[:n], there.gradient, 1 / self.config.field.finest, noise)
            terms["bend"] = bend_loss(there.gradient, self.field.geometry(moved, active).gradient)
            total = total + loss.bend * terms["bend"]
        self.optimisers.step(total, progress)
        self.steps += 1
        return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}

    def _near_error(self, batch: Queries, geometry: Geometry, progress: float) -> Float[Tensor, " n"]:
        """What the n queries near the cloud are off, of which geometry speaks."""
        loss, near = self.config.loss, len(geometry.sdf)
        x, nearest, origin = (part[:near] for part in batch[:3])
        if progress < self.plane:
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
