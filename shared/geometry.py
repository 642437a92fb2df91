"""The conventions of the whole project, in one place.

Cameras use OpenCV axes (x right, y down, z forward) with pixel centres at integers and `cam_to_world` as 3x4.
Fields live in the box [-1, 1]^3 with the object inside the unit sphere; a signed distance is negative inside.
The world is the user's own frame and units, in float64; `Similarity` is the only way between the two.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """world = scale * x + translation, with x in field space. `scale` also turns field distances into world units."""

    scale: float
    translation: tuple[float, float, float]

    def to_world(self, x: ArrayLike) -> NDArray[np.float64]:
        """Field space (..., 3) to the world's units."""
        return np.asarray(x, dtype=np.float64) * self.scale + np.asarray(self.translation)

    def to_unit(self, points: ArrayLike) -> NDArray[np.float64]:
        """World (..., 3) to field space."""
        return (np.asarray(points, dtype=np.float64) - np.asarray(self.translation)) / self.scale


def fit_box(points: ArrayLike, longest_side: float = 1.6) -> Similarity:
    """The similarity that centres the bounding box of `points` (N, 3) and gives it this longest side in field space."""
    points = np.asarray(points, dtype=np.float64)
    lower, upper = points.min(axis=0), points.max(axis=0)
    x, y, z = (float(c) for c in (lower + upper) / 2)
    return Similarity(float((upper - lower).max()) / longest_side, (x, y, z))


def ray_sphere(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], radius: float = 1.0
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Where rays with unit directions enter and leave the sphere about the origin: near, far (>= 0), and if they do.

    A ray that misses gets the closest point of approach as both bounds.
    """
    middle = -(origins * directions).sum(-1)
    closest = (origins + middle[:, None] * directions).square().sum(-1)
    half = (radius**2 - closest).clamp_min(0).sqrt()
    hit = (closest < radius**2) & (middle + half > 0)
    return (middle - half).clamp_min(0), (middle + half).clamp_min(0), hit


def look_at(eye: ArrayLike, target: ArrayLike, up: ArrayLike) -> NDArray[np.float64]:
    """cam_to_world (3, 4) of a camera at `eye` whose z axis points at `target`; `up` is the world's upward axis."""
    eye, target, up = (np.asarray(v, dtype=np.float64) for v in (eye, target, up))
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, eye], axis=1)
