"""`pointrecon eval`: a fitted surface, or any mesh, against the exact mesh or against points on the surface."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.spatial import cKDTree

from pointrecon.checkpoint import KIND, LoadedRun, load_run
from pointrecon.surface import load_cloud
from shared.errors import UserError
from shared.levelset import parallelism
from shared.mesh import Mesh, load_mesh
from shared.pointcloud import PointCloud, read_cloud
from shared.report import against_cloud, against_mesh, has_faces, level_set_angle, topology, warn_if_stale

# Of the queries around a cloud, and of the samples of the published figures.
SEED = 0
QUERIES, NEIGHBOURS = 20_000, 50


def evaluate(target: Path, truth: Path, device: str | None = None, with_published: bool = False) -> dict[str, Any]:
    """Figures of a run folder's mesh.ply, or of a mesh file, in the cloud's units.

    `truth` with faces is taken as the exact surface, without as points on it. With those of `shared.protocols`, if they
    are asked for, under `published`.
    """
    run = load_run(target, device) if target.is_dir() else None
    path = target if run is None else _mesh_file(target)
    mesh = load_mesh(path)
    if run is not None:
        warn_if_stale(path, KIND)
    exact = load_mesh(truth) if has_faces(truth) else read_cloud(truth)
    if isinstance(exact, Mesh):
        figures = against_mesh(mesh, exact)
    else:
        figures = against_cloud(mesh, exact.points, exact.normals)
    if run is not None:
        figures["level_set_angle"] = level_set_angle(run.field, mesh, run.to_world, run.device)
        figures |= {**parallelism_degrees(run), **run.made}
    figures |= topology(mesh)
    if with_published:
        figures["published"] = published_figures(mesh, exact, truth)
    return figures


def parallelism_degrees(run: LoadedRun) -> dict[str, float]:
    """Mean angle between gradients at queries around a run's cloud and at their pulled points, under its name.

    Empty, with a word about it, where the cloud is not there any more.
    """
    try:
        cloud = load_cloud(run.config)
    except UserError as error:
        print(f"warning: {error}; parallelism_degrees is left out", file=sys.stderr)
        return {}
    queries = queries_around(run.to_world.to_unit(cloud.points), QUERIES, SEED)
    return {"parallelism_degrees": parallelism(run.field, torch.from_numpy(queries).to(run.device))}


def queries_around(points: Float64[np.ndarray, "n 3"], count: int, seed: int) -> Float32[np.ndarray, "m 3"]:
    """`count` queries around points in field space, but for those that fall outside of its box.

    Each is a point plus noise with a standard deviation of the distance to its 50th neighbour (Ma et al. 2021,
    Neural-Pull, section 3), whatever the queries were that a run learnt from: so runs compare.
    """
    rng = np.random.default_rng(seed)
    some = points[rng.integers(len(points), size=count)]
    reach, _ = cKDTree(points).query(some, k=[min(NEIGHBOURS + 1, len(points))], workers=torch.get_num_threads())
    queries = some + reach * rng.normal(size=(count, 3))
    return queries[np.abs(queries).max(axis=1) < 1].astype(np.float32)


def published_figures(mesh: Mesh, exact: Mesh | PointCloud, truth: Path) -> dict[str, float]:
    """The figures of `shared.protocols.published` and their seed; a word about those that the truth cannot give."""
    from shared.protocols import missing, published  # here, as it takes a while to load and is seldom asked for

    left_out = missing(exact)
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, why in left_out.items() if why == reason)
        print(f"warning: {truth}: {reason}, so published figures are left out: {names}", file=sys.stderr)
    return {"seed": SEED, **published(mesh, exact, SEED)}


def _mesh_file(folder: Path) -> Path:
    path = folder / "mesh.ply"
    if not path.is_file():
        raise UserError(f"{path}: not there yet; make it with `pointrecon mesh {folder}`")
    return path
