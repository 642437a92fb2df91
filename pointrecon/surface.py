"""From a fitted field to the surface that is written: meshed, cut to what was scanned, coloured, simplified."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pointrecon.checkpoint import LoadedRun
from pointrecon.config import Config
from pointrecon.snap import offsets, snap
from pointrecon.survey import stray
from pointrecon.thin import MOST, thin
from pointrecon.trim import supported, trim
from shared.cloud_colors import transfer
from shared.decimate import decimate
from shared.errors import UserError
from shared.field import FieldLike
from shared.geometry import Similarity
from shared.isopoints import extract
from shared.mesh import Mesh, keep_components, save_points
from shared.meshing import extract_mesh
from shared.pointcloud import PointCloud, read_cloud

# If more than this share of a cloud looked stray, it would be something else: then all of it is kept.
TOO_MANY = 0.3
MOST_SPREAD = 8  # times as many iso-points as asked for, before what is cut is left out
LARGEST = 2048  # cells along an edge of the box, whatever the tiles: larger meshes take more memory than most have


def load_cloud(config: Config) -> PointCloud:
    """The cloud that a config names, thinned if its tiles cannot show all, without points that belong to no surface.

    Raises UserError as `read_cloud`.
    """
    cloud = thin(read_cloud(config.cloud), MOST * config.tiles**2)
    alone = np.zeros(len(cloud), bool) if config.keep_stray else stray(cloud.points)
    if not alone.any() or alone.mean() > TOO_MANY:
        return cloud
    return replace(cloud.rows(~alone), dropped={**cloud.dropped, "stray": int(alone.sum())})


def cloud_of_run(config: Config) -> PointCloud | None:
    """The cloud that a run was fitted to, or, with a word about it, None where that is not there any more."""
    try:
        return load_cloud(config)
    except UserError as error:
        print(f"warning: {error}; the surface is neither cut, brought to its points, nor coloured", file=sys.stderr)
        return None


def finished_mesh(
    field: FieldLike, to_world: Similarity, cloud: PointCloud | None, config: Config, device: torch.device
) -> Mesh:
    """The surface in the cloud's frame as the config asks for; without a cloud as the field has it, and plain."""
    mesh = field_mesh(field, to_world, mesh_resolution(config), device, config.field.inside_out)
    mesh = keep_components(mesh, config.smallest)
    if cloud is not None:
        mesh = keep_components(trim(mesh, cloud.points, config.trim), config.smallest)
        mesh = _brought(mesh, field, cloud, to_world, device) if config.snap else mesh
    if config.faces is not None:
        mesh = decimate(mesh, config.faces)
    if cloud is not None and cloud.colors is not None:
        mesh = replace(mesh, colors=transfer(cloud.points, cloud.colors, mesh.vertices))
    return mesh


def _brought(mesh: Mesh, field: FieldLike, cloud: PointCloud, to_world: Similarity, device: torch.device) -> Mesh:
    """The mesh snapped to its cloud, with a word about how far that brings it."""
    snapped = snap(mesh, field, cloud.points, to_world, device)
    far = np.linalg.norm(snapped.vertices - mesh.vertices, axis=1)
    if far.any():
        print(f"surface brought to the points: by {far.mean():.2g} in the mean")
    elif len(far):
        print("surface left as the field has it: the points are not exact enough, or too far from it")
    return snapped


def mesh_resolution(config: Config) -> int:
    """Cells along an edge of the box of the whole."""
    if config.train.resolution is None:
        raise ValueError("settings are open that follow from the cloud; see pointrecon.adapt")
    return max(config.train.resolution, min(config.train.resolution * config.tiles, LARGEST))


def field_mesh(
    field: FieldLike, to_world: Similarity, resolution: int, device: torch.device, inside_out: bool = False
) -> Mesh:
    """The zero level set in the cloud's frame, with vertex normals; inside_out: of a field that is negative outside."""

    def sdf(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        with torch.no_grad():
            return -field.sdf(x) if inside_out else field.sdf(x)

    mesh = extract_mesh(sdf, resolution, device=device)
    if inside_out:  # the border of the box would be surface, were it not outside
        mesh = replace(mesh, faces=mesh.faces[:, ::-1])
    normals = [np.empty((0, 3))]
    for x in torch.from_numpy(mesh.vertices.astype(np.float32)).to(device).split(65536):
        with torch.no_grad():
            gradient = field.geometry(x).gradient
        normals.append(torch.nn.functional.normalize(gradient, dim=1).cpu().numpy().astype(np.float64))
    return replace(mesh, normals=np.concatenate(normals)).to_world(to_world)


def save_isopoints(run: LoadedRun, count: int, out: Path) -> int:
    """Write `count` points spread evenly over a run's surface (Yifan et al. 2021), with normals, in the cloud's frame.

    They are brought to the cloud as the surface is. Where `trim` cuts that, they are spread over all of it, and those
    beyond are left out; then more are spread, so that about as many are left. Returns how many there are: fewer, too,
    where the surface has no room. Raises UserError for a count below 1, another format than PLY, or a field without
    surface.
    """
    if count < 1 or out.suffix.lower() != ".ply":
        raise UserError(f"{out}: iso-points are written as .ply, one or more; change --out or --count")
    cloud = cloud_of_run(run.config) if run.config.trim != 0 or run.config.snap else None
    points, normals = _spread(run, count, cloud)
    if 0 < len(points) < count and cloud is not None:
        points, normals = _spread(run, min(math.ceil(1.1 * count**2 / len(points)), MOST_SPREAD * count), cloud)
    if cloud is not None and run.config.snap:
        points += offsets(points, normals, run.field, cloud.points, run.to_world, run.device)[:, None] * normals
    some = np.random.default_rng(0).permutation(len(points))[:count]
    save_points(points[some], normals[some], out)
    return len(some)


def _spread(run: LoadedRun, count: int, cloud: PointCloud | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Those of `count` points spread evenly over a run's surface that the cloud supports, and their normals."""
    seeds = 2 * torch.rand(4 * count, 3, generator=torch.Generator().manual_seed(0)) - 1
    found = extract(run.field, seeds.to(run.device), count, None, np.random.default_rng(0))
    if not len(found):
        raise UserError(f"{run.folder}: the field has no surface; fit for longer")
    points, normals = run.to_world.to_world(found.points.cpu().numpy()), found.normals.cpu().numpy().astype(np.float64)
    kept = np.ones(len(points), bool) if cloud is None else supported(points, cloud.points, run.config.trim)
    return points[kept], normals[kept]
