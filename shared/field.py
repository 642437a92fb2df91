"""Signed distance fields behind two functions: `sdf(x)` and `geometry(x)`, whatever the backbone.

`GridField` is a hash grid with a small MLP whose gradient is written out, so that one forward pass gives distance,
normal and feature, and the losses differentiate all three. `MLPField` and `SirenField` are the papers' backbones,
differentiated by autograd.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shared.config import key
from shared.encoding import BACKENDS, HashGrid, choose_backend, encode, interpolate
from shared.errors import UserError
from shared.fused import FusedGeometry, fused_sdf, smooth_relu, smooth_step


class Geometry(NamedTuple):
    """What a field says of n points: distances (n,), gradients (n, 3) as they are (of any length), features (n, k)."""

    sdf: Float[Tensor, " n"]
    gradient: Float[Tensor, "n 3"]
    feature: Float[Tensor, "n k"]


@runtime_checkable
class FieldLike(Protocol):
    """What can be asked of any field, also of one that is put together from several."""

    def sdf(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Float[Tensor, " n"]:
        """Signed distances at x in field space."""

    def geometry(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Geometry:
        """Distances, gradients and features at x."""


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """The signed distance field."""

    backbone: str = key(
        "grid", "hash grid with a small MLP, the papers' MLP, or SIREN", choices=("grid", "mlp", "siren")
    )
    levels: int = key(12, "levels of the hash grid", minimum=1, maximum=32)
    base: int = key(16, "cells along an edge of the box on the coarsest level", minimum=2, maximum=512)
    finest: int = key(768, "cells along an edge of the box on the finest level, unless train.cell sets it", minimum=2)
    log2_entries: int = key(17, "log2 of the largest number of table entries of a level", minimum=8, maximum=24)
    width: int = key(64, "width of the hidden layers", minimum=4)
    layers: int = key(1, "hidden layers", minimum=1)
    feature: int = key(15, "numbers handed to the colour network", minimum=0)
    radius: float = key(0.5, "radius of the sphere that the field starts as", minimum=0.01)
    inside_out: bool = key(False, "start as the inside of a room: positive within the sphere")
    first_levels: int = key(4, "grid levels open at the start", minimum=1)
    open_levels: float = key(0.4, "fraction of the run after which all grid levels are open", minimum=0.0, maximum=1.0)
    backend: str = key("auto", "encoding backend", choices=BACKENDS)


class GridField(nn.Module):
    """Hash grid + MLP with a smooth ReLU, started as a sphere (SAL's geometric initialisation, Atzmon and Lipman 2020).

    The first layer sees x and the grid's features; the features start with weight zero, so that the sphere is exact
    until the grid has something to say. Coarse levels open first: a fine grid alone finds false sheets far from data.
    """

    def __init__(self, config: FieldConfig, device: torch.device):
        super().__init__()
        if config.finest < config.base:
            raise UserError(f"field.finest {config.finest}: is below field.base {config.base}; raise it")
        self.config = config
        self.grid = HashGrid(config.levels, config.base, config.finest, config.log2_entries)
        self.backend = choose_backend(config.backend, device)
        self.table = nn.Parameter(torch.empty(self.grid.entries, self.grid.features).uniform_(-1e-4, 1e-4))
        inputs = 3 + config.levels * self.grid.features
        self.first = nn.Linear(inputs, config.width)
        self.deeper = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers - 1))
        self.out = nn.Linear(config.width, 1 + config.feature)
        self._start_as_sphere()

    @torch.no_grad()
    def _start_as_sphere(self) -> None:
        for layer in (self.first, *self.deeper):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / self.config.width))
            nn.init.zeros_(layer.bias)
        # Opposite pairs of evenly spread directions: random ones make a potato, with radii off by a quarter.
        pairs = _fibonacci_sphere(self.config.width // 2)
        first = torch.cat([pairs, -pairs, torch.zeros(self.config.width % 2, 3)]) * math.sqrt(6 / self.config.width)
        self.first.weight[:, :3] = first
        self.first.weight[:, 3:] = 0
        nn.init.normal_(self.out.weight, 0.0, 0.05)
        nn.init.zeros_(self.out.bias)
        self.out.weight[0] = math.sqrt(math.pi / self.config.width)
        # The bends make distances at the centre and at the sphere differ from a straight line: fit at the sphere.
        at_sphere = self.config.radius * _fibonacci_sphere(1000)
        height = self._heights(self._hidden(at_sphere @ first.T)[-1])[:, 0].mean()
        sign = -1.0 if self.config.inside_out else 1.0
        self.out.weight[0] *= sign * self.config.radius / height
        self.out.bias[0] = -sign * self.config.radius

    def active(self, progress: float) -> int:
        """Grid levels open at this fraction of the run."""
        first, levels = min(self.config.first_levels, self.config.levels), self.config.levels
        opened = 1.0 if self.config.open_levels == 0 else min(progress / self.config.open_levels, 1.0)
        return min(levels, first + int((levels - first + 1) * opened))

    def sdf(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Float[Tensor, " n"]:
        """Signed distances at x in field space; differentiable in the parameters, not in x (`geometry` is)."""
        if self._fused and not torch.is_grad_enabled():
            return fused_sdf(x, self.table, self._weights, self.grid, self.grid.levels if active is None else active)
        features = interpolate(x, self.table, self.grid, active, self.backend)
        return self._heights(self._hidden(self._enter(x, features))[-1], 1)[:, 0]

    def geometry(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Geometry:
        """Distances, their exact gradients, and features at x; differentiable with respect to x and all parameters."""
        if self._fused:
            active = self.grid.levels if active is None else active
            return Geometry(*FusedGeometry.apply(x, self.table, *self._weights, (self.grid, active)))
        features, jacobian = encode(x, self.table, self.grid, active, self.backend)
        inputs = self._hidden(self._enter(x, features))
        heights = self._heights(inputs[-1])
        slope = self.out.weight[0] * smooth_step(inputs[-1])
        for layer, before in zip(reversed(self.deeper), reversed(inputs[:-1])):
            slope = (slope @ layer.get_parameter("weight")) * smooth_step(before)
        slope = slope @ self.first.weight[:, : 3 + features.shape[1]]
        # Not einsum: its batches of tiny matrices are several times slower on a CPU.
        gradient = slope[:, :3] + (jacobian * slope[:, None, 3:]).sum(dim=2)
        return Geometry(heights[:, 0], gradient, heights[:, 1:])

    @property
    def _fused(self) -> bool:
        return self.backend == "cpu" and len(self.deeper) == 0 and self.table.dtype == torch.float32

    @property
    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.first.weight, self.first.bias, self.out.weight, self.out.bias

    def _enter(self, x: Tensor, features: Tensor) -> Tensor:
        inputs = torch.cat([x, features], dim=1)
        return F.linear(inputs, self.first.weight[:, : inputs.shape[1]], self.first.bias)

    def _hidden(self, first: Tensor) -> list[Tensor]:
        """Pre-activations of every hidden layer."""
        inputs = [first]
        for layer in self.deeper:
            inputs.append(layer(smooth_relu(inputs[-1])))
        return inputs

    def _heights(self, last: Tensor, rows: int | None = None) -> Tensor:
        return F.linear(smooth_relu(last), self.out.weight[:rows], self.out.bias[:rows])


def _fibonacci_sphere(count: int) -> Float[Tensor, "n 3"]:
    """Evenly spread unit vectors: equal steps in height, the golden angle around."""
    index = torch.arange(count) + 0.5
    height = 1 - 2 * index / count
    angle = index * math.pi * (3 - math.sqrt(5))
    across = (1 - height.square()).sqrt()
    return torch.stack([across * angle.cos(), across * angle.sin(), height], dim=1)


class _AutogradField(nn.Module):
    """`sdf` and `geometry` of a backbone whose `forward` gives (n, 1 + feature): the gradient comes from autograd."""

    def active(self, progress: float) -> None:
        """These backbones have no levels to open."""
        return None

    def sdf(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Float[Tensor, " n"]:
        """Signed distances at x in field space."""
        return self(x)[:, 0]

    def geometry(self, x: Float[Tensor, "n 3"], active: int | None = None) -> Geometry:
        """Distances, gradients and features at x; the gradients are part of the graph where one is being recorded."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            out = self(x)
            (gradient,) = torch.autograd.grad(out[:, 0].sum(), x, create_graph=keep)
        return (
            Geometry(out[:, 0], gradient, out[:, 1:])
            if keep
            else Geometry(out[:, 0].detach(), gradient, out[:, 1:].detach())
        )


class MLPField(_AutogradField):
    """The MLP of Neural-Pull, IGR and NeuS: 8 x 256, one skip, weight norm, geometric initialisation."""

    SKIP = 4

    def __init__(self, config: FieldConfig):
        super().__init__()
        width, depth = config.width, config.layers
        self.layers = nn.ModuleList()
        for index in range(depth):
            inputs = 3 if index == 0 else width
            outputs = width - 3 if index + 1 == self.SKIP and depth > self.SKIP else width
            layer = nn.Linear(inputs, outputs)
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / outputs))
            nn.init.zeros_(layer.bias)
            self.layers.append(nn.utils.parametrizations.weight_norm(layer))
        out = nn.Linear(width, 1 + config.feature)
        sign = -1.0 if config.inside_out else 1.0
        nn.init.normal_(out.weight, sign * math.sqrt(math.pi / width), 1e-4)
        nn.init.constant_(out.bias, -sign * config.radius)
        self.out = nn.utils.parametrizations.weight_norm(out)

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n outputs"]:
        """Distance and features."""
        h = x
        for index, layer in enumerate(self.layers):
            if index == self.SKIP:
                h = torch.cat([h, x], dim=1) / math.sqrt(2)
            h = F.softplus(layer(h), beta=100)
        return self.out(h)


class SirenField(_AutogradField):
    """The sine network of Sitzmann et al. 2020 with its initialisation (their section 3.2), frequency 30."""

    FREQUENCY = 30.0

    def __init__(self, config: FieldConfig):
        super().__init__()
        widths = [3] + [config.width] * config.layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(config.width, 1 + config.feature)
        for index, layer in enumerate([*self.layers, self.out]):
            fan_in = layer.weight.shape[1]
            bound = 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / self.FREQUENCY
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n outputs"]:
        """Distance and features."""
        h = x
        for layer in self.layers:
            h = torch.sin(self.FREQUENCY * layer(h))
        return self.out(h)


Field = GridField | MLPField | SirenField


def build_field(config: FieldConfig, device: torch.device) -> Field:
    """The field that the config describes, on the device. Initial weights come from torch's global generator.

    Raises UserError where `config.backend` cannot run.
    """
    if config.backbone == "grid":
        return GridField(config, device).to(device)
    choose_backend(config.backend, device)  # for nothing here, but what was asked for is not ignored
    return (MLPField(config) if config.backbone == "mlp" else SirenField(config)).to(device)


def numerical_gradient(
    field: Field, x: Float[Tensor, "n 3"], step: float, active: int | None = None
) -> Float[Tensor, "n 3"]:
    """Central differences with this step (Li et al. 2023, Neuralangelo, eq. 3): a wide one spans several grid cells."""
    offsets = step * torch.eye(3, dtype=x.dtype, device=x.device)
    ends = torch.cat([x + sign * offset for sign in (1, -1) for offset in offsets])
    ahead, behind = field.sdf(ends, active).reshape(2, 3, -1)
    return (ahead - behind).T / (2 * step)
