"""Budgets, signals and run folders."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import UserError
from shared.run_folder import atomic_write, open_run
from shared.runtime import Budget, Interrupt, ProgressBar, choose_device, peak_memory_mb


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_choose_device(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device("cuda")
    with pytest.raises(UserError, match="unknown device"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"


def test_budget_by_steps(clock):
    budget = Budget(steps=4, clock=clock)
    budget.start()
    seen = []
    while not budget.done:
        seen.append(budget.progress)
        budget.step()
        clock.now += 2
    assert seen == [0, 0.25, 0.5, 0.75]
    assert (budget.progress, budget.steps, budget.seconds) == (1.0, 4, 8.0)


def test_budget_by_minutes_and_pause(clock):
    budget = Budget(minutes=0.5, clock=clock)
    clock.now += 50
    assert budget.seconds == 0
    budget.start()
    clock.now += 12
    budget.start()  # already running
    budget.stop()
    clock.now += 1000
    budget.start()
    clock.now += 3
    assert budget.progress == pytest.approx(0.5)
    clock.now += 40
    assert budget.done
    assert budget.progress == 1.0


def test_budget_ends_with_the_first_of_two_limits(clock):
    budget = Budget(steps=10, minutes=1, clock=clock)
    budget.start()
    for _ in range(5):
        budget.step()
    assert budget.progress == 0.5
    clock.now += 60
    assert budget.done


def test_budget_accumulates_over_resumes(clock):
    first = Budget(minutes=1, clock=clock)
    first.start()
    clock.now += 15
    first.step()
    second = Budget(minutes=1, clock=clock)
    second.load_state_dict(first.state_dict())
    clock.now += 500
    second.start()
    clock.now += 15
    second.step()
    assert (second.steps, second.seconds, second.progress) == (2, 30.0, 0.5)
    second.load_state_dict({"steps": 1, "seconds": 1.0})  # while the clock runs
    clock.now += 2
    assert second.seconds == 3.0


@pytest.mark.parametrize("limits", [{}, {"steps": 0}, {"minutes": 0.0}, {"steps": 3, "minutes": -1.0}])
def test_budget_needs_a_limit(limits):
    with pytest.raises(ValueError, match="budget"):
        Budget(**limits)


@pytest.mark.parametrize(("limits", "total"), [({"steps": 3}, "3/3 steps"), ({"minutes": 0.05}, "3/3 s")])
def test_progress_bar(clock, monkeypatch, limits, total):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    budget = Budget(**limits, clock=clock)
    budget.start()
    with ProgressBar(budget) as bar:
        for _ in range(3):
            budget.step()
            clock.now += 1.5  # ends beyond the limit in minutes
            bar.update(0.25)
    text = stream.getvalue()
    assert total in text
    assert "loss 0.25" in text
    assert "0.7 steps/s" in text
    assert "100%" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_asks_first_and_raises_second(number, capfd):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert "stopping" in capfd.readouterr().err


def test_peak_memory_is_plausible():
    assert 10 < peak_memory_mb() < 10**6


def test_a_new_run_and_its_log(tmp_path):
    folder = tmp_path / "a" / "run"
    run = open_run(folder, False)
    run.write_config("seed: 0\n")
    run.log(1, {"loss": 0.5}, 1.25)
    run.log(2, {"loss": float("nan"), "psnr": np.float32(20)}, 2.5)
    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "seconds": 1.25, "loss": 0.5},
        {"step": 2, "seconds": 2.5, "loss": None, "psnr": 20.0},
    ]
    run.close()
    assert list(folder.glob("events.out.tfevents.*"))


def test_a_preview(tmp_path):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    run = open_run(tmp_path / "run", False)
    path = run.image("colour", 12, image)
    run.close()
    assert path == tmp_path / "run" / "previews" / "colour_00000012.png"
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(stored), image)


def test_resume_forgets_the_steps_done_again(tmp_path):
    run = open_run(tmp_path / "run", False)
    run.write_config("seed: 1\n")
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0}, step)
    run.close()
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 2, "secon')
    run = open_run(tmp_path / "run", True)
    run.rewind(2)
    run.log(3, {"loss": 9.0}, 3)
    run.close()
    assert [(line["step"], line["loss"]) for line in map(json.loads, log.read_text().splitlines())] == [
        (1, 1.0),
        (2, 1.0),
        (3, 9.0),
    ]
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1\n"


def test_rewinding_without_a_log(tmp_path):
    run = open_run(tmp_path / "run", False)
    run.rewind(5)
    run.close()


def test_folders_that_cannot_be_a_run(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        open_run(tmp_path / "missing", True)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        open_run(tmp_path, False)
    with pytest.raises(UserError, match=r"file: cannot be made a folder"):
        open_run(tmp_path / "file", False)
    with pytest.raises(UserError, match="cannot be made a folder"):
        open_run(tmp_path / "file" / "run", False)


def test_atomic_write(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("old ü")
    with pytest.raises(KeyError), atomic_write(path, "w") as file:
        file.write("half")
        raise KeyError
    assert path.read_text(encoding="utf-8") == "old ü"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(UserError, match="is a folder"), atomic_write(tmp_path):
        pass


def test_a_full_disk_is_blamed_on_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    body = (
        "import sys, pathlib, time\nfrom shared.run_folder import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", body, str(path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert path.read_bytes() == b"old"


def test_the_clock_is_monotonic():
    budget = Budget(minutes=1)
    budget.start()
    time.sleep(0.01)
    assert 0.01 <= budget.seconds < 1
