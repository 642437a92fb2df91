"""Figures with a closed form, and a loop over triangles as the oracle for distances."""

import numpy as np
import pytest
import trimesh

from shared.errors import UserError
from shared.mesh import Mesh
from shared.metrics import (
    compare_cloud,
    compare_meshes,
    f_score,
    hausdorff,
    point_to_mesh,
    psnr,
    sample_surface,
    ssim,
)


def sphere(radius):
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return Mesh(np.array(ball.vertices), np.array(ball.faces, np.int64))


def square(height=0.0):
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]) + np.array([0, 0, height])
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]))


def distance_to_triangle(p, a, b, c):
    """Inside the prism over the triangle: the distance to its plane; outside: to the nearest edge."""
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    edges = [(a, b), (b, c), (c, a)]
    if all(np.dot(np.cross(end - start, p - start), normal) >= 0 for start, end in edges):
        return abs(np.dot(p - a, normal))
    distances = []
    for start, end in edges:
        t = np.clip(np.dot(p - start, end - start) / np.dot(end - start, end - start), 0, 1)
        distances.append(np.linalg.norm(p - start - t * (end - start)))
    return min(distances)


def test_point_to_mesh_equals_the_loop():
    rng = np.random.default_rng(1)
    mesh = Mesh(rng.standard_normal((15, 3)), np.arange(15).reshape(5, 3))
    points = rng.standard_normal((60, 3)) * 1.5
    distances, faces = point_to_mesh(points, mesh)
    for point, distance, face in zip(points, distances, faces, strict=True):
        expected = [distance_to_triangle(point, *mesh.vertices[corners]) for corners in mesh.faces]
        assert distance == pytest.approx(min(expected), abs=1e-9)
        assert expected[face] == pytest.approx(min(expected), abs=1e-9)


def test_distances_far_from_the_origin():
    far = np.array([4e5, 5e6, 100.0])
    mesh = Mesh(square().vertices + far, square().faces)
    distances, _ = point_to_mesh((far + np.array([0.5, 0.5, 1e-3]))[None], mesh)
    assert distances == pytest.approx(1e-3, rel=1e-5)


def test_samples_are_uniform_and_repeatable():
    mesh = Mesh(
        np.array([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [5, 0, 0], [6, 0, 0], [5, 0, 2]]), np.array([[0, 1, 2], [3, 4, 5]])
    )
    points, normals = sample_surface(mesh, 40_000, seed=3)
    on_first = points[:, 2] == 0
    assert on_first.mean() == pytest.approx(0.75, abs=0.01)
    assert points[on_first].mean(axis=0) == pytest.approx([1, 2 / 3, 0], abs=0.02)
    assert normals[on_first] == pytest.approx(np.tile([0.0, 0, 1], (on_first.sum(), 1)))
    assert np.array_equal(points, sample_surface(mesh, 40_000, seed=3)[0])


def test_concentric_spheres():
    figures = compare_meshes(sphere(1.0), sphere(0.9), samples=4000, threshold=0.05)
    for name in ("chamfer_l1", "accuracy", "completeness", "hausdorff"):
        assert figures[name] == pytest.approx(0.1, rel=0.02)
    assert figures["chamfer_l2"] == pytest.approx(0.01, rel=0.03)
    assert figures["normal_consistency"] == pytest.approx(1.0, abs=1e-3)
    assert (figures["precision"], figures["recall"], figures["f_score"], figures["threshold"]) == (0, 0, 0, 0.05)


def test_identical_meshes():
    figures = compare_meshes(sphere(1.0), sphere(1.0), samples=2000, threshold=1e-6)
    for name in ("chamfer_l1", "chamfer_l2", "accuracy", "completeness", "hausdorff"):
        assert figures[name] == pytest.approx(0, abs=1e-9)
    for name in ("precision", "recall", "f_score", "normal_consistency"):
        assert figures[name] == pytest.approx(1)


def test_lifted_plane():
    figures = compare_meshes(square(height=0.25), square(), samples=500, threshold=0.3)
    assert figures["chamfer_l1"] == pytest.approx(0.25)
    assert figures["chamfer_l2"] == pytest.approx(0.0625)
    assert figures["hausdorff"] == pytest.approx(0.25)
    assert figures["f_score"] == 1


def test_half_covered_plane_is_complete_but_not_accurate():
    """Samples on [0, 1] against a truth on [0, 0.5]: the rest is x - 0.5 away, 1/8 on average."""
    half = Mesh(square().vertices * [0.5, 1, 1], square().faces)
    figures = compare_meshes(square(), half, samples=40_000, threshold=0.1)
    assert figures["accuracy"] == pytest.approx(1 / 8, abs=2e-3)
    assert figures["completeness"] == pytest.approx(0, abs=1e-12)
    assert figures["precision"] == pytest.approx(0.6, abs=0.01)
    assert figures["recall"] == 1
    assert figures["f_score"] == pytest.approx(0.75, abs=0.01)
    assert figures["hausdorff"] == pytest.approx(0.5, abs=1e-3)


def test_normal_consistency_of_perpendicular_planes():
    upright = Mesh(square().vertices[:, [0, 2, 1]], square().faces)
    assert compare_meshes(square(), upright, samples=100)["normal_consistency"] == pytest.approx(0, abs=1e-12)


def test_directed_figures():
    there, back = np.array([0.1, 0.3]), np.array([0.2, 0.2, 0.5])
    assert hausdorff(there, back) == 0.5
    assert f_score(there, back, 0.2) == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))


def test_cloud():
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.random((20_000, 2)), np.full(20_000, 0.1)])
    points[0, 2] = 0.5
    figures = compare_cloud(square(), points, samples=5000, threshold=0.2)
    distances = figures["points_to_surface"]
    assert distances["median"] == distances["p95"] == pytest.approx(0.1)
    assert distances["mean"] == figures["completeness"] == pytest.approx(0.1 + 0.4 / 20_000)
    assert distances["max"] == figures["hausdorff"] == pytest.approx(0.5)
    assert figures["accuracy"] == pytest.approx(0.1, abs=1e-3)
    assert (figures["f_score"] > 0.99) and "normal_consistency" not in figures
    normals = np.tile([0.0, 0.6, -0.8], (20_000, 1))
    assert compare_cloud(square(), points, normals, samples=100)["normal_consistency"] == pytest.approx(0.8)


def test_empty_surface():
    empty = Mesh(np.empty((0, 3)), np.empty((0, 3), np.int64))
    with pytest.raises(UserError, match="empty"):
        compare_meshes(empty, square(), samples=10)
    with pytest.raises(UserError, match="no faces"):
        point_to_mesh(np.zeros((1, 3)), empty)


def test_psnr():
    truth = np.full((8, 8, 3), 100, np.uint8)
    image = truth.copy()
    assert psnr(image, truth) == float("inf")
    image[:4] += 51
    assert psnr(image[:4], truth[:4]) == pytest.approx(-20 * np.log10(0.2))
    assert psnr(image, truth) == pytest.approx(-10 * np.log10(0.04 / 2))
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    assert (
        psnr(image, truth, mask)
        == pytest.approx(psnr(image / 255, truth / 255, mask))
        == pytest.approx(13.979, abs=1e-3)
    )
    with pytest.raises(ValueError, match="no pixel"):
        psnr(image, truth, np.zeros((8, 8), bool))


def test_ssim():
    image = np.random.default_rng(0).random((32, 32, 3))
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image, 1 - image) < 0
    # Constant images have no variance, which leaves the luminance term.
    a, b, c1 = 0.4, 0.6, 0.01**2
    dark, light = (np.full((16, 16, 3), level) for level in (a, b))
    assert ssim(dark, light) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))
