"""Planar slices of a signed distance field as pictures, as papers show level sets (Ma et al. 2023, figures 2 and 3).

Blue is inside, ochre outside, deeper with the distance; thin lines are level sets at even distances, the bold one is
the surface. Those of a true distance field are parallel and evenly spaced.
"""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from skimage.measure import find_contours
from torch import Tensor

from pointrecon.checkpoint import LoadedRun
from shared.errors import UserError
from shared.geometry import Similarity
from shared.mesh import load_mesh
from shared.run_folder import save_png

AXES = "xyz"
# For each axis that a plane is perpendicular to, the axes to the right and upward in the picture.
ACROSS = {"x": (1, 2), "y": (0, 2), "z": (0, 1)}
# Level sets to the width of the box, roughly: their distance is a round number.
LEVELS = 20
# RGB from the surface into the depth, and the number of level sets after which the last colour is reached.
INSIDE = np.array([[222, 235, 247], [130, 178, 217], [49, 110, 173], [24, 72, 130]], np.float64)
OUTSIDE = np.array([[255, 250, 238], [250, 226, 182], [236, 186, 120], [205, 138, 74]], np.float64)
INSIDE_LEVELS, OUTSIDE_LEVELS = 6, 14
INK = np.array([28.0, 30, 36])
# Widths of lines in shares of the picture's, and their opacity. Drawn larger, to fractions of pixels, then shrunk.
THIN, BOLD = (0.0018, 0.6), (0.0045, 1.0)
SUPERSAMPLING, FRACTION_BITS = 4, 4
# No distance within the box [-1, 1]^3 is larger than its diagonal.
DIAGONAL = 2 * math.sqrt(3)


def slice_picture(
    sdf: Callable[[Tensor], Tensor],
    axis: str,
    position: float,
    size: int,
    step: float,
    device: str | torch.device = "cpu",
    chunk: int = 65536,
) -> UInt8[np.ndarray, "size size 3"]:
    """The plane perpendicular to `axis` ("x", "y", "z") at `position`, all of the box, `size` pixels wide.

    sdf: (n, 3) on `device` -> (n,), negative inside, n <= chunk; called without gradients. Position and `step`, the
    distance between level sets, in field space. Right and up: y and z, x and z, or x and y.
    Raises UserError if the field is not finite, ValueError for a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"level sets {step} apart")
    values = plane_values(sdf, axis, position, size, device, chunk)
    picture = _colours(values, step)
    most = min(np.abs(values).max(), DIAGONAL)
    levels = step * np.arange(1, int(most / step) + 1)
    for (width, opacity), lines in ((THIN, [*-levels, *levels]), (BOLD, [0.0])):
        covered = opacity * _coverage(values, lines, width)[:, :, None]
        picture = (1 - covered) * picture + covered * INK
    return np.rint(picture).astype(np.uint8)


@torch.no_grad()
def plane_values(
    sdf: Callable[[Tensor], Tensor],
    axis: str,
    position: float,
    size: int,
    device: str | torch.device = "cpu",
    chunk: int = 65536,
) -> Float32[np.ndarray, "size size"]:
    """Distances in field space at the pixel centres of `slice_picture`, the first row on top."""
    right, up = ACROSS[axis]
    centres = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1
    values = np.empty(size * size, np.float32)
    for start in range(0, size * size, chunk):
        pixel = torch.arange(start, min(start + chunk, size * size))
        x = torch.full((len(pixel), 3), position)
        x[:, right], x[:, up] = centres[pixel % size], -centres[pixel // size]
        values[start : start + len(pixel)] = sdf(x.to(device)).float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError("SDF: the field is not finite; the fit diverged, repeat it with a smaller learning rate")
    return values.reshape(size, size)


def round_step(length: float) -> float:
    """The number 1, 2 or 5 times a power of ten whose ratio to a positive length is closest to 1."""
    power = 10.0 ** math.floor(math.log10(length))
    return min((power * digit for digit in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / length)))


def write_slices(run: LoadedRun, axis: str, count: int, out: Path, size: int = 800) -> list[Path]:
    """Write `count` slices, the middles of as many equal slabs of the surface, to out/slice_AXIS_POSITION.png.

    One slice is the middle of it. Where the run has no mesh yet, slabs are those of the box. Positions and the distance
    of the level sets, which is printed, are in the cloud's units. Raises UserError for another axis, no slice, a
    picture without pixels, or a field that is not finite.
    """
    if axis not in ACROSS:
        raise UserError(f"axis {axis!r}: unknown; use one of {', '.join(AXES)}")
    if count < 1 or size < 2:
        raise UserError(f"{count} slices of {size} pixels: nothing to draw; ask for at least one, 2 pixels wide")
    step = round_step(2 * run.to_world.scale / LEVELS)
    print(f"level sets every {step:g} of the cloud's units, {size} x {size} pixels")
    paths = []
    lower, upper = _extent(run, axis)
    for position in lower + (upper - lower) * (np.arange(count) + 0.5) / count:
        path = out / f"slice_{axis}_{_label(run.to_world, axis, position, count)}.png"
        field_step = step / run.to_world.scale
        save_png(path, slice_picture(run.field.sdf, axis, float(position), size, field_step, run.device))
        print(f"wrote {path}")
        paths.append(path)
    return paths


def _extent(run: LoadedRun, axis: str) -> tuple[float, float]:
    """From where to where the run's mesh reaches along the axis, in the box; all of that where there is none."""
    file = run.folder / "mesh.ply"
    if not file.is_file():
        return -1.0, 1.0
    along = run.to_world.to_unit(load_mesh(file).vertices)[:, AXES.index(axis)].clip(-1, 1)
    return float(along.min()), float(along.max())


def _label(to_world: Similarity, axis: str, position: float, count: int) -> str:
    """A signed coordinate in the cloud's units, with as many decimals as tell `count` slices apart, at least three."""
    decimals = max(3, 1 - math.floor(math.log10(2 * to_world.scale / count)))
    coordinate = to_world.to_world(np.full(3, position))[AXES.index(axis)]
    return f"{round(float(coordinate), decimals) + 0.0:+.{decimals}f}"  # adding zero takes the sign off a negative one


def _colours(values: Float32[np.ndarray, "h w"], step: float) -> Float64[np.ndarray, "h w 3"]:
    picture = np.empty((*values.shape, 3))
    for side, ramp, levels in ((values < 0, INSIDE, INSIDE_LEVELS), (values >= 0, OUTSIDE, OUTSIDE_LEVELS)):
        depth = np.abs(values[side]) / (step * levels) * (len(ramp) - 1)
        picture[side] = np.stack([np.interp(depth, range(len(ramp)), channel) for channel in ramp.T], axis=-1)
    return picture


def _coverage(values: Float32[np.ndarray, "h w"], levels: list[float], width: float) -> Float[np.ndarray, "h w"]:
    """Share of each pixel, 0..1, under lines of this width (a share of the picture's) where values cross the levels."""
    height, across = values.shape
    canvas = np.zeros((height * SUPERSAMPLING, across * SUPERSAMPLING), np.uint8)
    thickness = max(1, math.ceil(width * canvas.shape[1]) - 2)  # OpenCV's lines come out two wider than asked for
    for level in levels:
        lines = [
            np.rint(((line[:, ::-1] + 0.5) * SUPERSAMPLING - 0.5) * 2**FRACTION_BITS).astype(np.int32)
            for line in find_contours(values, level)
        ]
        cv2.polylines(canvas, lines, False, 255, thickness, cv2.LINE_AA, FRACTION_BITS)
    return cv2.resize(canvas, (across, height), interpolation=cv2.INTER_AREA) / np.float64(255)
