"""Whole pictures: every pixel is the mean of its rays."""

import numpy as np
import pytest
import torch

from mvrecon.cameras import Cameras, look_at
from mvrecon.config import Config, SamplingConfig
from mvrecon.model import SurfaceModel
from mvrecon.render import WITHIN_PIXEL, render_view
from mvrecon.sampling import SdfVolume
from shared.field import FieldConfig

CPU = torch.device("cpu")
CONFIG = Config(
    field=FieldConfig(levels=2, base=4, finest=8, log2_entries=9, feature=3), sampling=SamplingConfig(volume=32)
)


@pytest.mark.parametrize("background", [True, False])
@torch.no_grad()
def test_a_pixel_is_the_mean_of_four_rays(background: bool):
    torch.manual_seed(0)
    model, volume = SurfaceModel(CONFIG, background, CPU), SdfVolume(32, CPU)
    model.sharpness.fill_(0.5)
    volume.refresh(model.field.sdf, 0.1)
    pose = look_at(np.array([0.0, 0.3, -2.5]), np.zeros(3), np.array([0.0, 1.0, 0.0]))[None]
    cameras = Cameras(np.array([[[10.0, 0, 6], [0, 10, 4], [0, 0, 1]]]), pose, 12, 8)
    view = render_view(model, volume, cameras, 0)
    for y, x in ((4, 6), (1, 3), (0, 0), (2, 5)):
        points = torch.tensor([[x + dx, y + dy] for dx, dy in WITHIN_PIXEL])
        seen = model.render(volume, *cameras.rays(torch.zeros(4, dtype=torch.long), points))
        assert view.color[y, x].tolist() == pytest.approx(seen.color.mean(dim=0).tolist(), abs=1e-3)
        assert view.opacity[y, x] == pytest.approx(float(seen.opacity.mean()), abs=1e-3)
    lengths = np.linalg.norm(view.normal, axis=2)
    assert lengths[4, 6] == pytest.approx(1) and view.depth[4, 6] == pytest.approx(2.0, abs=0.05)


def test_the_rays_of_a_pixel_are_evenly_spread():
    """Their mean is its centre, and each has a quarter of its width and of its height for itself."""
    within = np.array(WITHIN_PIXEL)
    assert within.mean(axis=0).tolist() == [0, 0]
    for axis in range(2):
        assert sorted(within[:, axis]) == [-0.375, -0.125, 0.125, 0.375]
