"""Photos and masks from disk: decoded once, several at a time, downscaled by area averaging, broken files refused."""

import math
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from shared.errors import UserError
from shared.run_folder import blaming, make_folder

SUFFIXES = (".png", ".jpg", ".jpeg")
# Users' own photos may be large; Pillow's limit is against strangers' files.
Image.MAX_IMAGE_PIXELS = None
DECODERS = 4  # threads; decoding and resizing release the interpreter lock


def list_photos(folder: Path, remedy: str) -> list[Path]:
    """The PNG and JPEG files of `folder`, sorted by name. UserError with `remedy` if there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {remedy}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: holds no PNG or JPEG images; {remedy}")
    return paths


def common_size(paths: list[Path]) -> tuple[int, int]:
    """Width and height of images that must all agree, read from their headers alone."""
    first: tuple[int, int] | None = None
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise _broken(path) from error
        first = first or size
        if size != first:
            raise UserError(
                f"{path}: {size[0]}x{size[1]} pixels, but {paths[0].name} has {first[0]}x{first[1]}; "
                "bring all images to one size, with the cameras to match"
            )
    assert first is not None
    return first


def reduced_size(size: tuple[int, int], downscale: int, where: Path) -> tuple[int, int]:
    """Width and height divided by `downscale` and rounded. UserError if it is below 1 or leaves no pixels."""
    if downscale < 1:
        raise UserError(f"{where}: downscale {downscale} is below 1; give a whole number, 1 keeps the full size")
    width, height = (round(side / downscale) for side in size)
    if min(width, height) < 1:
        raise UserError(
            f"{where}: downscale {downscale} leaves nothing of {size[0]}x{size[1]} pixels; choose a smaller one"
        )
    return width, height


def read_photos(paths: list[Path], size: tuple[int, int], cache: Path | None = None) -> UInt8[np.ndarray, "v h w 3"]:
    """RGB photos resampled to `size` (width, height), in memory or mapped from a file in the folder `cache`.

    UserError for a file that is truncated or no image.
    """
    photos = _room((len(paths), size[1], size[0], 3), cache)
    _fill(photos, paths, "RGB")
    return photos


def read_masks(paths: list[Path], size: tuple[int, int], cache: Path | None = None) -> UInt8[np.ndarray, "v h w"]:
    """Masks of any channel count resampled to `size`: 255 on the object, 0 off it, fractions where pixels mix.

    Masks stored as 0 and 1 are recognised. UserError as for photos, and if no mask marks any object.
    """
    masks = _room((len(paths), size[1], size[0]), cache)
    _fill(masks, paths, "L")
    if not masks.any():
        raise UserError(f"{paths[0].parent}: all masks are black; make the object white or switch the masks off")
    return masks


def _room(shape: tuple[int, ...], cache: Path | None) -> NDArray[np.uint8]:
    """An array to fill. In a folder it is a file without a name, which the system removes with the process."""
    if cache is None:
        return np.empty(shape, dtype=np.uint8)
    make_folder(cache)
    needed, free = math.prod(shape), shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(f"{cache}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; choose another --data.cache")
    with tempfile.TemporaryFile(dir=cache) as file:
        # Reserved now: a disk found full in the middle of a write to mapped memory would kill the process.
        if hasattr(os, "posix_fallocate"):
            with blaming(cache):
                os.posix_fallocate(file.fileno(), 0, needed)
        else:
            file.truncate(needed)
        return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)


def _fill(target: NDArray[np.uint8], paths: list[Path], mode: str) -> None:
    def one(index: int) -> None:
        image = _decode(paths[index], mode)
        height, width = target.shape[1:3]
        if image.shape[:2] != (height, width):
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        target[index] = image

    with ThreadPoolExecutor(DECODERS) as pool:
        for _ in pool.map(one, range(len(paths))):
            pass


def _decode(path: Path, mode: str) -> NDArray[np.uint8]:
    # Pillow raises on a truncated file; OpenCV would return the part that it could read.
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise _broken(path) from error
    return pixels * np.uint8(255) if mode == "L" and pixels.max() == 1 else pixels


def _broken(path: Path) -> UserError:
    return UserError(f"{path}: not a readable image, or truncated; copy it again or take it out with its camera")
