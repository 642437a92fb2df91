"""Normals that come with a cloud."""

import numpy as np

from pointrecon.orientation import consistent, looks_inward


def ball(count: int = 3000, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def cube(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Points on a cube of edge 2, and their normals."""
    rng = np.random.default_rng(0)
    normals = np.eye(3)[rng.integers(3, size=count)] * rng.choice([-1, 1], size=(count, 1))
    return np.where(normals != 0, normals, rng.uniform(-1, 1, (count, 3))), normals


def test_oriented_normals_are_consistent():
    rng, points = np.random.default_rng(1), ball()
    assert consistent(points, points) and consistent(points, -points)
    shaken = points + 0.4 * rng.normal(size=points.shape)
    assert consistent(points, shaken / np.linalg.norm(shaken, axis=1, keepdims=True))
    assert consistent(*cube()), "edges do not matter"
    plate, sides = cube()
    assert consistent(plate * [1, 1, 0.02], sides), "nor do two sides that are close"
    beside = points + np.array([3, 0, 0])
    two = np.concatenate([points, beside])
    assert consistent(two, np.concatenate([points, -points])), "what lies apart does not tell of each other"


def test_sides_drawn_at_random_or_wrong_in_a_region_are_not():
    rng, points = np.random.default_rng(1), ball(3000)
    assert not consistent(points, points * rng.choice([-1.0, 1.0], size=(len(points), 1)))
    assert not consistent(points, np.where(points[:, :1] > 0.3, -points, points)), "a third of the ball"
    assert consistent(points, np.where(points[:, :1] > 0.9, -points, points)), "a twentieth"
    flat = np.array([[0.0, 0, 1]] * 6)
    assert consistent(ball(6), flat) and not consistent(ball(6), flat * [[1], [1], [1], [-1], [-1], [-1]]), "few points"


def test_the_side_of_a_closed_surface_and_of_a_scan_from_within():
    points = ball()
    for far in (np.zeros(3), np.array([1e6, -2e6, 3.0])):
        assert not looks_inward(points + far, points) and looks_inward(points + far, -points)
    room = points[points[:, 2] < 0.6]  # without its ceiling
    assert looks_inward(room, -room)


def test_how_dense_a_side_was_scanned_does_not_matter():
    """A thick shell with an opening, its inner side scanned four times as densely: still it looks outward."""
    outer, inner = ball(4000), ball(16000, seed=1)
    points, normals = np.concatenate([outer, 0.9 * inner]), np.concatenate([outer, -inner])
    opened = points[:, 2] < 0.8
    assert not looks_inward(points[opened], normals[opened])
