"""Colours of points on vertices, against sums written out."""

import numpy as np
import pytest

from shared import cloud_colors
from shared.cloud_colors import transfer

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(50, 3))
COLORS = RNG.integers(0, 256, (50, 3), dtype=np.uint8)
VERTICES = RNG.normal(size=(70, 3))


def by_hand(vertex: np.ndarray, neighbours: int) -> np.ndarray:
    distances = [float(np.linalg.norm(point - vertex)) for point in POINTS]
    nearest = sorted(range(len(POINTS)), key=distances.__getitem__)[:neighbours]
    weights = [1 / distances[index] for index in nearest]
    return sum(weight * COLORS[index] for weight, index in zip(weights, nearest, strict=True)) / sum(weights)


@pytest.mark.parametrize("neighbours", [1, 4, 50])
def test_against_sums_written_out(monkeypatch, neighbours):
    monkeypatch.setattr(cloud_colors, "CHUNK", 16)
    made = transfer(POINTS, COLORS, VERTICES, neighbours)
    expected = np.array([by_hand(vertex, neighbours) for vertex in VERTICES])
    assert made.dtype == np.uint8 and np.abs(made - expected).max() <= 0.5 + 1e-9


def test_a_vertex_on_a_point_takes_its_color_in_any_unit():
    for unit in (1e-9, 1.0, 1e9):
        assert np.array_equal(transfer(unit * POINTS, COLORS, unit * POINTS), COLORS)


def test_few_points_and_no_vertices():
    assert np.array_equal(transfer(POINTS[:1], COLORS[:1], VERTICES), np.repeat(COLORS[:1], len(VERTICES), axis=0))
    assert transfer(POINTS, COLORS, VERTICES[:0]).shape == (0, 3)


@pytest.mark.parametrize(("points", "neighbours"), [(0, 4), (50, 0)])
def test_nothing_to_take_colors_from(points, neighbours):
    with pytest.raises(ValueError, match="neighbours among"):
        transfer(POINTS[:points], COLORS[:points], VERTICES, neighbours)
