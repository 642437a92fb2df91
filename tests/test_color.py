"""Spherical harmonics are orthonormal; colours are colours."""

import numpy as np
import torch

from mvrecon.color import Clip, ColorNetwork, spherical_harmonics
from mvrecon.config import ColorConfig
from shared.field import FieldConfig


def test_the_harmonics_are_orthonormal_over_the_sphere():
    """By a product rule that is exact for the degrees at hand."""
    z, weights = np.polynomial.legendre.leggauss(8)
    azimuth = np.arange(16) * 2 * np.pi / 16
    z, azimuth = (a.ravel() for a in np.meshgrid(z, azimuth, indexing="ij"))
    radius = np.sqrt(1 - z**2)
    directions = torch.from_numpy(np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1))
    area = torch.from_numpy(np.repeat(weights, 16) * 2 * np.pi / 16)
    values = spherical_harmonics(directions)
    torch.testing.assert_close(values.T @ (area[:, None] * values), torch.eye(9).double(), atol=1e-6, rtol=0)


def test_radiance_beyond_what_a_photo_holds_is_clipped_and_comes_back():
    radiance = torch.tensor([-0.5, -0.5, 0.25, 0.25, 1.5, 1.5], requires_grad=True)
    color = Clip.apply(radiance)
    color.backward(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    assert color.tolist() == [0, 0, 0.25, 0.25, 1, 1]
    assert radiance.grad.tolist() == [0, -1, 1, -1, 1, 0]


def test_colours_depend_on_every_input_and_lie_in_range():
    torch.manual_seed(0)
    color = ColorConfig(width=16, layers=2, levels=2, log2_entries=9)
    network = ColorNetwork(FieldConfig(feature=5, finest=64), color, torch.device("cpu"))
    with torch.no_grad():
        network.mlp[-1].weight.mul_(100)
    inputs = [torch.randn(30, n, requires_grad=True) for n in (3, 3, 9, 5)]
    colors = network(*inputs)
    assert colors.shape == (30, 3) and float(colors.detach().min()) == 0 and float(colors.detach().max()) == 1
    colors.sum().backward()
    assert all((part.grad != 0).any(dim=0).all() for part in inputs)
