"""The tiny-cuda-nn backend against the reference, on a stand-in that does what tiny-cuda-nn documents, in torch.

Nothing here runs tiny-cuda-nn itself: that takes a GPU.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from shared.encoding import HashGrid, encode, interpolate
from shared.encoding.tcnn import _level

MIXED = HashGrid(levels=4, base=2, finest=40, log2_entries=10)


class Encoding(nn.Module):
    """One level of tiny-cuda-nn's grid: nodes at (i - 1/2) / scale, x first if dense, sizes in multiples of 8."""

    def __init__(self, n_input_dims: int, config: dict, dtype: torch.dtype):
        super().__init__()
        assert n_input_dims == 3 and config["n_levels"] == 1
        self.scale = float(config["base_resolution"] - 1)
        self.side, largest = config["base_resolution"], 2 ** config["log2_hashmap_size"]
        self.size = min((self.side**3 + 7) // 8 * 8, largest)
        self.hashed = self.side**3 > self.size
        self.params = nn.Parameter(torch.zeros(self.size * config["n_features_per_level"], dtype=dtype))

    def _row(self, node: Tensor) -> Tensor:
        x, y, z = node.unbind(1)
        row = x ^ (y * 2654435761) ^ (z * 805459861) if self.hashed else x + self.side * (y + self.side * z)
        return row % self.size

    def forward(self, x: Tensor) -> Tensor:
        position = x * self.scale + 0.5
        cell = position.detach().floor()
        fraction, entries = position - cell, self.params.view(self.size, -1)
        total = torch.zeros(len(x), entries.shape[1])
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
            along = torch.where(bits == 1, fraction, 1 - fraction)
            weight = along[:, :1] * along[:, 1:2] * along[:, 2:]  # prod is differentiated twice wrongly at zeros
            total = total + weight * entries[self._row(cell.long() + bits)]
        return total


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    _level.cache_clear()
    yield
    _level.cache_clear()


def outputs_and_gradients(x: Tensor, grid: HashGrid, active: int | None, backend: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(grid.entries, 2, generator=generator).requires_grad_()
    at = x.clone().requires_grad_()
    features, jacobian = encode(at, table, grid, active, backend)
    weights = [torch.randn(part.shape, generator=generator) for part in (features, jacobian)]
    loss = (features * weights[0]).sum() + (jacobian * weights[1]).sum()
    return [t.detach() for t in (features, jacobian, *torch.autograd.grad(loss, (at, table)))]


@pytest.mark.parametrize("active", [None, 1])
@pytest.mark.parametrize("grid", [MIXED, HashGrid(levels=3, base=30, finest=90, log2_entries=9)])
def test_the_same_table_gives_the_same_field(grid: HashGrid, active: int | None):
    """Inside the box and outside it; the borders of cells are left to rounding."""
    x = 2.6 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 1.3
    pairs = zip(*(outputs_and_gradients(x, grid, active, backend) for backend in ("reference", "tinycudann")))
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, atol=1e-3 * max(1.0, float(expected.abs().max())), rtol=0)


def test_corners_of_the_box_and_an_empty_batch():
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    for expected, found in zip(*(outputs_and_gradients(corners, MIXED, 1, b) for b in ("reference", "tinycudann"))):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert outputs_and_gradients(torch.empty(0, 3), MIXED, None, "tinycudann")[1].shape == (0, 3, 8)


def test_features_alone_train_the_table_and_need_no_graph():
    table = torch.rand(MIXED.entries, 2).requires_grad_()
    x = 2 * torch.rand(50, 3) - 1
    features = interpolate(x.requires_grad_(), table, MIXED, 2, "tinycudann")
    torch.testing.assert_close(features, interpolate(x, table, MIXED, 2), atol=1e-5, rtol=1e-4)
    features.sum().backward()
    assert table.grad is not None and table.grad.sum() == pytest.approx(50 * 2 * 2, rel=1e-4) and x.grad is None
    with torch.no_grad():
        assert not encode(x, table, MIXED, backend="tinycudann")[1].requires_grad
