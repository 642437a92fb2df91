"""Pinhole cameras of one scene: pixels to rays, points to pixels, and paths between and around the cameras.

OpenCV axes with pixel centres at integers (`shared.geometry`); everything in field space unless said otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline, make_interp_spline
from scipy.linalg import rq
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from shared.errors import UserError
from shared.geometry import look_at

SINGULAR = 1e9  # condition number of K R above which a projection has no usable inverse; real lenses stay below 1e6
CPU = torch.device("cpu")
STEEPEST = np.radians(80.0)  # an orbit stays clear of the pole, where "up" is undefined


@dataclass(frozen=True, eq=False)
class Cameras:
    """V views of one size: `intrinsics` K (pixels), `cam_to_world` [R|t] with R's columns right, down, forward.

    `device` says where `rays` computes; the matrices themselves stay in float64 on the CPU.
    """

    intrinsics: Float64[np.ndarray, "v 3 3"]
    cam_to_world: Float64[np.ndarray, "v 3 4"]
    width: int
    height: int
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.intrinsics)

    @property
    def centres(self) -> Float64[np.ndarray, "v 3"]:
        return self.cam_to_world[:, :, 3]

    @property
    def forward(self) -> Float64[np.ndarray, "v 3"]:
        """Unit viewing directions; ray length times (ray direction . forward) is the depth along z."""
        return self.cam_to_world[:, :, 2]

    @cached_property
    def _pixel_to_direction(self) -> Float[Tensor, "v 3 3"]:
        # Inverted in float64, so that float32 rounding enters once.
        matrices = self.cam_to_world[:, :, :3] @ np.linalg.inv(self.intrinsics)
        return torch.tensor(matrices, dtype=torch.float32, device=self.device)

    @cached_property
    def _origins(self) -> Float[Tensor, "v 3"]:
        return torch.tensor(self.centres, dtype=torch.float32, device=self.device)

    def to(self, device: torch.device | str) -> "Cameras":
        return replace(self, device=torch.device(device))

    def rays(
        self, view: Int[Tensor, " n"], pixels: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Origins and unit directions (float32, field space) through `pixels` (x, y) of the views of index `view`.

        Views may be mixed freely. Both arguments must be on `device`.
        """
        matrix = self._pixel_to_direction.index_select(0, view)
        directions = matrix[:, :, 0] * pixels[:, :1] + matrix[:, :, 1] * pixels[:, 1:] + matrix[:, :, 2]
        return self._origins.index_select(0, view), torch.nn.functional.normalize(directions, dim=-1, eps=0.0)

    def pixel_grid(self) -> Float[Tensor, "hw 2"]:
        """The (x, y) of every pixel of one view, row by row, on `device`."""
        y, x = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        return torch.stack([x, y], dim=-1).reshape(-1, 2).float().to(self.device)

    def project(
        self, view: int, points: Float[np.ndarray, "n 3"]
    ) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"]]:
        """Pixels (x, y) and depths along z of points in field space. Points with depth <= 0 are behind the camera."""
        rotation, centre = self.cam_to_world[view, :, :3], self.cam_to_world[view, :, 3]
        in_camera = (points - centre) @ rotation
        in_image = in_camera @ self.intrinsics[view].T
        with np.errstate(divide="ignore", invalid="ignore"):  # a point in the camera's own plane has no pixel
            return in_image[:, :2] / in_image[:, 2:], in_camera[:, 2]

    def inside(self, pixels: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which pixels (x, y) round to a pixel of the image."""
        x, y = pixels.T
        return (x >= -0.5) & (x < self.width - 0.5) & (y >= -0.5) & (y < self.height - 0.5)

    def select(self, index: Sequence[int] | NDArray[np.int64]) -> "Cameras":
        """The views of these indices, in this order."""
        chosen = np.asarray(index, dtype=np.int64)
        return replace(self, intrinsics=self.intrinsics[chosen], cam_to_world=self.cam_to_world[chosen])

    def resized(self, factor: float) -> "Cameras":
        """The same views at about `factor` times the size; see `with_size`."""
        return self.with_size(max(1, round(self.width * factor)), max(1, round(self.height * factor)))

    def with_size(self, width: int, height: int) -> "Cameras":
        """The same views resampled to width x height pixels, by the exact ratios of the sizes.

        The image spans -0.5 .. width - 0.5 with pixel centres at integers, hence x' = (x + 0.5) f - 0.5.
        """
        fx, fy = width / self.width, height / self.height
        resample = np.array([[fx, 0.0, 0.5 * fx - 0.5], [0.0, fy, 0.5 * fy - 0.5], [0.0, 0.0, 1.0]])
        return replace(self, intrinsics=resample @ self.intrinsics, width=width, height=height)


def decompose_projection(projection: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split P = lambda K [R|t] (3, 4) into K with K[2, 2] = 1 and positive focal lengths, and cam_to_world (3, 4).

    P is homogeneous, so its sign is free; the one with det R = +1 is meant. The field-space scale that
    `world_mat @ scale_mat` carries goes into lambda. Raises ValueError where P is not finite or is singular.
    """
    p = np.asarray(projection, dtype=np.float64)[:3]
    if p.shape != (3, 4) or not np.isfinite(p).all():
        raise ValueError("not a finite 3x4 or 4x4 matrix")
    p = p / max(float(np.abs(p).max()), np.finfo(np.float64).tiny)
    if np.linalg.cond(p[:, :3]) > SINGULAR:
        raise ValueError("singular")
    if np.linalg.det(p[:, :3]) < 0:
        p = -p
    upper, rotation = rq(p[:, :3])
    signs = np.sign(np.diag(upper))
    intrinsics, rotation = upper * signs, signs[:, None] * rotation
    centre = -np.linalg.solve(p[:, :3], p[:, 3])
    return intrinsics / intrinsics[2, 2], np.column_stack([rotation.T, centre])


def look_at_point(cameras: Cameras) -> NDArray[np.float64]:
    """The point closest to all optical axes in the least-squares sense, (3,).

    Where the axes leave it undetermined (one view, parallel views) it is the candidate closest to the origin,
    about which field space puts the object.
    """
    across = np.eye(3) - cameras.forward[:, :, None] * cameras.forward[:, None, :]
    right_side = (across @ cameras.centres[:, :, None]).sum(axis=0)[:, 0]
    return np.linalg.lstsq(across.sum(axis=0), right_side, rcond=1e-3)[0]


def orbit(cameras: Cameras, count: int, turns: float = 1.0) -> Cameras:
    """`count` views on a circle about the look-at point, at the cameras' mean distance, elevation and intrinsics.

    The axis is the cameras' mean up direction; the circle starts at the first camera's azimuth and closes
    without repeating its first view. Raises UserError where the cameras have no common point to circle.
    """
    target, up = look_at_point(cameras), _mean_up(cameras)
    offsets = cameras.centres - target
    distances = np.linalg.norm(offsets, axis=1)
    if distances.min() < 1e-6:
        raise UserError("orbit: the cameras look from one point outward, there is nothing to circle; use another path")
    elevation = float(np.clip(np.arcsin(np.clip(offsets @ up / distances, -1, 1)).mean(), -STEEPEST, STEEPEST))
    across = offsets[0] - (offsets[0] @ up) * up
    if np.linalg.norm(across) < 1e-6 * distances[0]:  # the first camera is right above: any azimuth will do
        across = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    first = across / np.linalg.norm(across)
    azimuth = 2 * np.pi * turns * np.arange(count) / count
    around = np.cos(azimuth)[:, None] * first + np.sin(azimuth)[:, None] * np.cross(up, first)
    eyes = target + distances.mean() * (np.cos(elevation) * around + np.sin(elevation) * up)
    poses = np.stack([look_at(eye, target, up) for eye in eyes])
    intrinsics = np.repeat(cameras.intrinsics.mean(axis=0, keepdims=True), count, axis=0)
    return replace(cameras, intrinsics=intrinsics, cam_to_world=poses)


def interpolate(cameras: Cameras, count: int) -> Cameras:
    """`count` views from the first camera through every camera in order to the last, evenly in camera index.

    Positions follow a cubic spline, rotations the shortest arc, intrinsics a straight line.
    """
    if len(cameras) == 1:
        return cameras.select([0] * count)
    knots = np.arange(len(cameras), dtype=np.float64)
    at = np.linspace(0.0, knots[-1], count)
    rotations = Slerp(knots, Rotation.from_matrix(cameras.cam_to_world[:, :, :3]))(at).as_matrix()
    positions = CubicSpline(knots, cameras.centres)(at)
    intrinsics = make_interp_spline(knots, cameras.intrinsics, k=1)(at)
    return replace(cameras, intrinsics=intrinsics, cam_to_world=np.concatenate([rotations, positions[..., None]], -1))


def _mean_up(cameras: Cameras) -> NDArray[np.float64]:
    ups = -cameras.cam_to_world[:, :, 1]
    mean = ups.mean(axis=0)
    if np.linalg.norm(mean) < 1e-3:  # the ups cancel, as on a circle over the poles
        mean = ups[0]
    return mean / np.linalg.norm(mean)
