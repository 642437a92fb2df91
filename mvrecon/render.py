"""Novel views: colour, depth and normals of whole images, as pictures and films."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from imageio_ffmpeg import count_frames_and_secs
from jaxtyping import Float, UInt8
from tqdm import tqdm

from mvrecon.cameras import Cameras, interpolate, orbit
from mvrecon.checkpoint import LoadedRun
from mvrecon.model import SurfaceModel
from mvrecon.sampling import SdfVolume, passes_near
from mvrecon.scene import Scene
from shared.errors import UserError
from shared.run_folder import make_folder, save_png

CHUNK = 8192  # rays at a time
# A photo's pixel is the mean over its area, so a picture's pixel is the mean of four rays, on a rotated grid: one ray
# aliases at silhouettes.
WITHIN_PIXEL = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
# A ray that stays this far from the surface, by the cached distances, sees nothing of it; while the surface is soft,
# this many of its widths.
NEAR, WIDTHS = 0.06, 7.0
FRAMES_PER_SECOND = 24
FILM, OTHER_FILMS = ".mp4", (".avi", ".gif", ".mkv", ".mov", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True, eq=False)
class View:
    """One image: RGB in 0..1, opacity of the surface, depth along z (field units) times opacity, unit normals in
    camera axes."""

    color: Float[np.ndarray, "h w 3"]
    opacity: Float[np.ndarray, "h w"]
    depth: Float[np.ndarray, "h w"]
    normal: Float[np.ndarray, "h w 3"]


@torch.no_grad()
def render_view(model: SurfaceModel, volume: SdfVolume, cameras: Cameras, index: int, progress: float = 1.0) -> View:
    """Render one whole view in chunks of bounded memory, every pixel as the mean of the rays through `WITHIN_PIXEL`.

    Without a background, rays that see nothing stay black.
    """
    pixels = cameras.pixel_grid()
    within = torch.tensor(WITHIN_PIXEL, device=pixels.device)
    image = torch.zeros(len(pixels), 8, device=pixels.device)
    reach = max(NEAR, WIDTHS / float(model.inverse_width))
    scan = max(model.config.sampling.scan, math.ceil(2 / NEAR))
    rotation = torch.as_tensor(cameras.cam_to_world[index, :, :3], dtype=torch.float32, device=pixels.device)
    view = torch.full((CHUNK,), index, dtype=torch.long, device=pixels.device)
    chosen = torch.arange(len(pixels), device=pixels.device)
    if model.background is None and model.config.sampling.source == "volume":
        # By the middle of each pixel; its rays pass beside that by less than half of its diagonal.
        farthest = float(np.linalg.norm(cameras.centres[index])) + 1
        reach += math.sqrt(0.5) * farthest / float(cameras.intrinsics[index].diagonal()[:2].min())
        near = [passes_near(volume, *cameras.rays(view[: len(p)], p), scan, reach) for p in pixels.split(CHUNK)]
        chosen = chosen[torch.cat(near)]
    for part in chosen.split(CHUNK // len(within)):
        pixel = part.repeat_interleave(len(within))
        points = pixels[pixel] + within.repeat(len(part), 1)
        origins, directions = cameras.rays(view[: len(pixel)], points)
        rendering = model.render(volume, origins, directions, progress)
        depth = rendering.depth * (directions @ rotation)[:, 2]
        normal = rendering.normal @ rotation
        found = torch.cat([rendering.color, rendering.opacity[:, None], depth[:, None], normal], dim=1)
        image.index_add_(0, pixel, found / len(within))
    image[:, 5:] = torch.nn.functional.normalize(image[:, 5:], dim=1)
    color, opacity, z, toward = np.split(
        image.cpu().numpy().reshape(cameras.height, cameras.width, 8), [3, 4, 5], axis=2
    )
    return View(color, opacity[..., 0], z[..., 0], toward)


def picture(view: View) -> UInt8[np.ndarray, "h w3 3"]:
    """Colour | normals | depth, side by side."""
    return np.concatenate([color_picture(view), normal_picture(view), depth_picture(view)], axis=1)


def color_picture(view: View) -> UInt8[np.ndarray, "h w 3"]:
    """RGB as 8 bits."""
    return (view.color.clip(0, 1) * 255).round().astype(np.uint8)


def normal_picture(view: View) -> UInt8[np.ndarray, "h w 3"]:
    """Normals in camera axes with y up and z towards the viewer, on black."""
    shown = (view.normal * [1, -1, -1] * 0.5 + 0.5) * view.opacity[..., None]
    return (shown.clip(0, 1) * 255).round().astype(np.uint8)


def depth_picture(view: View) -> UInt8[np.ndarray, "h w 3"]:
    """Depth from white (near) to grey (far) over the range of this view, black where there is no surface."""
    solid = view.opacity > 0.5
    if not solid.any():
        return np.zeros((*solid.shape, 3), np.uint8)
    depth = view.depth / view.opacity.clip(1e-6)
    near, far = np.quantile(depth[solid], [0.01, 0.99])
    shade = (1 - 0.8 * (depth - near) / max(far - near, 1e-9)).clip(0, 1)
    return np.repeat(np.where(solid, shade * 255, 0).round().astype(np.uint8)[..., None], 3, axis=2)


def path_cameras(scene: Scene, path: str, frames: int) -> Cameras:
    """The cameras of `test`, `train`, `orbit` or `interpolate`. Raises UserError for others and for empty ones."""
    if path == "orbit":
        return orbit(scene.cameras, frames)
    if path == "interpolate":
        return interpolate(scene.cameras, frames)
    if path not in ("test", "train"):
        raise UserError(f"--path {path}: unknown path; use test, train, orbit or interpolate")
    views = scene.test if path == "test" else scene.train
    if not len(views):
        raise UserError(f"--path {path}: the run has no such views; use --path train, or train with --data.holdout")
    return scene.cameras.select(views)


def render_path(run: LoadedRun, cameras: Cameras, names: list[str], out: Path) -> None:
    """Render every camera into folder `out` (NAME_color.png, NAME_normal.png, NAME_depth.png), or one .mp4 film."""
    if out.suffix.lower() in OTHER_FILMS:
        raise UserError(f"{out}: films are made as {FILM} only; change the ending, or give a folder for pictures")
    rendered = ((name, render_view(run.model, run.volume, cameras, index)) for index, name in enumerate(names))
    views = tqdm(rendered, total=len(names), desc="rendering", unit="view")
    if out.suffix.lower() == FILM:
        write_film((np.concatenate([color_picture(v), normal_picture(v)], axis=1) for _, v in views), out)
        return
    make_folder(out)
    for name, view in views:
        images = {"color": color_picture(view), "normal": normal_picture(view), "depth": depth_picture(view)}
        for kind, image in images.items():
            save_png(out / f"{name}_{kind}.png", image)


def write_film(frames: Iterator[UInt8[np.ndarray, "h w 3"]], out: Path) -> None:
    """H.264 in an .mp4 that browsers play, written aside and moved into place.

    Raises UserError where the film does not become whole: the encoder is a program of its own, which hides the disk's
    errors.
    """
    make_folder(out.parent)
    aside, count = out.with_name(f".{out.stem}.part{out.suffix}"), 0
    try:
        with _encoding(out):
            writer = imageio.get_writer(aside, fps=FRAMES_PER_SECOND, codec="libx264", quality=8, macro_block_size=2)
        for frame in frames:
            with _encoding(out):
                writer.append_data(frame)
            count += 1
        with _encoding(out):
            writer.close()
            if count_frames_and_secs(aside)[0] != count:
                raise OSError("frames are missing")
            aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _encoding(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(f"{out}: the film could not be written; free some space or choose another --out") from error
