"""`mvrecon train`: photos to a trained field, and its mesh."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mvrecon.checkpoint import KIND
from mvrecon.config import MINUTES, Config
from mvrecon.datasets import load
from mvrecon.mesh import surface_mesh
from mvrecon.render import picture, render_view
from mvrecon.scene import Scene
from mvrecon.trainer import Trainer
from shared.config import to_yaml
from shared.loop import fit, restore, use_threads, warm_up, warn_if_short, with_length
from shared.mesh import save_mesh
from shared.ranks import is_first
from shared.run_folder import check_run, open_run
from shared.runtime import Budget, choose_device

PREVIEW_WIDTH = 200
# From one level of the hash grid to the next the cells shrink by this; finer than FINEST no photo can tell.
GROWTH, FINEST = 1.47, 4096
MESH_RESOLUTION = 512
ENOUGH = 4000  # steps


def train(config: Config, out: Path, resume: bool = False) -> bool:
    """Train, or continue, the run in folder `out`; returns whether it reached the end of its budget."""
    began = time.monotonic()
    device = choose_device(config.device)
    use_threads(config.train.threads)
    check_run(out, resume)
    config = replace(config, train=with_length(config.train, MINUTES))
    scene = load(config.data)
    # The run must find its folders from anywhere.
    cache = str(Path(config.data.cache).resolve()) if config.data.cache else ""
    config = replace(config, data=replace(config.data, root=str(Path(config.data.root).resolve()), cache=cache))
    config = adapt(config, scene)
    trainer = Trainer(config, scene, device)
    warm_up(trainer)
    budget = Budget(config.train.steps, config.train.minutes)
    run = open_run(out, resume)
    frame = _frame(scene)
    extra = restore(trainer, run, budget, KIND, frame, config.data.root) if resume else {}
    if not budget.done:  # nothing more will be trained: what made the run stays
        run.write_config(to_yaml(config))
    extra.update(frame=frame, device=str(device))
    width, height = scene.view_size
    photos = f"{len(scene.train)} photos to train on, {len(scene.test)} held out"
    print(f"{config.data.root}: {photos}, {width}x{height}")
    backend = getattr(trainer.model.field, "backend", "autograd")
    print(f"{out}: {config.field.backbone} field, {backend} backend, {device}, {torch.get_num_threads()} threads")

    def preview(step: int) -> None:
        view = int(scene.test[0] if len(scene.test) else scene.train[0])
        cameras = scene.cameras.select([view]).resized(PREVIEW_WIDTH / scene.cameras.width).to(device)
        run.image("view", step, picture(render_view(trainer.model, trainer.volume, cameras, 0)))

    finished = fit(
        trainer,
        run,
        budget,
        KIND,
        config.train.save_seconds,
        extra,
        preview if is_first() else None,
        config.train.previews,
    )
    if finished and is_first():
        trainer.refresh_volume(1.0)
        preview(budget.steps)
        print(f"meshing at {MESH_RESOLUTION}^3 cells; after an interruption --resume does it")
        mesh = surface_mesh(trainer.model, scene.to_world, MESH_RESOLUTION, device)
        save_mesh(mesh, out / "mesh.ply")
        made = f"{budget.steps} steps in {budget.seconds:.0f} s; this command took {time.monotonic() - began:.0f} s"
        print(f"{out / 'mesh.ply'}: {len(mesh.faces)} faces; {made}")
        warn_if_short(budget.steps, ENOUGH)
    run.close()
    return finished


def adapt(config: Config, scene: Scene) -> Config:
    """The config with the hash grid's levels set from what a pixel covers at the centre of the scene."""
    if config.train.cell == 0:
        return config
    cameras, base = scene.cameras, config.field.base
    pixel = float(np.median(np.linalg.norm(cameras.centres, axis=1) / cameras.intrinsics[:, 0, 0]))
    finest = int(np.clip(round(2 / (config.train.cell * pixel)), 2 * base, FINEST))
    levels = 1 + round(math.log(finest / base) / math.log(GROWTH))
    return replace(config, field=replace(config.field, finest=finest, levels=levels))


def _frame(scene: Scene) -> list[float]:
    return [scene.to_world.scale, *scene.to_world.translation]
