"""What surrounds a training loop: the device, the seeds, the budget, the progress bar and the way to stop.

The loop of a trainer then reads

    with Interrupt() as interrupt, ProgressBar(budget) as bar:
        budget.start()
        while not (budget.done or interrupt.requested):
            loss = train_step(budget.progress)
            budget.step()
            bar.update(loss)
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from shared.errors import UserError
from shared.ranks import is_first

CPU = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """The device for `auto` (CUDA where there is one), `cpu` or `cuda`. Raises UserError when it is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: unknown device; use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; use --device auto or --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def peak_memory_mb(device: torch.device = CPU) -> float:
    """The most memory in MB (2^20 bytes) this process has held: what torch reserved on CUDA, else resident RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Budget:
    """How long a run trains: a number of steps, or of minutes, or whichever ends first.

    Steps and seconds accumulate over resumes through `state_dict`; the limits are not part of it, so that a resumed
    run can be given more. Raises ValueError without a positive limit.
    """

    def __init__(
        self, steps: int | None = None, minutes: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        limits = [limit for limit in (steps, minutes) if limit is not None]
        if not limits or min(limits) <= 0:
            raise ValueError(f"a budget needs a positive number of steps or minutes, got {steps=}, {minutes=}")
        self.step_limit = steps
        self.second_limit = None if minutes is None else 60.0 * minutes
        self.steps = 0
        self._clock = clock
        self._earlier = 0.0  # seconds before the clock was last started
        self._started: float | None = None

    @property
    def length(self) -> str:
        """The limits in words."""
        minutes = [] if self.second_limit is None else [f"{self.second_limit / 60:g} min"]
        return " or ".join([*minutes, *([] if self.step_limit is None else [f"{self.step_limit} step(s)"])])

    def start(self) -> None:
        """Let the clock run. Does nothing while it runs."""
        if self._started is None:
            self._started = self._clock()

    def stop(self) -> None:
        """Hold the clock. Does nothing while it is held."""
        self._earlier, self._started = self.seconds, None

    def step(self) -> None:
        """Count one training step."""
        self.steps += 1

    @property
    def seconds(self) -> float:
        """Seconds of training, over all resumes."""
        return self._earlier + (0.0 if self._started is None else self._clock() - self._started)

    @property
    def progress(self) -> float:
        """The fraction of the run that is spent, in 0..1."""
        by_steps = self.steps / self.step_limit if self.step_limit is not None else 0.0
        by_time = self.seconds / self.second_limit if self.second_limit is not None else 0.0
        return min(max(by_steps, by_time), 1.0)

    @property
    def done(self) -> bool:
        """Whether a limit is reached."""
        return self.progress >= 1.0

    def state_dict(self) -> dict[str, int | float]:
        """What is spent, as plain numbers."""
        return {"steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a running clock goes on running."""
        self.steps, self._earlier = int(state["steps"]), float(state["seconds"])
        if self._started is not None:
            self._started = self._clock()


class ProgressBar:
    """The progress of a budget on stderr: rate, time left and loss. In a log file it is one line every half minute."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._first_steps, self._first_seconds = budget.steps, budget.seconds
        by_steps = budget.second_limit is None
        self._total = float((budget.step_limit if by_steps else budget.second_limit) or 0)
        self._bar = tqdm(
            total=self._total,
            initial=self._spent,
            file=sys.stderr,
            disable=not is_first(),
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            bar_format="{percentage:3.0f}% |{bar:24}| {n:.0f}/{total:.0f} "
            + ("steps" if by_steps else "s")
            + " [{elapsed}<{remaining}{postfix}]",
        )

    @property
    def _spent(self) -> float:
        return self._budget.steps if self._budget.second_limit is None else self._budget.seconds

    def update(self, loss: float) -> None:
        """Show the state of the budget and this loss."""
        seconds = self._budget.seconds - self._first_seconds
        rate = (self._budget.steps - self._first_steps) / max(seconds, 1e-9)
        self._bar.set_postfix_str(f"step {self._budget.steps}, {rate:.1f} steps/s, loss {loss:.4g}", refresh=False)
        self._bar.update(min(self._spent, self._total) - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Interrupt:
    """While inside, Ctrl-C and SIGTERM set `requested`, so that the loop can save and leave; a second one raises."""

    def __init__(self) -> None:
        self.requested = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self._handlers = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if not is_first():
            return
        # Not print: the signal may have come in the middle of one, and stderr cannot be entered twice.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")
