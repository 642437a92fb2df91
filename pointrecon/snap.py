"""A surface brought to the points of a clean cloud: what its field is off there, interpolated in between.

A field's finest cells are some spacings wide, so it passes beside the points by some hundredths of a spacing, most
where there is much detail. That error is taken for a Gaussian process along the surface, known at the points (simple
kriging; Rasmussen and Williams 2006, section 2.2), and each vertex moves by its mean there.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.survey import noise
from shared.field import FieldLike
from shared.geometry import Similarity
from shared.mesh import Mesh, vertex_normals

# Points that tell of a place, and the length of the covariance in the spacings of these. A difference of normals of
# ACROSS counts as one such length: the two sides of a thin part are two apart.
NEIGHBOURS, REACH, ACROSS = 12, 1.25, 1.0
# Variance of the noise in that of the error, at least, which keeps the equations solvable.
EXACT = 0.01
# Points that are farther from the surface than so many of their spacings are not on it. If more of them are than this
# share, it is the field that is not there yet.
LOST, MANY_LOST = 0.4, 0.05
# From the median of absolute values to a deviation.
DEVIATION = 1 / 0.6745
CHUNK = 10_000


class Errors(NamedTuple):
    """What a field is off at n points in field space: how far along its unit normals the surface should move. spacing:
    side of the square that each point has on the surface. noise: variance of what the points themselves are off, in
    that of the rest."""

    points: Float64[np.ndarray, "n 3"]
    normals: Float64[np.ndarray, "n 3"]
    spacing: Float64[np.ndarray, " n"]
    error: Float64[np.ndarray, " n"]
    noise: float


def snap(
    mesh: Mesh, field: FieldLike, points: Float64[np.ndarray, "n 3"], to_world: Similarity, device: torch.device
) -> Mesh:
    """The field's mesh, which has its normals, moved to the points (n > NEIGHBOURS), both in the world's frame.

    What the field is off is taken out, not what the mesh is off the field. Raises ValueError for a mesh without
    normals.
    """
    if mesh.normals is None:
        raise ValueError("a mesh without the normals of its field")
    far = offsets(mesh.vertices, mesh.normals, field, points, to_world, device)
    moved = replace(mesh, vertices=mesh.vertices + far[:, None] * mesh.normals)
    # The field's normals are smoother than those of the faces: what is added is how these turn.
    normals = mesh.normals + vertex_normals(moved) - vertex_normals(mesh)
    return replace(moved, normals=normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12))


def offsets(
    places: Float64[np.ndarray, "m 3"],
    normals: Float64[np.ndarray, "m 3"],
    field: FieldLike,
    points: Float64[np.ndarray, "n 3"],
    to_world: Similarity,
    device: torch.device,
) -> Float64[np.ndarray, " m"]:
    """How far places on the field's surface should move along its unit normals there; places and points (n >
    NEIGHBOURS) in the world's frame, and so is this. Zeros where the points do not tell."""
    errors = errors_at(field, to_world.to_unit(points), device) if len(places) else None
    if errors is None:
        return np.zeros(len(places))
    return to_world.scale * interpolate(errors, to_world.to_unit(places), normals)


def errors_at(field: FieldLike, points: Float64[np.ndarray, "n 3"], device: torch.device) -> Errors | None:
    """What the field is off at points in field space (n > NEIGHBOURS); None where it is noise, or elsewhere."""
    tree = cKDTree(points)
    reach, _ = tree.query(points, k=[NEIGHBOURS + 1], workers=torch.get_num_threads())
    estimate = noise(points, tree)
    # By the area that the nearest ones share, also where these lie on a scan line.
    spacing = reach[:, 0] * (np.pi / NEIGHBOURS) ** 0.5
    error, normals = _of_field(field, points, device)
    here = np.abs(error) < LOST * spacing
    if here.mean() < 1 - MANY_LOST:
        return None
    points, normals, spacing, error = points[here], normals[here], spacing[here], error[here]
    # The estimate takes fine detail for noise; but noise is everywhere, so a fit that passes closer knows better.
    of_points = min(estimate, DEVIATION * float(np.median(np.abs(error)))) ** 2
    of_field = float(np.square(error).mean()) - of_points
    return Errors(points, normals, spacing, error, of_points / of_field) if of_field > 0 else None


def interpolate(
    errors: Errors, places: Float64[np.ndarray, "m 3"], normals: Float64[np.ndarray, "m 3"]
) -> Float64[np.ndarray, " m"]:
    """The mean of the process at places on the surface, with their normals, by its values at the nearest points."""
    tree, most = cKDTree(errors.points), min(NEIGHBOURS, len(errors.points))
    diagonal = (EXACT + errors.noise) * torch.eye(most, dtype=torch.float64)
    mean = np.empty(len(places))
    for first in range(0, len(places), CHUNK):
        part = slice(first, first + CHUNK)
        _, index = tree.query(places[part], k=[*range(1, most + 1)], workers=torch.get_num_threads())
        length = REACH * errors.spacing[index].mean(axis=1)
        there = _coordinates(errors.points[index], errors.normals[index], length)
        here = _coordinates(places[part][:, None], normals[part][:, None], length)
        between = covariance(torch.cdist(there, there)) + diagonal
        weights = torch.linalg.solve(between, torch.from_numpy(errors.error[index]))
        mean[part] = (covariance(torch.cdist(here, there))[:, 0] * weights).sum(dim=1)
    return mean


def covariance(distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Matérn's, of smoothness 3/2 and length 1 (Rasmussen and Williams 2006, eq. 4.17)."""
    scaled = 3**0.5 * distance
    return (1 + scaled) * torch.exp(-scaled)


def _coordinates(
    points: Float64[np.ndarray, "m k 3"], normals: Float64[np.ndarray, "m k 3"], length: Float64[np.ndarray, " m"]
) -> Float64[Tensor, "m k 6"]:
    """What distances of the covariance are between."""
    return torch.from_numpy(np.concatenate([points / length[:, None, None], normals / ACROSS], axis=2))


def _of_field(
    field: FieldLike, points: Float64[np.ndarray, "n 3"], device: torch.device
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n 3"]]:
    """Distances to the surface, to first order, and unit normals, at points in field space."""
    distance, normals = [], []
    for x in torch.from_numpy(points.astype(np.float32)).to(device).split(65536):
        with torch.no_grad():
            there = field.geometry(x)
        distance.append(there.sdf / there.gradient.norm(dim=1).clamp_min(1e-6))
        normals.append(F.normalize(there.gradient, dim=1))
    return torch.cat(distance).double().cpu().numpy(), torch.cat(normals).double().cpu().numpy()
