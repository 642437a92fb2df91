"""The pull lands on the surface from both sides, and gradients flow through it."""

import pytest
import torch
from jaxtyping import TypeCheckError

from shared.field import FieldConfig, build_field
from shared.pull import pull

CPU = torch.device("cpu")
RADIUS = 0.6


@pytest.mark.parametrize("distance", [0.2, 0.59, 0.61, 1.4])
@pytest.mark.parametrize("steepness", [0.1, 1.0, 7.0])
def test_points_land_on_a_sphere_from_both_sides(distance: float, steepness: float):
    directions = torch.nn.functional.normalize(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    x = distance * directions
    pulled = pull(x, x.norm(dim=1) - RADIUS, steepness * directions)
    torch.testing.assert_close(pulled, RADIUS * directions)


def test_a_point_without_direction_stays():
    x = torch.tensor([[0.1, 0.2, 0.3]])
    assert torch.equal(pull(x, torch.tensor([0.5]), torch.zeros(1, 3)), x)


def test_gradients_flow_through_the_pulled_point_alike_on_both_backends():
    gradients = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        field = build_field(FieldConfig(levels=3, base=4, finest=16, log2_entries=9, width=16, backend=backend), CPU)
        with torch.no_grad():
            field.table.normal_(0, 0.1)
            field.first.weight.normal_(0, 0.2)
        x = 1.6 * torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) - 0.8
        there = field.geometry(x)
        pulled = pull(x, there.sdf, there.gradient)
        here = field.geometry(pulled)
        (here.sdf.square().mean() + here.gradient[:, 0].mean() + (pulled - 0.1).square().mean()).backward()
        gradients.append({name: p.grad for name, p in field.named_parameters()})
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(gradients[1][name], expected, atol=2e-3 * scale, rtol=0)


def test_wrong_shapes_are_refused():
    with pytest.raises(TypeCheckError):
        pull(torch.zeros(4, 3), torch.zeros(5), torch.zeros(4, 3))
