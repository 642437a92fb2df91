"""Adam for hash tables, of which a step touches a part: what no sample touched stays as it is."""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import nn

from shared.encoding.cpu import FAST, ONE, ZERO, f32

SPAN = 4096  # entries of a parallel task


class TableAdam(torch.optim.Optimizer):
    """Adam on hash tables that moves only the entries with a gradient, and clears the gradient in the same pass.

    An entry that no sample touched keeps its value and its moments: dense Adam would keep pushing it along old
    gradients. `backend` is the encoding's. The gradient buffers exist from the start, so that its backward can add to
    them in place.
    """

    def __init__(
        self,
        tables: list[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        backend: str = "cpu",
    ):
        self.backend = backend
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps})
        for table in tables:
            table.grad = torch.zeros_like(table)
            self.state[table] = {"step": 0, "mean": torch.zeros_like(table), "square": torch.zeros_like(table)}

    def zero_grad(self, set_to_none: bool = False) -> None:
        """The step has already cleared what it used."""

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """One update; gradients are zero afterwards."""
        for group in self.param_groups:
            for table in group["params"]:
                state = self.state[table]
                state["step"] += 1
                corrections = [1 / (1 - beta ** state["step"]) for beta in group["betas"]]
                if self.backend == "cpu" and table.dtype == torch.float32:
                    arrays = (table.detach(), table.grad, state["mean"], state["square"])
                    numbers = (group["lr"], *group["betas"], group["eps"], *corrections)
                    _adam_kernel(*(a.numpy() for a in arrays), tuple(f32(number) for number in numbers))
                elif self.backend == "triton":
                    from shared.encoding import gpu

                    numbers = (*group["betas"], group["eps"], *corrections)
                    gpu.adam((table, table.grad, state["mean"], state["square"]), group["lr"], numbers)
                else:
                    _adam(table, state, group, corrections)


@njit(parallel=True, fastmath=FAST, cache=True)
def _adam_kernel(parameter, gradient, mean, square, numbers):
    """One Adam step (Kingma and Ba 2015, algorithm 1) on tables (entries, 2), only where the gradient is not zero;
    clears it. numbers: rate, beta 1, beta 2, epsilon, and the corrections 1 / (1 - beta^step) of both.

    Entries that no sample touched keep their moments, as in a lazy or sparse Adam.
    """
    rate, beta1, beta2, epsilon, correction1, correction2 = numbers
    entries = len(parameter)
    for task in prange((entries + SPAN - 1) // SPAN):
        # First which, without a branch, then those: branches on what a step happened to touch are mispredicted.
        touched, count = np.empty(SPAN, np.int32), 0
        for n in range(task * SPAN, min(entries, (task + 1) * SPAN)):
            touched[count] = n
            count += np.int32((gradient[n, 0] != ZERO) | (gradient[n, 1] != ZERO))
        for row in range(count):
            n = touched[row]
            for k in range(2):
                g = gradient[n, k]
                if g != ZERO:
                    m = beta1 * mean[n, k] + (ONE - beta1) * g
                    v = beta2 * square[n, k] + (ONE - beta2) * g * g
                    mean[n, k], square[n, k] = m, v
                    parameter[n, k] -= rate * (m * correction1) / (np.sqrt(v * correction2) + epsilon)
                    gradient[n, k] = ZERO


def _adam(table: nn.Parameter, state: dict[str, Any], group: dict, corrections: list[float]) -> None:
    assert table.grad is not None, "made with the optimiser"
    gradient, (beta1, beta2) = table.grad, group["betas"]
    touched = gradient != 0
    mean = torch.where(touched, beta1 * state["mean"] + (1 - beta1) * gradient, state["mean"])
    square = torch.where(touched, beta2 * state["square"] + (1 - beta2) * gradient.square(), state["square"])
    update = mean * corrections[0] / ((square * corrections[1]).sqrt() + group["eps"])
    state["mean"].copy_(mean)
    state["square"].copy_(square)
    table.sub_(torch.where(touched, group["lr"] * update, 0.0))
    gradient.zero_()
