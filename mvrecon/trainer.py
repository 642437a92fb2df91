"""One training step of a scene, and all the state that a later step depends on."""

from typing import Any

import torch
from torch import Tensor

from mvrecon.config import Config
from mvrecon.density import annealing
from mvrecon.losses import total_loss
from mvrecon.model import SurfaceModel
from mvrecon.rays import RayPool
from mvrecon.sampling import SdfVolume
from mvrecon.scene import Scene
from shared.optim import Optimisers
from shared.ranks import shard


class Trainer:
    """Model, cached distances, optimisers and random generator of one run."""

    def __init__(self, config: Config, scene: Scene, device: torch.device):
        torch.manual_seed(config.train.seed)
        self.config = config
        self.device = device
        self.model = SurfaceModel(config, scene.masks is None, device)
        self.volume = SdfVolume(config.sampling.volume, device)
        self.pool = RayPool(scene, config.train.mask_share, device)
        self.generator = torch.Generator(device).manual_seed(config.train.seed)
        self.optimisers = Optimisers(self.model, config.optim, constant=("sharpness",))
        self.steps = self.refresh_at = 0

    def step(self, progress: float) -> dict[str, Tensor]:
        """Draw rays, render, and move every parameter once. Returns the loss terms, detached, still on the device."""
        self._refresh(progress)
        batch = self.pool.draw(self.config.train.rays, self.generator)
        rays = (batch.origins, batch.directions)
        anneal = annealing(progress, self.steps, self.config.sampling.anneal)
        rendering = self.model.render(self.volume, *rays, progress, self.rand, anneal)
        loss, terms = total_loss(self.config.loss, self.model.field, batch, rendering, progress, self.rand)
        self.optimisers.step(loss, progress)
        self.model.limit_sharpness()
        self.steps += 1
        return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}

    def rand(self, columns: int) -> Tensor:
        """Random numbers (r, columns) in 0..1 for this rank's rays of a batch."""
        every = torch.rand(self.config.train.rays, columns, generator=self.generator, device=self.device)
        return shard(every)

    def refresh_volume(self, progress: float) -> None:
        """Bring the cached distances up to date."""
        active = self.model.field.active(progress)
        self.volume.refresh(lambda x: self.model.field.sdf(x, active), self.config.sampling.band)

    def _refresh(self, progress: float) -> None:
        sampling = self.config.sampling
        if self.steps >= self.refresh_at and sampling.source == "volume":
            self.refresh_volume(progress)
            self.refresh_at = self.steps + round(sampling.refresh(progress))

    def finish(self) -> bool:
        """The run is over: bring the weights to their final values; returns whether that changed them."""
        return self.optimisers.finish()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; see `load_state_dict`."""
        return {
            "model": self.model.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "volume": self.volume.values,
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "refresh_at": self.refresh_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.volume.values.copy_(state["volume"])
        self.generator.set_state(state["generator"])
        self.steps, self.refresh_at = state["steps"], state["refresh_at"]
