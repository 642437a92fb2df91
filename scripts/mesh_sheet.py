#!/usr/bin/env python3
"""Shaded pictures of meshes: each from two sides, or as cameras of depth frames see it, beside their photos.

    scripts/mesh_sheet.py a.ply b.ply --out sheet.png --eye 0.6,0.3,1
    scripts/mesh_sheet.py room.ply --out sheet.png --frames FOLDER --views 0,150,300

The second form shows photo | surface | the mesh's colours for every view; FOLDER as `scripts/fuse_depth.py` takes it.
Back faces are shaded like front ones: an open surface has no outside. Needs embreex (pip install isopull[demo]).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray

from scripts.fuse_depth import read_matrix
from shared.command_line import Parser
from shared.errors import UserError, main_guard
from shared.mesh import Mesh, load_mesh
from shared.run_folder import save_png

Array = NDArray[np.float64]
CLAY, AMBIENT = np.array([205.0, 190.0, 170.0]), 0.25
FINER = 2  # rays along a pixel's edge


class Caster:
    """A mesh that rays are shot at."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.trimesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)

    def picture(self, origins: Array, directions: Array, colored: bool) -> NDArray[np.uint8]:
        """RGB (h, w, 3) of rays (h FINER, w FINER, 3), white where they miss; clay, or the mesh's colours."""
        shape = directions.shape
        origins, directions = (np.ascontiguousarray(part).reshape(-1, 3) for part in (origins, directions))
        face = self.trimesh.ray.intersects_first(origins, directions)
        hit = face >= 0
        rgb = np.full((len(face), 3), 255.0)
        if colored and self.mesh.colors is not None:
            rgb[hit] = self.mesh.colors[self.mesh.faces[face[hit]]].mean(axis=1)
        else:
            cosine = np.abs((self.trimesh.face_normals[face[hit]] * directions[hit]).sum(axis=1, keepdims=True))
            rgb[hit] = CLAY * (AMBIENT + (1 - AMBIENT) * cosine)
        image = rgb.reshape(shape)
        return image.reshape(shape[0] // FINER, FINER, -1, FINER, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def from_two_sides(mesh: Mesh, eye: Array, size: int) -> NDArray[np.uint8]:
    """The mesh from direction `eye` and from the other side, without perspective, y upward."""
    caster, views = Caster(mesh), []
    centre = (mesh.vertices.max(axis=0) + mesh.vertices.min(axis=0)) / 2
    radius = float(np.linalg.norm(mesh.vertices - centre, axis=1).max())
    for direction in (eye, eye * [-1, 1, -1]):
        backward = direction / np.linalg.norm(direction)
        right = np.cross([0.0, 1.0, 0.0], backward)
        right /= np.linalg.norm(right)
        across = ((np.arange(size * FINER) + 0.5) / (size * FINER) * 2 - 1) * radius
        x, y = np.meshgrid(across, -across)
        origins = centre + x[..., None] * right + y[..., None] * np.cross(backward, right) + 2 * radius * backward
        views.append(caster.picture(origins, np.broadcast_to(-backward, origins.shape), colored=False))
    return np.concatenate(views, axis=1)


def from_frames(mesh: Mesh, folder: Path, views: list[int], width: int) -> NDArray[np.uint8]:
    """Photo | surface | colours of each view of depth frames, `width` pixels each."""
    caster, rows = Caster(mesh), []
    intrinsics = read_matrix(folder / "camera-intrinsics.txt", 3)
    for view in views:
        name = folder / f"frame-{view:06d}"
        photo = cv2.imread(f"{name}.color.jpg")
        if photo is None:
            raise UserError(f"{name}.color.jpg: no such photo; choose other --views")
        height = round(width * photo.shape[0] / photo.shape[1])
        scale = photo.shape[1] / (width * FINER)
        u, v = np.meshgrid(*((np.arange(n * FINER) + 0.5) * scale - 0.5 for n in (width, height)))
        pose = read_matrix(Path(f"{name}.pose.txt"), 4)
        directions = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origins = np.broadcast_to(pose[:3, 3], directions.shape)
        small = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1]
        rows.append(np.concatenate([small, *(caster.picture(origins, directions, c) for c in (False, True))], axis=1))
    return np.concatenate(rows)


def sheet(args: argparse.Namespace) -> None:
    """Write the sheet."""
    meshes = [load_mesh(path) for path in args.meshes]
    if args.frames is not None:
        views = [int(view) for view in args.views.split(",")]
        pictures = [from_frames(mesh, args.frames, views, args.size) for mesh in meshes]
    else:
        eye = np.array([float(x) for x in args.eye.split(",")])
        pictures = [from_two_sides(mesh, eye, args.size) for mesh in meshes]
    save_png(args.out, np.concatenate(pictures, axis=0 if args.frames is not None else 1))


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", type=Path, nargs="+", help="mesh files")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--eye", default="0.6,0.3,1", help="direction from which they are seen (default %(default)s)")
    parser.add_argument("--frames", type=Path, help="folder of depth frames whose cameras to take")
    parser.add_argument("--views", default="0", help="numbers of these frames (default %(default)s)")
    parser.add_argument("--size", type=int, default=320, help="pixels of a picture's width (default %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    return main_guard(lambda: sheet(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
