"""The loop with a trainer of one number: logs, checkpoints, interruption, resume, and a loss that blows up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pointrecon.config import FitConfig
from shared.checkpoint import latest_checkpoint
from shared.errors import UserError
from shared.loop import fit, made, one_budget, restore, use_threads, warm_up, with_length
from shared.run_folder import Run, open_run
from shared.runtime import Budget

KIND = "pointrecon"


class Stub:
    """Walks at random towards zero; may interrupt itself or blow up at a step."""

    def __init__(self, interrupt_at: int = 0, blow_up_at: int = 0) -> None:
        self.value, self.steps, self.finished = torch.tensor(1.0), 0, False
        self.generator = torch.Generator().manual_seed(0)
        self.interrupt_at, self.blow_up_at = interrupt_at, blow_up_at

    def step(self, progress: float) -> dict[str, Tensor]:
        self.steps += 1
        self.value = self.value * (0.9 + 0.1 * torch.rand((), generator=self.generator))
        if self.steps == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        loss = self.value * float("nan") if self.steps == self.blow_up_at else self.value
        return {"loss": loss, "progress": torch.tensor(progress)}

    def finish(self) -> bool:
        self.finished = True
        return False

    def state_dict(self) -> dict:
        return {"value": self.value, "steps": self.steps, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.steps = state["value"], state["steps"]
        self.generator.set_state(state["generator"])


class Plain(Run):
    """Without TensorBoard, which takes seconds to import."""

    class tensorboard:
        add_scalar = staticmethod(lambda *_: None)


FRAME = [2.0, 0.0, -1.0, 5e6]


def start(
    folder: Path,
    steps: int,
    trainer: Stub,
    resume: bool = False,
    save_seconds: float = 1e9,
    frame: list[float] = FRAME,
    **options,
):
    run, budget = Plain(open_run(folder, resume).folder), Budget(steps)
    extra = restore(trainer, run, budget, KIND, frame, "scan.ply") if resume else {}
    run.write_config("seed: 0\n")
    extra |= {"device": "cpu", "frame": frame}
    return fit(trainer, run, budget, KIND, save_seconds, extra, **options)


def curve(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_it_logs_means_of_50_steps_and_saves_at_the_end(tmp_path: Path):
    trainer, run = Stub(), tmp_path / "run"
    assert start(run, 120, trainer)
    twin = Stub()
    losses = [float(twin.step(0)["loss"]) for _ in range(120)]
    assert [line["step"] for line in curve(run)] == [50, 100, 120], "the last steps are not lost"
    assert curve(run)[0]["loss"] == pytest.approx(sum(losses[:50]) / 50)
    assert curve(run)[2]["loss"] == pytest.approx(sum(losses[100:]) / 20)
    assert curve(run)[1]["progress"] == pytest.approx((50 + 99) / 2 / 120)
    assert trainer.finished
    checkpoint = latest_checkpoint(run, KIND)
    assert checkpoint.step == 120 and torch.equal(checkpoint.state["trainer"]["value"], trainer.value)
    facts = made(checkpoint.state)
    assert facts["steps"] == 120 and facts["device"] == "cpu" and facts["peak_memory_mb"] > 0


def test_it_saves_on_the_way(tmp_path: Path):
    start(tmp_path / "run", 160, Stub(), save_seconds=0.0)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step_00000150.pt", "step_00000160.pt"]


def test_an_interrupted_run_continues_the_same_curve(tmp_path: Path, capfd: pytest.CaptureFixture):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    one, two = Stub(), Stub()
    assert start(whole, 200, one)
    assert not start(parts, 200, Stub(interrupt_at=73))
    assert latest_checkpoint(parts, KIND).step == 73
    assert "--resume" in capfd.readouterr().err
    assert start(parts, 200, two, resume=True)
    assert curve(parts) == curve(whole)
    assert torch.equal(one.value, two.value) and two.steps == 200


def test_a_step_that_prepares_kernels_is_finished_when_it_is_interrupted():
    class Whole(Stub):
        def step(self, progress: float) -> dict[str, Tensor]:
            terms = super().step(progress)
            self.reached = True
            return terms

    stub, other = Whole(interrupt_at=1), Whole()
    with pytest.raises(KeyboardInterrupt):
        warm_up(stub)
    assert stub.reached
    warm_up(other)
    assert other.reached and other.steps == 0, "and undone"


def test_a_killed_run_does_its_last_steps_again(tmp_path: Path):
    """What was logged after the last checkpoint is forgotten; before the first one, everything is."""
    run = tmp_path / "run"
    start(run, 60, Stub())
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 100, "loss": 5.0}\n{"step": 15')
    assert start(run, 160, Stub(), resume=True)
    assert [line["step"] for line in curve(run)] == [50, 60, 100, 150, 160]
    assert curve(run)[2]["loss"] < 1.0
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    again = Stub()
    assert start(run, 50, again, resume=True)
    assert again.steps == 50 and [line["step"] for line in curve(run)] == [50]


@pytest.mark.parametrize("step", [70, 110, 120])
def test_a_loss_that_is_not_finite_is_an_error_and_is_not_saved(tmp_path: Path, step: int):
    """Also after the last line of the log."""
    with pytest.raises(UserError, match="lower --optim"):
        start(tmp_path / "run", 120, Stub(blow_up_at=step), save_seconds=0.0)
    assert latest_checkpoint(tmp_path / "run", KIND).step == (50 if step == 70 else 100)


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path):
    class Other(Stub):
        def load_state_dict(self, state: dict) -> None:
            raise KeyError("table")

    start(tmp_path / "run", 10, Stub())
    with pytest.raises(UserError, match=r"step_00000010\.pt: holds another model"):
        start(tmp_path / "run", 20, Other(), resume=True)


def test_other_data_than_the_run_was_made_from_are_refused_before_anything_is_lost(tmp_path: Path):
    start(tmp_path / "run", 60, Stub())
    kept = curve(tmp_path / "run")
    with pytest.raises(UserError, match=r"scan\.ply: is not what .*run was made from"):
        start(tmp_path / "run", 80, Stub(), resume=True, frame=[2.0, 0.0, -1.0, 5e6 + 0.1])
    assert curve(tmp_path / "run") == kept
    assert start(tmp_path / "run", 80, Stub(), resume=True, frame=[2.0 + 1e-9, 0.0, -1.0, 5e6])


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path):
    """The loss of the last step was still fine: what the step made of the weights was not."""

    class Diverging(Stub):
        def step(self, progress: float) -> dict[str, Tensor]:
            terms = super().step(progress)
            self.value = self.value / 0 if self.steps == 70 else self.value
            return terms

    with pytest.raises(UserError, match="diverged by step 70; lower --optim"):
        start(tmp_path / "run", 70, Diverging(), save_seconds=0.0)
    assert latest_checkpoint(tmp_path / "run", KIND).step == 50


def test_a_spent_budget_of_minutes_is_said_and_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture):
    trainer, run, budget = Stub(), Plain(open_run(tmp_path / "run", False).folder), Budget(minutes=2)
    budget.load_state_dict({"steps": 9, "seconds": 121.0})
    assert fit(trainer, run, budget, KIND, 1e9, {"device": "cpu"})
    assert "has used up its 2 min; to go on, give a larger --train.minutes" in capsys.readouterr().out
    assert trainer.steps == 0 and not list((tmp_path / "run").iterdir())


def test_a_run_without_a_length_gets_the_default():
    assert with_length(FitConfig(), 3.0).minutes == 3.0
    assert with_length(FitConfig(steps=5), 3.0) == FitConfig(steps=5)
    assert with_length(FitConfig(minutes=1.0), 3.0) == FitConfig(minutes=1.0)


def test_previews_come_evenly_and_not_at_the_end(tmp_path: Path):
    shown: list[int] = []
    start(tmp_path / "run", 100, Stub(), preview=shown.append, previews=4)
    assert shown == [25, 50, 75]


def test_the_length_on_the_command_line_replaces_that_of_the_preset():
    assert one_budget([("train.minutes", "5")]) == [("train.minutes", "5"), ("train.steps", "none")]
    assert one_budget([("train.steps", "9"), ("seed", "1")])[-1] == ("train.minutes", "none")
    assert one_budget([("train.steps", "none")]) == [("train.steps", "none")]
    both = [("train.steps", "9"), ("train.minutes", "5")]
    assert one_budget(both) == both


def test_threads_are_as_many_as_asked_for_but_no_more_than_cores(capsys):
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    for asked, found in ((1, 1), (0, 1), (10**6, cores)):
        assert not capsys.readouterr().err
        use_threads(asked)
        assert torch.get_num_threads() == found
    assert f"1000000 threads: there are {cores} cores" in capsys.readouterr().err
    use_threads(before)


@pytest.mark.parametrize(("asked", "variable"), [("1", "2"), ("0", "1")])
def test_threads_are_as_many_as_asked_for_when_numba_starts_its_own(asked: str, variable: str):
    code = f"import shared.loop as loop, torch; loop.use_threads({asked}); print(torch.get_num_threads())"
    environment = {**os.environ, "OMP_NUM_THREADS": variable}
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout == "1\n"
