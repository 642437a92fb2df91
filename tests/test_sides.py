"""Which side of an open surface a place is on: sheets, bowls, bodies with a hole, and clouds that do not tell."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pointrecon.enclosed import centres
from pointrecon.sides import sides, winding

X, Y, Z = np.moveaxis(centres(), -1, 0)


def ball(count: int = 6000, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def sheet(count: int = 4000, height: float = 0.0, seed: int = 1) -> np.ndarray:
    x, y = np.random.default_rng(seed).uniform(-0.8, 0.8, (2, count))
    return np.stack([x, y, height + 0.1 * np.sin(4 * x) * np.cos(3 * y)], axis=1)


def of(points: np.ndarray, normals: np.ndarray | None = None) -> np.ndarray | None:
    return sides(points, cKDTree(points), normals)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_above_an_open_sheet_is_outside(noise):
    points = sheet() + np.random.default_rng(2).normal(scale=noise, size=(4000, 3))
    side = of(points)
    above = Z - 0.1 * np.sin(4 * X) * np.cos(3 * Y)
    over = (np.abs(X) < 0.7) & (np.abs(Y) < 0.7)
    assert (side[over & (above > 0.3)] == 1).all() and (side[over & (above < -0.3)] == -1).all()
    assert (side[over & (np.abs(above) < 0.02)] == 0).all()


def test_normals_say_which_side_of_a_sheet_is_outside():
    points = sheet()
    down = np.tile([0.0, 0.0, -1.0], (len(points), 1))
    assert (of(points, down) == -of(points)).mean() > 0.999


@pytest.mark.parametrize("lowest", [-0.4, 0.0])
def test_within_a_bowl_is_inside(lowest):
    points = ball()
    side = of(0.8 * points[points[:, 2] > lowest])
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
    assert of(np.concatenate([sheet(height=0.3), sheet(height=-0.3, seed=2)])) is None


def test_points_all_over_do_not_tell():
    assert of(np.random.default_rng(0).uniform(-0.8, 0.8, (3000, 3))) is None


def test_few_points_do_not_tell():
    assert of(sheet(100)) is None


def test_normals_at_random_do_not_tell():
    points = sheet()
    assert of(points, ball(len(points))) is None


def test_many_points_stand_as_one():
    points = sheet(60_000)
    few, many = of(points[:6000]), of(points)
    told = (few != 0) & (many != 0)
    assert (few == many)[told].mean() > 0.999


def test_winding_number_of_a_ball():
    points = 0.5 * ball(4000)
    number = winding(np.array([[0.0, 0, 0], [0.1, 0.2, 0], [0, 0, 0.9]]), points, 2 * points * np.pi / 4000)
    np.testing.assert_allclose(number, [1, 1, 0], atol=0.02)
