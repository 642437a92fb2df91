"""Render a mesh, or the built-in demo object, into a scene in the DTU/IDR layout whose truth is known exactly.

Photos come from a path tracer; masks, depths and normals from rays through the very cameras that are written.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from tqdm import tqdm
from trimesh.ray.ray_pyembree import RayMeshIntersector

from scripts.demo_object import demo_object, noise
from scripts.path_tracer import import_mitsuba, linear, path_tracer, to_up
from shared.command_line import Parser, add_config_arguments
from shared.config import key, read_config
from shared.errors import UserError, main_guard
from shared.geometry import Similarity, look_at
from shared.meshing import Mesh, load_mesh, save_mesh
from shared.run_folder import atomic_write, save_png

Array = NDArray[np.float64]


def parse_size(text: str) -> tuple[int, int]:
    """`400x300` to (width, height). Raises ValueError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) >= 8 and int(height) >= 8):
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT in pixels, such as 400x300")
    return int(width), int(height)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What to photograph, and how. Lengths and directions are in the mesh's own frame."""

    views: int = key(40, "number of photos", minimum=1)
    size: str = key("400x300", "width x height of a photo in pixels")
    path: str = key("sphere", "cameras on a spiral over a sphere, or on a ring halfway up", ("sphere", "ring"))
    lowest: float = key(-40.0, "lowest camera, in degrees of elevation (10 at least above a ground)", None, -85, 85)
    highest: float = key(70.0, "highest camera, in degrees of elevation", None, -85, 85)
    up: str = key("z", "the mesh's upward axis", ("y", "z"))
    material: str = key(
        "textured", "own or marbled colours, these under gloss, or grey", ("textured", "glossy", "plain")
    )
    light: str = key("studio", "soft lamp in a dim surround, or even all round", ("studio", "constant"))
    background: str = key("none", "black, or a textured ground under a cloudy sky", ("none", "ground"))
    noise: float = key(0.0, "standard deviation of Gaussian pixel noise, in levels of 0..255", minimum=0)
    samples: int = key(12, "light paths per pixel", minimum=1)
    seed: int = key(0, "seed of camera jitter, textures and noise", minimum=0)

    def __post_init__(self) -> None:
        parse_size(self.size)
        if self.lowest > self.highest:
            raise ValueError(f"lowest {self.lowest} is above highest {self.highest}")


@dataclass(frozen=True)
class Rig:
    """One pinhole (pixel centres at integers) at V places, and the sphere about the object that they look at."""

    intrinsics: Array  # (3, 3)
    cam_to_world: Array  # (V, 3, 4)
    width: int
    height: int
    sphere: Similarity

    def rays(self, view: int) -> tuple[Array, Array]:
        """Origins and directions (H*W, 3) through the pixel centres, row by row; directions go one unit deep."""
        x, y = np.meshgrid(np.arange(self.width), np.arange(self.height))
        pixels = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=-1)
        pose = self.cam_to_world[view]
        directions = pixels @ np.linalg.inv(self.intrinsics).T @ pose[:, :3].T
        return np.broadcast_to(pose[:, 3], directions.shape), directions

    def world_mat(self, view: int) -> Array:
        """K [R|t] (4, 4): homogeneous world coordinates to pixels times depth."""
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = self.intrinsics
        return intrinsics @ np.linalg.inv(np.vstack([self.cam_to_world[view], [0, 0, 0, 1]]))


@dataclass(frozen=True)
class Truth:
    """What each pixel of one view sees of the mesh at its centre; zero where it sees nothing."""

    mask: NDArray[np.bool_]  # (H, W)
    depth: NDArray[np.float32]  # (H, W), along the optical axis
    normal: NDArray[np.float32]  # (H, W, 3), world frame
    colour: NDArray[np.float32]  # (H, W, 3), linear RGB in 0..1


Shader = Callable[[int, Truth], NDArray[np.floating]]  # view, truth -> photo (H, W, 3), linear RGB


def make_scene(mesh: Mesh, folder: Path, config: SceneConfig = SceneConfig()) -> None:
    """Write a path-traced scene of `mesh` to `folder`. Raises UserError if it is taken or mitsuba is missing."""
    mesh = painted(mesh, config)
    rig = place_cameras(mesh, config)
    write_scene(folder, mesh, rig, path_tracer(mesh, rig, config), config)


def make_tiny_scene(folder: Path, views: int = 6, size: tuple[int, int] = (64, 48)) -> Mesh:
    """Write a scene of a bumpy ball, size = (width, height), in milliseconds a view, and return the ball.

    It needs no path tracer: one ray per pixel, Lambert shading under one lamp, a smooth texture, black background.
    """
    ball = trimesh.creation.icosphere(subdivisions=5)
    x, y, z = (math.pi * ball.vertices).T
    points = ball.vertices * (1 + 0.08 * np.sin(1.3 * x + 1) * np.sin(1.7 * y) + 0.06 * np.cos(2 * z))[:, None]
    colours = 0.55 + 0.4 * np.sin(np.stack([3 * x + y, 2 * y - 2 * z + 1, 3 * z + x + 2], axis=-1))
    mesh = Mesh(3 * points + [10, -5, 2], ball.faces, None, (255 * colours).astype(np.uint8))
    config = SceneConfig(views=views, size=f"{size[0]}x{size[1]}")
    lamp = np.array([0.48, -0.6, 0.64], dtype=np.float32)

    def lambert(_: int, truth: Truth) -> NDArray[np.floating]:
        return truth.colour * (0.4 + 0.6 * (truth.normal @ lamp).clip(0))[..., None]

    write_scene(folder, mesh, place_cameras(mesh, config), lambert, config)
    return mesh


def write_scene(folder: Path, mesh: Mesh, rig: Rig, shade: Shader, config: SceneConfig) -> None:
    """Photos, masks, cameras, depths, normals and the mesh; the folder appears when all is written."""
    rng = np.random.default_rng(config.seed)
    caster = RayMeshIntersector(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
    with new_folder(folder) as aside:
        for name in ("image", "mask", "depth", "normal"):
            (aside / name).mkdir()
        for view in tqdm(range(len(rig.cam_to_world)), desc="rendering", unit="view", disable=None):
            truth = cast(caster, mesh, rig, view)
            photo = 255 * srgb(shade(view, truth))
            photo = (photo + config.noise * rng.standard_normal(photo.shape)).round().clip(0, 255)
            save_png(aside / "image" / f"{view:06d}.png", photo.astype(np.uint8))
            save_png(aside / "mask" / f"{view:06d}.png", truth.mask.astype(np.uint8) * 255)
            for name, values in (("depth", truth.depth), ("normal", truth.normal)):
                with atomic_write(aside / name / f"{view:06d}.npy") as file:
                    np.save(file, values)
        scale = np.diag([rig.sphere.scale] * 3 + [1.0])
        scale[:3, 3] = rig.sphere.translation
        matrices: dict[str, Any] = {}
        for view in range(len(rig.cam_to_world)):
            matrices |= {f"world_mat_{view}": rig.world_mat(view), f"scale_mat_{view}": scale}
        np.savez(aside / "cameras_sphere.npz", **matrices)
        save_mesh(mesh, aside / "mesh.ply")


def place_cameras(mesh: Mesh, config: SceneConfig) -> Rig:
    """Cameras about the mesh that see all of it, evenly spread over the asked-for heights and slightly jittered."""
    rng = np.random.default_rng(config.seed)
    width, height = parse_size(config.size)
    centre = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    radius = float(np.linalg.norm(mesh.vertices - centre, axis=1).max())
    distance = 3.2 * radius
    focal = min(width, height) / 2 / math.tan(math.asin(1 / 3.15))  # a little room about the object
    steps = (np.arange(config.views) + 0.5) / config.views
    low = math.radians(max(config.lowest, 10) if config.background == "ground" else config.lowest)
    high = max(low, math.radians(config.highest))
    # equal steps in the sine of the elevation are equal areas; the golden angle keeps neighbours apart
    sines = np.sin(low) + (np.sin(high) - np.sin(low)) * steps
    elevation = np.arcsin(sines) if config.path == "sphere" else np.full(config.views, (low + high) / 2)
    turn = math.pi * (3 - math.sqrt(5)) * config.views if config.path == "sphere" else 2 * math.pi
    azimuth = turn * steps + rng.uniform(0, 2 * math.pi)
    level = np.cos(elevation)
    toward = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], axis=-1)
    eyes = centre + distance * rng.uniform(1, 1.06, (config.views, 1)) * to_up(toward, config.up)
    up = to_up(np.array([0.0, 0.0, 1.0]), config.up)
    poses = np.stack([look_at(eye, centre + 0.02 * radius * rng.standard_normal(3), up) for eye in eyes])
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return Rig(intrinsics, poses, width, height, Similarity(1.1 * radius, tuple(centre.tolist())))


def cast(caster: RayMeshIntersector, mesh: Mesh, rig: Rig, view: int) -> Truth:
    """Follow one ray per pixel centre to the mesh: exact intersections with the triangles that the rays meet first."""
    origins, directions = rig.rays(view)
    triangle = caster.intersects_first(origins, directions)
    hit = np.flatnonzero(triangle >= 0)
    faces, direction, origin = mesh.faces[triangle[hit]], directions[hit], origins[hit]
    a, b, c = (mesh.vertices[faces[:, i]] for i in range(3))
    facing = np.cross(b - a, c - a)
    depth = ((a - origin) * facing).sum(-1) / (direction * facing).sum(-1)
    weights = trimesh.triangles.points_to_barycentric(np.stack([a, b, c], axis=1), origin + depth[:, None] * direction)
    normal = facing if mesh.normals is None else (weights[..., None] * mesh.normals[faces]).sum(1)
    colour = (weights[..., None] * linear(mesh.colors)[faces]).sum(1).clip(0, 1)

    def image(values: Array) -> NDArray[np.float32]:
        pixels = np.zeros((len(triangle), *values.shape[1:]), dtype=np.float32)
        pixels[hit] = values
        return pixels.reshape(rig.height, rig.width, *values.shape[1:])

    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    return Truth((triangle >= 0).reshape(rig.height, rig.width), image(depth), image(normal), image(colour))


def painted(mesh: Mesh, config: SceneConfig) -> Mesh:
    """The mesh with colours: its own, grey, or marbled in space where it has none (as fine as its vertices are)."""
    colours = mesh.colors
    if config.material == "plain":
        colours = np.full((len(mesh.vertices), 3), 190, dtype=np.uint8)
    elif colours is None:
        lower, upper = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        x = torch.from_numpy((mesh.vertices - lower) / (upper - lower).max()).float()
        fine = 0.7 * noise(x, 17.0) + 0.6 * noise(x, 43.0)
        marble = torch.stack([noise(x, frequency) + fine for frequency in (6.0, 7.0, 8.0)], -1)
        colours = (0.55 + 0.35 * marble).clamp(0.05, 0.95).mul(255).byte().numpy()
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, colours)


def srgb(radiance: NDArray[np.floating]) -> NDArray[np.floating]:
    """Linear light to display values in 0..1 (IEC 61966-2-1)."""
    light = radiance.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that becomes `folder` when all went well, and vanishes otherwise."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already there and not empty; choose another folder with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o755)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def command() -> None:
    """Parse the command line and make the scene."""
    parser = Parser(description=__doc__)
    parser.add_argument("mesh", nargs="?", default="demo", help="a mesh file, or `demo` for the built-in object")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    add_config_arguments(parser, SceneConfig)
    arguments = parser.parse_args(None if "--debug" not in sys.argv else [a for a in sys.argv[1:] if a != "--debug"])
    config = read_config(SceneConfig, None, arguments.overrides)
    import_mitsuba()
    make_scene(demo_object() if arguments.mesh == "demo" else load_mesh(Path(arguments.mesh)), arguments.out, config)


if __name__ == "__main__":
    sys.exit(main_guard(command, debug="--debug" in sys.argv))
