"""Batches of training rays, drawn from all photos at once without a Python loop over rays."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mvrecon.scene import Scene
from shared.errors import UserError
from shared.geometry import ray_sphere

# Pixels this far from a mask, as a fraction of the photo's width, count as near it: the silhouette must be seen from
# both sides.
MARGIN = 0.03


class RayBatch(NamedTuple):
    """n rays in field space with the photos' colours in 0..1 and, with masks, how much of the pixel is the object."""

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    color: Float[Tensor, "n 3"]
    mask: Float[Tensor, " n"] | None


class RayPool:
    """The training pixels of a scene. With masks, `mask_share` of every batch lies in or near a mask."""

    def __init__(self, scene: Scene, mask_share: float, device: torch.device):
        self.cameras = scene.cameras.select(scene.train).to(device)
        self.width, self.height = scene.view_size
        self.images = torch.from_numpy(scene.images[scene.train]).reshape(-1, 3).to(device)
        self.masks = None if scene.masks is None else torch.from_numpy(scene.masks[scene.train]).reshape(-1).to(device)
        self.pools = [(1.0, torch.arange(len(self.images), dtype=torch.int32, device=device))]
        if scene.masks is not None:
            near = (
                torch.from_numpy(np.stack([_dilate(mask) for mask in scene.masks[scene.train]])).reshape(-1).to(device)
            )
            hit = self._hits_sphere()
            inside, outside = ((part & hit).nonzero()[:, 0].int() for part in (near, ~near))
            if not len(inside):
                raise UserError("mask: no mask has the object inside the unit sphere; check the masks and scale_mat_0")
            self.pools = [(mask_share, inside), (1 - mask_share, outside)] if len(outside) else [(1.0, inside)]

    def draw(self, count: int, generator: torch.Generator) -> RayBatch:
        """A batch of `count` pixels, with replacement."""
        device, parts, left = self.images.device, [], count
        for index, (share, pool) in enumerate(self.pools):
            n = left if index + 1 == len(self.pools) else round(count * share)
            parts.append(pool[torch.randint(len(pool), (n,), generator=generator, device=device)])
            left -= n
        pixel = torch.cat(parts).long()
        origins, directions = self._rays(pixel)
        mask = None if self.masks is None else self.masks[pixel].float() / 255
        return RayBatch(origins, directions, self.images[pixel].float() / 255, mask)

    def _rays(self, pixel: Tensor) -> tuple[Tensor, Tensor]:
        area = self.width * self.height
        within = pixel % area
        xy = torch.stack([within % self.width, within // self.width], dim=1).float()
        return self.cameras.rays(pixel // area, xy)

    def _hits_sphere(self) -> Tensor:
        every = torch.arange(len(self.images), device=self.images.device)
        return torch.cat([ray_sphere(*self._rays(part))[2] for part in every.split(1 << 18)])


def _dilate(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    size = 2 * round(MARGIN * mask.shape[1]) + 1
    return cv2.dilate((mask > 127).astype(np.uint8), np.ones((size, size), np.uint8)) > 0
