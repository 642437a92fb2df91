"""A point cloud to a surface. From Python: `pointrecon.load("RUN").sdf(points)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UserError

__all__ = ["UserError", "load"]

if TYPE_CHECKING:
    from pointrecon.checkpoint import LoadedRun


def load(folder: str | Path, device: str | None = None) -> LoadedRun:
    """A fitted run, read from its folder. Raises UserError where there is none; see `pointrecon.checkpoint`."""
    from pointrecon.checkpoint import load_run  # here, so that `--help` need not wait for torch

    return load_run(Path(folder), device)
