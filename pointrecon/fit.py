"""`pointrecon fit`: a cloud to a field and its mesh."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pointrecon.adapt import adapt
from pointrecon.checkpoint import KIND
from pointrecon.config import MINUTES, Config
from pointrecon.orientation import consistent, looks_inward
from pointrecon.surface import finished_mesh, load_cloud
from pointrecon.survey import survey
from pointrecon.trainer import Trainer
from shared.config import to_yaml
from shared.geometry import fit_box
from shared.loop import fit as run_loop
from shared.loop import restore, use_threads, warm_up, warn_if_short, with_length
from shared.mesh import save_mesh
from shared.pointcloud import PointCloud
from shared.ranks import is_first
from shared.run_folder import check_run, open_run
from shared.runtime import Budget, choose_device

ENOUGH = 2000  # steps


def fit(config: Config, out: Path, resume: bool = False) -> bool:
    """Fit, or continue to fit, the cloud into folder `out`; returns whether the budget was used up."""
    began = time.monotonic()
    device = choose_device(config.device)
    use_threads(config.train.threads)
    check_run(out, resume)
    # The run must find its cloud from any folder.
    path = str(Path(config.cloud).resolve())
    config = replace(config, cloud=path, train=with_length(config.train, MINUTES))
    cloud = load_cloud(config)
    print(cloud.summary())
    to_world = fit_box(cloud.points)
    points = to_world.to_unit(cloud.points)
    found = survey(points)
    spacing, noise = found.spacing * to_world.scale, found.noise * to_world.scale
    print(f"points {spacing:.3g} apart, noise {noise:.2g}: a {'noisy' if found.noisy else 'clean'} cloud")
    normals = trusted_normals(cloud, config)
    if normals is not None:
        config = replace(config, field=replace(config.field, inside_out=looks_inward(points, normals)))
    config = adapt(config, found)
    trainer = Trainer(config, points, device, normals)
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
        print(f"meshing at {config.train.resolution}^3 cells; after an interruption --resume does it")
        mesh = finished_mesh(trainer.field, to_world, cloud, config, device)
        save_mesh(mesh, out / "mesh.ply")
        made = f"{budget.steps} steps in {budget.seconds:.0f} s; this command took {time.monotonic() - began:.0f} s"
        print(f"{out / 'mesh.ply'}: {len(mesh.faces)} faces; {made}")
        warn_if_short(budget.steps, ENOUGH)
    run.close()
    return finished


def trusted_normals(cloud: PointCloud, config: Config) -> NDArray[np.float64] | None:
    """The cloud's normals if it has any that agree and the config wants them, with a word about it."""
    unwanted = config.loss.normal is not None and not any(config.loss.normal.values)
    if cloud.normals is None or unwanted:
        return None
    trusted = consistent(cloud.points, cloud.normals)
    print("normals: used" if trusted else "normals: not used, they look to both sides of the surface")
    return cloud.normals if trusted else None
