"""Adam for the networks, lazy Adam for the hash tables, and one learning-rate curve for both."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.config import key
from shared.lazy_adam import TableAdam
from shared.ranks import add_gradients


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
            backends = [str(m.backend) for m in model.modules() if hasattr(m, "backend")]
            self._all.append(TableAdam(tables, lr=config.table, backend=backends[0] if backends else "cpu"))
        self._peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self._all]

    def step(self, loss: Tensor, progress: float) -> None:
        """Differentiate the loss and move every parameter once, at the rates of this fraction of the run."""
        factor = rate_factor(progress, self.config.warmup, self.config.final)
        for optimiser, peaks in zip(self._all, self._peaks):
            optimiser.zero_grad()
            for group, peak in zip(optimiser.param_groups, peaks):
                group["lr"] = peak if group.get("steady") else peak * factor
        loss.backward()
        add_gradients(p for optimiser in self._all for group in optimiser.param_groups for p in group["params"])
        for optimiser in self._all:
            optimiser.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of all optimisers."""
        return [optimiser.state_dict() for optimiser in self._all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from `state_dict`."""
        for optimiser, state in zip(self._all, states):
            optimiser.load_state_dict(state)
