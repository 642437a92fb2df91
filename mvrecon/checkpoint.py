"""A finished or running run, read back for meshing, rendering and evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvrecon.config import Config
from mvrecon.model import SurfaceModel
from mvrecon.sampling import SdfVolume
from shared.checkpoint import latest_checkpoint
from shared.config import read_config
from shared.errors import UserError
from shared.geometry import Similarity
from shared.loop import as_it_runs_here, made, use_threads

KIND = "mvrecon"


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """What a run folder holds: its config, the model with its cached distances, the frame, and how it was made."""

    folder: Path
    config: Config
    model: SurfaceModel
    volume: SdfVolume
    to_world: Similarity
    device: torch.device
    made: dict[str, Any]


def load_run(folder: Path, device_name: str | None = None) -> LoadedRun:
    """Read a run folder; for the device see `as_it_runs_here`.

    Raises UserError when there is no run, no readable checkpoint, or the checkpoint does not fit the config.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: holds no run; give the folder that `mvrecon train --out` made")
    # The checkpoint before the config: a run of the other door is named as such, not as one with unknown keys.
    checkpoint = latest_checkpoint(folder, KIND)
    config, device = as_it_runs_here(read_config(Config, folder / "config.yaml"), device_name)
    use_threads(config.train.threads)
    state = checkpoint.state
    model = SurfaceModel(config, with_background=not config.data.masks, device=device)
    volume = SdfVolume(config.sampling.volume, device)
    try:
        model.load_state_dict(state["trainer"]["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{checkpoint.path}: holds another model than {folder}/config.yaml describes; restore that file, "
            "or train again if an older version made this run"
        ) from error
    # Anew, since the copy in the checkpoint is a few steps behind.
    volume.refresh(model.field.sdf, config.sampling.band)
    scale, x, y, z = state["frame"]
    frame = Similarity(scale, (x, y, z))
    return LoadedRun(folder, config, model.eval(), volume, frame, device, made(state))
