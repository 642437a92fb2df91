"""Readers of photo sets; each turns a folder into a `mvrecon.scene.Scene`."""

from pathlib import Path

from mvrecon.config import DataConfig
from mvrecon.datasets.dtu import load_dtu
from mvrecon.scene import Scene
from shared.errors import UserError

READERS = {"dtu": load_dtu}


def load(config: DataConfig) -> Scene:
    """Read the scene that the config describes."""
    if not config.root:
        raise UserError("--data.root: missing; give the folder of the scene")
    cache = Path(config.cache) if config.cache else None
    return READERS[config.format](config.root, config.downscale, config.holdout, config.masks, cache)
