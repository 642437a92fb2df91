"""The DTU layout of IDR and NeuS: `image/`, `mask/` and `cameras_sphere.npz`.

`world_mat_i` (4, 4) projects the world (millimetres for DTU) to pixels with centres at integers; `scale_mat_i`
(4, 4) takes the unit sphere to the world. So `world_mat_i @ scale_mat_0` projects field space (Wang et al. 2021).
"""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvrecon.cameras import Cameras, decompose_projection
from mvrecon.datasets.photos import common_size, list_photos, read_masks, read_photos, reduced_size
from mvrecon.scene import Scene, split_views
from shared.errors import UserError
from shared.geometry import Similarity

LAYOUT = "expected image/, cameras_sphere.npz and, for masks, mask/ as in the DTU data of NeuS"
REMAKE = "write cameras_sphere.npz again with a world_mat_i per photo and scale_mat_0"


def load_dtu(
    root: str | Path,
    downscale: int = 1,
    holdout: Sequence[int] = (),
    masks: bool = True,
    cache: Path | None = None,
) -> Scene:
    """Read a scene in the DTU layout. `holdout`: indices into the sorted photos that are kept for testing.

    Photos are divided by `downscale` in size, and kept in memory or in a file in the folder `cache`.
    Where the scale matrices differ, `scale_mat_0` is the frame of all.
    Raises UserError for anything missing, broken or inconsistent in the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the scene's folder ({LAYOUT})")
    photos = list_photos(root / "image", LAYOUT)
    if not (root / "cameras_sphere.npz").is_file():
        raise UserError(f"{root / 'cameras_sphere.npz'}: no such file; {LAYOUT}")
    train, test = split_views(len(photos), holdout, root)
    full_size = common_size(photos)
    size = reduced_size(full_size, downscale, root)
    cameras, to_world = _read_cameras(root / "cameras_sphere.npz", photos, full_size)
    return Scene(
        masks=_read_masks(root / "mask", len(photos), full_size, size, cache) if masks else None,
        images=read_photos(photos, size, cache),
        cameras=cameras.with_size(*size),
        to_world=to_world,
        names=tuple(path.stem for path in photos),
        train=train,
        test=test,
    )


def _read_masks(
    folder: Path, count: int, full_size: tuple[int, int], size: tuple[int, int], cache: Path | None
) -> NDArray[np.uint8]:
    paths = list_photos(folder, "add one mask per photo or switch the masks off")
    if len(paths) != count:
        raise UserError(f"{folder}: {len(paths)} masks for {count} photos; give each photo one, in the same order")
    mask_size = common_size(paths)
    if mask_size != full_size:
        raise UserError(
            f"{folder}: masks of {mask_size[0]}x{mask_size[1]} pixels for photos of {full_size[0]}x{full_size[1]}; "
            "bring them to the photos' size"
        )
    return read_masks(paths, size, cache)


def _read_cameras(path: Path, photos: list[Path], size: tuple[int, int]) -> tuple[Cameras, Similarity]:
    matrices = _read_matrices(path)
    to_world = _similarity(path, _matrix(matrices, "scale_mat_0", path))
    scale = np.diag([to_world.scale] * 3 + [1.0])
    scale[:3, 3] = to_world.translation
    intrinsics, poses = [], []
    for index in _camera_numbers(path, photos, matrices):
        key = f"world_mat_{index}"
        try:
            k, pose = decompose_projection(_matrix(matrices, key, path)[:3] @ scale)
        except ValueError as error:
            raise UserError(f"{path}: {key} is {error}; {REMAKE}") from error
        intrinsics.append(k)
        poses.append(pose)
    return Cameras(np.stack(intrinsics), np.stack(poses), *size), to_world


def _read_matrices(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:  # NumPy alone also takes a bare array
            return {key: archive[key] for key in archive.files if re.fullmatch(r"(world|scale)_mat_\d+", key)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable NPZ archive, or truncated; copy it again") from error


def _camera_numbers(path: Path, photos: list[Path], matrices: dict[str, NDArray[np.generic]]) -> list[int]:
    """Which world_mat belongs to each photo: that with the number in its name, or of its rank where there are as many.

    Where photos were taken out the names must tell; photos counted from 1 do not, with cameras counted from 0.
    """
    available = {int(key.rsplit("_", 1)[1]) for key in matrices if key.startswith("world_mat_")}
    numbers = [int(photo.stem) if photo.stem.isdecimal() else -1 for photo in photos]
    if len(available) <= len(photos) and set(numbers) != available:
        return list(range(len(photos)))
    shifted = 0 in available and 0 not in numbers and len(available) > len(photos)
    if not available.issuperset(numbers) or len(set(numbers)) < len(numbers) or shifted:
        raise UserError(
            f"{path}: {len(available)} cameras for {len(photos)} photos, and the photos' names do not say which; "
            "name each photo by the number of its world_mat, and take the other cameras out"
        )
    return numbers


def _matrix(matrices: dict[str, NDArray[np.generic]], key: str, path: Path) -> NDArray[np.float64]:
    """The matrix of this name as float64 (4, 4), or (3, 4) for a bare projection."""
    if key not in matrices:
        raise UserError(f"{path}: {key} is missing; {REMAKE}")
    matrix = matrices[key]
    if matrix.dtype.kind not in "fiu" or matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{path}: {key} is {matrix.dtype} of shape {matrix.shape}, not a 4x4 matrix; {REMAKE}")
    if not np.isfinite(matrix).all():
        raise UserError(f"{path}: {key} is not finite; {REMAKE}")
    return matrix.astype(np.float64)


def _similarity(path: Path, matrix: NDArray[np.float64]) -> Similarity:
    scale = float(matrix[0, 0])
    if np.abs(matrix[:3, :3]).max() == 0 or abs(np.linalg.det(matrix[:3, :3])) == 0:
        raise UserError(f"{path}: scale_mat_0 is singular; {REMAKE}")
    if scale <= 0 or not np.allclose(matrix[:3, :3], scale * np.eye(3), rtol=0, atol=1e-4 * scale):
        raise UserError(f"{path}: scale_mat_0 is not one positive scale and a translation; {REMAKE}")
    x, y, z = (float(c) for c in matrix[:3, 3])
    return Similarity(scale, (x, y, z))
