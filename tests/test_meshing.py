"""Extraction against closed forms and against dense marching cubes on the same lattice."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from shared import bricks
from shared.errors import UserError
from shared.mesh import component_count, face_cross, is_watertight, volume
from shared.meshing import extract_mesh


def sphere(radius, centre=(0.0, 0.0, 0.0)):
    return lambda x: (x - torch.tensor(centre)).norm(dim=1) - radius


def box(half):
    def sdf(x):
        q = x.abs() - torch.tensor(half)
        return q.clamp_min(0).norm(dim=1) + q.max(dim=1).values.clamp_max(0)

    return sdf


def torus(x, major=0.5, minor=0.2):
    ring = torch.stack([x[:, :2].norm(dim=1) - major, x[:, 2]], dim=1)
    return ring.norm(dim=1) - minor


def euler_characteristic(mesh):
    edges = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    return len(mesh.vertices) - len(np.unique(edges, axis=0)) + len(mesh.faces)


def assert_sound(mesh):
    assert is_watertight(mesh)
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices) == mesh.faces.max() + 1
    assert np.linalg.norm(face_cross(mesh), axis=1).min() > 0


def dense_vertices(sdf, n):
    """Marching cubes by skimage on all (n + 1)^3 nodes of [-1, 1]^3."""
    axis = torch.linspace(-1, 1, n + 1, dtype=torch.float64)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    values = sdf(nodes.float()).numpy().reshape((n + 1,) * 3)
    vertices, faces, _, _ = marching_cubes(values, 0.0, method="lorensen")
    return np.unique(vertices, axis=0) * 2 / n - 1, len(faces)


def test_sphere():
    mesh = extract_mesh(sphere(0.6), 64)
    assert_sound(mesh)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.6, abs=4e-4)
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=3e-3)
    assert (euler_characteristic(mesh), component_count(mesh)) == (2, 1)
    outward = (face_cross(mesh) * mesh.vertices[mesh.faces].mean(axis=1)).sum(axis=1)
    assert (outward > 0).all()


def test_torus_has_a_hole():
    mesh = extract_mesh(torus, 48)
    assert_sound(mesh)
    assert (euler_characteristic(mesh), component_count(mesh)) == (0, 1)


@pytest.mark.parametrize("resolution", [2, 7, 40, 61])
def test_equals_dense_marching_cubes(resolution):
    sdf = sphere(0.5317, (0.11, -0.07, 0.03))
    mesh = extract_mesh(sdf, resolution, chunk=1000)
    vertices, faces = dense_vertices(sdf, resolution)
    spacing = 2 / resolution
    assert (len(mesh.vertices), len(mesh.faces)) == (len(vertices), faces)
    # Vertices keep a thousandth of a cell away from the nodes; skimage lets them come closer.
    distances, match = cKDTree(vertices).query(mesh.vertices)
    assert distances.max() < 1.1e-3 * spacing
    assert len(np.unique(match)) == len(vertices)


def test_starting_with_wider_blocks_finds_the_same_surface(monkeypatch):
    """As from 513 cells on: here the coarsest blocks are 2 to 4 bricks wide, and their number is odd."""
    sdf, box_sides = sphere(0.5317, (0.11, -0.07, 0.03)), {"lower": (-1.0, -1.2, -1.0), "upper": (1.0, 1.0, 1.4)}
    expected, asked = extract_mesh(sdf, 75, **box_sides), []

    def counted(x):
        asked.append(len(x))
        return sdf(x)

    for coarsest in (2, 4):
        monkeypatch.setattr(bricks, "COARSEST", coarsest)
        asked.clear()
        mesh = extract_mesh(counted, 75, **box_sides)
        assert_sound(mesh)
        np.testing.assert_array_equal(np.unique(mesh.vertices, axis=0), np.unique(expected.vertices, axis=0))
        assert len(mesh.faces) == len(expected.faces) and sum(asked) < 0.3 * 76**3


def test_rough_field_is_watertight_and_equals_dense_marching_cubes():
    """Every sign pattern of a cell occurs, and the field is far steeper than the Lipschitz bound."""
    n = 24
    table = np.random.default_rng(0).standard_normal((n + 1,) * 3).astype(np.float32)
    for side in (0, -1):
        table[side], table[:, side], table[:, :, side] = 1, 1, 1

    def sdf(x):
        i, j, k = ((x + 1) * n / 2).round().long().T
        return torch.from_numpy(table)[i, j, k]

    mesh = extract_mesh(sdf, n)
    assert is_watertight(mesh)
    assert len(mesh.faces) == dense_vertices(sdf, n)[1]


def test_a_spike_steeper_than_the_bound_is_followed():
    """It falls from 10 to below 0 within a cell, so that blocks beside it look far from any surface."""

    def sdf(x):
        spike = 20 * (x[:, 1:].norm(dim=1) - 0.047)
        within = (x[:, 0] > 0) & (x[:, 0] < 0.9)
        return torch.minimum(sphere(0.503)(x), torch.where(within, spike, torch.tensor(10.0)))

    mesh = extract_mesh(sdf, 100)
    assert is_watertight(mesh)
    assert mesh.vertices[:, 0].max() == pytest.approx(0.9, abs=0.02)
    assert len(mesh.faces) == dense_vertices(sdf, 100)[1]


@pytest.mark.parametrize("steepness", [0.05, 1.0, 20.0])
def test_surface_does_not_depend_on_the_scale_of_the_field(steepness):
    mesh = extract_mesh(lambda x: steepness * sphere(0.6)(x), 40)
    reference = extract_mesh(sphere(0.6), 40)
    assert np.array_equal(mesh.faces, reference.faces)
    assert mesh.vertices == pytest.approx(reference.vertices, abs=1e-5)


def test_thin_sheet_is_not_lost():
    cell = 2 / 128
    mesh = extract_mesh(box((0.7, 0.6, 0.75 * cell)), 128)
    assert_sound(mesh)
    assert component_count(mesh) == 1
    assert volume(mesh) == pytest.approx(1.4 * 1.2 * 1.5 * cell, rel=0.02)


def test_surface_through_lattice_nodes_has_no_degenerate_faces():
    mesh = extract_mesh(box((0.5, 0.25, 0.75)), 32)
    assert_sound(mesh)
    assert np.abs(mesh.vertices).max(axis=0) == pytest.approx([0.5, 0.25, 0.75], abs=1e-4)
    # Marching cubes bevels an edge by half a cell's face.
    assert volume(mesh) == pytest.approx(0.75 - 4 * (1.0 + 0.5 + 1.5) * (2 / 32) ** 2 / 2, rel=2e-3)


@pytest.mark.parametrize("resolution", [32, 37])
def test_surface_across_the_border_is_closed(resolution):
    mesh = extract_mesh(sphere(0.8, (0.6, 0.0, 0.0)), resolution)
    assert_sound(mesh)
    assert mesh.vertices[:, 0].max() == pytest.approx(1.0, abs=1e-3)
    cap = np.pi * 0.4**2 * (3 * 0.8 - 0.4) / 3
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 0.8**3 - cap, rel=0.01)


def test_everything_inside_becomes_the_box():
    mesh = extract_mesh(lambda x: torch.full((len(x),), -5.0), 20)
    assert_sound(mesh)
    assert np.abs(mesh.vertices).max() == pytest.approx(1, abs=1e-3)
    assert volume(mesh) == pytest.approx(8 - 12 * 2 * (2 / 20) ** 2 / 2, rel=2e-3)


def test_separate_surfaces_in_a_box_that_is_not_cubic():
    def two(x):
        return torch.minimum(sphere(0.3, (-0.6, 0.0, 0.0))(x), sphere(0.2, (0.9, 0.0, 0.0))(x))

    mesh = extract_mesh(two, 90, lower=(-1.0, -0.5, -0.4), upper=(1.5, 0.5, 0.4))
    assert_sound(mesh)
    assert component_count(mesh) == 2
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * (0.3**3 + 0.2**3), rel=0.01)


def test_empty_field_has_no_faces():
    mesh = extract_mesh(lambda x: torch.ones(len(x)), 16)
    assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3)


def test_each_node_once_in_chunks_and_few_of_them():
    seen = []

    def sdf(x):
        assert x.dtype == torch.float32 and not torch.is_grad_enabled()
        seen.append(((x + 1) * 128).round().long())
        return sphere(0.6)(x)

    mesh = extract_mesh(sdf, 256, chunk=50_000)
    nodes = torch.cat(seen)
    assert max(map(len, seen)) == 50_000
    assert len(torch.unique(nodes @ torch.tensor([257**2, 257, 1]))) == len(nodes)
    # The shell is as many cells thick at any resolution, so its share halves again towards 512.
    assert len(nodes) < 0.06 * 257**3
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=2e-4)


def test_wrong_input():
    with pytest.raises(UserError, match="not finite"):
        extract_mesh(lambda x: torch.full((len(x),), float("nan")), 16)
    with pytest.raises(ValueError, match="shape"):
        extract_mesh(lambda x: x, 16)
    with pytest.raises(ValueError, match="no lattice"):
        extract_mesh(sphere(0.5), 1)
    with pytest.raises(ValueError, match="no lattice"):
        extract_mesh(sphere(0.5), 16, lower=(0.0, 0.0, 0.0), upper=(1.0, 0.0, 1.0))
