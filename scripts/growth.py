"""How costs grow with what they may depend on: the growth rows of scripts/benchmark.py."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvrecon.config import Config as PhotoConfig
from mvrecon.config import DataConfig
from mvrecon.datasets import load
from mvrecon.train import adapt
from mvrecon.trainer import Trainer
from pointrecon.adapt import adapt as adapt_to_cloud
from pointrecon.config import Config as CloudConfig
from pointrecon.survey import survey
from pointrecon.trainer import Trainer as CloudTrainer
from scripts.demo_object import demo_object
from scripts.make_scene import make_tiny_scene
from scripts.timing import Figures, exponent, median_seconds
from shared.geometry import fit_box
from shared.meshing import extract_mesh
from shared.metrics import sample_surface
from shared.run_folder import atomic_write

CPU = torch.device("cpu")


def growth() -> list[Figures]:
    """A training step of either door and a mesh against what they may depend on."""
    return [*photo_rows(), cloud_row(), mesh_row()]


def row(what: str, sizes: Sequence[float], cost: Callable[[Any], float]) -> Figures:
    """One row of the growth table: seconds at each size, and the exponent between them."""
    seconds = [cost(size) for size in sizes]
    return {"what": what, "sizes": list(sizes), "ms": [1e3 * s for s in seconds], "exponent": exponent(sizes, seconds)}


def step_seconds(trainer: Trainer, progress: float = 0.5, rounds: int = 5) -> float:
    """Median over rounds that each hold one refresh of the cached distances."""
    count = round(trainer.config.sampling.refresh(progress))
    return median_seconds(lambda: [trainer.step(progress) for _ in range(count)], rounds) / count


def photo_rows() -> list[Figures]:
    """A step of `mvrecon train` against rays, samples, table size and number of photos."""
    with tempfile.TemporaryDirectory() as folder:

        def scene(views: int, size: tuple[int, int]):
            root = Path(folder) / f"{views}_{size[0]}"
            make_tiny_scene(root, views=views, size=size)
            return load(DataConfig(root=str(root)))

        photos = scene(8, (400, 300))
        config = adapt(PhotoConfig(), photos)

        def cost(section: str, key: str, value: int) -> float:
            changed = replace(config, **{section: replace(getattr(config, section), **{key: value})})
            return step_seconds(Trainer(changed, photos, CPU))

        return [
            row("step / rays", [256, 512, 1024, 2048], lambda n: cost("train", "rays", n)),
            row("step / samples a ray", [8, 16, 32, 64], lambda n: cost("sampling", "importance", n - 2)),
            row(
                "step / table entries of a level",
                [2.0**15, 2.0**17, 2.0**19, 2.0**21],
                lambda n: cost("field", "log2_entries", int(np.log2(n))),
            ),
            row("step / photos", [8, 32, 128], lambda n: step_seconds(Trainer(config, scene(n, (100, 75)), CPU))),
        ]


def cloud_row() -> Figures:
    """A step of `pointrecon fit`, renewals of its queries included, against the points of the cloud."""
    truth = demo_object()

    def cost(count: int) -> float:
        cloud, _ = sample_surface(truth, count, seed=0)
        unit = fit_box(cloud).to_unit(cloud)
        trainer = CloudTrainer(adapt_to_cloud(CloudConfig(), survey(unit)), unit, CPU)
        return median_seconds(lambda: [trainer.step(0.5) for _ in range(20)], 5) / 20

    return row("fit step / points of the cloud", [10_000, 100_000, 1_000_000, 5_000_000], cost)


def mesh_row() -> Figures:
    """A mesh of a sphere's analytic distance against the cells of its surface, resolution squared."""

    def cost(cells: int) -> float:
        return median_seconds(lambda: extract_mesh(lambda x: x.norm(dim=1) - 0.6, round(cells**0.5)), 5)

    return row("mesh / resolution squared", [128**2, 256**2, 512**2, 1024**2], cost)


def large_cloud(points: int) -> Figures:
    """Wall time and peak memory of one whole `pointrecon fit` of so many points, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        cloud, _ = sample_surface(demo_object(), points, seed=0)
        path, out = Path(folder) / "cloud.npy", Path(folder) / "run"
        np.save(path, cloud.astype(np.float32))
        line = [sys.executable, "-m", "pointrecon", "fit", str(path), "--out", str(out)]
        start = os.times().elapsed
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[1])
        _, status, used = os.wait4(process.pid, 0)
        seconds = os.times().elapsed - start
        if status:
            raise SystemExit(f"{' '.join(line)}: failed")
        steps = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return {"points": points, "seconds": seconds, "steps": steps, "peak_memory_mb": used.ru_maxrss / 1024}


def plot_growth(rows: list[Figures], path: Path) -> None:
    """One small plot a row: cost against size, both logarithmic, beside a line of linear growth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for axis, row in zip(axes.flat, rows):
        sizes, ms = np.array(row["sizes"]), np.array(row["ms"])
        axis.loglog(sizes, ms, "o-", label=f"measured, exponent {row['exponent']:.2f}")
        axis.loglog(sizes, ms[0] * sizes / sizes[0], ":", color="grey", label="linear")
        axis.set(title=row["what"], ylabel="ms")
        axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
        for minor in (axis.xaxis, axis.yaxis):  # their labels overlap
            minor.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
