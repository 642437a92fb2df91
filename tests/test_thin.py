"""Clouds too large for a field become the means of small cubes."""

import numpy as np
import pytest

from pointrecon.thin import thin
from shared.pointcloud import PointCloud


def cloud(points, **columns):
    columns = {"normals": None, "colors": None, **columns}
    return PointCloud(np.asarray(points, float), source="here", dropped={"duplicate": 1}, **columns)


def test_small_clouds_stay():
    here = cloud(np.random.default_rng(0).random((100, 3)))
    assert thin(here, most=100) is here


def test_means_of_one_cube():
    # Two tight groups within cubes, at 0 and 1000.5 of 2048 cubes, and one point that sets their edge.
    rng = np.random.default_rng(1)
    group = rng.normal(scale=1e-9, size=(50, 3))
    points = np.concatenate([abs(group), group + 1000.5 / 2048, np.ones((1, 3))])
    colors = np.concatenate([np.tile([10, 20, 30], (50, 1)), np.tile([200, 100, 0], (51, 1))]).astype(np.uint8)
    normals = np.tile([[0.6, 0.8, 0.0]], (101, 1))
    small = thin(cloud(points, normals=normals, colors=colors), most=90)
    assert len(small) == 3
    assert np.allclose(small.points, [points[:50].mean(axis=0), points[50:100].mean(axis=0), [1, 1, 1]], atol=1e-12)
    assert np.array_equal(small.colors, [[10, 20, 30], [200, 100, 0], [200, 100, 0]])
    assert np.allclose(small.normals, normals[:3])
    assert small.dropped == {"duplicate": 1, "merged with close ones": 98}


@pytest.mark.parametrize("most", [500, 5000])
def test_a_sphere_keeps_its_shape_and_loses_noise(most):
    rng = np.random.default_rng(2)
    points = rng.normal(size=(40_000, 3))
    points *= (1 + rng.normal(scale=0.01, size=(len(points), 1))) / np.linalg.norm(points, axis=1, keepdims=True)
    offset = np.array([5e5, 4e6, 100.0])
    small = thin(cloud(points + offset), most)
    error = np.linalg.norm(small.points - offset, axis=1) - 1
    assert 0.4 * most <= len(small) <= most
    assert error.std() < 0.011


def test_opposite_normals_do_not_become_nan():
    points = np.tile([[0.0, 0, 0], [1.0, 1, 1]], (60, 1)) + 1e-9 * np.arange(120)[:, None]
    normals = np.tile([[0.0, 1, 0], [0.0, 1, 0], [0.0, -1, 0], [0.0, -1, 0]], (30, 1))
    small = thin(cloud(points, normals=normals), most=10)
    assert np.allclose(np.linalg.norm(small.normals, axis=1), 1)
