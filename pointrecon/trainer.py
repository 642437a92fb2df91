"""One step of a fit to one cloud, and all the state that a later step depends on."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pointrecon.bilateral import Bilateral
from pointrecon.config import Config, LossConfig
from pointrecon.enclosed import enclosed, lookup
from pointrecon.objectives import (
    along,
    bend_loss,
    beside,
    chord_error,
    depth_error,
    direction_error,
    eikonal_error,
    gradient_error,
    off_surface_error,
    pull_loss,
    smooth_error,
    soft_abs,
)
from pointrecon.queries import QuerySampler
from pointrecon.regularise import IsoRegulariser
from pointrecon.sides import sides
from pointrecon.tiles import Guide
from shared.config import Schedule
from shared.field import Geometry, build_field
from shared.levelset import alignment_loss
from shared.optim import Optimisers
from shared.pull import pull
from shared.ranks import part_of_mean, shard

Terms = dict[str, Tensor]

# Queries beside the cloud's planes tell how the surface goes on, if they are nearer to the field's surface than this
# (field units), and so many times farther from their nearest point than what gives its plane: between the points of a
# cloud, also where it is thin, nothing is missing.
IN_REACH, AWAY = 0.2, 1.5
# How much the smoothness of that counts, by the rim's normals, and standard deviation of the way on which it is asked.
SMOOTH, SMOOTH_REACH = 0.6, 0.16
# Fraction of the run in which a field that has a guide is made like that everywhere.
FOLLOW = 0.15
OPEN = "settings are open that follow from the cloud; see pointrecon.adapt"


class Batch(NamedTuple):
    """This rank's n queries, on the device. The first `near` of them are near the cloud: drawn around its `rows`, which
    are, or are taken to be, at `origin`; `nearest` is then as if they were not moved with these. The others weigh as
    much as they lie above the cloud, if that is asked, and what gives the plane of their nearest point reaches as far
    as `width`, if there may be holes."""

    x: Float[Tensor, "n 3"]
    nearest: Float[Tensor, "n 3"]
    origin: Float[Tensor, "near 3"]
    rows: Int[Tensor, " near"]
    near: int
    facing: Float[Tensor, " beyond"] | None
    width: Float[Tensor, " beyond"] | None


class Trainer:
    """Field, queries, iso-points and optimisers of one fit, in field space.

    normals: unit ones of the points (N, 3). guide: what is known of places away from them, for a pull.
    """

    def __init__(
        self,
        config: Config,
        points: NDArray[np.float64],
        device: torch.device,
        normals: NDArray[np.float64] | None = None,
        guide: Guide | None = None,
    ):
        torch.manual_seed(config.train.seed)
        self.config, self.device, self.guide = config, device, guide
        self.field = build_field(config.field, device)
        q, loss = config.queries, config.loss
        if q.neighbours is None or q.closeness is None or q.space_share is None:
            raise ValueError(OPEN)
        if loss.plane is None or loss.target == "auto" or (loss.moves_points and loss.bilateral is None):
            raise ValueError(OPEN)
        if normals is not None and normals.shape != points.shape:
            raise ValueError(f"normals of shape {normals.shape} for points of shape {points.shape}")
        self.plane, self.weights = loss.plane, _weights(loss)
        generator = np.random.default_rng(config.train.seed)
        self.queries = QuerySampler(points, generator, q.neighbours, q.factor, q.closeness, q.space_share, q.pool)
        cloud = torch.from_numpy(self.queries.points).to(device)
        pulled, inward = loss.objective == "pull", config.field.inside_out
        side = -enclosed(self.queries.tree).astype(np.int8) if loss.enclosed and pulled else None
        # Through a hole wider than some spacings the flood comes in. Where it does not, what looks like a rim is taken
        # for an edge.
        self.closed = side is not None and bool(side.any())
        if not self.closed:
            side = sides(points, self.queries.tree, normals) if loss.sides and pulled else None
        if side is not None and inward and (self.closed or normals is None):  # normals are as the field is
            side = -side
        self.side = None if side is None else torch.from_numpy(side).to(device)
        self.normals = None if normals is None else torch.from_numpy(normals).to(cloud)
        self.bilateral = Bilateral(self.queries.tree, cloud, loss.bilateral or 0.0) if loss.moves_points else None
        self.iso = IsoRegulariser(loss, cloud, config.train.seed)
        self.optimisers = Optimisers(self.field, config.optim)
        self.aligned, self.bent = min(loss.alignment_points, q.batch), min(loss.bend_points, q.batch)
        self.steps = 0

    def step(self, progress: float) -> Terms:
        """Draw queries and move every parameter once. Returns the loss terms, detached, on the device."""
        queries, active = self.config.queries, self.field.active(progress)
        if self.steps and self.steps % queries.refresh == 0:
            self.queries.refresh(queries.renewed)
        self.iso.update(self.field, self.steps, active)
        if self.bilateral:
            self.bilateral.update(self.field, progress, active)
        batch = self._draw()
        geometry = self.field.geometry(batch.x, active)
        objective = self._pull if self.config.loss.objective == "pull" else self._on_surface
        terms = objective(batch, geometry, progress)
        if self._weight("alignment", progress) > 0:
            terms["alignment"] = self._alignment(batch, geometry, active)
        if self._weight("bend", progress) > 0 and progress >= self.plane:
            terms["bend"] = self._bend(batch, geometry, active)
        if self.iso.ready:
            terms |= self.iso.terms(self.field, active)
        total = torch.zeros((), device=self.device)
        for name, term in terms.items():
            total = total + self._weight(name, progress) * term
        self.optimisers.step(total, progress)
        self.steps += 1
        return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}

    def _weight(self, name: str, progress: float) -> float:
        return self.weights[name](progress)

    def _draw(self) -> Batch:
        queries, rows = self.queries.draw(self.config.queries.batch)
        x, nearest, origin, in_space, rows = (shard(part) for part in (*queries, rows))
        near = int((~in_space).sum())  # they come first
        weighed = self.config.loss.facing and self.config.loss.objective == "pull"
        facing = self.queries.facing(x[near:], rows[near:]).to(self.device) if weighed else None
        width = self.queries.width(rows[near:]).to(self.device) if weighed and not self.closed else None
        x, nearest, origin, rows = (part.to(self.device) for part in (x, nearest, origin[:near], rows[:near]))
        if self.bilateral:
            around, origin = self.bilateral.drawn_around(x[:near], rows)
            x = torch.cat([around, x[near:]])
        return Batch(x, nearest, origin, rows, near, facing, width)

    def _pull(self, batch: Batch, geometry: Geometry, progress: float) -> Terms:
        """Neural-Pull: queries that are pulled arrive at the cloud."""
        near, squared = batch.near, self.config.loss.squared
        around, beyond = _part(geometry, slice(near)), _part(geometry, slice(near, None))
        at_origin = cache(lambda: self._gradient(batch.origin, progress))  # asked for once, if at all
        trust = self.iso.trust(batch.rows, batch.origin, at_origin()) if self.iso.ready else torch.ones_like(around.sdf)
        terms = {"pull": part_of_mean(trust * self._near_error(batch, around, progress, at_origin), near)}
        if self.queries.space_share > 0:
            x, nearest = batch.x[near:], batch.nearest[near:]
            error = pull_loss(pull(x, beyond.sdf, beyond.gradient), nearest, squared)
            if batch.facing is not None:
                error = batch.facing * error
                if batch.width is not None and self._weight("hole", progress) > 0:
                    terms["hole"] = self._hole(batch, beyond, progress)
            if self.side is not None:
                error = self._known_side(self.side, batch, beyond, error)
            if self.guide is not None:
                known = self.guide.sdf(x)
                # Nor near a point: what is thinner than its cells, the guide may not know at all.
                away = torch.minimum(known.abs(), (x - nearest).norm(dim=1)) > self.guide.reach
                error = torch.where(away, _distance(beyond.sdf - known, squared), error)
            terms["space"] = part_of_mean(error, len(error))
        if self._weight("eikonal", progress) > 0:
            terms["eikonal"] = part_of_mean(eikonal_error(geometry.gradient).square(), len(batch.x))
        if self.normals is not None and self._weight("normal", progress) > 0:
            # Level sets are alike: what the point has, its queries should have, too.
            terms["normal"] = part_of_mean(trust * direction_error(around.gradient, self.normals[batch.rows]), near)
        return terms

    def _known_side(
        self, cells: Int[Tensor, "c c c"], batch: Batch, geometry: Geometry, error: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The errors of the n queries from space, but of the depth where the cells tell their side: everywhere within
        what is enclosed, else where the field has another."""
        x, nearest = batch.x[batch.near :], batch.nearest[batch.near :]
        side = lookup(cells, x)
        signed = side * geometry.sdf  # the depth; negative on the wrong side
        depth = depth_error(x, signed, nearest, self.config.loss.squared)
        if self.closed:
            return torch.where(side != 0, depth, error)
        # Beside a hole the surface is nearer than its rim.
        return torch.where(signed < 0, depth if batch.facing is None else batch.facing * depth, error)

    def _near_error(
        self, batch: Batch, geometry: Geometry, progress: float, at_origin: Callable[[], Tensor]
    ) -> Float[Tensor, " n"]:
        """What the n queries near the cloud are off, of which geometry speaks; at_origin: gradients (n, 3) there."""
        loss, x, nearest = self.config.loss, batch.x[: batch.near], batch.nearest[: batch.near]
        if self.guide is not None and progress < FOLLOW:
            return _distance(geometry.sdf - self.guide.sdf(x), loss.squared)
        if progress < self.plane:
            return pull_loss(pull(x, geometry.sdf, geometry.gradient), nearest, loss.squared)
        own = loss.target == "origin"
        target, gradient = (batch.origin, at_origin()) if own else (nearest, self._gradient(nearest, progress))
        error = chord_error(x, geometry, target, gradient)
        return error.square() if loss.squared else soft_abs(error, loss.softness or 0.0)

    def _on_surface(self, batch: Batch, geometry: Geometry, progress: float) -> Terms:
        """SIREN and IGR: the points that queries were drawn around are on the surface, and gradients have length 1."""
        near, siren = batch.near, self.config.loss.objective == "siren"
        at = self.field.geometry(batch.origin, self.field.active(progress))
        trust = self.iso.trust(batch.rows, batch.origin, at.gradient) if self.iso.ready else torch.ones_like(at.sdf)
        terms = {"surface": part_of_mean(trust * at.sdf.abs(), near)}
        if self.normals is not None and self._weight("normal", progress) > 0:
            error = (direction_error if siren else gradient_error)(at.gradient, self.normals[batch.rows])
            terms["normal"] = part_of_mean(trust * error, near)
        if siren and self.queries.space_share > 0:
            beyond = off_surface_error(geometry.sdf[near:])
            terms["off_surface"] = part_of_mean(beyond, len(beyond))
        # SIREN's everywhere; IGR's around the cloud and in space, squared.
        gradient = torch.cat([geometry.gradient, at.gradient]) if siren else geometry.gradient
        error = eikonal_error(gradient) if siren else eikonal_error(gradient).square()
        terms["eikonal"] = part_of_mean(error, len(error))
        return terms

    def _alignment(self, batch: Batch, geometry: Geometry, active: int | None) -> Tensor:
        loss, some = self.config.loss, slice(len(shard(range(self.aligned))))
        x, nearest, there = batch.x[some], batch.nearest[some], _part(geometry, some)
        reference = pull(x, there.sdf, there.gradient) if loss.alignment_at == "pulled" else nearest
        distance = (x - nearest).norm(dim=1) if loss.alignment_weight == "euclidean" else None
        decay = 0.0 if loss.alignment_weight == "none" else loss.alignment_decay
        gradient = self.field.geometry(reference, active).gradient
        return alignment_loss(there, gradient, decay, loss.alignment_kind, distance)

    def _bend(self, batch: Batch, geometry: Geometry, active: int | None) -> Tensor:
        noise = shard(self.queries.noise(self.bent)).to(self.device)
        x, there = batch.x[: len(noise)], geometry.gradient[: len(noise)]
        moved = beside(x, there, 1 / self.config.field.finest, noise)
        return bend_loss(there, self.field.geometry(moved, active).gradient)

    def _hole(self, batch: Batch, geometry: Geometry, progress: float) -> Tensor:
        """Where a part of the surface is missing: normals of queries beside the rim are those of the rim, so that the
        surface goes on as it comes, and normals of places that lie beside each other are alike."""
        noise = shard(self.queries.noise(self.config.queries.batch)).to(self.device)[batch.near :]
        x, nearest, facing, width = batch.x[batch.near :], batch.nearest[batch.near :], batch.facing, batch.width
        assert facing is not None and width is not None, "asked for only where queries are weighed"
        beside_rim = (facing < 0.5) & ((x - nearest).norm(dim=1) > AWAY * width)
        rows = (beside_rim & (geometry.sdf.detach().abs() < IN_REACH)).nonzero()[:, 0]
        there, active = _part(geometry, rows), self.field.active(progress)
        at = pull(x[rows], there.sdf, there.gradient).detach().clamp(-1, 1)
        goes_on = (1 - facing[rows]) * direction_error(there.gradient, self._gradient(nearest[rows], progress))
        here = self.field.geometry(at, active).gradient
        moved = (at + SMOOTH_REACH * along(here, noise[rows])).clamp(-1, 1)
        smooth = smooth_error(here, self.field.geometry(moved, active).gradient)
        return part_of_mean(goes_on + SMOOTH * smooth, len(facing))

    @torch.no_grad()
    def _gradient(self, x: Float[Tensor, "n 3"], progress: float) -> Float[Tensor, "n 3"]:
        return self.field.geometry(x, self.field.active(progress)).gradient

    def finish(self) -> bool:
        """The run is over: bring the weights to their final values; returns whether that changed them."""
        return self.optimisers.finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; see `load_state_dict`."""
        return {
            "field": self.field.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "queries": self.queries.state_dict(),
            "iso": self.iso.state_dict(),
            "bilateral": self.bilateral.state_dict() if self.bilateral else None,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.field.load_state_dict(state["field"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.queries.load_state_dict(state["queries"])
        self.iso.load_state_dict(state["iso"])
        if self.bilateral and state.get("bilateral"):
            self.bilateral.load_state_dict(state["bilateral"])
        self.steps = state["steps"]


def _distance(apart: Tensor, squared: bool) -> Tensor:
    return apart.square() if squared else apart.abs()


def _part(geometry: Geometry, rows: slice | Tensor) -> Geometry:
    return Geometry(*(part[rows] for part in geometry))


def _weights(loss: LossConfig) -> dict[str, Schedule]:
    """The weight of each term. Raises ValueError where one is open that the objective has."""
    own = {"pull": ["space", "hole"], "siren": ["surface", "normal", "off_surface", "eikonal"]}
    needed = own.get(loss.objective, ["surface", "normal", "eikonal"])
    needed += ["iso_sdf", "iso_normal"] if loss.iso_points else []
    if any(getattr(loss, name) is None for name in needed):
        raise ValueError("weights are open that follow from the objective; see pointrecon.adapt")
    names = ("space", "surface", "normal", "off_surface", "eikonal", "alignment", "hole", "iso_sdf", "iso_normal")
    weights: dict[str, Schedule] = {name: getattr(loss, name) or Schedule(0.0) for name in names}
    return {**weights, "pull": Schedule(1.0), "bend": Schedule(loss.bend or 0.0)}
