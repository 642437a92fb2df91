"""Adam for hash tables, of which a step touches a part: what no sample touched stays as it is."""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import nn

from shared.encoding.cpu import FAST


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
                    flat = [a.view(-1).numpy() for a in arrays]
                    _adam_kernel(*flat, group["lr"], *group["betas"], group["eps"], *corrections)
                elif self.backend == "triton":
                    from shared.encoding import gpu

                    numbers = (*group["betas"], group["eps"], *corrections)
                    gpu.adam((table, table.grad, state["mean"], state["square"]), group["lr"], numbers)
                else:
                    _adam(table, state, group, corrections)


@njit(parallel=True, fastmath=FAST, cache=True)
def _adam_kernel(parameter, gradient, mean, square, rate, beta1, beta2, epsilon, correction1, correction2):
    """One Adam step (Kingma and Ba 2015, algorithm 1) on flat arrays, only where the gradient is not zero; clears it.

    Entries that no sample touched keep their moments, as in a lazy or sparse Adam.
    """
    rate, beta1, beta2, epsilon = np.float32(rate), np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    correction1, correction2 = np.float32(correction1), np.float32(correction2)
    one, zero, span = np.float32(1), np.float32(0), 16384
    for task in prange((parameter.size + span - 1) // span):
        for i in range(task * span, min(parameter.size, (task + 1) * span)):
            g = gradient[i]
            if g != zero:
                m = beta1 * mean[i] + (one - beta1) * g
                v = beta2 * square[i] + (one - beta2) * g * g
                mean[i], square[i] = m, v
                parameter[i] -= rate * (m * correction1) / (np.sqrt(v * correction2) + epsilon)
                gradient[i] = zero


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
