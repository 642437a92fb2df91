"""Settings that follow from a cloud: how fine, how wide and how soft, from its spacing and its noise."""

from dataclasses import replace

import numpy as np

from pointrecon.config import Config
from pointrecon.survey import Survey

# A cloud with more noise than this share of its spacing is noisy: its points are not on the surface but about it.
NOISY = 0.25
# Neighbours that give the queries' spread, and the finest cell in spacings: of clean clouds, of noisy ones.
NEIGHBOURS, CELL = (4, 12), (2.6, 3.9)
SOFTNESS = 2.0  # in standard deviations of the noise
BEND = 0.1  # a weight of lengths, as the errors are, against one of directions
FINEST = 1024


def adapt(config: Config, found: Survey) -> Config:
    """The config with everything chosen that it leaves open; `found` of the cloud in field space."""
    noisy = found.noise > NOISY * found.spacing
    queries, loss, train = config.queries, config.loss, config.train
    if queries.neighbours is None:
        queries = replace(queries, neighbours=NEIGHBOURS[noisy])
    if loss.target == "auto":
        loss = replace(loss, target="origin" if noisy else "nearest")
    if loss.softness is None:
        loss = replace(loss, softness=SOFTNESS * found.noise if noisy else 0.0)
    if loss.bend is None:
        loss = replace(loss, bend=BEND * found.noise if noisy else 0.0)
    if train.cell is None:
        train = replace(train, cell=CELL[noisy])
    field = config.field
    if train.cell:
        finest = round(2 / (train.cell * found.spacing))
        field = replace(field, finest=int(np.clip(finest, 4 * field.base, FINEST)))
    return replace(config, field=field, queries=queries, loss=loss, train=train)
