"""Fewer faces for the same surface: edges of the least quadric error collapse first (Garland and Heckbert 1997)."""

import igl
import numpy as np
import torch
from scipy.spatial import cKDTree

from shared.errors import UserError
from shared.mesh import Mesh

SMALLEST = 4  # faces of a closed surface


def decimate(mesh: Mesh, faces: int) -> Mesh:
    """A mesh of at most about this many faces; the same one if it has no more.

    No collapse changes the topology: what is closed stays closed, and handles and components remain, so that a surface
    with many of them may keep more faces than asked for. Where more than two faces meet at an edge, or disagree on
    what is outside, the surface is cut. Normals and colours are those of the nearest original vertex.
    Raises UserError for fewer than 4 faces.
    """
    if faces < SMALLEST:
        raise UserError(f"{faces} faces: too few for a closed surface; ask for at least {SMALLEST}")
    if len(mesh.faces) <= faces:
        return mesh
    proper = mesh.faces[(mesh.faces != np.roll(mesh.faces, -1, axis=1)).all(axis=1)]  # of three different corners
    # On what is no manifold the collapses would fail, or never end.
    corners, whole, _ = igl.split_nonmanifold(mesh.vertices, proper)
    # The quadrics hold squares of coordinates, which far from the origin would drown the shape.
    origin = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    vertices, kept, _, _ = igl.qslim(corners - origin, whole, faces)
    vertices, kept = np.ascontiguousarray(vertices + origin), np.ascontiguousarray(kept, np.int64)
    if mesh.normals is None and mesh.colors is None:
        return Mesh(vertices, kept)
    _, nearest = cKDTree(mesh.vertices).query(vertices, workers=torch.get_num_threads())
    normals, colors = (None if extra is None else extra[nearest] for extra in (mesh.normals, mesh.colors))
    return Mesh(vertices, kept, normals, colors)
