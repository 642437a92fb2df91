"""Every term against its formula on numbers done by hand."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from mvrecon.config import LossConfig
from mvrecon.losses import alignment_term, color_loss, eikonal_loss, mask_loss, total_loss
from mvrecon.model import Rendering
from mvrecon.rays import RayBatch
from pointrecon.objectives import bend_loss, beside, chord_error, pull_loss, soft_abs
from shared.config import Schedule
from shared.field import FieldConfig, Geometry, build_field

COLOR = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.2, 1.0]])
TRUTH = torch.tensor([[0.5, 0.3, 0.5], [1.0, 0.2, 0.6]])


def test_color_is_l1_over_channels_inside_the_masks():
    assert float(color_loss(COLOR, TRUTH, None)) == pytest.approx((0.2 + 1.4) / 2)
    assert float(color_loss(COLOR, TRUTH, torch.tensor([0.4, 0.6]))) == pytest.approx(1.4)
    assert float(color_loss(COLOR, TRUTH, torch.zeros(2))) == 0.0


def test_eikonal():
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.0]])
    assert float(eikonal_loss(gradient, torch.tensor([True] * 3))) == pytest.approx((16 + 0 + 0.25) / 3)
    assert float(eikonal_loss(gradient, torch.tensor([True, False, False]))) == pytest.approx(16)


def test_mask_is_cross_entropy_and_finite_where_it_is_wrong():
    opacity, mask = torch.tensor([0.8, 0.3, 0.0]), torch.tensor([1.0, 0.2, 0.9])
    expected = -(math.log(0.8) + math.log(0.7) + math.log(1e-3)) / 3
    assert float(mask_loss(opacity, mask)) == pytest.approx(expected, rel=1e-5)
    assert mask_loss(opacity * torch.nan, mask).isnan()


def test_pull_is_the_distance_or_its_square():
    pulled, targets = torch.tensor([[3.0, 4.0, 1.0]], requires_grad=True), torch.tensor([[0.0, 0.0, 1.0]])
    assert float(pull_loss(pulled, targets, squared=False).detach()) == pytest.approx(5.0)
    assert float(pull_loss(pulled, targets, squared=True).detach()) == pytest.approx(25.0)
    pull_loss(pulled, pulled.detach(), squared=False).sum().backward()
    assert pulled.grad is not None and pulled.grad.isfinite().all()


@pytest.fixture
def rendered():
    """A field, a rendering of two rays of it and the batch that goes with them."""
    torch.manual_seed(0)
    field = build_field(FieldConfig(levels=2, base=4, finest=8, log2_entries=9), torch.device("cpu"))
    points = 1.6 * torch.rand(20, 3) - 0.8
    opacity, hit, along = torch.tensor([0.8, 0.3]), torch.tensor([True, False]), torch.ones(1, 20)
    rendering = Rendering(COLOR, opacity, hit, torch.tensor([0]), along, along, points, field.geometry(points))
    return field, rendering, RayBatch(torch.zeros(2, 3), torch.ones(2, 3), TRUTH, torch.tensor([1.0, 0.0]))


def no_chance(columns: int) -> torch.Tensor:
    raise AssertionError("nothing here is random")


def test_the_total_is_the_weighted_sum_of_its_terms(rendered):
    field, rendering, batch = rendered
    config = LossConfig(
        eikonal=Schedule(0.5), mask=Schedule(2.0), alignment=Schedule(0.2, 0.0, 3.0, 0.6), alignment_samples=7
    )
    chance = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    total, terms = total_loss(config, field, batch, rendering, 0.4, lambda columns: chance[:, :columns])
    alignment = alignment_term(field, rendering, chance, field.active(0.4))
    assert torch.equal(terms["alignment"], alignment) and float(alignment.detach()) > 0
    expected = terms["color"] + 0.5 * terms["eikonal"] + 2.0 * terms["mask"] + 1.5 * alignment
    torch.testing.assert_close(total, expected)
    assert float(terms["color"]) == pytest.approx(0.2)


def test_terms_of_weight_zero_or_without_masks_are_left_out(rendered):
    field, rendering, batch = rendered
    without = batch._replace(mask=None)
    total, terms = total_loss(LossConfig(), field, without, rendering, 0.6, no_chance)
    assert set(terms) == {"color", "eikonal", "opacity"}
    torch.testing.assert_close(total, terms["color"] + 0.1 * terms["eikonal"] + 0.025 * terms["opacity"])
    assert float(terms["opacity"].detach()) == pytest.approx(0.2)
    _, terms = total_loss(LossConfig(), field, without, rendering, 0.8, no_chance)
    assert set(terms) == {"color", "eikonal"}
    _, terms = total_loss(LossConfig(mask=Schedule(0.0)), field, batch, rendering, 0.5, no_chance)
    assert set(terms) == {"color", "eikonal"}


def test_wrong_shapes_are_refused():
    with pytest.raises(TypeCheckError):
        color_loss(COLOR, TRUTH[:1], None)


def test_a_target_beside_the_perpendicular_costs_nothing_on_a_plane():
    queries = torch.tensor([[0.3, 0.2, 0.05], [-0.1, 0.4, -0.02], [0.0, 0.0, 0.1]])
    targets = torch.tensor([[0.34, 0.2, 0.0], [-0.1, 0.37, 0.0], [0.0, 0.0, 0.0]])
    gradient = torch.tensor([[0.0, 0.0, 2.0]]).expand(3, 3).clone().requires_grad_()  # of any length
    sdf = torch.tensor([0.05, -0.02, 0.07], requires_grad=True)
    geometry = Geometry(sdf, gradient, torch.empty(3, 0))
    error = chord_error(queries, geometry, targets, gradient)
    torch.testing.assert_close(error, torch.tensor([0.0, 0.0, -0.07 + 0.1]))
    error.sum().backward()
    assert gradient.grad is None and sdf.grad is not None and float(sdf.grad[2]) == -1.0


def test_a_target_far_beside_the_query_costs_nothing_on_a_sphere():
    generator = torch.Generator().manual_seed(0)
    targets = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1) * 0.6
    queries = targets + 0.2 * torch.randn(200, 3, generator=generator)
    geometry = Geometry(queries.norm(dim=1) - 0.6, 3 * queries, torch.empty(200, 0))
    torch.testing.assert_close(chord_error(queries, geometry, targets, targets), torch.zeros(200), atol=1e-6, rtol=0)
    raised = geometry._replace(sdf=geometry.sdf + 0.01)
    error, agreement = chord_error(queries, raised, targets, targets), torch.cosine_similarity(queries, targets, dim=1)
    torch.testing.assert_close(error, -0.01 * agreement.clamp_min(0), atol=1e-6, rtol=0)
    assert not chord_error(queries, raised, targets, -queries).any(), "the other side of a thin part does not count"


def test_small_errors_count_squared_and_large_ones_plainly():
    error = torch.tensor([0.0, 1e-3, -0.1, 10.0])
    assert torch.equal(soft_abs(error, 0.0), error.abs())
    soft = soft_abs(error, 0.1)
    assert float(soft[0]) == 0 and float(soft[3]) == pytest.approx(9.9, rel=1e-3)
    assert float(soft[1]) == pytest.approx(1e-6 / 0.2, rel=1e-2)


def test_bending_is_the_angle_between_normals_beside_each_other():
    generator = torch.Generator().manual_seed(0)
    x = 0.6 * torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1)
    moved = beside(x, 5 * x, 0.1, torch.randn(300, 3, generator=generator))
    torch.testing.assert_close((moved - x).norm(dim=1), torch.full((300,), 0.1))
    torch.testing.assert_close(((moved - x) * x).sum(dim=1), torch.zeros(300), atol=1e-6, rtol=0)
    angle = math.atan(0.1 / 0.6)
    assert float(bend_loss(2 * x, moved)) == pytest.approx(math.hypot(2 * math.sin(angle / 2), 0.01), rel=1e-4)
    assert float(beside(x, x, 3.0, torch.ones(300, 3)).abs().max()) <= 1
