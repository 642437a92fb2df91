"""Iso-points as a regulariser of a fit (Yifan et al. 2021, section 3.2): the field's own surface, some steps old.

A field learns what is smooth before it learns the noise. Points spread over its surface after a short warm-up are asked
to stay on it, with normals that agree with their neighbours', and cloud points far from them are trusted less. They are
renewed now and then, so that detail comes in slowly, if it lasts.
"""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointrecon.config import LossConfig
from shared.field import Field
from shared.iso_losses import bilateral_weights, iso_normal_loss, iso_sdf_loss, pca_normals
from shared.isopoints import IsoPoints, extract
from shared.ranks import shard

SEEDS = 4  # points of the cloud that are brought down to the surface at first, for each iso-point


class IsoRegulariser:
    """The iso-points of a fit to a cloud (N, 3), in field space; without effect until `ready`."""

    def __init__(self, config: LossConfig, points: Float[Tensor, "n 3"], seed: int) -> None:
        self.config, self.points = config, points
        # Its own numbers: queries are the same with iso-points and without.
        self.generator = np.random.default_rng([seed, 1])
        self._take(IsoPoints(points[:0], points[:0]))

    @property
    def ready(self) -> bool:
        """Whether there are iso-points, enough of them for normals."""
        return len(self.iso) > self.config.iso_neighbours

    def update(self, field: Field, step: int, active: int | None) -> None:
        """Renew the iso-points if it is time to: from the last ones, or from the cloud where there are none.

        Not from random places, as the paper's multi-view fits: those find every false sheet far from the cloud.
        """
        since = step - self.config.iso_warmup
        if self.config.iso_points and since >= 0 and since % self.config.iso_every == 0:
            seeds = self.iso.points if self.ready else self._some_of_the_cloud()
            self._take(extract(field, seeds, self.config.iso_points, active, self.generator))

    def terms(self, field: Field, active: int | None) -> dict[str, Float[Tensor, ""]]:
        """Losses of the iso-points (eqs. 8 and 9), of this rank's share of them."""
        there = field.geometry(shard(self.iso.points), active)
        return {"iso_sdf": iso_sdf_loss(there.sdf), "iso_normal": iso_normal_loss(there.gradient, shard(self.normals))}

    def trust(
        self, rows: Int[Tensor, " m"], points: Float[Tensor, "m 3"], gradient: Float[Tensor, "m 3"]
    ) -> Float[Tensor, " m"]:
        """How far these rows of the cloud are to be trusted, 0 to 1 (eqs. 10 and 11); not differentiated.

        points: where they are taken to be; gradient: the field's there.
        """
        return bilateral_weights(points, gradient, self.iso, self.nearest[rows])

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on; see `load_state_dict`."""
        return {
            "points": self.iso.points,
            "normals": self.iso.normals,
            "generator": json.dumps(self.generator.bit_generator.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, with the same cloud."""
        self._take(IsoPoints(*(state[name].to(self.points.device) for name in ("points", "normals"))))
        self.generator.bit_generator.state = json.loads(state["generator"])

    def _take(self, iso: IsoPoints) -> None:
        """These iso-points from here on, and what is known of them as long as they stay."""
        self.iso = iso
        if self.ready:
            self.normals = pca_normals(iso.points, self.config.iso_neighbours)
            self.nearest = iso.nearest(self.points)

    def _some_of_the_cloud(self) -> Float[Tensor, "m 3"]:
        count = min(len(self.points), SEEDS * self.config.iso_points)
        rows = self.generator.choice(len(self.points), count, replace=False)
        return self.points[torch.from_numpy(rows).to(self.points.device)]
