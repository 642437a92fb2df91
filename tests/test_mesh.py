"""Topology on meshes small enough to count by hand, and files that must come back as they went."""

import numpy as np
import pytest

from shared.errors import UserError
from shared.geometry import Similarity
from shared.mesh import (
    Mesh,
    component_count,
    is_watertight,
    keep_components,
    load_mesh,
    save_mesh,
    vertex_normals,
    volume,
)

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
CORNERS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def tetrahedra(*sizes):
    """Disjoint right-angled tetrahedra with legs of these sizes."""
    vertices = np.concatenate([size * CORNERS + 10.0 * i for i, size in enumerate(sizes)])
    return Mesh(vertices, np.concatenate([TETRAHEDRON + 4 * i for i in range(len(sizes))]))


def test_volume_and_orientation():
    assert volume(tetrahedra(1.0, 2.0)) == pytest.approx(9 / 6)
    assert volume(Mesh(CORNERS, TETRAHEDRON[:, ::-1])) == pytest.approx(-1 / 6)


def test_watertight():
    assert is_watertight(tetrahedra(1.0, 2.0))
    assert not is_watertight(Mesh(CORNERS, TETRAHEDRON[:3]))
    flipped = TETRAHEDRON.copy()
    flipped[0] = flipped[0, ::-1]
    assert not is_watertight(Mesh(CORNERS, flipped))
    assert not is_watertight(Mesh(CORNERS, np.concatenate([TETRAHEDRON, TETRAHEDRON])))
    assert not is_watertight(Mesh(CORNERS, TETRAHEDRON[:0]))


def test_components():
    mesh = tetrahedra(1.0, 0.1, 2.0)
    loose = Mesh(np.concatenate([mesh.vertices, [[7.0, 7, 7]]]), mesh.faces)
    assert component_count(loose) == 3
    assert component_count(Mesh(CORNERS, TETRAHEDRON[:0])) == 0
    assert component_count(keep_components(loose, 0.1)) == 2
    largest = keep_components(loose, 1.0)
    assert np.array_equal(largest.vertices, mesh.vertices[8:])
    assert volume(largest) == pytest.approx(8 / 6)


def test_components_keep_their_colors():
    mesh = tetrahedra(1.0, 2.0)
    colors = np.repeat(np.array([[10, 20, 30], [40, 50, 60]], np.uint8), 4, axis=0)
    kept = keep_components(Mesh(mesh.vertices, mesh.faces, mesh.vertices, colors), 1.0)
    assert np.array_equal(kept.colors, colors[4:]) and np.array_equal(kept.normals, mesh.vertices[4:])


def test_to_world():
    world = tetrahedra(1.0).to_world(Similarity(2.0, (1.0, 0.0, -1.0)))
    assert np.array_equal(world.vertices, 2 * CORNERS + [1, 0, -1])


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb", ".stl", ".PLY"])
def test_files_come_back(tmp_path, suffix):
    mesh = tetrahedra(1.0, 2.0)
    path = tmp_path / "new folder" / f"mesh{suffix}"
    save_mesh(mesh, path)
    loaded = load_mesh(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert is_watertight(loaded) and component_count(loaded) == 2
    assert len(loaded.vertices) == 8
    assert volume(loaded) == pytest.approx(9 / 6, rel=1e-6)


@pytest.mark.parametrize(
    ("suffix", "mark"), [(".ply", b"property float nz"), (".obj", b"\nvn "), (".glb", b'"NORMAL"')]
)
def test_normals_go_along_and_colors_come_back(tmp_path, suffix, mark):
    path = tmp_path / f"mesh{suffix}"
    normals = CORNERS - 0.25
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    save_mesh(Mesh(CORNERS, TETRAHEDRON, normals, colors), path)
    assert np.array_equal(load_mesh(path).colors, colors)
    assert mark in path.read_bytes()
    save_mesh(Mesh(CORNERS, TETRAHEDRON), path)
    assert load_mesh(path).colors is None
    assert mark not in path.read_bytes()


@pytest.mark.parametrize(("first", "extra"), [("OFF", ""), ("NOFF", " 0 0 1"), ("COFF", " 9 8 7 255")])
def test_off_with_and_without_normals_and_colors(tmp_path, first, extra):
    path = tmp_path / "mesh.off"
    rows = [f"{x} {y} {z}{extra}" for x, y, z in CORNERS] + [f"3 {a} {b} {c}" for a, b, c in TETRAHEDRON]
    path.write_text("\n".join([first, "# by hand", "4 4 6", *rows]))
    loaded = load_mesh(path)
    assert np.array_equal(loaded.vertices, CORNERS) and np.array_equal(loaded.faces, TETRAHEDRON)


def test_map_coordinates_survive_a_ply(tmp_path):
    vertices = CORNERS * 0.001 + np.array([431_234.5678, 5_412_345.6789, 123.456])
    save_mesh(Mesh(vertices, TETRAHEDRON), tmp_path / "mesh.ply")
    loaded = load_mesh(tmp_path / "mesh.ply")
    assert np.array_equal(loaded.vertices, vertices)


def test_save_refuses(tmp_path):
    with pytest.raises(UserError, match=r"mesh\.xyz: .*\.ply"):
        save_mesh(tetrahedra(1.0), tmp_path / "mesh.xyz")
    with pytest.raises(UserError, match="empty"):
        save_mesh(Mesh(CORNERS, TETRAHEDRON[:0]), tmp_path / "mesh.ply")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb", ".stl", ".xyzzy"])
@pytest.mark.parametrize("content", ["missing", "empty", "text", "truncated"])
def test_load_refuses(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    if content == "truncated":
        whole = path.with_suffix(".ply" if suffix == ".xyzzy" else suffix)
        save_mesh(tetrahedra(1.0, 2.0), whole)
        path.write_bytes(whole.read_bytes()[:150])
    elif content != "missing":
        path.write_text("" if content == "empty" else "no mesh at all\n")
    with pytest.raises(UserError, match=f"broken{suffix}: .*; "):
        load_mesh(path)


def test_a_cloud_is_not_a_mesh(tmp_path):
    path = tmp_path / "cloud.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(UserError, match=r"cloud\.obj: "):
        load_mesh(path)


def test_opening_at_the_sphere_takes_only_what_lies_on_it():
    from mvrecon.mesh import _open_at_sphere

    vertices = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])
    mesh = Mesh(vertices, np.array([[0, 1, 2], [3, 4, 5], [2, 3, 4]]))
    opened = _open_at_sphere(mesh, 0.01)
    assert opened.vertices.tolist() == vertices[3:].tolist()
    assert opened.faces.tolist() == [[0, 1, 2]], "faces with a corner on the sphere go, and their corners with them"


def test_normals_of_vertices_count_faces_by_their_area():
    rng = np.random.default_rng(8)
    vertices, faces = rng.normal(size=(9, 3)), np.array([[0, 1, 2], [0, 2, 3], [3, 4, 5], [0, 5, 6], [7, 7, 7]])
    expected = np.zeros((9, 3))
    for face in faces:
        a, b, c = vertices[face]
        expected[face] += np.cross(b - a, c - a)
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = np.divide(expected, length, out=np.zeros_like(expected), where=length > 0)
    np.testing.assert_allclose(vertex_normals(Mesh(vertices, faces)), expected, atol=1e-12)
    np.testing.assert_allclose(vertex_normals(Mesh(vertices, faces[:, ::-1])), -expected, atol=1e-12)
