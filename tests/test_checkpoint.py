"""Checkpoints: what comes back is what went in, and nothing else is believed."""

import pytest
import torch

from shared.checkpoint import (
    DamagedCheckpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from shared.errors import UserError

STATE = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "budget": {"steps": 3, "seconds": 1.5}, "flag": None}


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_round_trip(tmp_path):
    path = save_checkpoint(tmp_path, "mvrecon", 3, STATE)
    checkpoint = latest_checkpoint(tmp_path, "mvrecon")
    assert (checkpoint.path, checkpoint.step) == (path, 3)
    assert path.name == "step_00000003.pt"
    assert torch.equal(checkpoint.state["model"]["weight"], STATE["model"]["weight"])
    assert checkpoint.state["budget"] == STATE["budget"]


def test_the_newest_two_are_kept_and_leftovers_removed(tmp_path):
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, "mvrecon", step, {})
    (tmp_path / "checkpoints" / ".step_00000010.pt.1.part").write_bytes(b"half")
    save_checkpoint(tmp_path, "mvrecon", 100, {})
    assert names(tmp_path) == ["step_00000011.pt", "step_00000100.pt"]


def test_an_abandoned_future_is_removed(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, "mvrecon", step, {})
    save_checkpoint(tmp_path, "mvrecon", 15, {})
    assert names(tmp_path) == ["step_00000010.pt", "step_00000015.pt"]


def damage(path, how):
    content = path.read_bytes()
    middle = content.index(STATE["model"]["weight"].numpy().tobytes()) + 5
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a checkpoint",
            "truncated": content[: len(content) // 2],
            "flipped": content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :],
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, how):
    save_checkpoint(tmp_path, "mvrecon", 1, STATE)
    newest = save_checkpoint(tmp_path, "mvrecon", 2, STATE)
    damage(newest, how)
    with pytest.raises(DamagedCheckpoint, match=r"step_00000002\.pt: the checkpoint is damaged"):
        load_checkpoint(newest, "mvrecon")
    assert latest_checkpoint(tmp_path, "mvrecon").step == 1
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert warning.count("\n") == 1


def test_every_truncation_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, "mvrecon", 1, STATE)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path, "mvrecon")


def test_nothing_to_load(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        latest_checkpoint(tmp_path, "mvrecon")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "step_00000001.pt", "mvrecon")
    damage(save_checkpoint(tmp_path, "mvrecon", 1, STATE), "truncated")
    with pytest.raises(UserError, match="all its checkpoints are damaged"):
        latest_checkpoint(tmp_path, "mvrecon")


def test_other_kinds_and_newer_formats_are_refused(tmp_path):
    save_checkpoint(tmp_path, "mvrecon", 1, STATE)
    path = save_checkpoint(tmp_path, "mvrecon", 2, STATE)
    with pytest.raises(UserError, match="was written by mvrecon"):
        latest_checkpoint(tmp_path, "pointrecon")
    torch.save({"format": 2, "kind": "mvrecon"}, path)
    with pytest.raises(UserError, match="has format 2"):
        latest_checkpoint(tmp_path, "mvrecon")
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        latest_checkpoint(tmp_path, "mvrecon")


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


def test_loading_runs_no_code(tmp_path, capsys):
    path = save_checkpoint(tmp_path, "mvrecon", 1, {"weights": Malicious()})
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(path, "mvrecon")
    assert "code ran" not in capsys.readouterr().out


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, "mvrecon", 1, STATE)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        save_checkpoint(tmp_path, "mvrecon", 1, {})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == [path.name]
