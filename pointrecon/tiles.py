"""Clouds with more detail than one field holds: cubes of the box, each with a field of its own, blended into one.

A fit of the whole cloud comes first. It tells the cubes' fields what lies where no point is near, and on which side of
the surface (`Guide`), so that neighbours agree. Across the faces between cubes one field fades into the next; where
there is no cube, for want of points, the field of the whole stays.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from shared.field import FieldLike, Geometry
from shared.geometry import Similarity

# A cube reaches into those beside it by this share of its edge, and with that fills so much of its field's own box.
MARGIN, FILLED = 0.1, 0.9
FADE = MARGIN * FILLED / (0.5 + MARGIN)  # half the way, in the box of a cube's field, on which it fades
FEWEST = 500  # points of a cube: of fewer, their noise is not known
# A field is not exact nearer to its surface than this many of its finest cells.
CELLS = 3.0


class Guide(NamedTuple):
    """Distances (n,) at places (n, 3) by a coarser field, and how near to a surface they are not exact."""

    sdf: Callable[[Tensor], Tensor]
    reach: float


class Tile(NamedTuple):
    """A cube, by its place along the axes, and the similarity from the box of its field to the world."""

    name: str
    to_world: Similarity

    def holds(self, points: NDArray[np.float64]) -> Bool[np.ndarray, " n"]:
        """Which points (n, 3) of the world lie in the cube or within its margin."""
        return np.asarray(np.abs(self.to_world.to_unit(points)).max(axis=1) <= FILLED)


def cut(points: NDArray[np.float64], to_world: Similarity, count: int) -> Iterator[Tile]:
    """The cubes that hold enough of the points (n, 3) of the world, `count` of them along the longest side.

    to_world: from the box of the whole. The outermost points are not within a margin, where a cube's field fades.
    """
    unit = to_world.to_unit(points)
    extent = np.ptp(unit, axis=0)
    edge = float(extent.max()) / (count - 2 * MARGIN)
    counts = np.ceil(extent / edge + 2 * MARGIN - 1e-9).astype(np.int64)
    place = np.floor(unit / edge + counts / 2).astype(np.int64)
    for cube in np.unique(np.ravel_multi_index(tuple(place.T), tuple(counts))):
        at = np.array(np.unravel_index(cube, tuple(counts)))
        x, y, z = (float(c) for c in to_world.to_world((at + 0.5 - counts / 2) * edge))
        tile = Tile("-".join(map(str, at)), Similarity(edge * (0.5 + MARGIN) / FILLED * to_world.scale, (x, y, z)))
        if tile.holds(points).sum() >= FEWEST:
            yield tile


def guide(whole: FieldLike, cell: float, to_world: Similarity, tile: Tile) -> Guide:
    """What the field of the whole says in the box of a tile's; cell: its finest, in its own box."""
    scale, centre = _within(to_world, tile.to_world)

    @torch.no_grad()
    def sdf(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        return whole.sdf((x * scale + centre.to(x)).clamp(-1, 1)) / scale

    return Guide(sdf, CELLS * cell / scale)


class TiledField:
    """A field in the box of the whole, made of that of the whole and those of tiles. Gradients are blended as they are:
    what the change of the weights would add vanishes where neighbours agree."""

    def __init__(self, whole: FieldLike, to_world: Similarity, parts: Sequence[tuple[FieldLike, Similarity]]) -> None:
        self.whole = whole
        self.parts = [(field, *_within(to_world, its)) for field, its in parts]

    def sdf(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Float[Tensor, " n"]:
        """Signed distances at x."""
        return self._blend(x, lambda field, x: field.sdf(x)[:, None], 1)[:, 0]

    def geometry(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Geometry:
        """Distances and gradients at x, no features."""

        def ask(field: FieldLike, x: Tensor) -> Tensor:
            found = field.geometry(x)
            return torch.cat([found.sdf[:, None], found.gradient], dim=1)

        blended = self._blend(x, ask, 4)
        return Geometry(blended[:, 0], blended[:, 1:], blended[:, :0])

    @torch.no_grad()
    def _blend(self, x: Tensor, ask: Callable[[FieldLike, Tensor], Tensor], columns: int) -> Float[Tensor, "n k"]:
        """The weighted mean of what fields say, of which the first column is a distance in their own boxes."""
        blended, left = x.new_zeros(len(x), columns), x.new_ones(len(x))
        for field, scale, centre in self.parts:
            at = (x - centre.to(x)) / scale
            rows = (at.abs().amax(dim=1) < FILLED).nonzero()[:, 0]
            if len(rows):
                weight, said = fading(at[rows]), ask(field, at[rows])
                said[:, 0] *= scale
                blended[rows] += weight[:, None] * said
                left[rows] -= weight
        rows = (left > 1e-5).nonzero()[:, 0]
        if len(rows):
            blended[rows] += left[rows, None] * ask(self.whole, x[rows])
        return blended


def fading(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """How much the field of a tile counts at places of its box: those of neighbours add to one."""
    along = ((FILLED - x.abs()) / (2 * FADE)).clamp(0, 1)
    return (along.square() * (3 - 2 * along)).prod(dim=1)


def _within(whole: Similarity, part: Similarity) -> tuple[float, Tensor]:
    """Scale and centre of the part's box in the whole's."""
    return part.scale / whole.scale, torch.from_numpy(whole.to_unit(np.array(part.translation)))
