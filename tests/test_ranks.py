"""Two processes on one run take the steps of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.make_scene import make_tiny_scene
from shared import ranks

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTOS = "--field.levels 4 --field.finest 32 --field.width 16 --train.cell 0 --train.rays 96".split()
PHOTOS += "--sampling.volume 24 --loss.alignment 0.01 --color.width 16 --color.levels 2 --train.previews 1".split()
CLOUD = "--field.levels 4 --field.finest 32 --field.width 16 --queries.batch 512 --queries.pool 5000".split()
CLOUD += "--loss.alignment 0.01 --loss.alignment_points 64 --train.resolution 32 --train.cell 0".split()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("inputs")
    make_tiny_scene(folder / "tiny", views=4, size=(32, 24))
    ball = np.random.default_rng(0).standard_normal((1000, 3))
    np.save(folder / "ball.npy", ball / np.linalg.norm(ball, axis=1, keepdims=True))
    photos = ["mvrecon", "train", "--data.root", str(folder / "tiny"), *PHOTOS]
    return {
        "masks": photos,
        "no masks": [*photos, "--data.masks", "false"],
        "cloud": ["pointrecon", "fit", str(folder / "ball.npy"), *CLOUD],
    }


def start(command: list[str], count: int, out: Path, *more: str) -> list[subprocess.Popen]:
    """What torchrun does: `count` processes that find each other through the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", *command, "--out", str(out), *more]
    return [
        subprocess.Popen(
            line,
            cwd=REPOSITORY,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    written = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, written)]


def curve(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("door", ["masks", "no masks", "cloud"])
def test_two_ranks_take_the_steps_of_one_and_one_goes_on_from_two(door: str, commands, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (alone,) = finish(start(commands[door], 1, one, "--train.steps", "50"))
    assert alone[0] == 0, alone[2]
    first, second = finish(start(commands[door], 2, two, "--train.steps", "50"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "mesh.ply" in first[1] and not second[1], "only the first rank talks"
    (expected,), (found,) = curve(one), curve(two)
    assert found == pytest.approx(expected, rel=1e-3)
    (resumed,) = finish(start(commands[door], 1, two, "--train.steps", "100", "--resume"))
    assert resumed[0] == 0 and [row["step"] for row in curve(two)] == [50, 100], resumed[2]


def test_a_lost_rank_ends_the_run_with_a_checkpoint_to_go_on_from(commands, tmp_path: Path) -> None:
    endless = ["--train.steps", "100000", "--train.save_seconds", "0"]
    first, second = start(commands["cloud"], 2, tmp_path / "run", *endless)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "run" / "checkpoints").glob("step_*.pt")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    code, _, errors = finish([first])[0]
    second.communicate()
    assert code == 2 and errors.splitlines()[-1].startswith("error: another rank of this run was lost")
    step = max(int(path.stem.removeprefix("step_")) for path in (tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    length = ["--train.steps", str(step + 50), "--resume"]
    (resumed,) = finish(start(commands["cloud"], 1, tmp_path / "run", *length))
    assert resumed[0] == 0 and curve(tmp_path / "run")[-1]["step"] == step + 50, resumed[2]


def test_bad_input_reaches_every_rank(commands, tmp_path: Path) -> None:
    processes = start(["pointrecon", "fit", str(tmp_path / "none.ply")], 2, tmp_path / "run", "--train.steps", "5")
    for code, _, errors in finish(processes):
        assert code == 2 and "none.ply" in errors and "Traceback" not in errors


def test_alone_nothing_is_shared() -> None:
    rows = torch.arange(5.0)
    assert torch.equal(ranks.share(rows), rows) and ranks.share(range(7)) == range(7)
    assert ranks.agree(0.5, 1.0) == (0.5, 1.0) and ranks.is_first()
    assert torch.equal(ranks.total(rows), rows)
    assert float(ranks.mean(rows, 5)) == 2.0 and float(ranks.mean(rows[:0], 0)) == 0.0
