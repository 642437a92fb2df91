"""A cubic lattice of field values that exists only where somebody asked for it.

A brick owns 8^3 nodes. Where each brick lies in memory is looked up in a small dense grid, so that a node is found
without searching, every node is evaluated at most once, and memory follows the surface instead of the volume.
A node that was never evaluated holds NaN.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from shared import brick_kernels
from shared.brick_kernels import BRICK

BATCH = 16384  # bricks worked on at once: 8 MB of patterns

Sampler = Callable[[NDArray[np.int64]], NDArray[np.float32]]
Locate = Callable[[NDArray[np.int64]], NDArray[np.int64]]


def batches(slots: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Bounded pieces of `slots`, each with the slice it came from."""
    for start in range(0, len(slots), BATCH):
        part = slice(start, start + BATCH)
        yield part, slots[part]


class BrickLattice:
    """Nodes 0 .. 8 * blocks along each axis, of which every eighth is known from the start.

    sample: values (n,) float32 of the nodes with integer indices (n, 3); called with up to `chunk` nodes at a time.
    bricks (slots, 3): index of the brick in each slot; values (slots, 8, 8, 8); coarse (blocks + 1,) * 3: every
    eighth node. Slot 0 stands for all absent bricks and stays NaN.
    """

    def __init__(self, sample: Sampler, cells: int, chunk: int) -> None:
        blocks = -(-cells // BRICK)
        self.side = blocks * BRICK + 1
        self._sample, self._chunk = sample, chunk
        shape = (blocks + 1,) * 3
        self.coarse = np.empty(shape, np.float32)
        self._fill(
            self.coarse, np.arange(self.coarse.size), lambda at: BRICK * np.stack(np.unravel_index(at, shape), -1)
        )
        # One layer more than there are bricks: it stays absent, for the windows of the last ones to look into.
        self.slot = np.zeros((blocks + 2,) * 3, np.int64)
        self.bricks = np.zeros((1, 3), np.int64)
        self.values = np.full((1, BRICK, BRICK, BRICK), np.nan, np.float32)
        self._wanted = np.zeros(self.values.shape, bool)

    def allocate_around(self, bricks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Make room for these bricks (m, 3) and their 26 neighbours; the slots of them all, each once."""
        mask = np.zeros(self.slot.shape, bool)
        mask[tuple(bricks.T)] = True
        for axis in range(3):
            layers = mask.swapaxes(0, axis)
            grown = layers.copy()
            grown[1:] |= layers[:-1]
            grown[:-1] |= layers[1:]
            mask = grown.swapaxes(0, axis)
        mask[-1] = mask[:, -1] = mask[:, :, -1] = False
        fresh = np.argwhere(mask & (self.slot == 0))
        self.slot[tuple(fresh.T)] = len(self.bricks) + np.arange(len(fresh))
        values = np.full((len(fresh), *self.values.shape[1:]), np.nan, np.float32)
        values[:, 0, 0, 0] = self.coarse[tuple(fresh.T)]
        self.bricks = np.concatenate([self.bricks, fresh])
        self.values = np.concatenate([self.values, values])
        self._wanted = np.zeros(self.values.shape, bool)
        return self.slot[mask]

    def patterns(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Sign patterns (m, 8, 8, 8) of the cells of the bricks in these slots, 0 where a corner is unknown, and which
        bricks have such a cell with corners of both signs."""
        pattern = np.empty((len(slots), BRICK, BRICK, BRICK), np.uint8)
        leaks = np.empty(len(slots), bool)
        brick_kernels.patterns(self.values, self.slot, self.bricks[slots], pattern, leaks)
        return pattern, leaks

    def request(self, bricks: NDArray[np.int64], keep: NDArray[np.bool_], stride: int) -> None:
        """Ask for the nodes at multiples of `stride` in the kept blocks, two strides wide, keep (m, a, a, a), of the
        bricks (m, 3); `evaluate` computes them."""
        brick_kernels.request(self.slot, bricks, keep, stride, self._wanted)

    def evaluate(self) -> None:
        """Evaluate the nodes that were asked for and are not known yet, in chunks that run across bricks."""
        self._wanted[0] = False
        self._fill(self.values, np.flatnonzero(self._wanted & np.isnan(self.values)), self._nodes)
        self._wanted[:] = False

    def at(self, nodes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values of nodes (n, 3); NaN where unknown."""
        brick, local = np.divmod(nodes, BRICK)
        return self.values[(self.slot[tuple(brick.T)], *local.T)]

    def _nodes(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        slot, *local = np.unravel_index(addresses, self.values.shape)
        return self.bricks[slot] * BRICK + np.stack(local, -1)

    def _fill(self, target: NDArray[np.float32], addresses: NDArray[np.int64], locate: Locate) -> None:
        for start in range(0, len(addresses), self._chunk):
            part = addresses[start : start + self._chunk]
            target.reshape(-1)[part] = self._sample(locate(part))
