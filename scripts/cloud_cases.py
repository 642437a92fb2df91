"""Clouds with a known surface, spoilt in the ways in which scans are, and screened Poisson at its best to compare with.

A case is a name such as `armadillo/20k-noise0.5`: a mesh, the number of points and what was done to them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.bilateral import BLOCK, FIRST, RADIUS, UPDATES, Bilateral
from pointrecon.survey import survey
from shared.errors import UserError
from shared.field import Geometry
from shared.geometry import fit_box
from shared.mesh import Mesh
from shared.metrics import compare_cloud, compare_meshes, sample_surface
from shared.pointcloud import PointCloud, read_cloud
from shared.report import diagonal

Points = NDArray[np.float64]
Truth = Mesh | PointCloud
Denoise = Callable[[Points, Points], Points]
Spoil = Callable[[Points, float, np.random.Generator], Points]


@dataclass(frozen=True)
class Kind:
    """A number of samples of the surface and what is done to them, given the diagonal of the mesh's bounding box."""

    points: int
    spoil: Spoil


def as_it_is(points: Points, size: float, rng: np.random.Generator) -> Points:
    """Exact samples."""
    return points


def noisy(percent: float) -> Spoil:
    """Gaussian noise with a standard deviation in per cent of the diagonal."""

    def spoil(points: Points, size: float, rng: np.random.Generator) -> Points:
        return points + rng.normal(scale=size * percent / 100, size=points.shape)

    return spoil


def with_outliers(points: Points, size: float, rng: np.random.Generator) -> Points:
    """One in twenty of the points anywhere in the bounding box."""
    stray = rng.random(len(points)) < 0.05
    lower, upper = points.min(axis=0), points.max(axis=0)
    anywhere = rng.uniform(lower, upper, points.shape)
    return np.where(stray[:, None], anywhere, points)


def uneven(points: Points, size: float, rng: np.random.Generator) -> Points:
    """A third of the surface, that on one side of a plane, scanned twenty times thinner."""
    direction = rng.normal(size=3)
    height = points @ direction
    thin = height < np.quantile(height, 1 / 3)
    return points[~thin | (rng.random(len(points)) < 0.05)]


def with_a_hole(points: Points, size: float, rng: np.random.Generator) -> Points:
    """The quarter of the points that is nearest to one of them missing."""
    distance = np.linalg.norm(points - points[rng.integers(len(points))], axis=1)
    return points[distance > np.quantile(distance, 0.25)]


KINDS: dict[str, Kind] = {
    "100k": Kind(100_000, as_it_is),
    "20k": Kind(20_000, as_it_is),
    "2k": Kind(2_000, as_it_is),
    "20k-noise0.5": Kind(20_000, noisy(0.5)),
    "20k-noise1": Kind(20_000, noisy(1.0)),
    "20k-outliers": Kind(20_000, with_outliers),
    "20k-uneven": Kind(20_000, uneven),
    "20k-hole": Kind(20_000, with_a_hole),
}


def make_cloud(truth: Mesh, kind: Kind, seed: int) -> Points:
    """Points (n, 3) on, or near, the mesh."""
    rng = np.random.default_rng([seed, 7])
    return kind.spoil(sample_surface(truth, kind.points, seed)[0], diagonal(truth.vertices), rng)


# Depth of the octree and neighbours of the normals.
POISSON = ((8, 16), (9, 16), (7, 12), (6, 100))


def poisson(points: Points, depth: int, neighbours: int, denoise: Denoise | None = None, trim: float = 3.0) -> Mesh:
    """Screened Poisson (Kazhdan and Hoppe 2013) with estimated normals, trimmed where the cloud is farther away than
    `trim` times its own 99th percentile of distances to the 10th neighbour.

    denoise: moves the points first, by their estimated normals.
    """
    import pymeshlab  # an extra: pip install isopull[benchmark]

    lab = pymeshlab.MeshSet()
    lab.add_mesh(pymeshlab.Mesh(points))
    lab.compute_normal_for_point_clouds(k=neighbours)
    if denoise:
        lab.add_mesh(pymeshlab.Mesh(denoise(points, lab.current_mesh().vertex_normal_matrix())))
        lab.compute_normal_for_point_clouds(k=neighbours)
    lab.generate_surface_reconstruction_screened_poisson(depth=depth)
    mesh = Mesh(lab.current_mesh().vertex_matrix(), lab.current_mesh().face_matrix().astype(np.int64))
    tree = cKDTree(points)
    spacing = np.quantile(tree.query(points, k=[10])[0], 0.99)
    far = tree.query(mesh.vertices)[0] > trim * spacing
    return Mesh(mesh.vertices, mesh.faces[~far[mesh.faces].any(axis=1)])


def moving_least_squares(points: Points, normals: Points) -> Points:
    """Each point moved onto the plane through its neighbours, weighted by their distance (Levin 2004), twice; `normals`
    are of no use here."""
    for _ in range(2):
        distance, index = cKDTree(points).query(points, k=30, workers=-1)
        weight = np.exp(-np.square(distance / distance[:, -1:] * 2))
        weight /= weight.sum(axis=1, keepdims=True)
        centre = np.einsum("nk,nka->na", weight, points[index])
        apart = points[index] - centre[:, None]
        _, vectors = np.linalg.eigh(np.einsum("nk,nka,nkb->nab", weight, apart, apart))
        normal = vectors[:, :, 0]
        points = points - ((points - centre) * normal).sum(axis=1, keepdims=True) * normal
    return points


class _Estimated:
    """In the place of a field: normals (N, 3) that were estimated, at points (N, 3) in field space."""

    def __init__(self, points: Points, normals: Points) -> None:
        self.tree, self.normals = cKDTree(points), torch.from_numpy(normals).float()

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        return Geometry(x[:, 0], self.normals[self.tree.query(x.numpy(), workers=-1)[1]], x[:, :0])


def filtered(points: Points, normals: Points) -> Points:
    """Points brought together as fits do it (pointrecon/bilateral.py), by estimated normals instead of the field's."""
    to_world = fit_box(points)
    unit = to_world.to_unit(points)
    moved = Bilateral(cKDTree(unit), torch.from_numpy(unit).float(), RADIUS * survey(unit).noise)
    for number in range(min(UPDATES, math.ceil(len(unit) / BLOCK))):
        moved.update(_Estimated(unit, normals), FIRST + (1 - FIRST) * (number + 0.5) / UPDATES, None)
    return to_world.to_world(moved.points.double().numpy())


def brings_together(points: Points) -> bool:
    """Whether a fit brings the points together."""
    found = survey(fit_box(points).to_unit(points))
    return found.noisy or found.nearly_clean


def measure(mesh: Mesh, truth: Truth, seed: int) -> dict[str, float]:
    """Per cent of the diagonal that the mesh is off (`l1`), and consistency of its normals.

    By an exact mesh L1 chamfer; by held-out points their mean distance to the surface, whose floor is their noise.
    """
    if isinstance(truth, Mesh):
        figures: dict[str, Any] = compare_meshes(mesh, truth, seed=seed)
        off, size = figures["chamfer_l1"], diagonal(truth.vertices)
    else:
        figures = compare_cloud(mesh, truth.points, truth.normals, seed=seed)
        off, size = figures["completeness"], diagonal(truth.points)
    return {"l1": 100 * off / size, "normals": figures["normal_consistency"]}


def best_poisson(points: Points, truth: Truth, denoise: Denoise | None) -> dict[str, Any]:
    """The figures of the setting with the least error, by the truth: a choice that no user can make."""
    rows: list[dict[str, Any]] = []
    for depth, neighbours in POISSON:
        mesh = poisson(points, depth, neighbours, denoise)
        rows.append({**measure(mesh, truth, 0), "setting": f"depth {depth}, k {neighbours}"})
    return min(rows, key=lambda row: row["l1"])


def held_out(path: Path, seed: int) -> tuple[Points, PointCloud]:
    """A scan with normals of which no surface is known, and a fifth of it taken out to measure by. Raises UserError."""
    cloud = read_cloud(path)
    if cloud.normals is None:
        raise UserError(f"{path}: has no normals to measure by; give a scan with normals, or NAME_scan and NAME_mesh")
    out = np.random.default_rng([seed, 8]).random(len(cloud)) < 0.2
    return cloud.points[~out], cloud.rows(out)


def one_file(folder: Path, name: str) -> Path:
    """The file of that name with whatever ending. Raises UserError where there is none."""
    found = sorted(folder.glob(f"{name}.*"))
    if not found:
        raise UserError(f"{folder}: has no {name}.*")
    return found[0]


def load_truth(path: Path) -> Mesh:
    """A mesh whose faces look outward."""
    from shared.mesh import load_mesh, volume

    mesh = load_mesh(path)
    return mesh if volume(mesh) > 0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])
