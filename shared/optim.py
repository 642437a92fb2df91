"""Optimisers: Adam for the networks, a lazy Adam for hash tables, and one learning-rate curve for both."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor, nn

from shared.config import key
from shared.encoding.cpu import FAST


class TableAdam(torch.optim.Optimizer):
    """Adam on hash tables that moves only the entries with a gradient, and clears the gradient in the same pass.

    An entry that no sample touched keeps its value and its moments: dense Adam would keep pushing it along old
    gradients. The gradient buffers exist from the start, so that the encoding's backward can add to them in place.
    """

    def __init__(self, tables: list[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15):
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
                if table.device.type == "cpu" and table.dtype == torch.float32:
                    arrays = (table.detach(), table.grad, state["mean"], state["square"])
                    flat = [a.view(-1).numpy() for a in arrays]
                    _adam_kernel(*flat, group["lr"], *group["betas"], group["eps"], *corrections)
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
    gradient, (beta1, beta2) = table.grad, group["betas"]
    touched = gradient != 0
    mean = torch.where(touched, beta1 * state["mean"] + (1 - beta1) * gradient, state["mean"])
    square = torch.where(touched, beta2 * state["square"] + (1 - beta2) * gradient.square(), state["square"])
    update = mean * corrections[0] / ((square * corrections[1]).sqrt() + group["eps"])
    state["mean"].copy_(mean)
    state["square"].copy_(square)
    table.sub_(torch.where(touched, group["lr"] * update, 0.0))
    gradient.zero_()


def rate_factor(progress: float, warmup: float, final: float) -> float:
    """Learning rate relative to its peak: linear from 0.05 over the warm-up, then a cosine down to `final` (NeuS)."""
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    fraction = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates."""

    table: float = key(1e-2, "peak learning rate of hash tables", minimum=0.0)
    network: float = key(1e-3, "peak learning rate of networks", minimum=0.0)
    warmup: float = key(0.05, "fraction of the run in which the rates rise", minimum=0.0, maximum=1.0)
    final: float = key(0.05, "rates at the end, relative to their peak", minimum=0.0, maximum=1.0)


class Optimisers:
    """All optimisers of a model: parameters named `*table` move lazily, those in `constant` keep their peak rate."""

    def __init__(self, model: nn.Module, config: OptimConfig, constant: tuple[str, ...] = ()):
        named = dict(model.named_parameters())
        tables = [p for name, p in named.items() if name.endswith("table")]
        steady = [named[name] for name in constant]
        networks = [p for name, p in named.items() if not name.endswith("table") and name not in constant]
        groups = [{"params": networks, "steady": False}, *([{"params": steady, "steady": True}] if steady else [])]
        self.config = config
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.Adam(groups, lr=config.network, betas=(0.9, 0.99), eps=1e-10, fused=True)
        ]
        if tables:
            self._all.append(TableAdam(tables, lr=config.table))
        self._peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self._all]

    def step(self, loss: Tensor, progress: float) -> None:
        """Differentiate the loss and move every parameter once, at the rates of this fraction of the run."""
        factor = rate_factor(progress, self.config.warmup, self.config.final)
        for optimiser, peaks in zip(self._all, self._peaks):
            optimiser.zero_grad()
            for group, peak in zip(optimiser.param_groups, peaks):
                group["lr"] = peak if group.get("steady") else peak * factor
        loss.backward()
        for optimiser in self._all:
            optimiser.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of all optimisers."""
        return [optimiser.state_dict() for optimiser in self._all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from `state_dict`."""
        for optimiser, state in zip(self._all, states):
            optimiser.load_state_dict(state)
