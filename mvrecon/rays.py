"""Batches of training rays, drawn from all photos at once without a Python loop over rays."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from mvrecon.scene import Scene
from shared.errors import UserError
from shared.geometry import ray_sphere
from shared.ranks import shard

# Pixels this far from a mask, as a fraction of the photo's width, count as near it: the silhouette must be seen from
# both sides.
MARGIN = 0.015


# Random numbers in 0..1 for a batch of rays: so many columns, a row for each ray.
Rand = Callable[[int], Tensor]


class RayBatch(NamedTuple):
    """n rays in field space with the photos' colours in 0..1 and, with masks, how much of the pixel is the object."""

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    color: Float[Tensor, "n 3"]
    mask: Float[Tensor, " n"] | None


class Pixels:
    """Some of the pixels of all photos as runs of neighbours: a fraction of the size of a list, in the same order."""

    def __init__(self, runs: list[NDArray[np.int64]], device: torch.device):
        """`runs`: arrays (k, 2) of each run's first pixel and the one after its last, in order."""
        starts, ends = np.concatenate(runs).T
        self.starts = torch.from_numpy(starts.copy()).to(device)
        self.before = torch.from_numpy(np.concatenate([[0], np.cumsum(ends - starts)])).to(device)
        self.count = int((ends - starts).sum())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        run = torch.searchsorted(self.before, index, right=True) - 1
        return self.starts[run] + index - self.before[run]


class RayPool:
    """The training pixels of a scene. With masks, `mask_share` of every batch lies in or near a mask.

    Photos mapped from disk stay there; others move to the device.
    """

    def __init__(self, scene: Scene, mask_share: float, device: torch.device):
        self.device = device
        self.views = torch.from_numpy(scene.train).to(device)
        self.cameras = scene.cameras.select(scene.train).to(device)
        self.width, self.height = scene.view_size
        self.images = self._held(scene.images, 3)
        self.masks = None if scene.masks is None else self._held(scene.masks, 1)[:, 0]
        self.pools = [(1.0, Pixels([np.array([[0, len(scene.train) * self.width * self.height]])], device))]
        if scene.masks is not None:
            inside, outside = self._near_masks(scene.masks[view] for view in scene.train)
            if not len(inside):
                raise UserError("mask: no mask has the object inside the unit sphere; check the masks and scale_mat_0")
            self.pools = [(mask_share, inside), (1 - mask_share, outside)] if len(outside) else [(1.0, inside)]

    def draw(self, count: int, generator: torch.Generator) -> RayBatch:
        """This rank's rays of a batch of `count` pixels, drawn with replacement."""
        parts, left = [], count
        for index, (part, pool) in enumerate(self.pools):
            n = left if index + 1 == len(self.pools) else round(count * part)
            parts.append(pool[torch.randint(len(pool), (n,), generator=generator, device=self.device)])
            left -= n
        pixel = shard(torch.cat(parts))
        area = self.width * self.height
        origins, directions = self._rays(pixel // area, pixel % area)
        row = (self.views[pixel // area] * area + pixel % area).to(self.images.device)
        color, mask = self.images[row].to(self.device), None if self.masks is None else self.masks[row].to(self.device)
        return RayBatch(origins, directions, color.float() / 255, None if mask is None else mask.float() / 255)

    def _held(self, pictures: NDArray[np.uint8], channels: int) -> Tensor:
        """All pixels, flat (n, channels), without a copy where the device is the CPU."""
        flat = torch.from_numpy(pictures).reshape(-1, channels)
        return flat if isinstance(pictures, np.memmap) else flat.to(self.device)

    def _rays(self, view: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        xy = torch.stack([within % self.width, within // self.width], dim=1).float()
        return self.cameras.rays(view, xy)

    def _near_masks(self, masks: Iterable[NDArray[np.uint8]]) -> tuple[Pixels, Pixels]:
        """The pixels in or near the masks and the others, of those whose rays meet the unit sphere."""
        area, inside, outside = self.width * self.height, [], []
        within = torch.arange(area, device=self.device)
        for view, mask in enumerate(masks):
            near = _dilate(mask).reshape(-1)
            hit = ray_sphere(*self._rays(torch.full_like(within, view), within))[2].cpu().numpy()
            inside.append(_runs(near & hit) + view * area)
            outside.append(_runs(~near & hit) + view * area)
        return Pixels(inside, self.device), Pixels(outside, self.device)


def _runs(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First and behind-last indices (k, 2) of the runs of True."""
    return np.flatnonzero(np.diff(chosen.view(np.int8), prepend=0, append=0)).reshape(-1, 2)


def _dilate(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    size = 2 * round(MARGIN * mask.shape[1]) + 1
    return cv2.dilate((mask > 127).astype(np.uint8), np.ones((size, size), np.uint8)) > 0
