"""What the product costs beside plainer ways of doing the same, each pair timed side by side in one run.

    scripts/benchmark.py --json benchmark.json --plots docs     every part, and the plots of the growth table
    scripts/benchmark.py --only encode,step --scene SCENE       some parts; SCENE in the DTU layout, with masks

Figures of less than some seconds are medians over repeats; what takes longer (a whole lattice, a fit) is done once, and
so says what the machine was doing then. Compare ratios, not milliseconds, between machines. A floor is the time that
the machine, at the copy bandwidth and matrix rate measured first, would need for the bytes and products that cannot be
avoided.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import shared  # noqa: F401, I001  (before torch: it sets how its threads wait)
import numpy as np
import torch
from skimage.measure import marching_cubes
from torch import Tensor

from mvrecon.config import Config as PhotoConfig
from mvrecon.config import DataConfig
from mvrecon.datasets import load
from mvrecon.evaluate import image_figures
from mvrecon.mesh import surface_mesh
from mvrecon.scene import Scene
from mvrecon.train import adapt as adapt_to_photos
from mvrecon.trainer import Trainer as PhotoTrainer
from pointrecon.config import MINUTES
from pointrecon.config import Config as CloudConfig
from pointrecon.adapt import adapt as adapt_to_cloud
from pointrecon.surface import field_mesh
from pointrecon.survey import survey
from pointrecon.trainer import Trainer as CloudTrainer
from scripts.demo_object import demo_object
from scripts.growth import growth, large_cloud, plot_growth, step_seconds
from scripts.make_scene import make_tiny_scene
from scripts.timing import Figures, Phases, encode_bytes, floor_ms, machine, median_seconds, peak_memory
from shared.encoding import HashGrid, encode
from shared.field import Field, GridField
from shared.geometry import Similarity, fit_box
from shared.lazy_adam import TableAdam
from shared.loop import use_threads
from shared.mesh import Mesh, is_watertight
from shared.meshing import extract_mesh
from shared.metrics import compare_meshes, point_to_mesh, sample_surface
from shared.pointcloud import read_cloud
from shared.run_folder import atomic_write
from shared.runtime import Budget

CPU = torch.device("cpu")


def bench_encode(figures: Figures, args: argparse.Namespace) -> None:
    """Features and Jacobian and both backwards of 65,536 points along rays, 16 levels x 2, 2^19 entries."""
    grid = HashGrid(16, 16, 2048, 19)
    generator = torch.Generator().manual_seed(0)
    start, toward = (torch.rand(512, 1, 3, generator=generator) - 0.5 for _ in range(2))
    x = (start + torch.linspace(-0.5, 0.5, 128)[:, None] * toward).reshape(-1, 3)
    channels = grid.levels * grid.features
    upstream = [torch.rand(len(x), *shape, generator=generator) for shape in ((channels,), (3, channels))]

    def once(backend: str, device: str) -> Callable[[], None]:
        """One pass forward and backward, to be timed."""
        table = torch.rand(grid.entries, grid.features, generator=generator).to(device).requires_grad_()
        points, gradients = x.to(device).requires_grad_(), [t.to(device) for t in upstream]

        def run() -> None:
            table.grad = points.grad = None
            torch.autograd.backward(encode(points, table, grid, backend=backend), gradients)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    seconds = {"cpu": median_seconds(once("cpu", "cpu"), 7), "reference": median_seconds(once("reference", "cpu"), 3)}
    if torch.cuda.is_available():
        seconds["triton"] = median_seconds(once("triton", "cuda"), 20)
        seconds["reference_cuda"] = median_seconds(once("reference", "cuda"), 5)
    figures["encode"] = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    figures["encode"]["cpu_floor_ms"] = floor_ms(figures, encode_bytes(len(x), grid, backward=True))
    figures["encode_ratio"] = seconds["reference"] / seconds["cpu"]


def photo_scene(args: argparse.Namespace, folder: str) -> tuple[PhotoConfig, Scene]:
    """The settings of `dtu-mask` for the scene asked for, or for a bumpy ball seen from 24 sides."""
    root, holdout = args.scene, args.holdout
    if root is None:
        root, holdout = Path(folder) / "ball", (3, 11, 19)
        make_tiny_scene(root, views=24, size=(400, 300))
    config = PhotoConfig(data=DataConfig(root=str(root), downscale=args.downscale, holdout=holdout))
    photos = load(config.data)
    return adapt_to_photos(config, photos), photos


def plainly(config: PhotoConfig, backend: str) -> PhotoConfig:
    """The same run with NeuS's own sampling, 64 + 64, every distance asked of the network."""
    sampling = replace(config.sampling, source="network", scan=64, importance=64)
    return replace(config, field=replace(config.field, backend=backend), sampling=sampling)


def use_dense_adam(trainer: PhotoTrainer) -> None:
    """Put torch's Adam in the place of the lazy one."""
    for index, ours in enumerate(trainer.optimisers._all):
        if isinstance(ours, TableAdam):
            tables = [p for group in ours.param_groups for p in group["params"]]
            dense = torch.optim.Adam(tables, lr=ours.param_groups[0]["lr"], betas=(0.9, 0.99), eps=1e-15)
            trainer.optimisers._all[index] = dense


def phases_of(trainer: PhotoTrainer, progress: float, steps: int) -> Figures:
    """Milliseconds a step by part: the parts of a step, and of these the refresh and the optimisers."""
    model, optimisers = trainer.model, trainer.optimisers
    with Phases() as phases:
        phases.watch(trainer, "_refresh", "cached distances")
        phases.watch(trainer.pool, "draw", "rays")
        phases.watch(model, "_sections", "proposals")
        phases.watch(model.field, "geometry", "field forward")
        phases.watch(model, "_fused" if model._can_fuse else "_composited", "opacity and colour forward")
        phases.watch(optimisers, "step", "backward")
        for index, optimiser in enumerate(optimisers._all):
            phases.watch(optimiser, "step", f"optimiser {index}")
        phases.watch(trainer, "step", "total")
        for _ in range(steps):
            trainer.step(progress)
    ms = {name: 1e3 * seconds / steps for name, seconds in phases.seconds.items()}
    ms["optimisers"] = sum(ms.pop(name) for name in list(ms) if name.startswith("optimiser "))
    ms["backward"] -= ms["optimisers"]
    ms["rest"] = 2 * ms["total"] - sum(ms.values())
    return ms


def bench_step(figures: Figures, args: argparse.Namespace) -> None:
    """A training step of the preset against torch's encoding, NeuS's 64 + 64 samples and dense Adam."""
    progress = 0.9
    with tempfile.TemporaryDirectory() as folder:
        config, photos = photo_scene(args, folder)
        ours = PhotoTrainer(config, photos, CPU)
        for step in range(300):  # so that there is a surface to sample around
            ours.step(step / 300)
        plain = PhotoTrainer(plainly(config, "reference"), photos, CPU)
        plain.model.load_state_dict(ours.model.state_dict())
        use_dense_adam(plain)
        fast, slow = step_seconds(ours, progress), median_seconds(lambda: plain.step(progress), 3)
        parts = {"ours": phases_of(ours, progress, 64), "plain": phases_of(plain, progress, 2)}
    grid = ours.model.field.grid
    assert isinstance(grid, HashGrid)
    points = config.train.rays * (config.sampling.importance + config.sampling.uniform)
    # Forward, its slopes, and the backward of both through both layers.
    layers = config.field.width * (3 + 2 * grid.levels + 1 + config.field.feature)
    floor = floor_ms(figures, encode_bytes(points, grid, backward=True), 6 * points * layers)
    figures["step"] = {"ours_ms": 1e3 * fast, "plain_ms": 1e3 * slow, "floor_ms": floor, **parts}
    figures["step_ratio"] = slow / fast


def trained(config: PhotoConfig, photos: Scene, steps: int, dense: bool) -> PhotoTrainer:
    """So many steps from the beginning."""
    trainer = PhotoTrainer(config, photos, CPU)
    if dense:
        use_dense_adam(trainer)
    for step in range(steps):
        trainer.step(step / steps)
    trainer.finish()
    trainer.refresh_volume(1.0)
    return trainer


def bench_quality(figures: Figures, args: argparse.Namespace) -> None:
    """Equal steps, ours against NeuS's sampling and dense Adam (with our encoding, whose results are the same): PSNR of
    held-out views and the distance from points on the surface, a mean over seeds."""
    with tempfile.TemporaryDirectory() as folder:
        config, photos = photo_scene(args, folder)
        points = read_cloud(args.points or Path(config.data.root) / "mesh.ply").points
        rows: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for seed in range(args.seeds):
            seeded = replace(config, train=replace(config.train, seed=seed))
            for name in rows:
                plain = name == "plain"
                trainer = trained(plainly(seeded, "auto") if plain else seeded, photos, args.steps, plain)
                run = SimpleNamespace(model=trainer.model, volume=trainer.volume, device=CPU)
                mesh = surface_mesh(trainer.model, photos.to_world, 384, CPU)
                distance = float(point_to_mesh(points, mesh)[0].mean())
                rows[name].append((image_figures(run, photos)["psnr_masked"], distance))  # type: ignore[arg-type]
    figures["quality"] = {"steps": args.steps, "seeds": args.seeds}
    for name, found in rows.items():
        psnr, distance = np.mean(found, axis=0)
        figures["quality"] |= {f"{name}_psnr_masked": float(psnr), f"{name}_points_to_surface": float(distance)}


def fitted_field(cloud: np.ndarray, seconds: float) -> tuple[Field, Similarity]:
    """The field and its frame after so long a fit to the cloud (n, 3)."""
    to_world = fit_box(cloud)
    unit = to_world.to_unit(cloud)
    trainer = CloudTrainer(adapt_to_cloud(CloudConfig(), survey(unit)), unit, CPU)
    budget = Budget(minutes=seconds / 60)
    budget.start()
    while not budget.done:
        trainer.step(budget.progress)
    trainer.finish()
    return trainer.field, to_world


def bench_mesh(figures: Figures, args: argparse.Namespace) -> None:
    """The surface of a fitted field, coarse to fine, against the whole lattice and scikit-image's marching cubes."""
    resolution = args.resolution
    cloud, _ = sample_surface(demo_object(), 100_000, seed=0)
    field, _ = fitted_field(cloud, 20)
    asked = 0

    @torch.no_grad()
    def sdf(x: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x)
        return field.sdf(x)

    extract_mesh(sdf, 32)  # compiles what is not compiled yet
    result: Figures = {"resolution": resolution}
    asked = 0
    with peak_memory(result, "extra_memory_mb"):
        mesh = extract_mesh(sdf, resolution)
    evaluated, ours = asked, median_seconds(lambda: extract_mesh(sdf, resolution), 3)
    start = time.perf_counter()
    line = torch.linspace(-1, 1, resolution + 1)
    values = np.empty((resolution + 1,) * 3, np.float32)
    for layer, x in zip(values, line):
        y, z = torch.meshgrid(line, line, indexing="ij")
        layer[:] = sdf(torch.stack([x.expand_as(y), y, z], dim=-1).reshape(-1, 3)).reshape(y.shape).numpy()
    marching_cubes(values, 0.0)
    dense = time.perf_counter() - start
    assert isinstance(field, GridField)
    products = evaluated * field.config.width * (4 + 2 * field.grid.levels)
    floor = floor_ms(figures, evaluated * field.grid.levels * 8 * 2 * 4, products)
    share = evaluated / (resolution + 1) ** 3
    result |= {"ours_s": ours, "dense_s": dense, "floor_s": 1e-3 * floor, "evaluated_share": share}
    figures["mesh"] = {**result, "watertight": is_watertight(mesh)}
    figures["mesh_ratio"] = dense / ours


def bench_poisson(figures: Figures, args: argparse.Namespace) -> None:
    """`pointrecon fit --snap false` of 100,000 points without normals against screened Poisson with estimated ones."""
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
    found = [compare_meshes(m, truth) for m in (mesh, poisson)]
    diagonal = float(np.linalg.norm(np.ptp(truth.vertices, axis=0)))
    figures["poisson"] = {"ours_s": ours, "poisson_s": theirs}
    for name, rows in zip(("ours", "poisson"), found):
        percent, normals = 100 * rows["chamfer_l1"] / diagonal, rows["normal_consistency"]
        figures["poisson"] |= {f"{name}_chamfer_l1_percent": percent, f"{name}_normal_consistency": normals}
    figures["poisson_time_ratio"] = ours / theirs
    figures["poisson_error_ratio"] = found[0]["chamfer_l1"] / found[1]["chamfer_l1"]


def bench_growth(figures: Figures, args: argparse.Namespace) -> None:
    """A training step of either door and a mesh against what they may depend on."""
    figures["growth"] = growth()


def bench_memory(figures: Figures, args: argparse.Namespace) -> None:
    """One whole fit of five million points."""
    figures["memory"] = large_cloud(5_000_000)


def show(figures: Figures, indent: str = "") -> None:
    """The figures as a table."""
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        elif isinstance(value, list):
            for row in value:
                cells = ", ".join(f"{size:g}: {ms:.1f} ms" for size, ms in zip(row["sizes"], row["ms"]))
                print(f"{indent}{row['what']:34s} {cells}   exponent {row['exponent']:.2f}")
        else:
            print(f"{indent}{name:{34 - len(indent)}s} {f'{value:.4g}' if isinstance(value, float) else value}")


PARTS = {
    "encode": bench_encode,
    "step": bench_step,
    "quality": bench_quality,
    "mesh": bench_mesh,
    "poisson": bench_poisson,
    "growth": bench_growth,
    "memory": bench_memory,
}


def main() -> None:
    """Measure the parts asked for, print them, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {', '.join(PARTS)}")
    parser.add_argument("--scene", type=Path, help="a scene in the DTU layout with masks, for `step` and `quality`")
    parser.add_argument("--downscale", type=int, default=1, help="divide its photos' sides by this")
    parser.add_argument("--holdout", default="", help="its held-out views, for `quality`: 8,24,40")
    parser.add_argument("--points", type=Path, help="points on its surface, for `quality` (default: SCENE/mesh.ply)")
    parser.add_argument("--steps", type=int, default=3000, help="length of the runs of `quality`")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind of `quality`")
    parser.add_argument("--resolution", type=int, default=512, help="cells along an edge for `mesh`")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--plots", type=Path, help="folder for growth.png")
    args = parser.parse_args()
    args.holdout = tuple(int(view) for view in args.holdout.split(",") if view)
    asked = args.only.split(",")
    if unknown := set(asked) - set(PARTS):
        parser.error(f"--only: unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if "quality" in asked and args.scene is not None and not args.holdout:
        parser.error("quality: needs held-out views of the scene; give --holdout, for instance 8,24,40")
    use_threads(0)
    figures: Figures = {"machine": machine()}
    show(figures)
    for part in asked:
        PARTS[part](figures, args)
        show({name: value for name, value in figures.items() if name.startswith(part)})
        if args.json is not None:  # after each part: an interrupted benchmark keeps what it has
            with atomic_write(args.json, "w") as file:
                json.dump(figures, file, indent=2)
    if args.plots is not None and "growth" in figures:
        plot_growth(figures["growth"], args.plots / "growth.png")


if __name__ == "__main__":
    main()
