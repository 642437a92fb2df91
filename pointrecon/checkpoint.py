"""A fit read back from its folder, for meshing and evaluation."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pointrecon.config import Config
from pointrecon.tiles import TiledField
from shared.checkpoint import latest_checkpoint
from shared.config import read_config
from shared.errors import UserError
from shared.field import FieldLike, build_field
from shared.geometry import Similarity
from shared.loop import as_it_runs_here, made, use_threads
from shared.runtime import Budget

KIND = "pointrecon"


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """What a run folder holds: its config, the field, the frame of the cloud, and how it was made."""

    folder: Path
    config: Config
    field: FieldLike
    to_world: Similarity
    device: torch.device
    made: dict[str, Any]

    @torch.no_grad()
    def sdf(self, points: ArrayLike, chunk: int = 65536) -> NDArray[np.float64]:
        """Signed distances (n,) of points (n, 3), both in the cloud's frame and units; negative inside, or, for a cloud
        whose normals look inward, positive; of an open sheet negative below it, or behind its normals.

        Outside of the box around the cloud, whose longest side is 1.25 times the cloud's, they are extrapolated: the
        distance to the box is added to that of the nearest place in it, on its side of the surface. Where that
        meets the border of the box, as an open sheet does, distances beyond jump from one sign to the other.
        Raises ValueError for other shapes and for points that are not finite.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points of shape {points.shape}, not (n, 3)")
        if not np.isfinite(points).all():
            raise ValueError("points: some are not finite")
        unit = self.to_world.to_unit(points)
        inside = unit.clip(-1, 1)
        parts = torch.from_numpy(inside.astype(np.float32)).to(self.device).split(chunk)
        values = [np.empty(0), *(self.field.sdf(part).cpu().numpy().astype(np.float64) for part in parts)]
        found = np.concatenate(values)
        beyond = np.linalg.norm(unit - inside, axis=1) * np.where(found < 0, -1, 1)
        return (found + beyond) * self.to_world.scale


def load_run(folder: Path, device_name: str | None = None) -> LoadedRun:
    """Read a run folder; for the device see `as_it_runs_here`.

    Raises UserError when there is no run, no readable checkpoint, or the checkpoint does not fit the config.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: holds no run; give the folder that `pointrecon fit --out` made")
    # The checkpoint before the config: a run of the other door is named as such, not as one with unknown keys.
    checkpoint = latest_checkpoint(folder, KIND)
    config, device = as_it_runs_here(read_config(Config, folder / "config.yaml"), device_name)
    use_threads(config.train.threads)
    field = build_field(config.field, device)
    try:
        field.load_state_dict(checkpoint.state["trainer"]["field"])
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{checkpoint.path}: holds another model than {folder}/config.yaml describes; restore that file, "
            "or fit again if an older version made this run"
        ) from error
    scale, x, y, z = checkpoint.state["frame"]
    run = LoadedRun(folder, config, field.eval(), Similarity(scale, (x, y, z)), device, made(checkpoint.state))
    tiles = sorted(path for path in tiles_of(folder, config.tiles).glob("*") if path.is_dir())
    finished = [tile for tile in tiles if is_finished(tile, config)]
    if config.tiles > 1 and len(finished) < max(len(tiles), 1):
        missing = f"{len(finished)} of {len(tiles)} tiles are finished, the rest is as the whole has it"
        print(f"warning: {folder}: {missing}; go on with `pointrecon fit --resume --out {folder}`", file=sys.stderr)
    if not finished:
        return run
    parts = [load_run(tile, device_name) for tile in finished]
    tiled = TiledField(run.field, run.to_world, [(part.field, part.to_world) for part in parts])
    return replace(run, field=tiled, made=_made_together([run, *parts]))


def tiles_of(folder: Path, tiles: int) -> Path:
    """Where the runs of a run's tiles are, and, as `asked.yaml`, what each was asked for."""
    return folder / "tiles" / str(tiles)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the run of a tile has used up the budget in the config, and has its final weights."""
    if not any((folder / "checkpoints").glob("step_*.pt")):
        return False
    state = latest_checkpoint(folder, KIND).state
    budget = Budget(config.train.steps, config.train.minutes)
    budget.load_state_dict(state["budget"])
    return budget.done and not state["trainer"]["optimisers"]["average"]["mean"]


def _made_together(runs: list[LoadedRun]) -> dict[str, Any]:
    """Steps and seconds of all, and the most memory."""
    made = [run.made for run in runs]
    summed = {name: sum(one[name] for one in made) for name in ("train_seconds", "steps")}
    return {**made[0], **summed, "peak_memory_mb": max(one["peak_memory_mb"] for one in made)}
