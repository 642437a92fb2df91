"""The learnt surface as a mesh in the user's frame, with the colours it shows head-on."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mvrecon.color import spherical_harmonics
from mvrecon.model import SurfaceModel
from shared.geometry import Similarity
from shared.mesh import Mesh, keep_components
from shared.meshing import extract_mesh

# Parts with less than this share of the largest one's area are specks that no photo asked for.
SPECK = 0.01


def surface_mesh(model: SurfaceModel, to_world: Similarity, resolution: int, device: torch.device) -> Mesh:
    """The zero level set inside the unit sphere, in the world's frame, with vertex normals and RGB.

    With masks the surface is closed. Without, what reaches the sphere is left open there: the cut is not a surface.
    """
    bounded = model.background is None

    def sdf(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        with torch.no_grad():
            return torch.maximum(model.field.sdf(x), x.norm(dim=1) - 1)

    mesh = extract_mesh(sdf, resolution, device=device)
    if not bounded:
        mesh = _open_at_sphere(mesh, 4.0 / resolution)
    mesh = keep_components(mesh, SPECK)
    return _with_appearance(model, mesh, device).to_world(to_world)


def _open_at_sphere(mesh: Mesh, margin: float) -> Mesh:
    """Without the faces that lie on the unit sphere, where the field was cut and not learnt."""
    on_sphere = np.linalg.norm(mesh.vertices, axis=1) > 1 - margin
    faces = mesh.faces[~on_sphere[mesh.faces].any(axis=1)]
    used, renumbered = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], renumbered.reshape(-1, 3))


@torch.no_grad()
def _with_appearance(model: SurfaceModel, mesh: Mesh, device: torch.device) -> Mesh:
    normals, colors = [np.empty((0, 3))], [np.empty((0, 3), np.uint8)]
    for x in torch.from_numpy(mesh.vertices.astype(np.float32)).to(device).split(65536):
        geometry = model.field.geometry(x)
        normal = torch.nn.functional.normalize(geometry.gradient, dim=1)
        color = model.color(x, geometry.gradient, spherical_harmonics(-normal), geometry.feature)
        normals.append(normal.cpu().numpy().astype(np.float64))
        colors.append((color * 255).round().byte().cpu().numpy())
    return replace(mesh, normals=np.concatenate(normals), colors=np.concatenate(colors))
