"""`encode(x, table, grid) -> (features, Jacobian)`: one differentiable operation, several backends.

The Jacobian is an output, so that normals are analytic and a loss on normals trains the table and x alike: the backward
covers both outputs with respect to both inputs, with the Hessian that level set alignment needs (Ma et al. 2023).
"""

import functools
import importlib.util
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from shared.encoding import cpu, reference, tcnn
from shared.encoding.grid import HashGrid
from shared.errors import UserError

__all__ = ["BACKENDS", "HashGrid", "choose_backend", "encode", "has_tinycudann", "has_triton", "interpolate"]

BACKENDS = ("auto", "cpu", "triton", "tinycudann", "reference")


def choose_backend(name: str, device: torch.device) -> str:
    """The backend to use: `auto` takes the fastest one for the device, a name is taken at its word or refused."""
    if name not in BACKENDS:
        raise UserError(f"field.backend {name}: is none; choose one of {', '.join(BACKENDS)}")
    needed = {"cpu": "cpu", "triton": "cuda", "tinycudann": "cuda"}
    if needed.get(name, device.type) != device.type:
        raise UserError(f"field.backend {name}: cannot run on {device.type}; use auto or reference")
    if name == "triton" and not has_triton():
        raise UserError("field.backend triton: needs triton 3.3; `pip install -U triton`, or use auto or reference")
    if name == "tinycudann" and not has_tinycudann():
        raise UserError("field.backend tinycudann: is not installed (github.com/NVlabs/tiny-cuda-nn); use auto")
    if name != "auto":
        return name
    if device.type == "cpu":
        return "cpu"
    return "triton" if has_triton() else "tinycudann" if has_tinycudann() else "reference"


@functools.cache
def has_triton() -> bool:
    """Whether a Triton is installed that knows tuples as arguments."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 3)


def has_tinycudann() -> bool:
    """Whether tiny-cuda-nn's Python package is there. Importing it fails where there is no GPU, so it is only found."""
    return importlib.util.find_spec("tinycudann") is not None


def encode(
    x: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries features"],
    grid: HashGrid,
    active: int | None = None,
    backend: str = "reference",
) -> tuple[Float[Tensor, "n channels"], Float[Tensor, "n 3 channels"]]:
    """Features of x in [-1, 1]^3 on the first `active` levels (all by default), and their Jacobian.

    Once differentiable with respect to x and table through both outputs on the fast backends, to any order on
    `reference`. Where `table` is a leaf that already has a gradient, `cpu` and `triton` add to that in place.
    Raises ValueError where points, table and grid do not belong together.
    """
    active = _levels(x, table, grid, active)
    if backend == "reference":
        return reference.encode(x, table, grid, active)
    if backend == "tinycudann":
        return tcnn.encode(x, table, grid, active)
    features, jacobian = _Encode.apply(x, table, grid, active, True, backend)
    return features, jacobian


def interpolate(
    x: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries features"],
    grid: HashGrid,
    active: int | None = None,
    backend: str = "reference",
) -> Float[Tensor, "n channels"]:
    """The features alone, for where no normal is needed: differentiable with respect to the table, not to x."""
    active = _levels(x, table, grid, active)
    if backend == "reference":
        return reference.encode(x.detach(), table, grid, active)[0]
    if backend == "tinycudann":
        return tcnn.features(x.detach(), table, grid, active)
    return _Encode.apply(x.detach(), table, grid, active, False, backend)[0]


def _levels(x: Tensor, table: Tensor, grid: HashGrid, active: int | None) -> int:
    """The levels asked for. The kernels do not look whether they read within their arrays: here it is made sure."""
    active = grid.levels if active is None else active
    if x.shape[1:] != (3,) or table.shape != (grid.entries, grid.features) or not 0 <= active <= grid.levels:
        raise ValueError(
            f"points {tuple(x.shape)}, a table {tuple(table.shape)} and {active} levels do not fit a grid of "
            f"{grid.levels} levels and {grid.entries} entries"
        )
    return active


def _kernels(backend: str) -> ModuleType:
    """The module of `encode`, `table_gradient` and `x_gradient` for a backend."""
    if backend == "triton":
        from shared.encoding import gpu

        return gpu
    if backend != "cpu":
        raise ValueError(f"no kernels of backend {backend}")
    return cpu


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, grid, active, with_jacobian, backend):
        """Features (n, c) and, where wanted, their Jacobian (n, 3, c) at x (n, 3)."""
        x = x.contiguous()
        features, jacobian = _kernels(backend).encode(x.detach(), table.detach(), grid, active, with_jacobian)
        ctx.save_for_backward(x, table, jacobian)
        ctx.grid, ctx.backend = grid, backend
        ctx.set_materialize_grads(False)
        return features, jacobian

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_features, grad_jacobian):
        """Gradients of x and the table for those of features and Jacobian."""
        x, table, jacobian = ctx.saved_tensors
        kernels = _kernels(ctx.backend)
        if grad_features is None:
            grad_features = torch.zeros(x.shape[0], jacobian.shape[2], device=x.device)
        grad_table = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_table = kernels.table_gradient(x, table, ctx.grid, grad_features, grad_jacobian)
        if ctx.needs_input_grad[0]:
            grad_x = torch.einsum("nac,nc->na", jacobian, grad_features)
            if grad_jacobian is not None:
                grad_x = grad_x + kernels.x_gradient(x, table.detach(), ctx.grid, grad_jacobian)
        return grad_x, grad_table, None, None, None, None
