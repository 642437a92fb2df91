"""Every key of `pointrecon fit`; the presets in configs/pointrecon are laid over these defaults."""

from dataclasses import dataclass
from typing import ClassVar

from shared.config import Schedule, key
from shared.field import FieldConfig
from shared.optim import OptimConfig

# Length of a run for which none is given.
MINUTES = 0.8


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Where the field is asked around the cloud (Neural-Pull, section 3)."""

    batch: int = key(8192, "queries a step", minimum=16)
    neighbours: int | None = key(
        None,
        "the queries' spread is the distance to this nearest neighbour; none: as the cloud's noise asks",
        minimum=1,
    )
    factor: float = key(1.0, "times this", minimum=0.0)
    space_share: float = key(0.1, "share of the queries drawn from all of space", minimum=0.0, maximum=0.9)
    pool: int = key(500_000, "queries held ready with their nearest points", minimum=1000)
    refresh: int = key(20, "steps between renewals of a part of the pool", minimum=1)
    renewed: int = key(10_000, "queries renewed at a time", minimum=1)


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Weights; each may be a number or [p0, v0, v1, p1] over the progress of the run."""

    target: str = key(
        "auto",
        "what queries near the cloud are measured to: their nearest point, or the one they were drawn around, which is "
        "better in noise",
        choices=("auto", "nearest", "origin"),
    )
    softness: float | None = key(
        None, "errors below this (field units) count squared; none: as the cloud's noise asks", minimum=0.0
    )
    bend: float | None = key(
        None,
        "normals half a finest cell apart are alike, from `plane` on; none: as the cloud's noise asks",
        minimum=0.0,
    )
    squared: bool = key(False, "squared distances, as the paper prints (with plane 1); plain ones fit finer detail")
    plane: float | None = key(
        None,
        "fraction of the run after which the error near the cloud counts along normals only; 1: never; none: 0.3, or "
        "0.1 in noise",
        minimum=0.0,
        maximum=1.0,
    )
    # Strong while the shape is coarse: a pull cannot tell a sign, and a weak one lets a thick body become hollow.
    # In noise the nearest point lies on the query's side of the surface, so that the pull from space swells a body.
    space: Schedule | None = key(
        None,
        "pull of the queries from all of space; none: [0.15, 1, 0.2, 0.4], or down to 0.05 in noise",
        minimum=0.0,
    )
    alignment: Schedule = key(Schedule(0.0), "level set alignment", minimum=0.0)
    alignment_points: int = key(2048, "queries a step for the alignment and the bending", minimum=1)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The run."""

    minutes: float | None = key(None, f"length of the run in minutes; {MINUTES:g} without steps", minimum=1e-3)
    steps: int | None = key(None, "length of the run in steps", minimum=1)
    cell: float | None = key(
        None,
        "finest cell in spacings of the cloud, sets field.finest; 0 keeps that; none: as the cloud's noise asks",
        minimum=0.0,
    )
    save_seconds: float = key(20.0, "seconds between checkpoints", minimum=0.0)
    resolution: int = key(384, "cells along an edge of the box for mesh.ply", minimum=8)
    seed: int = key(0, "seed of everything random", minimum=0, maximum=2**63 - 1)
    threads: int = key(0, "CPU threads; 0 means all cores", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run of `pointrecon fit`."""

    PROGRAM: ClassVar[str] = "pointrecon"
    cloud: str = key("", "the cloud's file; the command's argument")
    # A coarse start: a grid that begins at 16 cells finds false sheets far from the cloud.
    field: FieldConfig = FieldConfig(levels=12, base=4, finest=256, first_levels=1, open_levels=0.6, feature=0)
    queries: QueryConfig = QueryConfig()
    loss: PullConfig = PullConfig()
    optim: OptimConfig = OptimConfig(warmup=0.03, final=0.02)
    train: FitConfig = FitConfig()
    keep_stray: bool = key(False, "keep points that seem to belong to no surface")
    trim: float | None = key(
        None,
        "cut what is farther from the cloud than this many distances between its points; 0: nothing; none: 4, but only "
        "where more than a third of the surface is: what closes open scans, not holes",
        minimum=0.0,
    )
    smallest: float = key(
        0.01,
        "drop parts of the surface with less than this share of the largest one's area; 1 keeps that one alone",
        minimum=0.0,
        maximum=1.0,
    )
    faces: int | None = key(None, "simplify the surface to about this many faces; none: not at all", minimum=4)
    device: str = key("auto", "where to compute", choices=("auto", "cpu", "cuda"))
