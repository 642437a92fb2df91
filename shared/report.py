"""What `eval` of both doors says of a surface, as a table for people and eval.json for programs."""

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import UserError
from shared.field import FieldLike
from shared.geometry import Similarity
from shared.levelset import parallelism
from shared.mesh import Mesh, component_count, is_watertight, volume
from shared.metrics import compare_cloud, compare_meshes, sample_surface
from shared.run_folder import atomic_write

# Precision, recall and F-score count what lies within this share of the truth's bounding-box diagonal.
THRESHOLD = 0.005
# Queries for the parallelism of level sets lie around the surface with this standard deviation, in field units.
QUERY_SPREAD, QUERIES = 0.02, 50_000
# No header of a PLY file is longer; a file without an end of it may be anything.
HEADER_LINES = 1000
# What the table says beside the figures. Lengths are in the units of the input.
LENGTHS = ("chamfer_l1", "accuracy", "completeness", "hausdorff", "threshold")
MEANINGS = {
    "psnr": "dB, whole held-out images; where there are masks, what they leave out is black",
    "psnr_masked": "dB, inside the masks",
    "ssim": "0..1",
    "diagonal": "of the truth's bounding box, in the input's units, as all lengths",
    "chamfer_l2": "in squared units",
    "precision": "share of the mesh within the threshold of the truth",
    "recall": "share of the truth within the threshold of the mesh",
    "f_score": "harmonic mean of the two",
    "normal_consistency": "mean |cosine| between the normals",
    "level_set_angle": "degrees between gradients and those at pulled points",
    "parallelism_degrees": "the same at queries around the cloud, as Neural-Pull's",
    "volume_ratio": "volume over that of the truth",
    "volume": "in cubed units",
    "train_seconds": "s",
    "peak_memory_mb": "MB",
}


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
        header = itertools.takewhile(lambda line: line.strip() != b"end_header", itertools.islice(file, HEADER_LINES))
        return any(line.split()[2:] != [b"0"] for line in header if line.startswith(b"element face"))


def topology(mesh: Mesh) -> dict[str, Any]:
    """Size, components, and for a closed surface its volume."""
    closed = is_watertight(mesh)
    figures = {"vertices": len(mesh.vertices), "faces": len(mesh.faces), "components": component_count(mesh)}
    return {**figures, "watertight": closed, **({"volume": volume(mesh)} if closed else {})}


def against_mesh(mesh: Mesh, exact: Mesh) -> dict[str, Any]:
    """Figures against the exact mesh, in its units; with `volume_ratio` if both are closed."""
    size = diagonal(exact.vertices)
    figures = {"diagonal": size, **compare_meshes(mesh, exact, threshold=THRESHOLD * size)}
    if is_watertight(mesh) and is_watertight(exact) and volume(exact) != 0:
        # The faces of a truth may look inward; those of a reconstruction should not, and if they do it shows.
        figures["volume_ratio"] = volume(mesh) / abs(volume(exact))
    return figures


def against_cloud(mesh: Mesh, points: NDArray[np.float64], normals: NDArray[np.float64] | None) -> dict[str, Any]:
    """Figures against a cloud on the true surface, in its units."""
    size = diagonal(points)
    return {"diagonal": size, **compare_cloud(mesh, points, normals, threshold=THRESHOLD * size)}


def level_set_angle(
    field: FieldLike, mesh: Mesh, to_world: Similarity, device: torch.device, order: float = math.inf
) -> float:
    """Mean angle in degrees between gradients at queries around the mesh (world frame) and at their pulled points.

    Queries stay where the field was learnt: the box, the unit ball of the norm of order infinity, or with order 2 the
    unit sphere.
    """
    points, _ = sample_surface(mesh, QUERIES, seed=0)
    noise = np.random.default_rng(0).normal(scale=QUERY_SPREAD, size=points.shape)
    queries = torch.from_numpy((to_world.to_unit(points) + noise).astype(np.float32))
    return parallelism(field, queries[queries.norm(p=order, dim=1) < 1].to(device))


def warn_if_stale(mesh: Path, program: str) -> None:
    """Say so when, by the files' times, a run has been trained on since its mesh was made."""
    trained = [path.stat().st_mtime_ns for path in (mesh.parent / "checkpoints").glob("step_*.pt")]
    if trained and max(trained) > mesh.stat().st_mtime_ns:
        print(
            f"warning: {mesh}: older than the newest checkpoint; make it again with `{program} mesh {mesh.parent}`",
            file=sys.stderr,
        )


def write_report(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures as a table and write them to `path` as JSON."""
    rows = flatten(figures)
    width = max(28, *map(len, rows))
    for name, value in rows.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        print(f"{name:{width}s} {shown:12s} {meaning(name, value, figures.get('diagonal'))}".rstrip())
    if path is not None:
        with atomic_write(path, "w") as file:
            json.dump(figures, file, indent=2)
        print(f"wrote {path}")


def meaning(name: str, value: Any, size: float | None) -> str:
    """What a figure is, with its unit; for a length, its share of the truth's diagonal `size`."""
    if name in LENGTHS or name.startswith("points_to_surface."):
        return f"{100 * value / size:.3f} % of the diagonal" if size else ""
    if name.startswith("published."):
        from shared.protocols import note  # here, as it takes a while to load and is seldom asked for

        return note(name.removeprefix("published."))
    return MEANINGS.get(name, "")


def flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level of dotted names."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
