"""`pointrecon fit`: a cloud to a field and its mesh; of large clouds, if that is asked, to a field for each tile."""

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pointrecon.adapt import adapt
from pointrecon.checkpoint import KIND, is_finished, load_run, tiles_of
from pointrecon.config import MINUTES, Config
from pointrecon.orientation import consistent, looks_inward
from pointrecon.surface import finished_mesh, load_cloud, mesh_resolution
from pointrecon.survey import survey
from pointrecon.thin import thin
from pointrecon.tiles import Guide, cut, guide
from pointrecon.trainer import Trainer
from shared.config import Schedule, read_config, to_yaml
from shared.errors import UserError
from shared.field import FieldLike
from shared.geometry import Similarity, fit_box
from shared.loop import fit as run_loop
from shared.loop import restore, use_threads, warm_up, warn_if_short, with_length
from shared.mesh import save_mesh
from shared.pointcloud import PointCloud
from shared.ranks import is_first
from shared.run_folder import atomic_write, check_run, open_run
from shared.runtime import Budget, choose_device

ENOUGH = 1500  # steps
DEEP = 1.0  # radius of the sphere that a tile's field starts as: it can become no deeper for long


class Fitted(NamedTuple):
    """What came of a run: whether its budget is used up, its config with nothing left open, its field, its budget."""

    finished: bool
    config: Config
    field: FieldLike
    budget: Budget


def fit(config: Config, out: Path, resume: bool = False) -> bool:
    """Fit, or continue to fit, the cloud into folder `out`; returns whether the budget was used up."""
    began = time.monotonic()
    if config.tiles > 1 and config.loss.objective != "pull":
        raise UserError(f"--tiles {config.tiles}: is for the objective pull; leave one of the two out")
    device = choose_device(config.device)
    use_threads(config.train.threads)
    check_run(out, resume)
    if resume and config.tiles > 1 and not _asked_file(out, config).is_file():
        raise UserError(f"{out}: was made with another --tiles; leave it as it was, or choose another --out")
    # The run must find its cloud from any folder.
    path = str(Path(config.cloud).resolve())
    config = replace(config, cloud=path, train=with_length(config.train, MINUTES))
    cloud = load_cloud(config)
    print(cloud.summary())
    to_world = fit_box(cloud.points)
    cloud = replace(cloud, normals=trusted_normals(cloud, config))
    if cloud.normals is not None:
        inward = looks_inward(to_world.to_unit(cloud.points), cloud.normals)
        config = replace(config, field=replace(config.field, inside_out=inward))
    whole = fit_field(config, thin(cloud), to_world, out, resume, device)
    finished = whole.finished and (config.tiles == 1 or fit_tiles(whole, cloud, to_world, out, device))
    if finished and is_first():
        print(f"meshing at {mesh_resolution(whole.config)}^3 cells; after an interruption --resume does it")
        field = whole.field if config.tiles == 1 else load_run(out, device.type).field
        mesh = finished_mesh(field, to_world, cloud, whole.config, device)
        save_mesh(mesh, out / "mesh.ply")
        made = f"{whole.budget.steps} steps in {whole.budget.seconds:.0f} s"
        made += "" if config.tiles == 1 else ", and as long for each tile"
        print(
            f"{out / 'mesh.ply'}: {len(mesh.faces)} faces; {made}; this command took {time.monotonic() - began:.0f} s"
        )
        warn_if_short(whole.budget.steps, ENOUGH)
    return finished


def fit_field(
    asked: Config,
    cloud: PointCloud,
    to_world: Similarity,
    out: Path,
    resume: bool,
    device: torch.device,
    known: Guide | None = None,
) -> Fitted:
    """Make, or continue, the run in folder `out` in the box of `to_world`."""
    points = to_world.to_unit(cloud.points)
    found = survey(points)
    spacing, noise = found.spacing * to_world.scale, found.noise * to_world.scale
    kind = "noisy" if found.noisy else "nearly clean" if found.nearly_clean else "clean"
    print(f"points {spacing:.3g} apart, noise {noise:.2g}: a {kind} cloud")
    config = adapt(asked, found)
    trainer = Trainer(config, points, device, cloud.normals, known)
    if known is None:  # else the whole has prepared them
        warm_up(trainer)
    budget = Budget(config.train.steps, config.train.minutes)
    run = open_run(out, resume)
    if known is not None:
        run.main = out.parents[2]  # RUN/tiles/COUNT/NAME
    frame = [to_world.scale, *to_world.translation]
    extra = restore(trainer, run, budget, KIND, frame, config.cloud) if resume else {}
    if asked.tiles > 1 and not resume and is_first():
        with atomic_write(_asked_file(out, asked), "w") as file:
            file.write(to_yaml(asked))
    run.write_config(to_yaml(config))
    extra.update(frame=frame, device=str(device))
    backend = getattr(trainer.field, "backend", "autograd")
    print(f"{out}: {config.field.backbone} field, {backend} backend, {device}, {torch.get_num_threads()} threads")
    finished = run_loop(trainer, run, budget, KIND, config.train.save_seconds, extra)
    run.close()
    return Fitted(finished, config, trainer.field, budget)


def fit_tiles(whole: Fitted, cloud: PointCloud, to_world: Similarity, out: Path, device: torch.device) -> bool:
    """Make, or continue, the runs of the cloud's tiles; returns whether all are finished.

    Each is an ordinary run in the box of its cube, whose settings follow from its points. What encloses them, and what
    goes on beyond rims, it has from the field of the whole.
    """
    asked = read_config(Config, _asked_file(out, whole.config), [])
    tiles = list(cut(cloud.points, to_world, whole.config.tiles))
    folders = [tiles_of(out, whole.config.tiles) / tile.name for tile in tiles]
    for folder in folders:  # so that whoever reads the run knows of those that are still to come
        folder.mkdir(parents=True, exist_ok=True)
    for number, (tile, folder) in enumerate(zip(tiles, folders), 1):
        if is_finished(folder, whole.config):
            continue
        print(f"tile {number} of {len(tiles)}")
        known = guide(whole.field, 2 / whole.config.field.finest, to_world, tile)
        part = thin(cloud.rows(tile.holds(cloud.points)))
        its = _for_tile(asked, whole.config, tile.to_world.scale / to_world.scale)
        made = fit_field(its, part, tile.to_world, folder, (folder / "config.yaml").is_file(), device, known)
        if not made.finished:
            return False
    return True


def _for_tile(asked: Config, whole: Config, scale: float) -> Config:
    """What the run of a tile is asked for, whose box is `scale` times that of the whole."""
    loss = replace(asked.loss, enclosed=False, sides=False, hole=Schedule(0.0))
    lengths = {name: getattr(loss, name) for name in ("softness", "bilateral")}
    loss = replace(loss, **{name: length and length / scale for name, length in lengths.items()})
    train = replace(asked.train, minutes=whole.train.minutes, steps=whole.train.steps)
    return replace(asked, tiles=1, loss=loss, train=train, field=replace(asked.field, radius=DEEP))


def _asked_file(out: Path, config: Config) -> Path:
    """The config of a run with tiles as it was asked for: what is open in it follows from the points of each."""
    return tiles_of(out, config.tiles) / "asked.yaml"


def trusted_normals(cloud: PointCloud, config: Config) -> NDArray[np.float64] | None:
    """The cloud's normals if it has any that agree and the config wants them, with a word about it."""
    unwanted = config.loss.normal is not None and not any(config.loss.normal.values)
    if cloud.normals is None or unwanted:
        return None
    trusted = consistent(cloud.points, cloud.normals)
    print("normals: used" if trusted else "normals: not used, they look to both sides of the surface")
    return cloud.normals if trusted else None
