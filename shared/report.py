"""What `eval` of both doors says of a surface, as a table for people and eval.json for programs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import UserError
from shared.field import Field
from shared.geometry import Similarity
from shared.levelset import parallelism
from shared.mesh import Mesh, component_count, is_watertight, load_mesh, volume
from shared.metrics import compare_cloud, compare_meshes, sample_surface
from shared.run_folder import atomic_write

# Precision, recall and F-score count what lies within this share of the truth's bounding-box diagonal.
THRESHOLD = 0.005
# Queries for the parallelism of level sets lie around the surface with this standard deviation, in field units.
QUERY_SPREAD = 0.02


def diagonal(points: NDArray[np.float64]) -> float:
    """Length of the bounding box's diagonal of points (N, 3)."""
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def has_faces(path: Path) -> bool:
    """Whether a file holds a mesh rather than a cloud. Files that cannot be told apart by their suffix are opened."""
    if path.suffix.lower() not in (".ply", ".obj"):
        return path.suffix.lower() in (".stl", ".off", ".glb")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a mesh or a cloud")
    with open(path, "rb") as file:
        if path.suffix.lower() == ".obj":
            return any(line.startswith(b"f ") for line in file)
        header = file.read(4096).split(b"end_header")[0]
    return any(line.split()[2] != b"0" for line in header.splitlines() if line.startswith(b"element face"))


def topology(mesh: Mesh) -> dict[str, Any]:
    """Size, components, and for a closed surface its volume."""
    closed = is_watertight(mesh)
    figures = {"vertices": len(mesh.vertices), "faces": len(mesh.faces), "components": component_count(mesh)}
    return {**figures, "watertight": closed, **({"volume": volume(mesh)} if closed else {})}


def against_mesh(mesh: Mesh, truth: Path) -> dict[str, Any]:
    """Figures against the exact mesh in file `truth`, in its units."""
    exact = load_mesh(truth)
    size = diagonal(exact.vertices)
    return {"diagonal": size, **compare_meshes(mesh, exact, threshold=THRESHOLD * size)}


def against_cloud(mesh: Mesh, points: NDArray[np.float64], normals: NDArray[np.float64] | None) -> dict[str, Any]:
    """Figures against a cloud on the true surface, in its units."""
    size = diagonal(points)
    return {"diagonal": size, **compare_cloud(mesh, points, normals, threshold=THRESHOLD * size)}


def level_set_angle(field: Field, mesh: Mesh, to_world: Similarity, device: torch.device, count: int = 50_000) -> float:
    """Mean angle in degrees between gradients at queries around the mesh (world frame) and at their pulled points."""
    points, _ = sample_surface(mesh, count, seed=0)
    noise = np.random.default_rng(0).normal(scale=QUERY_SPREAD, size=points.shape)
    queries = torch.from_numpy((to_world.to_unit(points) + noise).astype(np.float32))
    return parallelism(field, queries[queries.norm(dim=1) < 1].to(device))


def write_report(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures as a table and write them to `path` as JSON."""
    for name, value in flatten(figures).items():
        print(f"{name:28s} {value:.6g}" if isinstance(value, float) else f"{name:28s} {value}")
    if path is not None:
        with atomic_write(path, "w") as file:
            json.dump(figures, file, indent=2)
        print(f"wrote {path}")


def flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
