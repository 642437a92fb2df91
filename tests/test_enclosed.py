"""What a cloud encloses: bodies, cavities in them, and nothing where there is a way in."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from pointrecon.enclosed import CELLS, enclosed, lookup
from pointrecon.objectives import depth_error


def shell(radius: float, count: int = 20_000, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points * (radius + rng.normal(scale=noise, size=(count, 1)))


def radii() -> np.ndarray:
    line = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    return np.linalg.norm(np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1), axis=-1)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_ball_is_full(noise):
    inside = enclosed(cKDTree(shell(0.7, noise=noise)))
    assert inside[radii() < 0.5].all() and not inside[radii() > 0.7].any()


def test_a_ball_in_a_ball_is_a_cavity():
    inside = enclosed(cKDTree(np.concatenate([shell(0.8, 20_000), shell(0.35, 4000)])))
    r = radii()
    assert inside[(r > 0.45) & (r < 0.7)].all() and not inside[(r < 0.35) | (r > 0.8)].any()


def test_through_a_hole_there_is_a_way_in():
    points = shell(0.7)
    assert not enclosed(cKDTree(points[points[:, 2] < 0.6])).any()


def test_an_open_sheet_encloses_nothing():
    flat = np.random.default_rng(1).uniform(-0.8, 0.8, (5000, 3)) * [1, 1, 0.1]
    assert not enclosed(cKDTree(flat)).any()


def test_lookup_is_by_cells():
    cells = torch.zeros(4, 4, 4, dtype=torch.bool)
    cells[3, 0, 2] = True
    x = torch.tensor([[0.9, -0.9, 0.1], [1.0, -1.0, 0.49], [0.4, -0.9, 0.1], [0.9, -0.9, 0.6]])
    assert lookup(cells, x).tolist() == [True, True, False, False]


def test_depth_is_the_distance_to_the_cloud():
    x, nearest = torch.zeros(3, 3), torch.tensor([[3.0, 4.0, 0.0]]).expand(3, 3)
    depth = torch.tensor([5.0, 4.0, -5.0])
    assert depth_error(x, depth, nearest, squared=False).tolist() == [0.0, 1.0, 10.0]
    assert depth_error(x, depth, nearest, squared=True).tolist() == [0.0, 1.0, 100.0]
