"""A triangle mesh as plain arrays, what can be said about its topology, and its way to and from files."""

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from trimesh.visual import ColorVisuals

from shared.errors import UserError
from shared.geometry import Similarity
from shared.run_folder import atomic_write

SUFFIXES = (".ply", ".obj", ".glb", ".stl")
READABLE = (*SUFFIXES, ".off")
# What trimesh lets through from a damaged file; ImportError: it takes binary rubbish for text in an unknown encoding.
BROKEN_FILE = (ImportError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, struct.error)


@dataclass(frozen=True, eq=False)
class Mesh:
    """vertices (V, 3) and faces (F, 3), counter-clockwise from outside; per-vertex normals (V, 3) and RGB (V, 3)."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    normals: NDArray[np.float64] | None = None
    colors: NDArray[np.uint8] | None = None

    def to_world(self, transform: Similarity) -> "Mesh":
        """The same mesh out of field space, in the user's frame and units."""
        return replace(self, vertices=transform.to_world(self.vertices))


def face_cross(mesh: Mesh) -> NDArray[np.float64]:
    """Outward normal of each face times twice its area: (F, 3)."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(mesh: Mesh) -> NDArray[np.float64]:
    """Unit normals (V, 3) of the vertices by their faces, which count by their area; zeros where there are none."""
    by_area = igl.PER_VERTEX_NORMALS_WEIGHTING_TYPE_AREA
    normals = igl.per_vertex_normals(mesh.vertices, np.ascontiguousarray(mesh.faces), by_area)
    return np.nan_to_num(normals)


def volume(mesh: Mesh) -> float:
    """Enclosed volume by the divergence theorem; positive if the faces of a closed mesh look outward."""
    if not len(mesh.faces):
        return 0.0
    # Far from the origin, as in map coordinates, small differences of large numbers would be left.
    vertices = mesh.vertices - mesh.vertices[mesh.faces[0, 0]]
    a, b, c = (vertices[mesh.faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def is_watertight(mesh: Mesh) -> bool:
    """Whether each edge joins exactly two faces that agree on their orientation (and there is a face at all)."""
    start, end = mesh.faces.ravel(), np.roll(mesh.faces, -1, axis=1).ravel()
    forward = np.sort(start * len(mesh.vertices) + end)
    backward = np.sort(end * len(mesh.vertices) + start)
    return len(forward) > 0 and bool((forward[1:] > forward[:-1]).all() and (forward == backward).all())


def face_components(mesh: Mesh) -> tuple[int, NDArray[np.int64]]:
    """Number of components and the component (F,) of each face; faces that share a vertex are connected."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    graph = coo_array((np.ones(len(start), bool), (start, end)), shape=(len(used), len(used)))
    count, labels = connected_components(graph.tocsr(), directed=False)
    return int(count), labels[faces[:, 0]].astype(np.int64)


def component_count(mesh: Mesh) -> int:
    """Number of connected components; vertices without a face do not count."""
    return face_components(mesh)[0] if len(mesh.faces) else 0


def keep_components(mesh: Mesh, minimum_fraction: float) -> Mesh:
    """Drop the components with less than this fraction (0..1) of the largest one's area; 1 keeps the largest alone."""
    if not len(mesh.faces):
        return mesh
    count, labels = face_components(mesh)
    areas = np.bincount(labels, weights=np.linalg.norm(face_cross(mesh), axis=1), minlength=count)
    return keep_faces(mesh, (areas >= minimum_fraction * areas.max())[labels])


def keep_faces(mesh: Mesh, wanted: NDArray[np.bool_]) -> Mesh:
    """The mesh of these faces (F,) alone, without vertices that they do not use."""
    used, kept = np.unique(mesh.faces[wanted], return_inverse=True)
    normals = None if mesh.normals is None else mesh.normals[used]
    colors = None if mesh.colors is None else mesh.colors[used]
    return Mesh(mesh.vertices[used], kept.reshape(-1, 3), normals, colors)


def check_format(path: Path) -> None:
    """Raises UserError where a mesh cannot be written with this suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: unknown mesh format {path.suffix.lower()!r}; use one of {', '.join(SUFFIXES)}")


def save_mesh(mesh: Mesh, path: str | Path) -> None:
    """Write PLY, OBJ, GLB or STL by suffix, aside first, so that a crash leaves no half mesh.

    PLY keeps the coordinates in double precision (clouds in map coordinates need it); GLB and STL are single by format.
    Raises UserError for another suffix or a mesh without faces.
    """
    path = Path(path)
    check_format(path)
    suffix = path.suffix.lower()
    if not len(mesh.faces):
        raise UserError(f"{path}: the surface is empty, so there is no mesh to write; train for longer")
    with atomic_write(path) as file:
        if suffix == ".ply":
            _write_ply(mesh, file)
        else:
            _to_trimesh(mesh).export(file, file_type=suffix[1:])


def save_points(
    points: NDArray[np.float64],
    normals: NDArray[np.float64] | None,
    path: Path,
    colors: NDArray[np.uint8] | None = None,
) -> None:
    """Write points (n, 3), with normals (n, 3) and RGB (n, 3) where there are any, as PLY, as `save_mesh` does."""
    with atomic_write(path) as file:
        _write_ply(Mesh(points, np.empty((0, 3), np.int64), normals, colors), file)


def load_mesh(path: str | Path) -> Mesh:
    """Vertices, faces and vertex colours of a PLY, OBJ, GLB, STL or OFF file.

    Corners at the same place become one vertex in STL, which cannot share them. Raises UserError if the file is
    missing, broken, of another format, or without faces.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a mesh ({', '.join(READABLE)})")
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise UserError(f"{path}: unknown mesh format {suffix!r}; convert it to one of {', '.join(SUFFIXES)}")
    try:
        loaded = trimesh.load_mesh(path, process=suffix == ".stl")
    except BROKEN_FILE as error:
        raise UserError(f"{path}: not a readable mesh ({error}); export it again as {', '.join(SUFFIXES)}") from error
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), np.int64)
    if not len(faces):
        raise UserError(f"{path}: the file holds no faces; give a triangle mesh, or pass it as a point cloud")
    vertices = np.asarray(loaded.vertices, np.float64)
    if faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(vertices).all():
        raise UserError(f"{path}: faces name missing vertices or coordinates are not finite; export the mesh again")
    visual, colors = loaded.visual, None
    if isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        colors = np.array(visual.vertex_colors[:, :3], np.uint8)
    return Mesh(vertices, faces, colors=colors)


def _to_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=mesh.normals, vertex_colors=mesh.colors, process=False
    )


def _write_ply(mesh: Mesh, file: IO[bytes]) -> None:
    """Binary little-endian PLY with double coordinates."""
    fields: list[tuple[str, str, str, NDArray | None]] = [
        ("x y z", "double", "<f8", mesh.vertices),
        ("nx ny nz", "float", "<f4", mesh.normals),
        ("red green blue", "uchar", "u1", mesh.colors),
    ]
    columns = [
        (name, kind, code, data[:, axis])
        for names, kind, code, data in fields
        if data is not None
        for axis, name in enumerate(names.split())
    ]
    vertices = np.empty(len(mesh.vertices), [(name, code) for name, _, code, _ in columns])
    for name, _, _, column in columns:
        vertices[name] = column
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {kind} {name}" for name, kind, _, _ in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    file.write("\n".join(header).encode())
    file.write(vertices.tobytes())
    file.write(faces.tobytes())
