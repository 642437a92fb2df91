#!/usr/bin/env python3
"""Depth frames with known cameras to one coloured point cloud with normals, as `pointrecon fit` takes it.

    scripts/fuse_depth.py FOLDER --out cloud.ply
    scripts/fuse_depth.py FOLDER --out cloud.ply --every 4 --stride 2 --far 3

FOLDER is laid out as the 7-Scenes: frame-XXXXXX.depth.png (16 bits, millimetres; 0 and 65535: none), .color.jpg or
.color.png, .pose.txt (4x4, camera to world, metres, OpenCV axes) and camera-intrinsics.txt (3x3, of the depth camera).
Colours are looked up at the depth's own pixels, as if registered to it. Those of a Kinect often are not, nor are those
of the 7-Scenes: for them add --color-focal 525 --color-right 0.025.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from tqdm import tqdm

from shared.command_line import Parser
from shared.errors import UserError, main_guard
from shared.mesh import save_points

Array = NDArray[np.float64]

NONE = 65535  # a depth that says there is none, as 0 does
# Neighbouring depths that differ by more than this share are of two surfaces, and those between of neither.
JUMP = 0.03
WINDOW = 7  # pixels along an edge of what a plane is put through for a normal


class ColorCamera(NamedTuple):
    """Where colours come from: beside the depth camera, looking the same way. focal: in pixels, None: as the depth's.
    right: of the depth camera, in metres."""

    focal: float | None = None
    right: float = 0.0


class Cloud(NamedTuple):
    """Points (n, 3), unit normals (n, 3) that look to the camera, RGB (n, 3)."""

    points: Array
    normals: Array
    colors: NDArray[np.uint8]


class Frame(NamedTuple):
    """Depths (H, W) in metres, 0 where there is none; RGB (H, W, 3); camera to world (4, 4)."""

    depth: Array
    image: NDArray[np.uint8]
    pose: Array


def fuse(
    folder: Path, every: int = 1, stride: int = 4, far: float = 4.0, camera: ColorCamera | None = None
) -> tuple[Cloud, int]:
    """The cloud in the world, and of how many frames it is.

    Every `every`-th frame and of it every `stride`-th pixel of every `stride`-th row, up to `far` metres away. Frames
    without pose or colours are named and left out. Raises UserError for a folder without frames or points.
    """
    if every < 1 or stride < 1 or not far > 0:
        raise UserError("--every, --stride and --far: must be positive; leave them out for the defaults")
    names = sorted(path.name.removesuffix(".depth.png") for path in folder.glob("*.depth.png"))[::every]
    if not names:
        raise UserError(f"{folder}: has no frames; give a folder of frame-XXXXXX.depth.png files")
    intrinsics = read_matrix(folder / "camera-intrinsics.txt", 3)
    if not np.linalg.det(intrinsics) > 0:
        raise UserError(f"{folder / 'camera-intrinsics.txt'}: is no camera; write fx 0 cx, 0 fy cy, 0 0 1")
    parts = [frame_points(frame, intrinsics, stride, far, camera or ColorCamera()) for frame in frames(folder, names)]
    if not sum(len(part.points) for part in parts):
        raise UserError(f"{folder}: no frame gave a point; raise --far, or check depths, poses and colours")
    return Cloud(*(np.concatenate(columns) for columns in zip(*parts))), len(parts)


def frames(folder: Path, names: list[str]) -> Iterator[Frame]:
    """The frames that are whole, one after another, under a progress bar."""
    for name in tqdm(names, desc="frames", unit="frame"):
        place = folder / f"{name}.pose.txt"
        pose = read_matrix(place, 4) if place.is_file() else np.full((4, 4), np.nan)
        color = next((p for p in (folder / f"{name}.color.jpg", folder / f"{name}.color.png") if p.is_file()), None)
        if color is None or not np.isfinite(pose).all():  # which is how some say that they lost track
            tqdm.write(f"{folder / name}: has no {'colours' if color is None else 'pose'}; left out", sys.stderr)
            continue
        depth = read_image(folder / f"{name}.depth.png")
        if depth.ndim != 2 or depth.dtype == np.uint8:
            raise UserError(f"{folder / name}.depth.png: is no depth image; give one channel of 16 bits")
        image = read_image(color, "RGB", (depth.shape[1], depth.shape[0]))
        yield Frame(np.where(depth == NONE, 0, depth) / 1000, image, pose)


def read_image(path: Path, mode: str | None = None, size: tuple[int, int] | None = None) -> NDArray:
    """An image (H, W) or (H, W, 3), of this mode and size (width, height) if given. Raises UserError."""
    try:
        with Image.open(path) as image:
            converted = image if mode is None else image.convert(mode)
            return np.array(converted if size in (None, image.size) else converted.resize(size))
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: of the PNG reader
        raise UserError(f"{path}: not a readable image ({error}); copy it again") from error


def read_matrix(path: Path, size: int) -> Array:
    """A square matrix in text. Raises UserError."""
    try:
        matrix = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no table of numbers ({error}); write {size} rows of {size}") from error
    if matrix.shape != (size, size):
        raise UserError(f"{path}: not {size} rows of {size} numbers; write the matrix anew")
    return matrix


def frame_points(frame: Frame, intrinsics: Array, stride: int, far: float, camera: ColorCamera) -> Cloud:
    """What a frame shows of the world, but for what the colour camera does not see."""
    row, column = (index * stride for index in np.nonzero(steady(frame.depth, far)[::stride, ::stride]))
    points = unproject(frame.depth[row, column], row, column, intrinsics)
    normals = window_normals(frame.depth, row, column, intrinsics)
    row, column, seen = color_pixels(points, intrinsics, camera, frame.image.shape[:2])
    turn, place = frame.pose[:3, :3].T, frame.pose[:3, 3]
    return Cloud(points[seen] @ turn + place, normals[seen] @ turn, frame.image[row[seen], column[seen]])


def window_normals(depth: Array, row: NDArray[np.int64], column: NDArray[np.int64], intrinsics: Array) -> Array:
    """Unit normals (n, 3) on the camera's side, in its frame: of the planes through what lies around the pixels, in
    windows of WINDOW pixels, and at about their own depth."""
    reach = np.arange(WINDOW) - WINDOW // 2
    rows, columns = (index[:, None] + offset.ravel() for index, offset in zip((row, column), np.meshgrid(reach, reach)))
    inside = (rows >= 0) & (rows < depth.shape[0]) & (columns >= 0) & (columns < depth.shape[1])
    around = np.where(inside, depth[rows.clip(0, depth.shape[0] - 1), columns.clip(0, depth.shape[1] - 1)], 0)
    own = depth[row, column]
    share = np.abs(around - own[:, None]) <= JUMP * own[:, None]
    share = (share / share.sum(axis=1, keepdims=True))[..., None]
    points = unproject(around.ravel(), rows.ravel(), columns.ravel(), intrinsics).reshape(*around.shape, 3)
    apart = points - (share * points).sum(axis=1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nka,nkb->nab", share * apart, apart))[1][:, :, 0]
    away = (normals * unproject(own, row, column, intrinsics)).sum(axis=1, keepdims=True) > 0
    return np.where(away, -normals, normals)


def steady(depth: Array, far: float) -> NDArray[np.bool_]:
    """Pixels (H, W) with a depth of at most `far` and two pixels or more from where it jumps.

    Depths beside a jump are blurred by the sensor, and its edge wanders by a pixel.
    """
    known = depth > 0
    nearest = minimum_filter(np.where(known, depth, np.inf), 3)
    jumps = known & (maximum_filter(depth, 3) - nearest > JUMP * depth)
    return known & (depth <= far) & ~maximum_filter(jumps, 3)


def unproject(depth: Array, row: NDArray[np.int64], column: NDArray[np.int64], intrinsics: Array) -> Array:
    """Points (n, 3) in the camera's frame of depths (n,) along its axis; pixel centres at integers."""
    return depth[:, None] * (np.stack([column, row, np.ones(len(row))], axis=1) @ np.linalg.inv(intrinsics).T)


def color_pixels(
    points: Array, intrinsics: Array, camera: ColorCamera, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and column (n,) of the nearest pixel of the colour camera, and whether its image (H, W) reaches there."""
    own = intrinsics.copy()
    if camera.focal is not None:
        own[0, 0] = own[1, 1] = camera.focal
    projected = (points - [camera.right, 0, 0]) @ own.T
    column, row = np.rint(projected[:, :2] / projected[:, 2:]).astype(np.int64).T
    return row, column, (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])


def run(args: argparse.Namespace) -> None:
    """The whole command."""
    if args.out.suffix.lower() != ".ply":
        raise UserError(f"{args.out}: clouds are written as .ply; change --out")
    camera = ColorCamera(args.color_focal, args.color_right)
    cloud, count = fuse(args.folder, args.every, args.stride, args.far, camera)
    save_points(cloud.points, cloud.normals, args.out, cloud.colors)
    print(f"{args.out}: {len(cloud.points):,} points of {count} frames")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="frames and camera-intrinsics.txt")
    parser.add_argument("--out", type=Path, required=True, help="point cloud to write, .ply")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th frame (default 1)")
    parser.add_argument(
        "--stride", type=int, default=4, metavar="K", help="take every K-th pixel of every K-th row (default 4)"
    )
    parser.add_argument("--far", type=float, default=4.0, metavar="M", help="drop depths beyond M metres (default 4)")
    parser.add_argument(
        "--color-focal", type=float, metavar="PIXELS", help="of the colour camera (default: the depth's)"
    )
    parser.add_argument(
        "--color-right", type=float, default=0.0, metavar="M", help="how far right of the depth camera (default 0)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)
    return main_guard(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
