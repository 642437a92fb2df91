"""Surfaces brought to exact points: by loops, where the truth is known, in noise, and beside what is not theirs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.snap import ACROSS, EXACT, LOST, NEIGHBOURS, REACH, Errors, errors_at, interpolate, snap
from pointrecon.survey import typical_spacing
from shared.field import Geometry
from shared.geometry import Similarity
from shared.mesh import Mesh, face_cross, is_watertight, vertex_normals, volume
from shared.meshing import extract_mesh

CPU = torch.device("cpu")
RADIUS = 0.6
FRAME = Similarity(50.0, (500_000.0, 0.0, -3.0))

pytestmark = pytest.mark.usefixtures("one_thread")


class Ball:
    """Distances to a sphere, by another unit than that of space."""

    def sdf(self, x: Tensor, active: int | None = None) -> Tensor:
        return 1.2 * (x.norm(dim=1) - RADIUS)

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        return Geometry(self.sdf(x), 1.2 * x / x.norm(dim=1, keepdim=True), x[:, :0])


def bumps(directions: np.ndarray) -> np.ndarray:
    """How far the true surface is from the field's."""
    return 0.003 * np.sin(9 * directions[:, 0]) * np.cos(7 * directions[:, 1])


def directions(count: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def cloud(count: int, noise: float = 0.0) -> np.ndarray:
    """Exact points of the true surface, or with noise of so many spacings, in field space."""
    out = directions(count)
    points = out * (RADIUS + bumps(out))[:, None]
    sigma = noise * typical_spacing(cKDTree(points))
    return points + np.random.default_rng(1).normal(scale=sigma, size=points.shape)


def ball(resolution: int = 48) -> Mesh:
    mesh = extract_mesh(Ball().sdf, resolution, device=CPU)
    normals = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    return replace(mesh, normals=normals).to_world(FRAME)


def snapped(points: np.ndarray, mesh: Mesh | None = None) -> Mesh:
    return snap(mesh or ball(), Ball(), FRAME.to_world(points), FRAME, CPU)


def off(mesh: Mesh) -> np.ndarray:
    """How far vertices are from the true surface, in field space."""
    at = FRAME.to_unit(mesh.vertices)
    radius = np.linalg.norm(at, axis=1)
    return np.abs(radius - RADIUS - bumps(at / radius[:, None]))


def test_mean_of_the_process_by_its_definition() -> None:
    rng = np.random.default_rng(2)
    points, normals = rng.normal(size=(40, 3)), directions(40)
    spacing, error = rng.uniform(0.5, 1.5, 40), rng.normal(size=40)
    places, outward = rng.normal(size=(5, 3)), directions(5, 3)
    found = interpolate(Errors(points, normals, spacing, error, 0.3), places, outward)
    for place, normal, value in zip(places, outward, found):
        near = np.argsort(np.linalg.norm(points - place, axis=1))[:NEIGHBOURS]
        length = REACH * spacing[near].mean()

        def covariance(a: np.ndarray, m: np.ndarray, b: np.ndarray, n: np.ndarray, length: float = length) -> float:
            distance = np.sqrt(((a - b) ** 2).sum() / length**2 + ((m - n) ** 2).sum() / ACROSS**2)
            return float((1 + 3**0.5 * distance) * np.exp(-(3**0.5) * distance))

        matrix = np.array([[covariance(points[i], normals[i], points[j], normals[j]) for j in near] for i in near])
        row = np.array([covariance(points[i], normals[i], place, normal) for i in near])
        expected = row @ np.linalg.inv(matrix + (EXACT + 0.3) * np.eye(NEIGHBOURS)) @ error[near]
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


def test_detail_that_a_field_has_not_comes_from_exact_points() -> None:
    before = ball(96)
    after = snapped(cloud(20_000), before)
    assert off(before).mean() > 0.001 and off(after).mean() < 0.05 * off(before).mean()
    assert is_watertight(after) and (after.faces == before.faces).all()
    # Its normals turn as its faces do.
    wrong = [1 - (vertex_normals(after) * normals).sum(axis=1).mean() for normals in (after.normals, before.normals)]
    assert wrong[0] < 0.3 * wrong[1]


def test_noise_is_not_followed() -> None:
    exact = off(ball()).mean()
    for noise in (0.05, 0.1, 0.2):
        points = cloud(20_000, noise)
        assert off(snapped(points)).mean() < 0.8 * exact, f"noise of {noise} spacings"
    assert off(snapped(cloud(20_000, 0.6))).mean() < 1.1 * exact, "a cloud that `fit` would take for noisy"


def test_noise_alone_moves_nothing_far() -> None:
    out = directions(20_000)
    spacing = typical_spacing(cKDTree(RADIUS * out))
    points = RADIUS * out + np.random.default_rng(1).normal(scale=0.2 * spacing, size=out.shape)
    radius = np.linalg.norm(FRAME.to_unit(snapped(points).vertices), axis=1)
    assert np.abs(radius - RADIUS).mean() < 0.05 * spacing


def test_points_that_are_not_on_the_surface_do_not_pull_on_it() -> None:
    points = cloud(20_000)
    litter = 1.04 * RADIUS * directions(200, 9)
    assert 0.04 * RADIUS > 3 * LOST * typical_spacing(cKDTree(points))
    np.testing.assert_allclose(snapped(np.concatenate([points, litter])).vertices, snapped(points).vertices, atol=1e-3)


def test_the_two_sides_of_a_thin_part_are_told_apart() -> None:
    rng = np.random.default_rng(4)
    points = np.concatenate([rng.uniform(-1, 1, (4000, 2)), np.zeros((4000, 1))], axis=1)
    upward = np.tile([0.0, 0.0, 1.0], (4000, 1))
    spacing = np.full(8000, typical_spacing(cKDTree(points)))
    both = np.concatenate([points, points - [0, 0, 0.3 * spacing[0]]])
    normals, error = np.concatenate([upward, -upward]), np.repeat([0.001, -0.001], 4000)
    found = interpolate(Errors(both, normals, spacing, error, 0.0), both[::50], normals[::50])
    np.testing.assert_allclose(found, error[::50], rtol=0.1)


def test_lines_of_a_scan_leave_no_ridges() -> None:
    """Points eight times as dense along circles of latitude as across."""
    step = 0.02
    rings = []
    for polar in np.arange(step, np.pi, 8 * step):
        turn = np.arange(0, 2 * np.pi, step / np.sin(polar))
        ring = [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.full(len(turn), np.cos(polar))]
        rings.append(np.stack(ring, axis=1))
    out = np.concatenate(rings)
    before = ball(96)
    after = snapped((RADIUS + 0.002) * out, before)
    moved = np.linalg.norm(FRAME.to_unit(after.vertices) - FRAME.to_unit(before.vertices), axis=1)
    assert 0.0008 < moved.min() and moved.max() < 0.0025
    turned = np.degrees(np.arccos((after.normals * before.normals).sum(axis=1).clip(-1, 1)))
    assert turned.max() < 2


def test_copies_of_points_within_a_hair() -> None:
    points = cloud(20_000)
    copies = points[::10] + np.random.default_rng(3).normal(scale=1e-6, size=(2000, 3))
    after = snapped(np.concatenate([points, copies]), ball(96))
    assert off(after).mean() < 0.1 * off(ball(96)).mean()


def test_only_what_points_lie_on_moves() -> None:
    points = cloud(20_000)
    cap = points[points[:, 2] > 0.5]
    before = ball()
    moved = np.linalg.norm(FRAME.to_unit(snapped(cap).vertices) - FRAME.to_unit(before.vertices), axis=1)
    height = FRAME.to_unit(before.vertices)[:, 2]
    assert np.median(moved[height > 0.52]) > 1e-4 and moved[height < 0].max() < 1e-6


def test_thin_plates_and_edges_keep_their_faces() -> None:
    """A plate as thick as three cells whose field is rounded at its edges and off by a sixth of a cell."""
    half = torch.tensor([0.5, 0.4, 0.05])

    class Plate(Ball):
        def sdf(self, x: Tensor, active: int | None = None) -> Tensor:
            beyond = x.abs() - (half - 0.02)
            return beyond.clamp_min(0).norm(dim=1) + beyond.max(dim=1).values.clamp_max(0) - 0.02

        def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                sdf = self.sdf(x)
                (gradient,) = torch.autograd.grad(sdf.sum(), x)
            return Geometry(sdf.detach(), gradient, x[:, :0].detach())

    rng = np.random.default_rng(6)
    points = rng.uniform(-1, 1, (8000, 3)) * (half.numpy() - 0.004)
    side = rng.choice(3, 8000, p=[0.1, 0.1, 0.8])
    rows = np.arange(8000)
    points[rows, side] = np.sign(points[rows, side]) * (half.numpy() - 0.004)[side]
    mesh = extract_mesh(Plate().sdf, 96, device=CPU)
    normals = Plate().geometry(torch.from_numpy(mesh.vertices.astype(np.float32))).gradient.double().numpy()
    before = replace(mesh, normals=normals).to_world(FRAME)
    after = snap(before, Plate(), FRAME.to_world(points), FRAME, CPU)
    assert ((face_cross(after) * face_cross(before)).sum(axis=1) > 0).mean() > 0.999
    exact = 8 * float(np.prod(half.numpy() - 0.004))
    assert abs(volume(after) / FRAME.scale**3 / exact - 1) < 0.03 < volume(before) / FRAME.scale**3 / exact - 1


def test_nothing_to_move() -> None:
    mesh = ball()
    empty = Mesh(mesh.vertices[:0], mesh.faces[:0], mesh.normals[:0])
    assert not len(snapped(cloud(2000), empty).vertices)
    far_off = cloud(2000)
    far_off[:200] *= 1.5
    assert errors_at(Ball(), far_off, CPU) is None, "the field is not there yet"
    with pytest.raises(ValueError, match="without the normals"):
        snapped(cloud(2000), replace(mesh, normals=None))
