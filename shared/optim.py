"""Adam for the networks, lazy Adam for the hash tables, one learning-rate curve for both, and the mean of the last
weights."""

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
    average: float = key(
        0.85, "fraction of the run from which on weights are averaged for the result; 1: not", minimum=0.0, maximum=1.0
    )


class Average:
    """The mean of parameters over a part of a run (Polyak and Juditsky 1992): the steps' noise cancels in it."""

    EVERY = 10  # calls: neighbouring steps tell the same

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.mean, self.calls = parameters, list[Tensor](), 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the parameters in, every so many calls."""
        if self.calls == 0:
            self.mean = [p.detach().clone() for p in self.parameters]
        elif self.calls % self.EVERY == 0:
            for mean, parameter in zip(self.mean, self.parameters):
                mean.lerp_(parameter, 1 / (1 + self.calls // self.EVERY))
        self.calls += 1

    @torch.no_grad()
    def apply(self) -> bool:
        """Put the mean, if there is one, in the parameters' place, and forget it; returns whether there was."""
        found = bool(self.mean)
        for parameter, mean in zip(self.parameters, self.mean):
            parameter.copy_(mean)
        self.clear()
        return found

    def clear(self) -> None:
        """Forget what was counted in."""
        self.mean, self.calls = [], 0

    def state_dict(self) -> dict[str, Any]:
        """All that the next call depends on."""
        return {"mean": self.mean, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.mean, self.calls = [m.to(p.device) for m, p in zip(state["mean"], self.parameters)], state["calls"]


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
        self._average = Average(list(named.values()))
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
        if progress >= self.config.average < 1:
            self._average.add()
        else:  # a longer run goes on from one that was near its end
            self._average.clear()

    def finish(self) -> bool:
        """The run is over: its weights become their mean over the last part; returns whether there is one."""
        return self._average.apply()

    def state_dict(self) -> dict[str, Any]:
        """The states of all optimisers and of the mean."""
        return {"all": [optimiser.state_dict() for optimiser in self._all], "average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for optimiser, its_state in zip(self._all, state["all"]):
            optimiser.load_state_dict(its_state)
        self._average.load_state_dict(state["average"])
