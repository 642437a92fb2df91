"""Queries against brute force, and batches that a resumed sampler repeats exactly."""

import io
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pointrecon.queries import EDGE, QuerySampler
from pointrecon.survey import survey


def sphere(count: int = 400, radius: float = 0.7) -> np.ndarray:
    points = np.random.default_rng(7).normal(size=(count, 3))
    return (radius * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def sampler(points: np.ndarray | None = None, seed: int = 0, **options) -> QuerySampler:
    points = sphere() if points is None else points
    return QuerySampler(points, np.random.default_rng(seed), **{"neighbours": 4, "pool": 3000} | options)


def test_targets_are_the_nearest_points_by_brute_force():
    points = sphere()
    queries, targets, *_ = sampler(points).batch(500)
    np.testing.assert_array_equal(targets, points[cdist(queries, points).argmin(axis=1)])
    assert queries.dtype == targets.dtype == torch.float32


def test_origins_are_cloud_points_and_know_nothing_of_the_query():
    points = np.zeros((2000, 3), dtype=np.float32)
    points[:, :2] = np.random.default_rng(1).uniform(-0.8, 0.8, (2000, 2))
    points[:, 2] = np.random.default_rng(2).normal(scale=0.01, size=2000)
    x, nearest, origin, in_space = sampler(points, neighbours=20, pool=40_000).batch(40_000)
    assert {*map(tuple, origin.tolist())} <= {*map(tuple, points.tolist())}
    assert torch.equal(nearest[in_space], origin[in_space])
    above = ~in_space & (x[:, 2] > 0.02)
    assert float(nearest[above, 2].mean()) > 0.004 > 0.002 > float(origin[~in_space, 2].mean().abs())


def test_near_surface_queries_come_first_and_in_the_share_asked_for():
    points = sphere()
    queries, targets, _, is_space = sampler(points, space_share=0.25).batch(1000)
    assert is_space.dtype == torch.bool and int(is_space.sum()) == 250
    assert not is_space[:750].any() and is_space[750:].all()
    distances = (queries - targets).norm(dim=1)
    assert distances[:750].mean() < 0.6 * distances[750:].mean()
    assert queries.abs().max() <= EDGE


def test_without_space_queries():
    assert not sampler(space_share=0.0).batch(64).in_space.any()


def test_offsets_have_the_deviation_of_the_kth_neighbour():
    points = np.zeros((60, 3), dtype=np.float32)
    points[:, 0] = np.linspace(-0.59, 0.59, 60)  # spacing 0.02: the 4th neighbour is 0.04 away inside the line
    queries = sampler(points, factor=0.5, space_share=0.0, pool=40_000).batch(40_000).x
    inner = queries[queries[:, 0].abs() < 0.4]
    np.testing.assert_allclose(inner[:, 1:].std(dim=0), 0.5 * 0.04, rtol=0.03)
    np.testing.assert_allclose(inner[:, 1:].mean(dim=0), 0.0, atol=1e-3)


def test_half_of_the_space_queries_fill_the_box():
    queries, *_, is_space = sampler(sphere(radius=0.2), space_share=0.5, pool=40_000).batch(40_000)
    far = (queries[is_space].abs().amax(dim=1) > 0.7).float().mean()
    np.testing.assert_allclose(far, 0.5 * (1 - 0.7**3), atol=0.02)


def test_equal_seeds_give_equal_batches_and_others_do_not():
    batches = [sampler(seed=seed).batch(100)[0] for seed in (3, 3, 4)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_refresh_replaces_the_oldest_queries_in_turn():
    queries = sampler(space_share=0.2, pool=1000)
    near, space = queries._near.rows.copy(), queries._space.rows.copy()
    queries.refresh(250)
    changed = (queries._near.rows != near).any(axis=1), (queries._space.rows != space).any(axis=1)
    assert changed[0][:200].all() and not changed[0][200:].any()
    assert changed[1][:50].all() and not changed[1][50:].any()
    for _ in range(3):
        queries.refresh(250)
    assert (queries._near.rows != near).any(axis=1).all() and (queries._space.rows != space).any(axis=1).all()


def test_a_resumed_sampler_draws_the_same_batches():
    straight = sampler(closeness=2.0)
    straight.batch(50)
    straight.refresh(500)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = sampler(seed=99, closeness=2.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(6):
        for expected, actual in zip(straight.batch(80), resumed.batch(80), strict=True):
            assert torch.equal(expected, actual)
        if step % 2:
            straight.refresh(700)
            resumed.refresh(700)


def test_the_state_does_not_change_after_it_was_taken():
    queries = sampler()
    state = queries.state_dict()
    before = state["near_rows"].clone()
    queries.refresh(3000)
    assert torch.equal(state["near_rows"], before)


def test_a_pool_of_another_size_is_refused():
    with pytest.raises(ValueError, match="pool"):
        sampler(pool=2000).load_state_dict(sampler().state_dict())


def test_closeness_brings_queries_to_their_points():
    """The mean square of (u^2 sigma) is sigma^2 / 5; the median of |u^2 n| is far below that of |n|, 0.674."""
    points = np.zeros((60, 3), dtype=np.float32)
    points[:, 0] = np.linspace(-0.59, 0.59, 60)  # as above: sigma is 0.04
    x, _, origin, _ = sampler(points, closeness=2.0, space_share=0.0, pool=100_000).batch(100_000)
    inner = origin[:, 0].abs() < 0.5
    offset = (x - origin)[inner] / 0.04
    assert float(offset.square().mean()) == pytest.approx(0.2, rel=0.05)
    assert float(offset.abs().median()) < 0.2


@pytest.mark.parametrize("count", [2, 3, 50])
def test_small_clouds_clip_the_neighbours(count):
    queries = sampler(sphere(count), neighbours=50)
    assert queries.neighbours == count - 1
    assert torch.isfinite(queries.batch(100)[0]).all()


def test_queries_above_a_plane_count_and_those_beside_its_border_do_not():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-0.5, 0.5, (2000, 2)), np.zeros((2000, 1))], axis=1)
    queries = sampler(points)
    x = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, -0.3], [0.9, 0.0, 0.0], [0.9, 0.0, 0.4]])
    rows = torch.from_numpy(queries.tree.query(x.numpy())[1])
    found = queries.facing(x, rows)
    apart = x - torch.from_numpy(queries.points)[rows]
    expected = (apart[:, 2] / apart.norm(dim=1)).abs() ** 8
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found[0] > 0.9 and found[1] > 0.9 and found[2] < 1e-6


@pytest.mark.parametrize("count", [2, 9, 300])
def test_width_is_how_far_the_neighbours_of_a_plane_reach(count: int):
    dense, thin = sphere(count), 0.3 * sphere(count // 2, 0.1) + 0.5
    points = np.concatenate([dense, thin]).astype(np.float32)
    built, rows = sampler(points), torch.arange(len(points))
    apart = np.sort(np.linalg.norm(points[:, None].astype(np.float64) - points, axis=2), axis=1)
    np.testing.assert_allclose(built.width(rows), apart[:, min(12, len(points) - 1)], rtol=1e-4)


def no_planes() -> list[np.ndarray]:
    index = np.arange(500)
    angle = index * math.pi * (3 - math.sqrt(5))
    thread = np.stack([0.01 * np.cos(angle), 0.01 * np.sin(angle), index / 500 - 0.5], axis=1)
    line = np.stack([index / 500 - 0.5, 0 * index, 0 * index], axis=1)
    circles = np.stack([0.5 * np.cos(index / 80), 0.5 * np.sin(index / 80), 0.2 * (index // 250)], axis=1)
    return [thread, line, circles, np.repeat(thread[::50], 20, axis=0), line[:2]]


@pytest.mark.parametrize("points", no_planes(), ids=["thread", "line", "circles", "coincident", "two"])
def test_points_without_a_plane_tell_no_side(points: np.ndarray):
    queries = sampler(points)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-0.9, 0.9, (50, 3)).astype(np.float32))
    assert torch.equal(queries.facing(x, torch.from_numpy(queries.tree.query(x.numpy())[1])), torch.ones(50))


def test_another_cloud_is_not_resumed():
    with pytest.raises(ValueError, match="around 400 points, not 399"):
        sampler(sphere(399)).load_state_dict(sampler().state_dict())


@pytest.mark.parametrize("closeness", [0.0, 2.0])
def test_coincident_points_do_not_put_queries_on_their_targets(closeness: float):
    points = np.repeat(sphere(20), 10, axis=0)
    queries, targets, *_ = sampler(points, space_share=0.0, closeness=closeness).batch(200)
    assert ((queries - targets).norm(dim=1) > 0).all()


def test_spacing_of_a_grid_is_its_step():
    axis = np.linspace(-0.5, 0.5, 11)
    grid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    assert survey(grid).spacing == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("points", "options"), [(np.zeros((1, 3)), {}), (np.zeros((9, 2)), {}), (sphere(), {"space_share": 1.0})]
)
def test_impossible_arguments(points, options):
    with pytest.raises(ValueError, match=r"points|space_share"):
        sampler(points, **options)
