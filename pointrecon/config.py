"""Every key of `pointrecon fit`; the presets in configs/pointrecon are laid over these defaults."""

from dataclasses import dataclass
from typing import ClassVar

from shared.config import Schedule, key
from shared.field import FieldConfig
from shared.levelset import KINDS
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
    closeness: float | None = key(
        None,
        "how much closer than that many queries are: spreads are multiplied by a random number in 0..1 to this power, "
        "one for each query; 0: all spread alike, as in Neural-Pull; none: 2 for a pull to a clean cloud or a nearly "
        "clean one, else 0",
        minimum=0.0,
    )
    space_share: float | None = key(
        None,
        "share of the queries drawn from all of space; none: 0.1, or 0.5 for the objective siren",
        minimum=0.0,
        maximum=0.9,
    )
    pool: int = key(500_000, "queries held ready with their nearest points", minimum=1000)
    refresh: int = key(20, "steps between renewals of a part of the pool", minimum=1)
    renewed: int = key(10_000, "queries renewed at a time", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is asked of the field. A weight may be a number or [p0, v0, v1, p1] over the progress of the run."""

    objective: str = key(
        "pull",
        "pull: queries arrive at the cloud along the gradient (Neural-Pull). siren, igr: the cloud's points are on the "
        "surface and gradients have length 1, by the terms of these papers",
        choices=("pull", "siren", "igr"),
    )
    target: str = key(
        "auto",
        "pull: what queries near the cloud are measured to: their nearest point, or the one they were drawn around, "
        "which is better in noise",
        choices=("auto", "nearest", "origin"),
    )
    softness: float | None = key(
        None, "pull: errors below this (field units) count squared; none: as the cloud's noise asks", minimum=0.0
    )
    bend: float | None = key(
        None,
        "normals half a finest cell apart are alike, from `plane` on; none: 0, or, for a pull, 0.003 for nearly clean "
        "clouds and 0.001 for noisy ones",
        minimum=0.0,
    )
    bend_points: int = key(2048, "queries a step for that", minimum=1)
    bilateral: float | None = key(
        None,
        "noisy points count as moved to the mean height of those near them (standard deviation in field units, half "
        "of which is taken for the noise; up to twice as far, where that tells more) that lie on the same side of "
        "edges, by the field's normals; for siren, igr and pull with target origin; 0: they count as they are; none: "
        "0, or twice the noise for a pull to a cloud that has some. A spacing and less is taken for little noise: then "
        "the deviation is one spacing, and a few neighbours count",
        minimum=0.0,
    )
    squared: bool = key(
        False, "pull: squared distances, as the paper prints (with plane 1); plain ones fit finer detail"
    )
    plane: float | None = key(
        None,
        "pull: fraction of the run after which the error near the cloud counts along normals only; 1: never; none: "
        "0.3, or 0.05 in noise, also in little",
        minimum=0.0,
        maximum=1.0,
    )
    # Strong while the shape is coarse: a pull cannot tell a sign, and a weak one lets a thick body become hollow.
    # In noise the nearest point lies on the query's side of the surface, so that the pull from space swells a body.
    space: Schedule | None = key(
        None,
        "pull: weight of the queries from all of space; none: [0.15, 1, 0.2, 0.4], or, for noisy clouds, down to 0.05",
        minimum=0.0,
    )
    enclosed: bool = key(
        True,
        "pull: what the cloud encloses, if a flood from outside finds no way in, is inside, and such a cloud has no "
        "holes; false: only the pull tells",
    )
    sides: bool = key(
        True,
        "pull: where nothing is enclosed, places away from the cloud have the side that its points' planes give them, "
        "turned to agree, or its normals, if that is consistent almost all over; outside is up from an open sheet "
        "without normals; false: only the pull tells",
    )
    facing: bool = key(
        True,
        "pull: queries from all of space count less beside the plane through their nearest point's neighbours (where "
        "these lie in one), as in a hole, beside its rim; not within what is enclosed; false: all count the same",
    )
    hole: Schedule | None = key(
        None,
        "pull: beside the cloud's planes, as in a hole beside its rim, normals are those of the rim, and smooth; needs "
        "facing, and only where nothing is enclosed; none: 0.05 from a twentieth of the run on, or 0 for "
        "noisy clouds",
        minimum=0.0,
    )
    surface: Schedule | None = key(
        None,
        "siren, igr: distances at the cloud's points are zero; none: as the objective's paper, 1000 or 1",
        minimum=0.0,
    )
    normal: Schedule | None = key(
        None,
        "gradients at the cloud's points, or, for pull, around them, are along its normals, if it has any that agree; "
        "none: as the objective's paper, 100 for siren, 1 for igr, and for pull [0.1, 0.01, 0, 0.3], which settles the "
        "sides; 0: normals stay unused",
        minimum=0.0,
    )
    off_surface: Schedule | None = key(
        None, "siren: no surface at the queries from all of space; none: as the objective's paper, 50", minimum=0.0
    )
    eikonal: Schedule | None = key(
        None,
        "gradients have length 1; none: as the objective's paper: 0 for pull, 100 for siren, 0.1 for igr",
        minimum=0.0,
    )
    alignment: Schedule | None = key(
        None,
        "level set alignment; the paper has a hundredth of what distances count: 0.01 for pull and igr, 10 for siren; "
        "none: four times the spacing, in field units, for a pull to clean clouds and nearly clean ones, else 0",
        minimum=0.0,
    )
    alignment_points: int = key(512, "queries a step for the alignment; more tell no more", minimum=1)
    alignment_kind: str = key(
        "cosine",
        "what is aligned: directions by their cosine, or, for ablation, by the squared error of gradients that are "
        "normalised or as they are",
        choices=KINDS,
    )
    alignment_at: str = key(
        "pulled",
        "which gradients queries are aligned to: those where they are pulled to, or, for ablation, at the cloud's "
        "nearest points",
        choices=("pulled", "nearest"),
    )
    alignment_weight: str = key(
        "sdf",
        "what the weight of a query falls with: the field's distance there, or, for ablation, that to the cloud; none: "
        "all count the same",
        choices=("sdf", "euclidean", "none"),
    )
    alignment_decay: float = key(10.0, "how fast it falls: exp(-this times the distance in field units)", minimum=0.0)
    iso_points: int = key(
        0,
        "points spread over the field's own surface that keep a fit to noise smooth (Yifan et al. 2021); 0: none",
        minimum=0,
    )
    iso_warmup: int = key(300, "steps before the first iso-points", minimum=0)
    iso_every: int = key(1000, "steps between renewals of the iso-points", minimum=1)
    iso_neighbours: int = key(
        16, "neighbours that give an iso-point its normal: the more, the smoother the surface", minimum=2
    )
    iso_sdf: Schedule | None = key(
        None,
        "distances at iso-points are zero; none: 1000 for siren and 1 for igr, as their surface, 0.02 for pull",
        minimum=0.0,
    )
    iso_normal: Schedule | None = key(
        None,
        "gradients at iso-points are along their normals; none: 100 for siren, 0.1 for igr, 0.002 for pull",
        minimum=0.0,
    )

    @property
    def moves_points(self) -> bool:
        """Whether points are, or may be, brought together: a pull's to the points that queries were drawn around unless
        that is off, others' if it is asked for."""
        if self.objective == "pull":
            return self.target != "nearest" and self.bilateral != 0
        return bool(self.bilateral)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The run."""

    minutes: float | None = key(None, f"length of the run in minutes; {MINUTES:g} without steps", minimum=1e-3)
    steps: int | None = key(None, "length of the run in steps", minimum=1)
    cell: float | None = key(
        None,
        "finest cell in spacings of the cloud, sets field.finest, and field.log2_entries if that is too small for it; "
        "0 keeps both; none: as the cloud's noise asks",
        minimum=0.0,
    )
    save_seconds: float = key(20.0, "seconds between checkpoints", minimum=0.0)
    resolution: int | None = key(
        None,
        "cells along an edge of the box for mesh.ply, of that of each tile; none: 384, or up to 512 for fine clouds",
        minimum=8,
    )
    seed: int = key(0, "seed of everything random", minimum=0, maximum=2**63 - 1)
    threads: int = key(
        0, "CPU threads, no more than cores; 0: every core, or as many as OMP_NUM_THREADS says", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run of `pointrecon fit`."""

    PROGRAM: ClassVar[str] = "pointrecon"
    cloud: str = key("", "the cloud's file; the command's argument")
    # A coarse start: a grid that begins at 16 cells finds false sheets far from the cloud.
    field: FieldConfig = FieldConfig(levels=12, base=4, finest=256, first_levels=1, open_levels=0.6, feature=0)
    queries: QueryConfig = QueryConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig(warmup=0.03, final=0.02)
    train: FitConfig = FitConfig()
    tiles: int = key(
        1,
        "after a fit of the whole, fit as many cubes (1 to 8) along its longest side, each with a field of its own, "
        "and blend them: for clouds with more detail than one field holds; takes as long again for each cube with "
        "points in it",
        minimum=1,
        maximum=8,
    )
    keep_stray: bool = key(False, "keep points that seem to belong to no surface")
    trim: float | None = key(
        None,
        "cut what is farther from the cloud than this many distances from its points to their 8th neighbours; "
        "0: nothing; none: 4, but only where more than a third of the surface is: what closes open scans, not holes",
        minimum=0.0,
    )
    snap: bool | None = key(
        None,
        "bring the surface to the points: by what the field is off there, less what is noise, interpolated between "
        "them; none: of clean clouds and nearly clean ones, for pull only; with noise of more than a sixth to a "
        "quarter of the spacing it stays where it is",
    )
    smallest: float = key(
        0.01,
        "drop parts of the surface with less than this share of the largest one's area; 1 keeps that one alone",
        minimum=0.0,
        maximum=1.0,
    )
    faces: int | None = key(None, "simplify the surface to about this many faces; none: not at all", minimum=4)
    device: str = key("auto", "where to compute", choices=("auto", "cpu", "cuda"))
