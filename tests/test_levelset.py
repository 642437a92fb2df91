"""Level set alignment is zero for a true distance field, and says how far others are from one."""

import math

import pytest
import torch
from torch import nn

from shared.field import FieldConfig, Geometry, SirenField, build_field
from shared.levelset import KINDS, alignment_loss, disagreement, parallelism
from shared.pull import pull

CPU = torch.device("cpu")


class Stub(SirenField):
    def __init__(self) -> None:
        super().__init__(FieldConfig(width=4))


class Ball(Stub):
    """The distance to a sphere, or with a ripple a function with the same zero set that is no distance."""

    def __init__(self, ripple: float = 0.0) -> None:
        super().__init__()
        self.ripple = ripple

    def geometry(self, x: torch.Tensor, active: int | None = None) -> Geometry:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            distance = x.norm(dim=1) - 0.6
            sdf = distance * (1 + self.ripple * torch.sin(5 * x[:, 0]))
            (gradient,) = torch.autograd.grad(sdf.sum(), x, create_graph=True)
        return Geometry(sdf, gradient, x[:, :0])


class Bent(Stub):
    """f = z + b x^2: a gradient (2 b x, 0, 1) that turns along the pull."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.bend = bend

    def geometry(self, x: torch.Tensor, active: int | None = None) -> Geometry:
        gradient = torch.stack([2 * self.bend * x[:, 0], torch.zeros_like(x[:, 0]), torch.ones_like(x[:, 0])], dim=1)
        return Geometry(x[:, 2] + self.bend * x[:, 0] ** 2, gradient, x[:, :0])


def points(count: int = 300) -> torch.Tensor:
    return 1.8 * torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) - 0.9


def loss_of(field, x: torch.Tensor) -> torch.Tensor:
    there = field.geometry(x)
    return alignment_loss(there, field.geometry(pull(x, there.sdf, there.gradient)).gradient)


def test_a_true_distance_is_aligned_and_a_warped_one_is_not():
    assert abs(float(loss_of(Ball(), points()).detach())) < 1e-6
    assert float(loss_of(Ball(0.5), points()).detach()) > 1e-3


def test_the_loss_equals_its_formula():
    sdf = torch.tensor([0.0, -0.2, 0.1])
    gradient = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    pulled = torch.tensor([[0.0, 3.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
    expected = (1.0 * 1 + math.exp(-10 * 0.2) * 2 + 0) / 3
    found = alignment_loss(Geometry(sdf, gradient, torch.empty(3, 0)), pulled)
    assert float(found) == pytest.approx(expected)
    assert float(alignment_loss(Geometry(sdf, gradient, torch.empty(3, 0)), pulled, decay=0.0)) == pytest.approx(1.0)


def test_the_weight_is_not_differentiated():
    sdf = torch.tensor([0.1, -0.2], requires_grad=True)
    gradient = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    alignment_loss(Geometry(sdf, gradient, torch.empty(2, 0)), torch.tensor([[1.0, 1.0, 0.0]] * 2)).backward()
    assert sdf.grad is None and gradient.grad.any()


def test_kinds_of_disagreement_equal_their_formulas():
    here = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    there = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -4.0]])
    torch.testing.assert_close(disagreement(here, there, "cosine"), torch.tensor([1.0, 0.0, 2.0]))
    torch.testing.assert_close(disagreement(here, there, "mse-normalised"), torch.tensor([2.0, 0.0, 4.0]) / 3)
    torch.testing.assert_close(disagreement(here, there, "mse"), torch.tensor([5.0, 4.0, 25.0]) / 3)
    with pytest.raises(ValueError, match="cosine, mse-normalised, mse"):
        disagreement(here, there, "l1")


def test_a_distance_to_the_cloud_may_take_the_place_of_the_fields_own():
    sdf, gradient = torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    away, turned = torch.tensor([0.1, 0.0]), gradient.flip(0)
    found = alignment_loss(Geometry(sdf, gradient, torch.empty(2, 0)), turned, 5.0, distance=away)
    assert float(found) == pytest.approx((math.exp(-0.5) + 1) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_differentiated_at_both_ends(kind: str):
    ends = [torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)]
    sdf = torch.linspace(-0.3, 0.3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda here, there: alignment_loss(Geometry(sdf, here, here[:, :0]), there, 2.0, kind),
        [end.requires_grad_() for end in ends],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_zero_for_a_true_distance(kind: str):
    there = Ball().geometry(points())
    fixed = Ball().geometry(0.6 * points() / points().norm(dim=1, keepdim=True))
    for end in (fixed, Ball().geometry(pull(points(), there.sdf, there.gradient))):
        assert float(alignment_loss(there, end.gradient, kind=kind).detach()) < 1e-6


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_few_steps_lower_it(backend: str):
    torch.manual_seed(0)
    field = build_field(FieldConfig(levels=3, base=4, finest=16, log2_entries=9, width=16, backend=backend), CPU)
    with torch.no_grad():
        field.table.normal_(0, 0.05)
        field.first.weight[:, 3:].normal_(0, 0.1)
    adam, losses = torch.optim.Adam(field.parameters(), lr=2e-3), []
    for _ in range(30):
        loss = loss_of(field, points())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_gradients_reach_the_field_through_both_ends():
    """Alignment at a query depends on where the query is pulled to: without that path the derivative is another."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

        def geometry(self, x: torch.Tensor, active: int | None = None) -> Geometry:
            bent = Bent(0.8).geometry(x)
            return Geometry(bent.sdf + self.shift, bent.gradient, bent.feature)

    field, x = Shifted(), points(50).abs().double()
    there = field.geometry(x).sdf.detach()

    def value() -> torch.Tensor:
        at = field.geometry(x)
        moved = field.geometry(pull(x, at.sdf, at.gradient)).gradient
        return alignment_loss(Geometry(there, at.gradient, at.feature), moved)

    value().backward()
    ends = []
    with torch.no_grad():
        for shift in (1e-5, -1e-5):
            field.shift.fill_(shift)
            ends.append(float(value()))
    assert float(field.shift.grad) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)
    assert abs(float(field.shift.grad)) > 1e-4


def test_parallelism_of_a_sphere_and_of_a_bent_field():
    assert parallelism(Ball(), points().double(), chunk=77) < 1e-3
    x = points(200).double()
    gradient = torch.atan(2 * 0.8 * x[:, 0])  # the gradient's angle with z, in the plane of x and z
    f = x[:, 2] + 0.8 * x[:, 0] ** 2
    landed = x[:, 0] - f * torch.sin(gradient)
    expected = torch.rad2deg((gradient - torch.atan(1.6 * landed)).abs().mean())
    assert parallelism(Bent(0.8), x, chunk=64) == pytest.approx(float(expected), rel=1e-6)
