"""Surfaces are cut where their cloud does not support them, if that is much."""

import numpy as np
import torch

from pointrecon.trim import support, supported, trim
from shared.mesh import Mesh, is_watertight
from shared.meshing import extract_mesh


def ball() -> Mesh:
    return extract_mesh(lambda x: x.norm(dim=1) - 0.6, 48, device=torch.device("cpu"))


def cloud(keep) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(20_000, 3))
    points = 0.6 * points / np.linalg.norm(points, axis=1, keepdims=True)
    return points[keep(points)]


def test_support_is_distance_in_spacings_of_the_cloud() -> None:
    line = np.stack([np.arange(100.0), np.zeros(100), np.zeros(100)], axis=1)
    ratio = support(np.array([[50.0, 8.0, 0.0], [50.0, 0.0, 0.0], [50.2, 0.0, 2.0]]), line)
    np.testing.assert_allclose(ratio, [2.0, 0.0, np.hypot(0.2, 2.0) / 4], rtol=1e-12)


def test_a_hole_of_a_closed_shape_stays_closed_and_an_open_scan_is_cut() -> None:
    mesh = ball()
    assert trim(mesh, cloud(lambda p: p[:, 2] < 0.4), None) is mesh
    half = trim(mesh, cloud(lambda p: p[:, 2] < 0), None)
    assert not is_watertight(half) and 0.0 < half.vertices[:, 2].max() < 0.2
    assert abs(len(half.faces) / len(mesh.faces) - 0.5) < 0.15


def test_what_is_asked_for_is_done() -> None:
    mesh, points = ball(), cloud(lambda p: p[:, 2] < 0.4)
    assert trim(mesh, points, 0) is mesh
    assert not is_watertight(trim(mesh, points, 4.0))
    assert trim(mesh, points + 100, 4.0) is mesh, "a guess is better than nothing"


def test_points_of_a_surface_are_cut_where_the_surface_is() -> None:
    everywhere = cloud(lambda p: p[:, 2] < 2)
    half = supported(everywhere, cloud(lambda p: p[:, 2] < 0), None)
    assert 0.0 < everywhere[half, 2].max() < 0.2 and abs(half.mean() - 0.5) < 0.15
    assert supported(everywhere, cloud(lambda p: p[:, 2] < 0.4), None).all(), "a hole of a closed shape"
    assert not supported(everywhere, cloud(lambda p: p[:, 2] < 0.4), 4.0).all()
    assert supported(everywhere, everywhere + 100, 4.0).all() and supported(everywhere, everywhere[:9], 0).all()
    assert not len(supported(everywhere[:0], everywhere, None))
