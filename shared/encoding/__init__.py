"""`encode(x, table, grid) -> (features, Jacobian)`: one differentiable operation, several backends.

The Jacobian is an output, so that normals are analytic and a loss on normals trains the table and x alike: the backward
covers both outputs with respect to both inputs, with the Hessian that level set alignment needs (Ma et al. 2023).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shared.encoding import cpu, reference
from shared.encoding.grid import HashGrid
from shared.errors import UserError

__all__ = ["BACKENDS", "HashGrid", "choose_backend", "encode", "interpolate"]

BACKENDS = ("auto", "cpu", "reference")


def choose_backend(name: str, device: torch.device) -> str:
    """The backend to use: `auto` takes the fastest one for the device, a name is taken at its word or refused."""
    if name == "cpu" and device.type != "cpu":
        raise UserError(f"field.backend cpu: cannot run on {device.type}; use auto or reference")
    if name == "auto":
        return "cpu" if device.type == "cpu" else "reference"
    return name


def encode(
    x: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries features"],
    grid: HashGrid,
    active: int | None = None,
    backend: str = "reference",
) -> tuple[Float[Tensor, "n channels"], Float[Tensor, "n 3 channels"]]:
    """Features of x in [-1, 1]^3 on the first `active` levels (all by default), and their Jacobian.

    Once differentiable with respect to x and table through both outputs on the fast backends, to any order on
    `reference`. Where `table` is a leaf that already has a gradient, the fast backends add to that in place.
    """
    active = grid.levels if active is None else active
    if backend == "reference":
        return reference.encode(x, table, grid, active)
    features, jacobian = _Encode.apply(x, table, grid, active, True)
    return features, jacobian


def interpolate(
    x: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries features"],
    grid: HashGrid,
    active: int | None = None,
    backend: str = "reference",
) -> Float[Tensor, "n channels"]:
    """The features alone, for where no normal is needed: differentiable with respect to the table, not to x."""
    active = grid.levels if active is None else active
    if backend == "reference":
        return reference.encode(x.detach(), table, grid, active)[0]
    return _Encode.apply(x.detach(), table, grid, active, False)[0]


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, grid, active, with_jacobian):
        """Features (n, c) and, where wanted, their Jacobian (n, 3, c) at x (n, 3)."""
        n, channels = x.shape[0], active * grid.features
        features = torch.empty(n, channels)
        jacobian = torch.empty(n if with_jacobian else 0, 3, channels)
        x = x.contiguous()
        cpu.forward(x.detach().numpy(), table.detach().numpy(), cpu.layout(grid), features.numpy(), jacobian.numpy())
        ctx.save_for_backward(x, table, jacobian)
        ctx.grid = grid
        ctx.set_materialize_grads(False)
        return features, jacobian

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_features, grad_jacobian):
        """Gradients of x and the table for those of features and Jacobian."""
        x, table, jacobian = ctx.saved_tensors
        levels = cpu.layout(ctx.grid)
        if grad_features is None:
            grad_features = torch.zeros(x.shape[0], jacobian.shape[2])
        grad_table = grad_x = None
        if ctx.needs_input_grad[1]:
            slopes = torch.empty(0, 3, 0) if grad_jacobian is None else grad_jacobian
            grad_table = cpu.table_gradient(table, x, ctx.grid, grad_features, None, slopes)
        if ctx.needs_input_grad[0]:
            grad_x = torch.einsum("nac,nc->na", jacobian, grad_features)
            if grad_jacobian is not None:
                cpu.backward_x(
                    x.numpy(), table.detach().numpy(), levels, grad_jacobian.contiguous().numpy(), grad_x.numpy()
                )
        return grad_x, grad_table, None, None, None
