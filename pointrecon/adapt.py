"""Settings that follow from a cloud: how fine, how wide and how soft, from its spacing and its noise."""

from dataclasses import replace

import numpy as np

from pointrecon.config import Config, PullConfig
from pointrecon.survey import Survey
from shared.config import Schedule

# A cloud with more noise than this share of its spacing is noisy: its points are not on the surface but about it.
NOISY = 0.25
# Finest cell in spacings, of clean and of noisy clouds, and of these in standard deviations of the noise, if more.
CELL, NOISY_CELL, CELL_OF_NOISE = 2.6, 3.9, 3.2
# Neighbours that give the queries' spread: of clean clouds; of noisy ones at least, or as many as lie within twice the
# noise.
NEIGHBOURS, NOISY_NEIGHBOURS = 4, 12
FINEST = 1024
CLEAN = {
    "target": "nearest",
    "softness": 0.0,
    "bend": 0.0,
    "plane": 0.3,
    "space": Schedule(0.15, 1.0, 0.2, 0.4),
}
NOISE = {"target": "origin", "bend": 0.001, "plane": 0.1, "space": Schedule(0.15, 1.0, 0.05, 0.4)}
SOFTNESS = 2.0  # in standard deviations of the noise


def adapt(config: Config, found: Survey) -> Config:
    """The config with everything chosen that it leaves open; `found` of the cloud in field space."""
    noisy = found.noise > NOISY * found.spacing
    queries, train, field = config.queries, config.train, config.field
    if queries.neighbours is None:
        queries = replace(queries, neighbours=max(NOISY_NEIGHBOURS, found.crowd) if noisy else NEIGHBOURS)
    if train.cell is None:
        cell = max(NOISY_CELL, CELL_OF_NOISE * found.noise / found.spacing) if noisy else CELL
        train = replace(train, cell=round(cell, 3))
    if train.cell:
        finest = round(2 / (train.cell * found.spacing))
        field = replace(field, finest=int(np.clip(finest, 4 * field.base, FINEST)))
    chosen = {**NOISE, "softness": SOFTNESS * found.noise} if noisy else CLEAN
    return replace(config, field=field, queries=queries, train=train, loss=_filled(config.loss, chosen))


def _filled(loss: PullConfig, chosen: dict) -> PullConfig:
    """The section with the chosen values where it has none."""
    return replace(loss, **{name: value for name, value in chosen.items() if getattr(loss, name) in (None, "auto")})
