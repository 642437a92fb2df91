"""Training rays carry the colour and the mask of their own pixel."""

import numpy as np
import pytest
import torch

from mvrecon.cameras import Cameras
from mvrecon.rays import RayPool
from mvrecon.scene import Scene
from shared.geometry import Similarity, look_at

CPU = torch.device("cpu")
WIDTH, HEIGHT, VIEWS = 40, 30, 3


def scene(masks: bool = True, everywhere: bool = False) -> Scene:
    """Three views whose pixels hold their own view, x and y as colours; view 1 is held out."""
    v, y, x = np.meshgrid(np.arange(VIEWS), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    images = np.stack([v, x, y], axis=-1).astype(np.uint8)
    inside = np.hypot(x - 19.5, y - 14.5) < (100 if everywhere else 6)
    eyes = np.array([[3.0, 0.0, 0.5], [0.0, 3.0, 0.0], [-2.0, 2.0, 1.0]])
    poses = np.stack([look_at(eye, np.zeros(3), np.array([0.0, 0.0, 1.0])) for eye in eyes])
    intrinsics = np.repeat([[[40.0, 0.0, 19.5], [0.0, 40.0, 14.5], [0.0, 0.0, 1.0]]], VIEWS, axis=0)
    cameras = Cameras(intrinsics, poses, WIDTH, HEIGHT)
    mask = np.where(inside, 255, 0).astype(np.uint8) if masks else None
    train, test = np.array([0, 2]), np.array([1])
    return Scene(images, mask, cameras, Similarity(1.0, (0.0, 0.0, 0.0)), ("a", "b", "c"), train, test)


def pixels(color: torch.Tensor) -> np.ndarray:
    return (255 * color).round().int().numpy()


def near_mask(pixel: np.ndarray) -> np.ndarray:
    """Within one pixel (3 % of the width) of the mask, along both axes."""
    return np.array([np.hypot(max(abs(x - 19.5) - 1, 0), max(abs(y - 14.5) - 1, 0)) < 6 for _, x, y in pixel])


@pytest.mark.parametrize("masks", [True, False])
def test_colours_and_masks_belong_to_the_rays_pixel(masks: bool):
    photos = scene(masks)
    batch = RayPool(photos, 0.7, CPU).draw(200, torch.Generator().manual_seed(0))
    for i, (view, x, y) in enumerate(pixels(batch.color).tolist()):
        origin, direction = photos.cameras.rays(torch.tensor([view]), torch.tensor([[float(x), float(y)]]))
        torch.testing.assert_close(batch.origins[i], origin[0])
        torch.testing.assert_close(batch.directions[i], direction[0])
        if batch.mask is not None:
            assert float(batch.mask[i]) == photos.masks[view, y, x] / 255
    assert (batch.mask is not None) == masks
    assert set(pixels(batch.color)[:, 0]) == {0, 2}


def test_the_share_of_rays_near_the_mask():
    batch = RayPool(scene(), 0.7, CPU).draw(1000, torch.Generator().manual_seed(0))
    near = near_mask(pixels(batch.color))
    assert near.sum() == 700
    assert batch.mask[near].min() == 0, "the silhouette is seen from outside too"
    assert not batch.mask[~near].any()


def test_masked_rays_all_cross_the_unit_sphere():
    batch = RayPool(scene(), 0.1, CPU).draw(1000, torch.Generator().manual_seed(0))
    closest = torch.linalg.cross(batch.origins, batch.directions).norm(dim=1)
    assert float(closest.max()) < 1.0
    batch = RayPool(scene(masks=False), 0.1, CPU).draw(1000, torch.Generator().manual_seed(0))
    assert float(torch.linalg.cross(batch.origins, batch.directions).norm(dim=1).max()) > 1.0


def test_masks_that_cover_everything_leave_one_pool():
    batch = RayPool(scene(everywhere=True), 0.7, CPU).draw(50, torch.Generator().manual_seed(0))
    assert len(batch.color) == 50 and (batch.mask == 1).all()


def test_draws_repeat_with_their_generator():
    pool = RayPool(scene(), 0.7, CPU)
    one, two, other = (pool.draw(30, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.color, two.color) and not torch.equal(one.color, other.color)
