"""The multi-resolution hash grid: which table entries the corners of a cell use (Müller et al. 2022, section 3).

Level l divides the box [-1, 1]^3 into R_l^3 cells. A level whose (R_l + 1)^3 nodes fit gets one entry a node; a finer
level shares 2^log2_entries entries by a spatial hash. All levels lie one after the other in one table, the same for
every backend, so that a checkpoint means the same field everywhere.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class HashGrid:
    """The shape of a grid: `levels` resolutions, `base` to `finest` in geometric progression, 2 features an entry."""

    levels: int
    base: int
    finest: int
    log2_entries: int
    features: ClassVar[int] = 2  # as the kernels have it

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Cells along an edge of the box, for each level."""
        if self.levels == 1:
            return (self.base,)
        growth = math.log(self.finest / self.base) / (self.levels - 1)
        return tuple(round(self.base * math.exp(growth * level)) for level in range(self.levels))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each level, then the number of all entries."""
        offsets = [0]
        for resolution in self.resolutions:
            offsets.append(offsets[-1] + min((resolution + 1) ** 3, 2**self.log2_entries))
        return tuple(offsets)

    @property
    def entries(self) -> int:
        return self.offsets[-1]

    def is_dense(self, level: int) -> bool:
        """Whether every node of the level has an entry of its own."""
        return (self.resolutions[level] + 1) ** 3 <= 2**self.log2_entries

    @cached_property
    def layout(self) -> tuple[tuple[int, int, int], ...]:
        """What kernels need: (resolution, first entry, dense) of each level, then (hash mask, 0, 0)."""
        levels = [(r, o, int(self.is_dense(n))) for n, (r, o) in enumerate(zip(self.resolutions, self.offsets))]
        return (*levels, (2**self.log2_entries - 1, 0, 0))

    def entry(self, level: int, node: Tensor) -> Tensor:
        """Table rows (...) of integer nodes (..., 3) of a level."""
        if self.is_dense(level):
            side = self.resolutions[level] + 1
            row = (node[..., 0] * side + node[..., 1]) * side + node[..., 2]
        else:
            row = node[..., 0] * PRIMES[0]
            for axis in (1, 2):
                row = torch.bitwise_xor(row, node[..., axis] * PRIMES[axis])
            row = torch.bitwise_and(row, 2**self.log2_entries - 1)
        return row + self.offsets[level]


def gradient_of(table: Tensor) -> tuple[Tensor, bool]:
    """Where to add a table's gradient, and whether that is the gradient itself: so it is for a leaf that has one."""
    in_place = table.is_leaf and table.grad is not None
    return (table.grad if table.is_leaf and table.grad is not None else torch.zeros_like(table)), in_place
