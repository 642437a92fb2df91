"""Every key of `mvrecon train`; the presets in configs/mvrecon are laid over these defaults."""

from dataclasses import dataclass
from typing import ClassVar

from shared.config import Schedule, key
from shared.field import FieldConfig
from shared.optim import OptimConfig

# Length of a run for which none is given.
MINUTES = 10.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The photos."""

    root: str = key("", "folder of the scene")
    format: str = key("dtu", "layout of that folder", choices=("dtu",))
    downscale: int = key(1, "divide the photos' sides by this", minimum=1)
    holdout: tuple[int, ...] = key((), "indices of photos kept out of training, for evaluation", minimum=0)
    cache: str = key(
        "",
        "folder on a fast disk for decoded photos larger than the memory; one copy a process",
    )
    masks: bool = key(True, "use the object masks; without them a background is learnt")


@dataclass(frozen=True, kw_only=True)
class ColorConfig:
    """The colour network."""

    width: int = key(64, "width of the hidden layers", minimum=4)
    layers: int = key(2, "hidden layers", minimum=1)
    levels: int = key(6, "levels of the paint's hash grid, down to the field's finest cells", minimum=1, maximum=32)
    log2_entries: int = key(16, "log2 of the largest number of table entries of a level", minimum=8, maximum=24)


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """The field outside the unit sphere, used without masks."""

    width: int = key(32, "width of the hidden layers", minimum=4)
    samples: int = key(12, "samples a ray", minimum=2)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Where on the rays the network is asked."""

    source: str = key(
        "volume",
        "proposals from cached distances, or by NeuS's up-sampling, which asks the network and has of these keys only "
        "scan and importance",
        choices=("volume", "network"),
    )
    scan: int = key(96, "steps of the first scan along a ray", minimum=8)
    importance: int = key(14, "samples a ray near the surface", minimum=2)
    uniform: int = key(2, "samples a ray spread evenly", minimum=1)
    volume: int = key(128, "cells along an edge of the cached distances, made even", minimum=16)
    # Often while the surface still moves by much of a cell between two of them.
    refresh: Schedule = key(Schedule(0.1, 8.0, 32.0, 0.5), "steps between refreshes of the cached distances", minimum=1)
    band: float = key(
        0.04,
        "they are exact at every node nearer to the surface than this (field units), else at every other",
        minimum=0.0,
    )
    anneal: float = key(
        0.01,
        "fraction of the run, 50 steps at least, until NeuS's slope is exact; 0.2 is better without masks",
        minimum=0.0,
        maximum=1.0,
    )
    sharpest_proposal: Schedule = key(
        Schedule(0.5, 50.0, 150.0, 1.0), "largest 1/s that proposals are drawn with", minimum=1.0
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights; each may be a number or [p0, v0, v1, p1] over the progress of the run."""

    eikonal: Schedule = key(Schedule(0.1), "gradients of length one", minimum=0.0)
    mask: Schedule = key(Schedule(0.1), "opacity agrees with the masks", minimum=0.0)
    opacity: Schedule = key(
        Schedule(0.4, 0.05, 0.0, 0.8), "without masks: nothing shines through the unit sphere", minimum=0.0
    )
    alignment: Schedule = key(Schedule(0.0), "level set alignment", minimum=0.0)
    alignment_samples: int = key(1, "samples a ray for the alignment", minimum=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run."""

    minutes: float | None = key(None, f"length of the run in minutes; {MINUTES:g} without steps", minimum=1e-3)
    steps: int | None = key(None, "length of the run in steps", minimum=1)
    rays: int = key(512, "rays a step", minimum=1)
    cell: float = key(0.72, "finest cell in pixels, sets field.finest and field.levels; 0 keeps them", minimum=0.0)
    mask_share: float = key(0.9, "share of rays near the masks", minimum=0.0, maximum=1.0)
    save_seconds: float = key(60.0, "seconds between checkpoints", minimum=0.0)
    previews: int = key(4, "pictures of a held-out view during the run", minimum=0)
    seed: int = key(0, "seed of everything random", minimum=0, maximum=2**63 - 1)
    threads: int = key(
        0, "CPU threads, no more than cores; 0: every core, or as many as OMP_NUM_THREADS says", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run of `mvrecon train`."""

    PROGRAM: ClassVar[str] = "mvrecon"
    data: DataConfig = DataConfig()
    field: FieldConfig = FieldConfig(levels=10, finest=512, first_levels=7, open_levels=0.25)
    color: ColorConfig = ColorConfig()
    background: BackgroundConfig = BackgroundConfig()
    sampling: SamplingConfig = SamplingConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    device: str = key("auto", "where to compute", choices=("auto", "cpu", "cuda"))
