"""Which side of an open surface a place is on: sheets, bowls, bodies with a hole, and clouds that do not tell."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from pointrecon.adapt import adapt
from pointrecon.config import Config
from pointrecon.enclosed import centres
from pointrecon.sides import oriented, sides
from pointrecon.survey import survey
from pointrecon.trainer import Trainer
from pointrecon.winding import winding
from shared.config import read_config

X, Y, Z = np.moveaxis(centres(), -1, 0)


def ball(count: int = 6000, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.1 * np.sin(4 * x) * np.cos(3 * y)


def sheet(
    height: Callable[[np.ndarray, np.ndarray], np.ndarray] = waves, count: int = 4000, seed: int = 1
) -> np.ndarray:
    x, y = np.random.default_rng(seed).uniform(-0.8, 0.8, (2, count))
    return np.stack([x, y, height(x, y)], axis=1)


def of(points: np.ndarray, normals: np.ndarray | None = None) -> np.ndarray | None:
    return sides(points, cKDTree(points), normals)


HEIGHTS = {
    "waves": waves,
    "hill": lambda x, y: 0.4 * np.exp(-8 * (x**2 + y**2)),
    "quarry": lambda x, y: -0.4 * np.exp(-8 * (x**2 + y**2)),
    "valley": lambda x, y: 0.4 * np.abs(x),
    "basin": lambda x, y: 0.2 * (x**2 + y**2),
    "cliff": lambda x, y: 0.2 * np.tanh(8 * x),
}


@pytest.mark.parametrize("given", [None, 1, -1])
@pytest.mark.parametrize("name", HEIGHTS)
def test_above_an_open_sheet_is_outside_or_where_its_normals_look(name, given):
    points = sheet(HEIGHTS[name])
    normals = None if given is None else np.tile([0.0, 0.0, given], (len(points), 1))
    side = of(points, normals) * (given or 1)
    above = Z - HEIGHTS[name](X, Y)
    over = (np.abs(X) < 0.7) & (np.abs(Y) < 0.7)
    assert (side[over & (above > 0.3)] == 1).all() and (side[over & (above < -0.3)] == -1).all()
    assert (side[over & (np.abs(above) < 0.02)] == 0).all()


def test_a_noisy_sheet_has_sides():
    side = of(sheet(count=40_000) + np.random.default_rng(2).normal(scale=0.005, size=(40_000, 3)))
    over = (np.abs(X) < 0.7) & (np.abs(Y) < 0.7)
    assert (side[over & (Z > 0.4)] == 1).all() and (side[over & (Z < -0.4)] == -1).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_upright_sheet_looks_along_its_axis(seed):
    points = sheet(lambda x, y: np.random.default_rng(seed).normal(scale=0.003, size=x.shape))[:, [2, 0, 1]]
    side = of(points)
    over = (np.abs(Y) < 0.7) & (np.abs(Z) < 0.7)
    assert (side[over & (X > 0.3)] == 1).all() and (side[over & (X < -0.3)] == -1).all()


@pytest.mark.parametrize("lowest", [-0.4, 0.0])
def test_within_a_bowl_is_inside(lowest):
    points = ball()
    points = 0.8 * points[points[:, 2] > lowest]
    side = of(points)
    assert (of(points, -points / 0.8) == -side).mean() > 0.999
    radius = np.linalg.norm(centres(), axis=-1)
    assert (side[(radius < 0.6) & (Z > max(0.8 * lowest, 0) + 0.1)] == -1).all()
    assert (side[(radius > 0.95) & (Z > 0.1)] == 1).all()


def test_each_of_two_bodies_has_its_own_inside():
    apart = np.array([0.5, 0, 0])
    pieces = [0.3 * p[p[:, 2] < 0.8] + side * apart for p, side in ((ball(seed=1), 1), (ball(seed=2), -1))]
    side = of(np.concatenate(pieces))
    for centre in (apart, -apart):
        assert (side[np.linalg.norm(centres() - centre, axis=-1) < 0.15] == -1).all()
    assert (side[np.abs(X) < 0.1] == 1).all()


def test_one_sheet_over_another_does_not_tell():
    assert (
        of(np.concatenate([sheet(lambda x, y: waves(x, y) + 0.3), sheet(lambda x, y: waves(x, y) - 0.3, seed=2)]))
        is None
    )


def test_points_all_over_do_not_tell():
    assert of(np.random.default_rng(0).uniform(-0.8, 0.8, (3000, 3))) is None


@pytest.mark.parametrize("points", [sheet(count=100), 1e-5 * ball(6000) + np.eye(3)[np.arange(6000) % 3]])
def test_few_points_and_small_clusters_do_not_tell(points):
    assert of(points) is None


def test_normals_at_random_do_not_tell():
    points = sheet()
    assert of(points, ball(len(points))) is None


def test_many_points_stand_as_one():
    points = sheet(count=60_000)
    few, many = of(points[:6000]), of(points)
    told = (few != 0) & (many != 0)
    assert told.mean() > 0.9 and (few == many)[told].mean() > 0.999


def test_normals_are_made_to_agree_around_a_bend():
    angle = np.linspace(0, np.pi, 40)
    points = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    index = np.clip(np.arange(40)[:, None] + [-1, 1], 0, 39)
    turned = oriented(points, points * np.where(np.arange(40) % 3 == 0, -1, 1)[:, None], index)
    np.testing.assert_allclose(turned, points)
    # Four points of it, whose normals are at right angles or more, agree as mirror images.
    turned = oriented(points[::13], points[::13] * [[1], [-1], [1], [-1]], np.array([[1], [2], [3], [2]]))
    np.testing.assert_allclose(turned, points[::13])


def test_a_fit_to_a_sheet_is_negative_below_and_nowhere_else():
    keys = {
        "queries.pool": "20000",
        "queries.batch": "1024",
        "field.finest": "32",
        "field.levels": "6",
        "train.cell": "0",
    }
    keys |= {"train.steps": "100", "field.log2_entries": "12"}

    def share_of_negative(more: dict[str, str]) -> tuple[float, float]:
        points = sheet()
        settings = read_config(Config, None, [*(keys | more).items()])
        trainer = Trainer(adapt(settings, survey(points)), points, torch.device("cpu"))
        for step in range(100):
            trainer.step(step / 100)
        x = torch.from_numpy(np.random.default_rng(5).uniform(-0.7, 0.7, (4000, 3))).float()
        negative = (trainer.field.sdf(x) < 0).numpy()
        below = x[:, 2].numpy() < waves(x[:, 0].numpy(), x[:, 1].numpy())
        return float(negative[below].mean()), float(negative[~below].mean())

    below, above = share_of_negative({})
    assert below > 0.98 and above < 0.02
    below, _ = share_of_negative({"loss.sides": "false"})
    assert below < 0.9  # the back of a thin body


def test_winding_number_of_a_ball():
    points = 0.5 * ball(4000)
    number = winding(np.array([[0.0, 0, 0], [0.1, 0.2, 0], [0, 0, 0.9]]), points, 2 * points * np.pi / 4000)
    np.testing.assert_allclose(number, [1, 1, 0], atol=0.02)
