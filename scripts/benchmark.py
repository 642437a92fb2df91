"""What the product costs beside plainer ways of doing the same, each pair timed side by side in one run.

A draft: only `--only encode` has been run yet.

    scripts/benchmark.py --json benchmark.json                 everything but `step` on a real scene
    scripts/benchmark.py --only encode,step --scene SCENE      some parts; SCENE in the DTU layout, with masks

Every figure is the median over repeats on whatever the machine is doing: compare ratios, not milliseconds, between
machines.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import shared  # noqa: F401, I001  (before torch: it sets how its threads wait)
import numpy as np
import torch
from skimage.measure import marching_cubes
from torch import Tensor

from mvrecon.config import Config as PhotoConfig
from mvrecon.config import DataConfig, TrainConfig
from mvrecon.datasets import load
from mvrecon.losses import total_loss
from mvrecon.train import adapt as adapt_to_photos
from mvrecon.trainer import Trainer as PhotoTrainer
from pointrecon.config import MINUTES, FitConfig
from pointrecon.config import Config as CloudConfig
from pointrecon.fit import adapt as adapt_to_cloud
from pointrecon.fit import field_mesh
from pointrecon.trainer import Trainer as CloudTrainer
from scripts.demo_object import demo_object
from scripts.make_scene import make_tiny_scene
from shared.encoding import HashGrid, encode
from shared.field import Field
from shared.geometry import Similarity, fit_box
from shared.loop import use_threads
from shared.mesh import Mesh, is_watertight
from shared.meshing import extract_mesh
from shared.metrics import compare_meshes, sample_surface
from shared.run_folder import atomic_write
from shared.runtime import Budget, peak_memory_mb

CPU = torch.device("cpu")
# What has been measured so far, by name, as it goes into the JSON file.
Figures = dict[str, Any]


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of `run` after one call that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent p of seconds ~ size^p by least squares: 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine() -> Figures:
    """What the floors are computed from: bytes copied and products made a second."""
    source = torch.rand(32_000_000)
    target, matrix = torch.empty_like(source), torch.rand(1024, 1024)
    copied = 2 * source.nbytes / median_seconds(lambda: target.copy_(source), 5)
    products = 2 * 1024**3 / median_seconds(lambda: matrix @ matrix, 10)
    return {"threads": torch.get_num_threads(), "copy_gb_s": copied / 1e9, "matrix_gflop_s": products / 1e9}


def bench_encode(figures: Figures) -> None:
    """Features and Jacobian and both backwards of 65,536 points along rays, 16 levels x 2, 2^19 entries."""
    grid = HashGrid(16, 16, 2048, 19)
    generator = torch.Generator().manual_seed(0)
    start, toward = (torch.rand(512, 1, 3, generator=generator) - 0.5 for _ in range(2))
    x = (start + torch.linspace(-0.5, 0.5, 128)[:, None] * toward).reshape(-1, 3)
    channels = grid.levels * grid.features
    to_features = torch.rand(len(x), channels, generator=generator)
    to_jacobian = torch.rand(len(x), 3, channels, generator=generator)

    def both_ways(backend: str) -> Callable[[], None]:
        table = torch.rand(grid.entries, grid.features, generator=generator).requires_grad_()
        points = x.clone().requires_grad_()

        def run() -> None:
            table.grad = points.grad = None
            features, jacobian = encode(points, table, grid, backend=backend)
            torch.autograd.backward([features, jacobian], [to_features, to_jacobian])

        return run

    seconds = {"cpu": median_seconds(both_ways("cpu"), 7), "reference": median_seconds(both_ways("reference"), 3)}
    # Eight corners of two floats a level, read forward, then read, added to and written backward; and the outputs.
    moved = 4 * (len(x) * grid.levels * 16 * 4 + 2 * (to_features.numel() + to_jacobian.numel()))
    figures["encode"] = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    figures["encode"]["floor_ms"] = 1e-6 * moved / figures["machine"]["copy_gb_s"]
    figures["encode_ratio"] = seconds["reference"] / seconds["cpu"]


def photo_config(scene: Path | None, folder: Path) -> PhotoConfig:
    """The settings of `dtu-mask` for a scene at 400 pixels, or for a small one made here."""
    if scene is None:
        scene = folder / "tiny"
        make_tiny_scene(scene, views=8, size=(400, 300))
    return PhotoConfig(data=DataConfig(root=str(scene)), train=TrainConfig())


def seconds_a_step(trainer: PhotoTrainer, progress: float) -> float:
    """Median over rounds that each hold one refresh of the cached distances."""
    count = trainer.config.sampling.refresh
    return median_seconds(lambda: [trainer.step(progress) for _ in range(count)], 5) / count


def plain_step(trainer: PhotoTrainer) -> Callable[[], None]:
    """A step of the same losses with dense Adam; the trainer's config says how it samples and encodes."""
    model, config = trainer.model, trainer.config
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        batch = trainer.pool.draw(config.train.rays, trainer.generator)
        rendering = model.render(trainer.volume, batch.origins, batch.directions, 0.9, trainer.rand)
        loss, _ = total_loss(config.loss, model.field, batch, rendering, 0.9, trainer.rand)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def bench_step(figures: Figures, scene: Path | None, downscale: int) -> None:
    """A training step of the preset against torch's encoding, NeuS's 64 + 64 samples and dense Adam."""
    with tempfile.TemporaryDirectory() as folder:
        config = photo_config(scene, Path(folder))
        config = replace(config, data=replace(config.data, downscale=downscale))
        photos = load(config.data)
        config = adapt_to_photos(config, photos)
        ours = PhotoTrainer(config, photos, CPU)
        for step in range(300):  # so that there is a surface to sample around
            ours.step(step / 300)
        plain = replace(
            config,
            field=replace(config.field, backend="reference"),
            sampling=replace(config.sampling, source="network", scan=64, importance=64),
        )
        other = PhotoTrainer(plain, photos, CPU)
        other.model.load_state_dict(ours.model.state_dict())
        fast = seconds_a_step(ours, 0.9)
        slow = median_seconds(plain_step(other), 3)
    figures["step"] = {"ours_ms": 1e3 * fast, "plain_ms": 1e3 * slow}
    figures["step_ratio"] = slow / fast


def fitted_field(cloud: np.ndarray, seconds: float) -> tuple[Field, Similarity]:
    """The field and its frame after so long a fit to the cloud (n, 3)."""
    to_world = fit_box(cloud)
    unit = to_world.to_unit(cloud)
    config = adapt_to_cloud(CloudConfig(train=FitConfig()), unit)
    trainer = CloudTrainer(config, unit, CPU)
    budget = Budget(minutes=seconds / 60)
    budget.start()
    while not budget.done:
        trainer.step(budget.progress)
    return trainer.field, to_world


def bench_mesh(figures: Figures, resolution: int) -> None:
    """The surface of a fitted field, coarse to fine, against the whole lattice and scikit-image's marching cubes."""
    cloud, _ = sample_surface(demo_object(), 100_000, seed=0)
    field, _ = fitted_field(cloud, 20)
    asked = 0

    @torch.no_grad()
    def sdf(x: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x)
        return field.sdf(x)

    before = peak_memory_mb()  # of the process so far: run `--only mesh` to see what a mesh adds
    start = time.perf_counter()
    mesh = extract_mesh(sdf, resolution)
    ours = time.perf_counter() - start
    evaluated, memory = asked / (resolution + 1) ** 3, peak_memory_mb() - before
    start = time.perf_counter()
    line = torch.linspace(-1, 1, resolution + 1)
    values = np.empty((resolution + 1,) * 3, np.float32)
    for layer, x in zip(values, line):
        y, z = torch.meshgrid(line, line, indexing="ij")
        layer[:] = sdf(torch.stack([x.expand_as(y), y, z], dim=-1).reshape(-1, 3)).reshape(y.shape).numpy()
    marching_cubes(values, 0.0)
    dense = time.perf_counter() - start
    figures["mesh"] = {
        "resolution": resolution,
        "ours_s": ours,
        "dense_s": dense,
        "evaluated_share": evaluated,
        "extra_memory_mb": memory,
        "watertight": is_watertight(mesh),
    }
    figures["mesh_ratio"] = dense / ours


def bench_poisson(figures: Figures) -> None:
    """`pointrecon fit` of 100,000 points without normals against screened Poisson with estimated normals."""
    import pymeshlab  # an extra: pip install isopull[benchmark]

    truth = demo_object()
    cloud, _ = sample_surface(truth, 100_000, seed=0)
    fitted_field(cloud[::100], 1)  # compiles the kernels before the clock starts
    start = time.perf_counter()
    field, to_world = fitted_field(cloud, 60 * MINUTES)
    mesh = field_mesh(field, to_world, 384, CPU)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    lab = pymeshlab.MeshSet()
    lab.add_mesh(pymeshlab.Mesh(cloud))
    lab.compute_normal_for_point_clouds(k=16)
    lab.generate_surface_reconstruction_screened_poisson(depth=9)
    theirs = time.perf_counter() - start
    poisson = Mesh(lab.current_mesh().vertex_matrix(), lab.current_mesh().face_matrix().astype(np.int64))
    errors = [compare_meshes(m, truth)["chamfer_l1"] for m in (mesh, poisson)]
    figures["poisson"] = {
        "ours_s": ours,
        "poisson_s": theirs,
        "ours_chamfer_l1": errors[0],
        "poisson_chamfer_l1": errors[1],
        "diagonal": float(np.linalg.norm(np.ptp(truth.vertices, axis=0))),
    }
    figures["poisson_time_ratio"], figures["poisson_error_ratio"] = ours / theirs, errors[0] / errors[1]


def growth_row(name: str, sizes: Sequence[float], seconds: Sequence[float]) -> Figures:
    """One row of the growth table: cost at each size, and the exponent between them."""
    return {"what": name, "sizes": list(sizes), "ms": [1e3 * s for s in seconds], "exponent": slope(sizes, seconds)}


def bench_growth(figures: Figures) -> None:
    """A training step, a refresh of the queries and a mesh against what they may depend on."""
    figures["growth"] = [*photo_growth(), cloud_growth(), mesh_growth()]


def photo_growth() -> list[Figures]:
    """Milliseconds a step against rays, samples, table size and number of photos."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = photo_config(None, Path(folder))
        photos = load(config.data)
        config = adapt_to_photos(config, photos)

        def step_seconds(changed: PhotoConfig, scene=photos) -> float:
            trainer = PhotoTrainer(changed, scene, CPU)
            return seconds_a_step(trainer, 0.5)

        rays = [256, 512, 1024, 2048]
        times = [step_seconds(replace(config, train=replace(config.train, rays=n))) for n in rays]
        rows.append(growth_row("step / rays", rays, times))
        samples = [8, 16, 32, 64]
        times = [step_seconds(replace(config, sampling=replace(config.sampling, importance=n - 2))) for n in samples]
        rows.append(growth_row("step / samples a ray", samples, times))
        entries = [15, 17, 19, 21]
        times = [step_seconds(replace(config, field=replace(config.field, log2_entries=n))) for n in entries]
        rows.append(growth_row("step / table entries", [2.0**n for n in entries], times))
        views = [8, 32, 128]
        times = []
        for n in views:
            many = Path(folder) / f"views{n}"
            make_tiny_scene(many, views=n, size=(100, 75))
            scene = load(DataConfig(root=str(many)))
            times.append(step_seconds(config, scene))
        rows.append(growth_row("step / photos", views, times))
    return rows


def cloud_growth() -> Figures:
    """Milliseconds a step of a fit, refreshes of its queries included, against the points of the cloud."""
    truth, times, sizes = demo_object(), [], [10_000, 100_000, 1_000_000]
    for count in sizes:
        cloud, _ = sample_surface(truth, count, seed=0)
        unit = fit_box(cloud).to_unit(cloud)
        trainer = CloudTrainer(adapt_to_cloud(CloudConfig(train=FitConfig()), unit), unit, CPU)
        times.append(median_seconds(lambda t=trainer: [t.step(0.5) for _ in range(20)], 5) / 20)  # type: ignore[misc]
    return growth_row("fit step / points of the cloud", sizes, times)


def mesh_growth() -> Figures:
    """Milliseconds of a mesh of a sphere's analytic distance against the cells of its surface, resolution squared."""
    sizes = [128, 256, 512]
    times = [median_seconds(lambda n=n: extract_mesh(lambda x: x.norm(dim=1) - 0.6, n), 1) for n in sizes]  # type: ignore[misc]
    return growth_row("mesh / resolution squared", [n * n for n in sizes], times)


def show(figures: Figures) -> None:
    """The figures as a table."""
    for name, value in figures.items():
        if isinstance(value, dict):
            print(
                f"{name:20s} "
                + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
            )
        elif isinstance(value, list):
            for row in value:
                cells = ", ".join(f"{size:g}: {ms:.1f} ms" for size, ms in zip(row["sizes"], row["ms"]))
                print(f"{row['what']:32s} {cells}   exponent {row['exponent']:.2f}")
        else:
            print(f"{name:20s} {value:.2f}")


PARTS = ("encode", "step", "mesh", "poisson", "growth")


def main() -> None:
    """Measure the parts asked for, print them, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {', '.join(PARTS)}")
    parser.add_argument("--scene", type=Path, help="a scene in the DTU layout with masks, for `step`")
    parser.add_argument("--downscale", type=int, default=1, help="divide its photos' sides by this")
    parser.add_argument("--resolution", type=int, default=512, help="cells along an edge for `mesh`")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    asked = args.only.split(",")
    if unknown := set(asked) - set(PARTS):
        parser.error(f"--only: unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    use_threads(0)
    figures: Figures = {"machine": machine()}
    run = {
        "encode": lambda: bench_encode(figures),
        "step": lambda: bench_step(figures, args.scene, args.downscale),
        "mesh": lambda: bench_mesh(figures, args.resolution),
        "poisson": lambda: bench_poisson(figures),
        "growth": lambda: bench_growth(figures),
    }
    for part in asked:
        run[part]()
    show(figures)
    if args.json is not None:
        with atomic_write(args.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
