"""Settings that follow from a cloud (how fine, how wide and how soft, from its spacing and its noise) and from the
objective (its paper's weights)."""

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from pointrecon.bilateral import RADIUS
from pointrecon.config import Config, LossConfig, QueryConfig
from pointrecon.survey import Survey
from shared.config import Schedule

Section = TypeVar("Section", LossConfig, QueryConfig)

# Finest cell in spacings; of noisy clouds by the noise in spacings, if that is more: so many times its cube, and at
# most so many times itself. With little noise, points that are brought together are smooth enough for fine cells; where
# those of noisy clouds are not brought together, cells are so many spacings, and so many times the noise, at least.
CELL, CELL_OF_CUBE, CELL_OF_NOISE = 2.0, 1.5, 3.7
RAW_CELL, RAW_CELL_OF_NOISE = 3.9, 3.2
# Neighbours that give the queries' spread: of clean clouds; of noisy ones at least, or as many as lie within twice the
# noise; of IGR (Gropp et al. 2020, section 3).
NEIGHBOURS, NOISY_NEIGHBOURS, IGR_NEIGHBOURS = 4, 12, 50
# Power of the random number that brings a pull's queries close to the points of a clean cloud.
CLOSENESS = 2.0
# Queries from all of space; SIREN has as many places off the surface as on it.
SPACE_SHARE, SIREN_SPACE_SHARE = 0.1, 0.5
FINEST = 1024
# Entries of a table by the square of the finest cells along an edge: a surface has some two corners for each of these,
# and corners that share a hashed entry blur each other. No more than fit a processor's cache.
ENTRIES, MOST_ENTRIES = 10, 19
# Cells along an edge of the box for the mesh, by those of the finest level; at least and at most.
MESH_CELLS, MESH_RANGE = 2.5, (384, 512)
CLEAN = {
    "target": "nearest",
    "softness": 0.0,
    "bilateral": 0.0,
    "bend": 0.0,
    "plane": 0.3,
    "space": Schedule(0.15, 1.0, 0.2, 0.4),
    "hole": Schedule(0.05, 0.0, 0.05, 0.05),
}
# In little noise points are brought together, and trusted as much as those of clean clouds. Errors count along normals
# as early as in noise, for the nearest point is not the right one. Alike normals take
# up to a twentieth off the error of smooth shapes, and add as much to that of the most detailed one.
NEARLY_CLEAN = {**CLEAN, "target": "origin", "plane": 0.05, "bend": 0.003}
NOISE = {
    "target": "origin",
    "bend": 0.001,
    "plane": 0.05,
    "space": Schedule(0.15, 1.0, 0.05, 0.4),
    "hole": Schedule(0.0),
}
# Normals tell a pull the sides, while the shape is coarse; of the shape its own gradients come to know more.
SIDES = Schedule(0.1, 0.01, 0.0, 0.3)
# Weight of a clean cloud's alignment, by its spacing, which makes an angle a length, as the pull's error is; and the
# spacing, in field units, from which it grows no more.
ALIGNMENT, WIDEST = 4.0, 0.1
# Of the error, in standard deviations of the noise: points that are brought together have about a third of it left.
SOFTNESS, RAW_SOFTNESS = 0.25, 1.5
# The papers' weights; SIREN's as Yifan et al. 2021 (section 4.2) have them. In theirs iso-points weigh as much as the
# cloud, and normals a tenth of it; a pull, whose surface moves more in a step, is held back by all but a little.
WEIGHTS: dict[str, dict[str, float]] = {
    "pull": {"eikonal": 0, "iso_sdf": 0.02, "iso_normal": 0.002},
    "siren": {"surface": 1000, "normal": 100, "off_surface": 50, "eikonal": 100, "iso_sdf": 1000, "iso_normal": 100},
    "igr": {"surface": 1, "normal": 1, "eikonal": 0.1, "iso_sdf": 1, "iso_normal": 0.1},
}


def adapt(config: Config, found: Survey) -> Config:
    """The config with everything chosen that it leaves open; `found` of the cloud in field space."""
    loss = _loss(config.loss, found)
    snap = config.loss.objective == "pull" and not found.noisy if config.snap is None else config.snap
    queries = _queries(config.loss.objective, found)
    config = replace(config, snap=snap, queries=_filled(config.queries, queries), loss=_filled(config.loss, loss))
    return _with_cells(config, found)


def _queries(objective: str, found: Survey) -> dict[str, Any]:
    neighbours = max(NOISY_NEIGHBOURS, found.crowd) if found.noisy else NEIGHBOURS
    return {
        "neighbours": IGR_NEIGHBOURS if objective == "igr" else neighbours,
        "closeness": CLOSENESS if objective == "pull" and not found.noisy else 0.0,
        "space_share": SIREN_SPACE_SHARE if objective == "siren" else SPACE_SHARE,
    }


def _loss(asked: LossConfig, found: Survey) -> dict[str, Any]:
    pull, noisy = asked.objective == "pull", found.noisy
    inexact = noisy or (found.nearly_clean and pull and asked.moves_points)
    loss: dict[str, Any] = {**(NOISE if noisy else NEARLY_CLEAN if inexact else CLEAN)}
    if inexact:
        loss["bilateral"] = RADIUS * found.noise if pull and asked.moves_points else 0.0
        loss["softness"] = (SOFTNESS if asked.moves_points else RAW_SOFTNESS) * found.noise
    if not pull:
        loss["bend"] = 0.0
    alignment = ALIGNMENT * min(found.spacing, WIDEST) if pull and not noisy else 0.0
    loss["alignment"] = Schedule(round(alignment, 4))
    weights = {name: Schedule(weight) for name, weight in WEIGHTS[asked.objective].items()}
    return {**loss, "normal": SIDES, **weights}


def _with_cells(config: Config, found: Survey) -> Config:
    """With cells, tables for them, and a mesh that shows them."""
    train, field = config.train, config.field
    if train.cell is None:
        noise, cell = found.noise / found.spacing, CELL
        if found.noisy and config.loss.moves_points:
            cell = max(CELL, min(CELL_OF_CUBE * noise**3, CELL_OF_NOISE * noise))
        elif found.noisy:
            cell = max(RAW_CELL, RAW_CELL_OF_NOISE * noise)
        train = replace(train, cell=round(cell, 3))
    if train.cell:
        finest = round(2 / (train.cell * found.spacing))
        finest = int(np.clip(finest, 4 * field.base, FINEST))
        needed = min(int(np.ceil(np.log2(ENTRIES * finest**2))), MOST_ENTRIES)
        field = replace(field, finest=finest, log2_entries=max(field.log2_entries, needed))
    if train.resolution is None:
        train = replace(train, resolution=int(np.clip(round(MESH_CELLS * field.finest), *MESH_RANGE)))
    return replace(config, field=field, train=train)


def _filled(section: Section, chosen: dict[str, Any]) -> Section:
    """The section with the chosen values where it has none."""
    return replace(
        section, **{name: value for name, value in chosen.items() if getattr(section, name) in (None, "auto")}
    )
