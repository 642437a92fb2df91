"""`pointrecon fit`: a cloud to a field and its mesh."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.checkpoint import KIND
from pointrecon.config import MINUTES, Config
from pointrecon.trainer import Trainer
from shared.config import to_yaml
from shared.field import Field
from shared.geometry import Similarity, fit_box
from shared.loop import fit as run_loop
from shared.loop import restore, use_threads, warm_up, warn_if_short, with_length
from shared.mesh import Mesh, keep_components, save_mesh
from shared.meshing import extract_mesh
from shared.pointcloud import read_cloud
from shared.ranks import is_first
from shared.run_folder import check_run, open_run
from shared.runtime import Budget, choose_device

# Parts with less than this share of the largest one's area are specks.
SPECK = 0.01
ENOUGH = 2000  # steps


def fit(config: Config, out: Path, resume: bool = False) -> bool:
    """Fit, or continue to fit, the cloud into folder `out`; returns whether the budget was used up."""
    began = time.monotonic()
    device = choose_device(config.device)
    use_threads(config.train.threads)
    cloud = read_cloud(config.cloud)
    check_run(out, resume)
    print(cloud.summary())
    config = replace(config, train=with_length(config.train, MINUTES))
    to_world = fit_box(cloud.points)
    points = to_world.to_unit(cloud.points)
    # The run must find its cloud from any folder.
    config = adapt(replace(config, cloud=str(Path(config.cloud).resolve())), points)
    trainer = Trainer(config, points, device)
    warm_up(trainer)
    budget = Budget(config.train.steps, config.train.minutes)
    run = open_run(out, resume)
    frame = [to_world.scale, *to_world.translation]
    extra = restore(trainer, run, budget, KIND, frame, config.cloud) if resume else {}
    run.write_config(to_yaml(config))
    extra.update(frame=frame, device=str(device))
    backend = getattr(trainer.field, "backend", "autograd")
    print(f"{out}: {config.field.backbone} field, {backend} backend, {device}, {torch.get_num_threads()} threads")
    finished = run_loop(trainer, run, budget, KIND, config.train.save_seconds, extra)
    if finished and is_first():
        print(f"meshing at {config.train.resolution}^3 cells")
        mesh = field_mesh(trainer.field, to_world, config.train.resolution, device)
        save_mesh(mesh, out / "mesh.ply")
        made = f"{budget.steps} steps in {budget.seconds:.0f} s; this command took {time.monotonic() - began:.0f} s"
        print(f"{out / 'mesh.ply'}: {len(mesh.faces)} faces; {made}")
        warn_if_short(budget.steps, ENOUGH)
    run.close()
    return finished


def adapt(config: Config, points: NDArray[np.float64]) -> Config:
    """The config with the finest grid cell set from the cloud's spacing (points in field space)."""
    if config.train.cell == 0:
        return config
    finest = round(2 / (config.train.cell * spacing(points)))
    return replace(config, field=replace(config.field, finest=int(np.clip(finest, 4 * config.field.base, 1024))))


def spacing(points: NDArray[np.float64], sample: int = 20_000) -> float:
    """Median over a sample of the cloud of the mean distance to the three nearest neighbours."""
    some = points[:: max(1, len(points) // sample)]
    distances, _ = cKDTree(points).query(some, k=[2, 3, 4], workers=torch.get_num_threads())
    return float(np.median(distances.mean(axis=1)))


def field_mesh(field: Field, to_world: Similarity, resolution: int, device: torch.device) -> Mesh:
    """The zero level set in the cloud's frame, with vertex normals, without specks."""

    def sdf(x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        with torch.no_grad():
            return field.sdf(x)

    mesh = keep_components(extract_mesh(sdf, resolution, device=device), SPECK)
    normals = [np.empty((0, 3))]
    for x in torch.from_numpy(mesh.vertices.astype(np.float32)).to(device).split(65536):
        with torch.no_grad():
            gradient = field.geometry(x).gradient
        normals.append(torch.nn.functional.normalize(gradient, dim=1).cpu().numpy().astype(np.float64))
    return replace(mesh, normals=np.concatenate(normals)).to_world(to_world)
