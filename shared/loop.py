"""The training loop of both doors: steps until the budget is spent, with logs, previews and checkpoints on the way."""

import copy
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from shared.checkpoint import latest_checkpoint, save_checkpoint
from shared.config import NONE
from shared.encoding import choose_backend
from shared.errors import UserError
from shared.ranks import all_sum, broadcast, is_first
from shared.run_folder import Run
from shared.runtime import Budget, Interrupt, ProgressBar, choose_device, peak_memory_mb

AnyConfig = TypeVar("AnyConfig", bound=Any)
LOG_EVERY = 50


@runtime_checkable
class Trainer(Protocol):
    """What the loop needs of a door's trainer. `step` returns loss terms, still on the device; "loss" is the total."""

    def step(self, progress: float) -> dict[str, Tensor]: ...

    def finish(self) -> bool: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Meter:
    """Means of the terms between two log lines. Part of the checkpoint, so that a resumed run logs the same means."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count one step's terms, without waiting for the device. A term that a step has not counts as zero there."""
        added = {name: self.sums[name] + term if name in self.sums else term for name, term in terms.items()}
        self.sums = {**self.sums, **added}
        self.count += 1

    def gather(self) -> None:
        """Add up what the ranks have counted, each its part of every sum."""
        if self.sums:
            together = all_sum(torch.stack(list(self.sums.values())))
            self.sums = dict(zip(self.sums, together.unbind()))

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Recorder:
    """What the loop writes on its way: the log's means, and checkpoints. `extra` goes into each checkpoint."""

    def __init__(self, trainer: Trainer, run: Run, budget: Budget, kind: str, extra: dict[str, Any]):
        self.trainer, self.run, self.budget, self.kind, self.extra = trainer, run, budget, kind, extra
        self.meter, self.saved = Meter(), time.monotonic()
        if "meter" in extra:
            mine = 1 if is_first() else 0  # the sums are of all ranks, the first one brings them in
            sums = extra["meter"]["sums"].items()
            self.meter.sums = {name: mine * value.to(extra["device"]) for name, value in sums}
            self.meter.count = extra["meter"]["count"]

    def check(self) -> None:
        """Raise UserError when the loss is not finite, before anything is written."""
        loss, at = float(self.meter.sums.get("loss", 0.0)), f"at step {self.budget.steps}"
        if not math.isfinite(loss):
            raise UserError(f"{self.run.folder}: the loss is {loss} {at}; lower --optim.table and --optim.network")

    def report(self, bar: ProgressBar) -> None:
        """Log the means since the last report and show the loss."""
        self.meter.gather()
        self.check()
        means = self.meter.take()
        self.run.log(self.budget.steps, means, self.budget.seconds)
        bar.update(means["loss"])

    def save(self) -> None:
        """Write a checkpoint."""
        self.check()
        self.saved = time.monotonic()
        if not is_first():
            return
        state = {"trainer": self.trainer.state_dict(), "budget": self.budget.state_dict(), **self.extra}
        if not _finite(state["trainer"]):
            raise UserError(
                f"{self.run.folder}: diverged by step {self.budget.steps}; lower --optim.table and --optim.network"
            )
        state["peak_memory_mb"] = peak_memory_mb(torch.device(self.extra["device"]))
        state["meter"] = {"sums": dict(self.meter.sums), "count": self.meter.count}
        save_checkpoint(self.run.folder, self.kind, self.budget.steps, state)


def fit(
    trainer: Trainer,
    run: Run,
    budget: Budget,
    kind: str,
    save_seconds: float,
    extra: dict[str, Any],
    preview: Callable[[int], None] | None = None,
    previews: int = 0,
) -> bool:
    """Train until the budget is spent, or until Ctrl-C; save at the end either way. Returns whether it was finished.

    A budget that is spent already is said to be so, and nothing is done but to finish.

    `extra` goes into every checkpoint beside the trainer's state; `preview(step)` is called `previews` times, evenly.
    Raises UserError when the loss is not finite: the last checkpoint is then from before.
    """
    recorder = Recorder(trainer, run, budget, kind, extra)
    if budget.done:
        more = "give a larger --train.minutes or --train.steps, in all"
        print(f"{run.folder}: has used up its {budget.length}; to go on, {more}")
        if trainer.finish():
            recorder.save()
        return True
    shown = int(budget.progress * previews)
    with Interrupt() as interrupt, ProgressBar(budget) as bar:
        budget.start()
        while True:
            progress, stop = broadcast(budget.progress, budget.done or interrupt.requested)
            if stop:
                break
            recorder.meter.add(trainer.step(progress))
            budget.step()
            if budget.steps % LOG_EVERY == 0:
                recorder.report(bar)
                if time.monotonic() - recorder.saved > save_seconds:
                    recorder.save()
            if preview is not None and int(budget.progress * previews) > shown and not budget.done:
                shown = int(budget.progress * previews)
                preview(budget.steps)
        budget.stop()
        finished = bool(broadcast(budget.done)[0])
        if finished and recorder.meter.count:
            recorder.report(bar)
    if finished:
        trainer.finish()
    recorder.meter.gather()
    recorder.save()
    if not finished and is_first():
        print(f"stopped at step {budget.steps}; continue with --resume --out {run.main}", file=sys.stderr)
    return finished


def _finite(state: Any) -> bool:
    """Whether all tensors in nested dicts and lists are finite."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return all(_finite(part) for part in parts)


def warm_up(trainer: Trainer) -> None:
    """Run every kernel once and undo what that did: the budget should not pay for compiling them."""
    if is_first():
        print("preparing kernels; the first time on a machine this takes up to a minute")
    before = copy.deepcopy(trainer.state_dict())
    with Interrupt() as interrupt:  # an exception out of a compiler's callback would end Python by a fault
        trainer.step(0.0)
    if interrupt.requested:
        raise KeyboardInterrupt
    trainer.load_state_dict(before)


def restore(trainer: Trainer, run: Run, budget: Budget, kind: str, frame: list[float], source: str) -> dict[str, Any]:
    """Put trainer, budget and logs back to the newest readable checkpoint; returns what else was in it.

    A run killed before its first checkpoint starts again from the beginning. Raises UserError where the data in
    `source` now have another frame (scale, translation) than the run: they are not what it was made from.
    """
    if not any((run.folder / "checkpoints").glob("step_*.pt")):
        run.rewind(0)
        return {}
    checkpoint = latest_checkpoint(run.folder, kind)
    state = dict(checkpoint.state)
    apart, scale = np.abs(np.subtract(state["frame"], frame)).max(), state["frame"][0]
    if apart > 1e-6 * scale + 1e-15 * np.abs(frame).max():
        raise UserError(f"{source}: is not what {run.folder} was made from; bring that back, or choose another --out")
    try:
        trainer.load_state_dict(state.pop("trainer"))
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(
            f"{checkpoint.path}: holds another model than the config describes; resume with the run's own config.yaml, "
            "and without keys that change the model, as of --field, --color, --data.downscale and --train.cell; "
            "a run of an older version has to be started again"
        ) from error
    budget.load_state_dict(state.pop("budget"))
    if is_first():
        print(f"{run.folder}: resuming from step {checkpoint.step}")
    run.rewind(checkpoint.step)
    return state


def warn_if_short(steps: int, enough: int) -> None:
    """Say so when a run had too few steps for a good surface."""
    if steps < enough:
        more = "give the run more of them (--train.minutes or --train.steps)"
        print(f"warning: {steps} steps make a sketch; a good surface takes {enough} and more; {more}", file=sys.stderr)


def as_it_runs_here(config: AnyConfig, device_name: str | None) -> tuple[AnyConfig, torch.device]:
    """The config and the device to read a run with: the device named, else the run's own, with a warning where what it
    was made with is not there. Raises UserError where the device named is not there."""
    if device_name is None and config.device == "cuda" and not torch.cuda.is_available():
        print("warning: the run was made with CUDA, which torch does not find; using the CPU", file=sys.stderr)
        device_name = "cpu"
    device = choose_device(device_name or config.device)
    try:
        choose_backend(config.field.backend, device)
    except UserError as error:
        print(f"warning: {error}; reading the run with auto", file=sys.stderr)
        config = replace(config, field=replace(config.field, backend="auto"))
    return config, device


def made(state: dict[str, Any]) -> dict[str, Any]:
    """How a checkpoint came to be, for eval.json: train_seconds, steps, device, peak_memory_mb."""
    return {
        "train_seconds": round(state["budget"]["seconds"], 1),
        "steps": state["budget"]["steps"],
        "device": state["device"],
        "peak_memory_mb": round(state["peak_memory_mb"]),
    }


def with_length(train: Any, minutes: float) -> Any:
    """A run's section `train` of its config, with `minutes` where it has neither steps nor minutes."""
    return replace(train, minutes=minutes) if train.steps is None and train.minutes is None else train


def one_budget(overrides: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A length given on the command line, in steps or in minutes, replaces the other kind in the preset."""
    other = {"train.steps": "train.minutes", "train.minutes": "train.steps"}
    lengths = {name for name, text in overrides if name in other and text.lower() not in NONE}
    return [*overrides, *((other[name], "none") for name in lengths if other[name] not in lengths)]


def use_threads(count: int) -> None:
    """Give torch and the kernels this many threads, but no more than there are cores; 0 leaves torch's number as it
    is, every core unless it was set, or of several ranks gives each its part of the machine's."""
    from shared.encoding import cpu

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if count == 0 and local > 1:  # torchrun would have each rank use one thread
        count = max(1, cores // local)
    if count > cores:
        print(f"warning: {count} threads: there are {cores} cores; using as many threads", file=sys.stderr)
    count = min(count, cores) if count > 0 else torch.get_num_threads()
    cpu.set_threads(count)
    torch.set_num_threads(count)  # last: numba's threads, when they are started, give torch every core
