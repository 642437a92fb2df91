"""The fused pass over a grid field against the same field written out in torch."""

import pytest
import torch

from shared.encoding import cpu
from shared.field import FieldConfig, GridField

CPU = torch.device("cpu")


def field(levels: int = 4) -> GridField:
    """A small field far from its start, so that every term of the backward counts."""
    torch.manual_seed(0)
    built = GridField(FieldConfig(levels=levels, base=4, finest=24, log2_entries=9, width=16, feature=3), CPU)
    with torch.no_grad():
        built.table.uniform_(-0.5, 0.5)
        for parameter in (*built.first.parameters(), *built.out.parameters()):
            parameter.normal_(0, 0.3)
    return built


def run(built: GridField, backend: str, points: torch.Tensor, active: int | None) -> list[torch.Tensor]:
    built.backend = backend
    built.zero_grad()
    x = points.clone().requires_grad_()
    geometry = built.geometry(x, active)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator) for t in geometry]
    sum((t * w).sum() for t, w in zip(geometry, weights)).backward()
    return [*geometry, x.grad, *(p.grad for p in built.parameters())]


@pytest.mark.parametrize("active", [None, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 127, 300])
def test_fused_equals_torch_in_values_and_all_gradients(active: int | None, count: int) -> None:
    built = field()
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(2)) * 2.4 - 1.2
    if count > 2:
        points[:3] = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for fused, truth in zip(run(built, "cpu", points, active), run(built, "reference", points, active)):
        torch.testing.assert_close(fused, truth, rtol=2e-4, atol=2e-4)


def test_threads_change_nothing_but_the_last_bits() -> None:
    built, points = field(), torch.rand(500, 3)
    two = run(built, "cpu", points, None)
    torch.set_num_threads(1)
    cpu.set_threads(1)
    one = run(built, "cpu", points, None)
    cpu.set_threads(2)
    for a, b in zip(two, one):
        # Sums over the points: their rounding is relative to the largest terms, not to what is left of them.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(b.detach().abs().max()))


def test_sphere_at_the_start_is_round() -> None:
    torch.manual_seed(0)
    built = GridField(FieldConfig(levels=2, base=4, finest=8, log2_entries=9), CPU)
    directions = torch.nn.functional.normalize(torch.randn(2000, 3), dim=1)
    distances = built.sdf(0.5 * directions).detach()
    assert distances.abs().max() < 0.02
    gradient = built.geometry(0.6 * directions).gradient.detach()
    assert (torch.nn.functional.cosine_similarity(gradient, directions) > 0.99).all()


@pytest.mark.parametrize("active", [None, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 4096, 4097, 10000])
def test_distances_alone_equal_torch(active: int | None, count: int) -> None:
    built, points = field(), torch.rand(count, 3, generator=torch.Generator().manual_seed(2)) * 2.4 - 1.2
    with torch.no_grad():
        found = built.sdf(points, active)
        built.backend = "reference"
        torch.testing.assert_close(found, built.sdf(points, active), rtol=1e-5, atol=1e-5)


def test_points_that_are_not_numbers_stay_so_and_harm_nothing() -> None:
    built, points = field(), torch.zeros(200, 3)
    points[::7] = torch.nan
    points[1::7, 1] = torch.inf
    geometry = built.geometry(points)
    assert torch.equal(geometry.sdf.isfinite(), points.isfinite().all(dim=1))
    with torch.no_grad():
        assert torch.equal(built.sdf(points).isfinite(), points.isfinite().all(dim=1))


def test_the_tables_gradient_is_added_in_place() -> None:
    built, points = field(), torch.rand(50, 3)
    fresh = run(built, "cpu", points, None)[4]
    built.table.grad = torch.ones_like(built.table)
    geometry = built.geometry(points.clone().requires_grad_())
    generator = torch.Generator().manual_seed(1)
    sum((t * torch.randn(t.shape, generator=generator)).sum() for t in geometry).backward()
    torch.testing.assert_close(built.table.grad, 1 + fresh)
