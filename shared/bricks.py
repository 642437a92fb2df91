"""A cubic lattice of field values that exists only where somebody asked for it.

A brick owns 8^3 nodes. Where each brick lies in memory is looked up in a small dense grid, so that a node is found
without searching, every node is evaluated at most once, and memory follows the surface instead of the volume.
A node that was never evaluated holds NaN.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared import brick_kernels
from shared.brick_kernels import BRICK

COARSEST = 64  # blocks along a side, at most, that are always looked at

Sampler = Callable[[NDArray[np.integer]], NDArray[np.float32]]


class BrickLattice:
    """Nodes 0 .. 8 * blocks along each axis.

    sample: values (n,) float32 of the nodes with integer indices (n, 3); called with up to `chunk` nodes at a time.
    bricks (slots, 3): index of the brick in each slot; values (slots, 8, 8, 8); coarse (blocks + 1,) * 3: every
    eighth node; stride: how many bricks the coarsest blocks are wide. Slot 0 stands for all absent bricks and stays
    NaN.
    """

    def __init__(self, sample: Sampler, cells: int, chunk: int) -> None:
        self._sample, self._chunk = sample, chunk
        bricks = -(-cells // BRICK)
        self.stride = 1 << max(0, (bricks - 1).bit_length() - (COARSEST - 1).bit_length())
        blocks = -(-bricks // self.stride) * self.stride
        self.coarse = np.full((blocks + 1,) * 3, np.nan, np.float32)
        # One layer more than there are bricks: it stays absent, for the windows of the last ones to look into.
        self.slot = np.zeros((blocks + 2,) * 3, np.int32)
        self.bricks = np.zeros((1, 3), np.int64)
        self.values = np.full((1, BRICK, BRICK, BRICK), np.nan, np.float32)

    def evaluate_coarse(self, wanted: NDArray[np.bool_], stride: int) -> NDArray[np.float32]:
        """Every eighth node, of those every `stride`-th (a, a, a), with the wanted ones (a, a, a) evaluated."""
        nodes = self.coarse[::stride, ::stride, ::stride]
        at = np.argwhere(wanted & np.isnan(nodes))
        nodes[tuple(at.T)] = self._sampled(BRICK * stride * at)
        return nodes

    def allocate(self, bricks: NDArray[np.int64]) -> None:
        """Make room for the windows of these bricks (m, 3): for them and the next ones along the axes."""
        fresh = np.argwhere(self._spread(bricks, up=True, down=False) & (self.slot == 0))
        self.slot[tuple(fresh.T)] = len(self.bricks) + np.arange(len(fresh))
        known = len(self.values)
        values = np.empty((known + len(fresh), *self.values.shape[1:]), np.float32)
        values[:known], values[known:] = self.values, np.nan
        values[known:, 0, 0, 0] = self.coarse[tuple(fresh.T)]
        self.bricks, self.values = np.concatenate([self.bricks, fresh]), values

    def around(self, bricks: NDArray[np.int64]) -> NDArray[np.int64]:
        """These bricks (m, 3) and their 26 neighbours, each once."""
        return np.argwhere(self._spread(bricks, up=True, down=True))

    def request(self, bricks: NDArray[np.int64], keep: NDArray[np.bool_], stride: int) -> None:
        """Ask for the nodes at multiples of `stride` in the kept blocks, two strides wide, keep (m, a, a, a), of the
        bricks (m, 3); `evaluate` computes them."""
        brick_kernels.request(self.values, self.slot, bricks, keep, stride)

    def evaluate(self) -> None:
        """Evaluate the nodes that were asked for and are not known yet, in chunks that run across bricks."""
        count = np.empty(len(self.values), np.int64)
        brick_kernels.count_waiting(self.values, count)
        end = np.cumsum(count)
        nodes, address = np.empty((end[-1], 3), np.int32), np.empty(end[-1], np.int64)
        brick_kernels.collect_waiting(self.values, self.bricks, end, nodes, address)
        self.values.reshape(-1)[address] = self._sampled(nodes)

    def _sampled(self, nodes: NDArray[np.integer]) -> NDArray[np.float32]:
        values = np.empty(len(nodes), np.float32)
        for start in range(0, len(nodes), self._chunk):
            part = slice(start, start + self._chunk)
            values[part] = self._sample(nodes[part])
        return values

    def _spread(self, bricks: NDArray[np.int64], up: bool, down: bool) -> NDArray[np.bool_]:
        """These bricks and their neighbours along the axes, as a mask of the grid."""
        mask = np.zeros(self.slot.shape, bool)
        mask[tuple(bricks.T)] = True
        for axis in range(3):
            layers = mask.swapaxes(0, axis)
            grown = layers.copy()
            if up:
                grown[1:] |= layers[:-1]
            if down:
                grown[:-1] |= layers[1:]
            mask = grown.swapaxes(0, axis)
        mask[-1] = mask[:, -1] = mask[:, :, -1] = False
        return mask
