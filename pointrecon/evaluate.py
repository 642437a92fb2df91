"""`pointrecon eval`: a fitted surface, or any mesh, against the exact mesh or against points on the surface."""

from pathlib import Path
from typing import Any

from pointrecon.checkpoint import KIND, load_run
from shared.errors import UserError
from shared.mesh import load_mesh
from shared.pointcloud import read_cloud
from shared.report import against_cloud, against_mesh, has_faces, level_set_angle, topology, warn_if_stale


def evaluate(target: Path, truth: Path, device: str | None = None) -> dict[str, Any]:
    """Figures of a run folder's mesh.ply, or of a mesh file, in the cloud's units.

    `truth` with faces is taken as the exact surface, without as points on it.
    """
    run = load_run(target, device) if target.is_dir() else None
    path = target if run is None else _mesh_file(target)
    mesh = load_mesh(path)
    if run is not None:
        warn_if_stale(path, KIND)
    if has_faces(truth):
        figures = against_mesh(mesh, truth)
    else:
        cloud = read_cloud(truth)
        figures = against_cloud(mesh, cloud.points, cloud.normals)
    if run is not None:
        figures |= {"level_set_angle": level_set_angle(run.field, mesh, run.to_world, run.device), **run.made}
    return {**figures, **topology(mesh)}


def _mesh_file(folder: Path) -> Path:
    path = folder / "mesh.ply"
    if not path.is_file():
        raise UserError(f"{path}: not there yet; make it with `pointrecon mesh {folder}`")
    return path
