"""Decimated surfaces keep shape, topology and place, and take normals and colours along."""

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from shared.decimate import decimate
from shared.errors import UserError
from shared.mesh import Mesh, component_count, face_cross, is_watertight, volume


def ball() -> Mesh:
    sphere = trimesh.creation.icosphere(4)
    normals = np.array(sphere.vertices)
    return Mesh(
        normals.copy(), np.array(sphere.faces, np.int64), normals, np.rint(normals * 127 + 128).astype(np.uint8)
    )


def ring() -> Mesh:
    torus = trimesh.creation.torus(1.0, 0.3, major_sections=96, minor_sections=48)
    return Mesh(np.array(torus.vertices), np.array(torus.faces, np.int64))


@pytest.mark.parametrize("target", [2000, 500, 100])
def test_a_ball_keeps_its_shape(target):
    made = decimate(ball(), target)
    assert target - 2 <= len(made.faces) <= target and is_watertight(made)
    assert made.vertices.dtype == np.float64 and made.faces.dtype == np.int64
    # Chords of a sphere: the distance to it falls with the area of a face.
    assert np.abs(np.linalg.norm(made.vertices, axis=1) - 1).max() < 10 / target
    assert volume(made) == pytest.approx(4 / 3 * np.pi, rel=15 / target)


@pytest.mark.parametrize("target", [1000, 100, 4])
def test_handles_and_components_stay(target):
    one = ring()
    two = Mesh(
        np.concatenate([one.vertices, one.vertices + 5]), np.concatenate([one.faces, one.faces + len(one.vertices)])
    )
    made = decimate(two, target)
    euler = len(made.vertices) - len(made.faces) * 3 // 2 + len(made.faces)
    assert is_watertight(made) and component_count(made) == 2 and euler == 0


def test_closed_stays_closed_where_the_surface_is_thin():
    """Sheets closer than an edge is long, with holes: collapses without a look at the topology tear or weld them."""
    size = 24
    solid = np.zeros((size + 2, size + 2, 4), bool)
    solid[1:-1, 1:-1, 1:3] = True
    solid[4:-4:3, 4:-4:3] = False
    boxes = trimesh.voxel.ops.matrix_to_marching_cubes(solid)
    sheet = Mesh(np.array(boxes.vertices), np.array(boxes.faces, np.int64))
    assert is_watertight(sheet)
    for target in (len(sheet.faces) // 2, len(sheet.faces) // 5, 100):
        assert is_watertight(decimate(sheet, target))


def test_a_border_stays_in_place():
    side = np.arange(41)
    x, y = (axis.ravel() / 20 - 1 for axis in np.meshgrid(side, side, indexing="ij"))
    corner = (41 * side[:-1, None] + side[:-1]).ravel()[:, None]
    faces = np.concatenate([np.add(corner, [0, 41, 42]), np.add(corner, [0, 42, 1])])
    made = decimate(Mesh(np.stack([x, y, 0.2 * np.sin(3 * x) * np.cos(2 * y)], axis=1), faces), 300)
    assert len(made.faces) == 300
    assert np.abs(face_cross(made)[:, 2]).sum() / 2 == pytest.approx(4, rel=0.001), "seen from above still the square"


def test_precision_far_from_the_origin():
    sphere, shift = ball(), np.array([431_234.5678, 5_412_345.6789, 123.456])
    rough = sphere.vertices * np.random.default_rng(0).uniform(0.99, 1.01, (len(sphere.vertices), 1))
    near, far = decimate(Mesh(rough, sphere.faces), 500), decimate(Mesh(rough + shift, sphere.faces), 500)
    distance, _ = cKDTree(near.vertices).query(far.vertices - shift)
    assert is_watertight(far) and distance.max() < 1e-5


def test_normals_and_colors_are_those_nearby():
    made = decimate(ball(), 500)
    assert made.normals is not None and made.colors is not None
    np.testing.assert_allclose(np.linalg.norm(made.normals, axis=1), 1, atol=1e-12)
    assert np.einsum("ij,ij->i", made.normals, made.vertices).min() > 0.99
    assert np.abs(made.colors - (made.vertices * 127 + 128)).max() < 10
    assert decimate(ring(), 500).normals is None


def test_loose_vertices_go_and_small_meshes_stay():
    mesh = ring()
    loose = Mesh(np.concatenate([[[9.0, 9, 9]], mesh.vertices]), mesh.faces + 1)
    assert is_watertight(decimate(loose, 500)) and decimate(loose, 500).vertices.max() < 2
    assert decimate(mesh, len(mesh.faces)) is mesh


def test_what_is_no_manifold_is_cut():
    mesh = ring()
    flipped, count = mesh.faces.copy(), len(mesh.vertices)
    flipped[5] = flipped[5, ::-1]
    degenerate = np.concatenate([mesh.faces, [[0, 0, 1], [3, 3, 3]]])
    perforated = mesh.faces[np.random.default_rng(0).random(len(mesh.faces)) > 0.1]
    for faces in (flipped, degenerate, perforated, np.concatenate([mesh.faces, mesh.faces[:5]])):
        made = decimate(Mesh(mesh.vertices, faces), 5000)
        assert 4900 < len(made.faces) <= 5000 and volume(made) == pytest.approx(volume(mesh), rel=0.2)
    other = np.concatenate([mesh.faces, mesh.faces + count])
    other[np.isin(other, mesh.faces[0, :2] + count)] -= count  # two rings that share an edge
    welded = decimate(Mesh(np.concatenate([mesh.vertices, mesh.vertices + 5]), other), 2000)
    assert is_watertight(welded) and component_count(welded) == 2


def test_too_few_faces_are_refused():
    with pytest.raises(UserError, match=r"3 faces: too few .*; ask for at least 4"):
        decimate(ring(), 3)
