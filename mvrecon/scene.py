"""A scene is what every photo reader returns and everything else starts from: photos, masks, cameras, frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from mvrecon.cameras import Cameras
from shared.errors import UserError
from shared.geometry import Similarity


@dataclass(frozen=True, eq=False)
class Scene:
    """V posed photos of one size, V = len(names).

    images: RGB. masks: 255 on the object, 0 off it, fractions where downscaling mixed the two; None without masks.
    cameras: in field space, for the size of `images`. to_world: field space to the user's frame.
    names: the photos' file names without suffix. train, test: indices of views; disjoint, together all of them.
    """

    images: UInt8[np.ndarray, "v h w 3"]
    masks: UInt8[np.ndarray, "v h w"] | None
    cameras: Cameras
    to_world: Similarity
    names: tuple[str, ...]
    train: Int64[np.ndarray, " n_train"]
    test: Int64[np.ndarray, " n_test"]

    @property
    def view_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.images.shape[2], self.images.shape[1]


def split_views(
    count: int, holdout: Sequence[int], where: Path, minimum_train: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the held-out views among `count`, the latter in the order asked for.

    Raises UserError, naming `where`, for indices out of range or repeated, and where too few views are left to train.
    """
    outside = [i for i in holdout if not 0 <= i < count]
    if outside:
        raise UserError(f"{where}: holdout view {outside[0]} does not exist; choose from 0 to {count - 1}")
    repeated = [i for i in set(holdout) if list(holdout).count(i) > 1]
    if repeated:
        raise UserError(f"{where}: holdout view {repeated[0]} is given more than once; list each view once")
    train = np.setdiff1d(np.arange(count, dtype=np.int64), np.asarray(holdout, dtype=np.int64))
    if len(train) < minimum_train:
        remedy = "add photos or hold out fewer" if len(holdout) else "add photos"
        raise UserError(
            f"{where}: {count} views, {len(holdout)} of them held out, leave {len(train)} to train on; "
            f"at least {minimum_train} are needed: {remedy}"
        )
    return train, np.asarray(holdout, dtype=np.int64)
