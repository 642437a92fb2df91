"""Opacities against closed forms, a loop over the definition, and numerical integration."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from mvrecon.density import annealing, neus_alpha, volsdf_alpha
from mvrecon.volume import composite

WIDTH = 40.0


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plane_ahead(distance: float, edges: torch.Tensor, cosine: float = -1.0) -> tuple[torch.Tensor, ...]:
    """Distance, cosine and spacing at the middles of one ray's sections towards a plane."""
    middle = 0.5 * (edges[1:] + edges[:-1])
    return (distance + cosine * middle)[None], torch.full((1, len(middle)), cosine), edges.diff()[None]


@pytest.mark.parametrize("cosine", [-1.0, -0.4])
def test_neus_on_a_plane_is_the_logistic_between_the_ends_of_a_section(cosine: float):
    edges = torch.linspace(0.0, 0.45, 40)
    found = neus_alpha(*plane_ahead(0.3, edges, cosine), WIDTH)[0]
    for i in range(39):
        entering, leaving = (logistic(WIDTH * (0.3 + cosine * float(edges[i + k]))) for k in (0, 1))
        assert float(found[i]) == pytest.approx((entering - leaving) / entering, abs=1e-4 + 1e-5 / entering)


def test_neus_seen_from_far_away_sums_to_one_at_the_plane():
    edges = torch.linspace(0.0, 1.6, 400)
    sdf, cosine, spacing = plane_ahead(0.8, edges)
    weights, passed = composite(neus_alpha(sdf, cosine, spacing, 200.0))
    middle = 0.5 * (edges[1:] + edges[:-1])
    assert float(passed) < 1e-3
    assert float((weights[0] * middle).sum()) == pytest.approx(0.8, abs=5e-3)


def test_neus_sees_no_surface_from_behind():
    sdf, cosine, spacing = plane_ahead(-0.05, torch.linspace(0.0, 0.5, 30), cosine=1.0)
    assert float(neus_alpha(sdf, cosine, spacing, WIDTH).max()) < 1e-4
    # Early in training it sees a little of it, so that a gradient remains.
    grazing = neus_alpha(sdf, torch.zeros_like(cosine), spacing, WIDTH, anneal=0.0)
    assert float(grazing.max()) > 0.1


def test_a_long_section_before_the_surface_is_not_opaque():
    # Half a unit of air, then short sections around a plane; the slope in the air is off by a twentieth.
    edges = torch.cat([torch.tensor([0.0]), torch.linspace(0.5, 0.6, 11)])
    sdf, cosine, spacing = plane_ahead(0.52, edges)
    sdf[0, 0], cosine[0, 0] = 0.26, -1.05
    weights, _ = composite(neus_alpha(sdf, cosine, spacing, 500.0))
    assert float(weights[0, 0]) < 1e-3
    assert float(weights[0, 1:].sum()) > 0.99


@pytest.mark.parametrize("anneal", [0.0, 0.3, 1.0])
def test_neus_equals_a_loop_over_its_definition(anneal: float):
    generator = torch.Generator().manual_seed(0)
    sdf, spacing = 0.1 * torch.randn(3, 7, generator=generator), 0.1 * torch.rand(3, 7, generator=generator)
    cosine = 2 * torch.rand(3, 7, generator=generator) - 1
    found = neus_alpha(sdf, cosine, spacing, torch.tensor(WIDTH), anneal)

    def beyond(r: int, s: int, side: int) -> float:
        return float(sdf[r, s]) + side * 0.5 * float(cosine[r, s] * spacing[r, s])

    def end(r: int, s: int, side: int) -> float:
        """Where section s begins (side -1) or ends (side 1)."""
        early = float(sdf[r, s]) - side * 0.5 * max(0.0, 0.5 - 0.5 * float(cosine[r, s])) * float(spacing[r, s])
        exact = beyond(r, s, side)
        if 0 <= s + side < 7:
            own, other = float(spacing[r, s]), float(spacing[r, s + side])
            exact = (other * exact + own * beyond(r, s + side, -side)) / (own + other)
        return anneal * exact + (1 - anneal) * early

    for r, s in np.ndindex(3, 7):
        first, last = (logistic(WIDTH * end(r, s, side)) for side in (-1, 1))
        expected = min(max((first - last + 1e-5) / (first + 1e-5), 0.0), 1.0)
        assert float(found[r, s]) == pytest.approx(expected, abs=1e-5)


def test_volsdf_lets_through_what_the_integral_of_its_density_does():
    def density(t: float, width: float) -> float:
        s = -(0.7 - t)
        return (0.5 * math.exp(s / width) if s <= 0 else 1 - 0.5 * math.exp(-s / width)) / width

    edges = torch.linspace(0.0, 1.0, 2001)
    sdf, _, spacing = plane_ahead(0.7, edges)
    for width in (0.05, 0.2):
        _, passed = composite(volsdf_alpha(sdf, spacing, torch.tensor(width)))
        expected = math.exp(-quad(density, 0.0, 1.0, args=(width,), points=[0.7])[0])
        assert float(passed) == pytest.approx(expected, rel=1e-3)


def test_volsdf_at_the_surface_and_far_from_it():
    sdf, spacing = torch.tensor([[0.0, 5.0, -5.0]]), torch.full((1, 3), 0.01)
    expected = [1 - math.exp(-0.5 / 0.1 * 0.01), 0.0, 1 - math.exp(-1 / 0.1 * 0.01)]
    assert volsdf_alpha(sdf, spacing, 0.1)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_annealing_takes_its_part_of_the_run_but_no_fewer_than_fifty_steps():
    assert annealing(0.0, 0, 0.0) == annealing(0.0, 0, 0.2) == 0.0
    assert annealing(0.05, 1000, 0.2) == pytest.approx(0.25)
    assert annealing(0.5, 1000, 0.2) == annealing(0.5, 1000, 0.0) == 1.0
    assert annealing(0.5, 10, 0.2) == annealing(0.5, 10, 0.0) == pytest.approx(0.2)
