"""Look-ups in the cached distances, and where on a ray the proposals fall."""

import math

import pytest
import torch
from torch import Tensor

from mvrecon.sampling import SdfVolume, draw, passes_near, propose, propose_reference
from mvrecon.upsampling import upsample

CPU = torch.device("cpu")
COUNTS = (96, 24, 8)


def ball(x: Tensor) -> Tensor:
    return x.norm(dim=-1) - 0.5


@pytest.fixture
def volume() -> SdfVolume:
    volume = SdfVolume(64, CPU)
    volume.refresh(ball, band=0.04)
    return volume


def rays(count: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Parallel rays along +z through the ball, with the bounds of a slab."""
    xy = 0.6 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) - 0.3
    origins = torch.cat([xy, torch.full((count, 1), -3.0)], dim=1)
    directions = torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)
    return origins, directions, (torch.full((count,), 2.1), torch.full((count,), 3.9))


@pytest.mark.parametrize("count", [6, 7])
def test_the_volume_is_exact_for_linear_functions(count: int):
    """For an even number of rays as for an odd one: they are split among the threads."""
    volume, slopes = SdfVolume(20, CPU), torch.tensor([0.3, -1.1, 0.7])
    volume.refresh(lambda x: x @ slopes + 0.2, band=0.1)
    x = torch.rand(count, 11, 3, generator=torch.Generator().manual_seed(0)) * 1.0 - 0.5
    torch.testing.assert_close(volume(x), x @ slopes + 0.2, atol=1e-5, rtol=0)


def test_the_volume_asks_every_other_node_and_those_near_the_surface():
    volume, asked = SdfVolume(64, CPU), []

    def counted(x: Tensor) -> Tensor:
        asked.append(len(x))
        return ball(x)

    volume.refresh(counted, band=0.1, chunk=1000)
    exact = ball(volume.nodes).reshape(volume.values.shape)
    sphere, near = (volume.nodes.norm(dim=1) <= 1).reshape(exact.shape), exact.abs() < 0.09
    torch.testing.assert_close(volume.values[near], exact[near])
    torch.testing.assert_close(volume.values[sphere], exact[sphere], atol=0.02, rtol=0)
    assert max(asked) <= 1000 and sum(asked) < 0.25 * len(volume.nodes)


def test_a_refresh_finds_a_surface_where_none_was(volume: SdfVolume):
    centre = torch.tensor([0.0, 0.8, 0.0])
    volume.refresh(lambda x: torch.minimum(ball(x), (x - centre).norm(dim=1) - 0.1), band=0.04)
    assert volume(centre.reshape(1, 1, 3)).item() == pytest.approx(-0.1, abs=0.025)


def test_an_odd_number_of_cells_is_made_even():
    assert SdfVolume(17, CPU).values.shape == (19, 19, 19)


def test_proposals_are_sorted_within_bounds_and_dense_at_the_surface(volume: SdfVolume):
    origins, directions, (near, far) = rays(50)
    for jitter in (None, torch.rand(50, COUNTS[1] + 2, generator=torch.Generator().manual_seed(1))):
        t = propose(volume, origins, directions, (near, far), COUNTS, 200.0, jitter)
        assert t.shape == (50, 32)
        assert (t.diff(dim=1) >= 0).all()
        assert (t >= near[:, None]).all() and (t <= far[:, None]).all()
        front = 3.0 - (0.25 - origins[:, :2].square().sum(dim=1)).sqrt()
        assert ((t - front[:, None]).abs() < 0.06).sum(dim=1).min() >= 16


def test_a_ray_through_empty_space_or_past_the_sphere_still_gets_samples(volume: SdfVolume):
    origins, directions = torch.tensor([[0.9, 0.0, -3.0], [4.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]] * 2)
    near, far = torch.tensor([2.6, 3.0]), torch.tensor([3.4, 3.0])
    t = propose(volume, origins, directions, (near, far), COUNTS, 64.0)
    assert t.isfinite().all()
    assert float(t[0].max() - t[0].min()) > 0.6
    torch.testing.assert_close(t[1], torch.full((32,), 3.0))


def test_proposals_equal_a_loop_over_the_inverse_of_the_distribution(volume: SdfVolume):
    origins, directions, (near, far) = rays(3)
    scan, importance, uniform = 40, 12, 4
    found = propose(volume, origins, directions, (near, far), (scan, importance, uniform), 50.0)
    for r in range(3):
        step = float(far[r] - near[r]) / scan
        t = [float(near[r]) + step * (i + 0.5) for i in range(scan)]
        sdf = [float(volume((origins[r] + a * directions[r])[None, None])) for a in t]
        slopes = [(sdf[i + 1] - sdf[i]) / (step + 1e-5) for i in range(scan - 1)]
        weights, light = [], 1.0
        for i in range(scan - 1):
            slope = min(slopes[i], slopes[i - 1] if i else 0.0, 0.0)
            middle = (sdf[i] + sdf[i + 1]) / 2
            first, last = (1 / (1 + math.exp(-50 * (middle + k * slope * step / 2))) for k in (-1, 1))
            alpha = (first - last + 1e-5) / (first + 1e-5)
            weights.append(light * alpha + 0.02 / scan)
            light *= 1 - alpha
        expected = [float(near[r]) + float(far[r] - near[r]) * (k + 0.5) / uniform for k in range(uniform)]
        for k in range(importance):
            left, i = (k + 0.5) / importance * sum(weights), 0
            while left > weights[i]:
                left, i = left - weights[i], i + 1
            expected.append(t[i] + step * left / weights[i])
        assert found[r].tolist() == pytest.approx(sorted(expected), abs=2e-3)


def test_rays_that_stay_away_from_the_surface_are_told_apart() -> None:
    volume = SdfVolume(64, torch.device("cpu"))
    volume.refresh(ball, band=0.04)
    heights = torch.tensor([0.0, 0.45, 0.52, 0.7, 1.5])
    origins = torch.stack([torch.full((5,), -3.0), heights, torch.zeros(5)], dim=1)
    directions = torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3)
    assert passes_near(volume, origins, directions, 64, 0.06).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("jittered", [False, True])
def test_the_kernel_proposes_what_torch_does(volume: SdfVolume, jittered: bool):
    origins, directions, (near, far) = rays(37)
    origins[-1, 0] = 0.9
    counts = (40, 9, 3)
    jitter = torch.rand(37, 11, generator=torch.Generator().manual_seed(4)) if jittered else torch.full((37, 11), 0.5)
    every = torch.cat([origins, directions, near[:, None], far[:, None]], dim=1)
    truth = propose_reference(volume, every, jitter, counts, 80.0)
    found = propose(volume, origins, directions, (near, far), counts, 80.0, jitter if jittered else None)
    torch.testing.assert_close(found, truth, atol=2e-4, rtol=0)


def test_upsampling_asks_each_new_point_once_and_closes_in_on_the_surface():
    origins, directions, bounds = rays(20)
    asked = []

    def counting(x: Tensor) -> Tensor:
        asked.append(len(x))
        return ball(x)

    t = upsample(counting, origins, directions, bounds, (32, 18))
    assert t.shape == (20, 50) and (t.diff(dim=1) >= 0).all()
    assert asked == [20 * n for n in (32, 4, 5, 4, 5)]
    front = 3.0 - (0.25 - origins[:, :2].square().sum(dim=1)).sqrt()
    assert float((t - front[:, None]).abs().amin(dim=1).max()) < 0.01
    shifted = upsample(ball, origins, directions, bounds, (32, 18), torch.full((20, 1), 0.3))
    assert not torch.equal(shifted, t)


def test_draw_inverts_the_summed_weights():
    t, weights = torch.tensor([[0.0, 1.0, 3.0, 4.0]]), torch.tensor([[1.0, 2.0, 1.0]])
    found = draw(t, weights, torch.tensor([[0.0, 0.125, 0.5, 0.875, 1.0]]))
    assert found[0].tolist() == pytest.approx([0.0, 0.5, 2.0, 3.5, 4.0])
