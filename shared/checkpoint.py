"""A checkpoint is one file of plain types and tensors: loading it runs no code, a killed run never leaves half of one.

{"format": 1, "kind": "mvrecon" | "pointrecon", "step": ..., "state": {...}}
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import UserError
from shared.run_folder import atomic_write

FORMAT = 1
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk, its tensors on the CPU."""

    path: Path
    step: int
    state: dict[str, Any]


class DamagedCheckpoint(UserError):
    """The file is truncated or otherwise not what was written."""


def save_checkpoint(run_folder: Path, kind: str, step: int, state: Mapping[str, Any]) -> Path:
    """Write RUN/checkpoints/step_XXXXXXXX.pt and keep only the newest two up to this step.

    `state` is nested dicts, lists and tuples of tensors, numbers, text, booleans and None. Returns the path.
    """
    folder = Path(run_folder) / "checkpoints"
    path = folder / f"step_{step:08d}.pt"
    # In memory first: torch.save hides the reason when the disk gives out under it.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "kind": kind, "step": step, "state": dict(state)}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    kept = [candidate for candidate in _newest_first(folder) if candidate.name <= path.name][:KEPT]
    for leftover in {*folder.glob("step_*.pt"), *folder.glob(".step_*.part")} - {*kept}:
        leftover.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Read one checkpoint of this kind.

    Raises DamagedCheckpoint for a truncated or altered file, UserError for a missing one, one of a newer format or of
    another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint; give the folder of a run")
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{path}: is not a checkpoint of this program; give the folder of a run")
    if content["format"] > FORMAT:
        raise UserError(f"{path}: has format {content['format']}, this version reads up to {FORMAT}; update isopull")
    if content["kind"] != kind:
        raise UserError(f"{path}: was written by {content['kind']}; use `{content['kind']}` on it, not `{kind}`")
    return Checkpoint(path, content["step"], content["state"])


def latest_checkpoint(run_folder: Path, kind: str) -> Checkpoint:
    """The newest checkpoint of a run that can be read; one line on stderr for each newer one that cannot.

    Raises UserError when the run has none, or as `load_checkpoint` does for one of another kind or a newer format.
    """
    paths = _newest_first(Path(run_folder) / "checkpoints")
    for path in paths:
        try:
            return load_checkpoint(path, kind)
        except DamagedCheckpoint as error:
            print(f"warning: {error}", file=sys.stderr)
    problem = "all its checkpoints are damaged" if paths else "holds no checkpoint"
    raise UserError(f"{run_folder}: {problem}; give the folder of a run, or train again with another --out")


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True)


def _read(path: Path) -> Any:
    damaged = f"{path}: the checkpoint is damaged; use the one before it"
    content = io.BytesIO(path.read_bytes())  # so that errors of the disk stay apart from those of the content
    try:
        with zipfile.ZipFile(content) as archive:  # torch.load does not compare the checksums
            if archive.testzip() is not None:
                raise DamagedCheckpoint(damaged)
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, OverflowError, EOFError) as error:
        raise DamagedCheckpoint(damaged) from error
