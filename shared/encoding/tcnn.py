"""The encoding by tiny-cuda-nn (github.com/NVlabs/tiny-cuda-nn), where that is installed, on the very same table.

Its grid puts nodes half a cell beside ours and lays dense levels out with x first. One module a level, with shifted
(and for dense levels turned) coordinates, undoes both: nothing is converted, and a checkpoint means the same field. On
a border between cells, rounding decides from which one the slope is taken.
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from shared.encoding.grid import HashGrid


@functools.lru_cache(maxsize=64)
def _level(resolution: int, grid: HashGrid, dtype: torch.dtype) -> nn.Module:
    """A module of one level with so many cells; its own parameters are not used."""
    import tinycudann

    config = {
        "otype": "HashGrid",
        "n_levels": 1,
        "n_features_per_level": grid.features,
        "log2_hashmap_size": grid.log2_entries,
        "base_resolution": resolution + 1,  # it counts nodes
        "per_level_scale": 1.0,
    }
    return tinycudann.Encoding(3, config, dtype=dtype)


def features(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries features"], grid: HashGrid, active: int
) -> Float[Tensor, "n channels"]:
    """Features of the first `active` levels, differentiable in the table and, by autograd's graph, twice in x."""
    inside = ((x >= -1) & (x <= 1)).to(x)
    # The last node has no cell behind it: stay a hair within the last cell.
    held = x.detach().clamp(-1, 1 - 2**-20)
    x = held + inside * (x - x.detach())
    values = []
    for level in range(active):
        resolution, first, end = grid.resolutions[level], *grid.offsets[level : level + 2]
        module = _level(resolution, grid, table.dtype)
        entries = table[first:end].reshape(-1)
        own = dict(module.named_parameters())["params"]
        entries = F.pad(entries, (0, len(own) - len(entries)))  # it rounds dense levels up to 8 entries
        at = x.flip(1) if grid.is_dense(level) else x
        # It reads at R x + 1/2 of x in 0..1.
        values.append(functional_call(module, {"params": entries}, ((at + 1) / 2 - 0.5 / resolution,)))
    return torch.cat(values, dim=1).to(table)


def encode(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries features"], grid: HashGrid, active: int
) -> tuple[Float[Tensor, "n channels"], Float[Tensor, "n 3 channels"]]:
    """As `shared.encoding.encode`; the Jacobian takes one backward pass a channel."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        values = features(x, table, grid, active)
        slopes = [torch.autograd.grad(v.sum(), x, create_graph=keep, retain_graph=True)[0] for v in values.unbind(1)]
    jacobian = torch.stack(slopes, dim=2)
    return (values, jacobian) if keep else (values.detach(), jacobian.detach())
