"""Fields of tiles: cubes, how they fade into each other, what the whole tells them, and whole fits of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_commands import SMALL_FIT
from torch import Tensor

import pointrecon
from pointrecon.adapt import adapt
from pointrecon.commands import main
from pointrecon.config import Config
from pointrecon.fit import _for_tile
from pointrecon.survey import Survey
from pointrecon.tiles import FEWEST, FILLED, Guide, TiledField, cut, fading, guide
from pointrecon.trainer import Trainer
from shared.config import read_config
from shared.field import Geometry
from shared.geometry import Similarity, fit_box
from shared.mesh import component_count, is_watertight, load_mesh
from shared.run_folder import Run

pytestmark = pytest.mark.usefixtures("one_thread")


class Ball:
    """Exact distances to a ball of the world, in the box of a similarity; off by some length of the world."""

    def __init__(self, to_world: Similarity, radius: float, off: float = 0.0) -> None:
        self.scale, self.centre = to_world.scale, torch.tensor(to_world.translation, dtype=torch.float32)
        self.radius, self.off = radius, off

    def sdf(self, x: Tensor, active: int | None = None) -> Tensor:
        return ((x * self.scale + self.centre).norm(dim=1) - self.radius + self.off) / self.scale

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        return Geometry(self.sdf(x), F.normalize(x * self.scale + self.centre, dim=1), x[:, :0])


def ball(count: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return 5 * points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_cubes_cover_the_cloud_and_count_as_one(count: int) -> None:
    points = np.random.default_rng(1).uniform(-1, 1, (40_000, 3)) * [5, 5, 2] + 100
    to_world = fit_box(points)
    tiles = list(cut(points, to_world, count))
    assert len({tile.name for tile in tiles}) == len(tiles) == {1: 1, 2: 4, 3: 18}[count]
    assert all(tile.holds(points).sum() >= FEWEST for tile in tiles)
    assert np.any([tile.holds(points) for tile in tiles], axis=0).all()
    total = sum(fading(torch.from_numpy(tile.to_world.to_unit(points))) for tile in tiles)
    torch.testing.assert_close(torch.as_tensor(total), torch.ones(len(points), dtype=torch.float64))


def test_a_field_fades_before_its_points_end() -> None:
    x = torch.tensor([[0.5, 0, 0], [0, FILLED, 0], [0, 0, 2.0], [0.75, 0, 0], [0.75, 0.75, 0]])
    torch.testing.assert_close(fading(x), torch.tensor([1, 0, 0, 0.5, 0.25]))


def test_exact_parts_make_an_exact_whole() -> None:
    points = ball(20_000)
    to_world = fit_box(points)
    parts = [(Ball(tile.to_world, 5), tile.to_world) for tile in cut(points, to_world, 2)]
    assert len(parts) == 8
    x = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (500, 3)).astype(np.float32))
    exact = Ball(to_world, 5).geometry(x)
    found = TiledField(Ball(to_world, 5), to_world, parts).geometry(x)
    torch.testing.assert_close(found.sdf, exact.sdf, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.gradient, exact.gradient, atol=1e-5, rtol=0)
    assert found.feature.shape == (500, 0)


def test_where_there_is_no_cube_the_whole_stays() -> None:
    points = ball(6000)
    to_world = fit_box(points)
    tile = next(iter(cut(points, to_world, 2)))
    field = TiledField(Ball(to_world, 5, off=1), to_world, [(Ball(tile.to_world, 5), tile.to_world)])
    middle = torch.from_numpy(to_world.to_unit(np.array(tile.to_world.translation))).float()
    off = (field.sdf(torch.stack([middle, -middle])) - Ball(to_world, 5).sdf(torch.stack([middle, -middle]))) * 6.25
    torch.testing.assert_close(off, torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)
    line = torch.linspace(-1, 1, 2001)[:, None] * middle / middle.abs().max()
    assert field.sdf(line).diff().abs().max() < 0.01, "no steps between them"


def test_the_whole_speaks_in_the_units_of_the_tile() -> None:
    points = ball(6000)
    to_world = fit_box(points)
    for tile in cut(points, to_world, 2):
        known = guide(Ball(to_world, 5), 0.01, to_world, tile)
        x = torch.tensor([[0.1, 0.2, -0.3], [0.0, 0.0, 0.0]])
        torch.testing.assert_close(known.sdf(x), Ball(tile.to_world, 5).sdf(x), atol=1e-5, rtol=0)
        assert known.reach == pytest.approx(0.03 * to_world.scale / tile.to_world.scale)


def test_far_from_the_surface_a_field_follows_its_guide() -> None:
    keys = {"field.levels": "3", "field.finest": "16", "field.width": "16", "queries.batch": "256"}
    keys |= {"queries.pool": "2000", "train.cell": "0", "loss.enclosed": "false", "loss.facing": "false"}
    config = adapt(read_config(Config, None, list(keys.items())), Survey(0.05, 0.0, 10))

    def space(known: Guide | None) -> tuple[float, Tensor, Tensor]:
        trainer = Trainer(config, ball(600) / 10, torch.device("cpu"), None, known)
        saved = trainer.queries.state_dict()
        batch = trainer._draw()
        trainer.queries.load_state_dict(saved)
        beyond = slice(batch.near, None)
        with torch.no_grad():
            off = (trainer.field.sdf(batch.x[beyond], 1) - 7).abs()
        return float(trainer.step(0.0)["space"]), off, (batch.x - batch.nearest).norm(dim=1)[beyond]

    alone, off, apart = space(None)
    everywhere, *_ = space(Guide(lambda x: torch.full_like(x[:, 0], 7.0), 0.0))
    assert everywhere == pytest.approx(float(off.mean()), rel=1e-4)
    assert space(Guide(lambda x: torch.full_like(x[:, 0], 7.0), 8.0))[0] == alone
    assert float(apart.min()) < 0.1 < float(apart.max())
    assert space(Guide(lambda x: torch.full_like(x[:, 0], 7.0), 0.1))[0] < everywhere, "not beside points"


def test_what_a_tile_is_asked_for() -> None:
    """Lengths that were given are in its own box; what was left open still is."""
    asked = read_config(Config, None, [("loss.bilateral", "0.2"), ("tiles", "3"), ("queries.factor", "2")])
    whole = read_config(Config, None, [("train.steps", "70"), ("tiles", "3")])
    its = _for_tile(asked, whole, 0.5)
    assert (its.loss.bilateral, its.loss.softness, its.loss.plane) == (0.4, None, None)
    assert (its.tiles, its.train.steps, its.queries.factor) == (1, 70, 2.0) and not its.loss.enclosed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a body that is three times as long as wide: in two cubes."""
    folder = tmp_path_factory.mktemp("tiles")
    np.save(folder / "egg.npy", egg(3000))
    small = [*SMALL_FIT, "--queries.pool", "2000", "--train.steps", "150", "--tiles", "2"]
    assert main(["fit", str(folder / "egg.npy"), "--out", str(folder / "run"), *small]) == 0
    return folder / "run"


def egg(count: int, seed: int = 0) -> np.ndarray:
    return ball(count, seed) * [3, 1, 1] + 1000


def test_a_tiled_run(run: Path) -> None:
    assert sorted(path.name for path in (run / "tiles" / "2").iterdir()) == ["0-0-0", "1-0-0", "asked.yaml"]
    mesh = load_mesh(run / "mesh.ply")
    assert is_watertight(mesh) and component_count(mesh) == 1
    assert len(mesh.vertices) > 4000, "cells are those of the tiles"
    loaded = pointrecon.load(run)
    assert isinstance(loaded.field, TiledField) and loaded.made["steps"] == 450
    assert np.abs(loaded.sdf(egg(300, 1))).mean() < 0.15
    assert main(["eval", str(run), "--gt", str(run.parent / "egg.npy")]) == 0 and main(["slice", str(run)]) == 0


def test_a_tile_that_is_missing_is_made_again_and_the_others_stay(run: Path, tmp_path: Path, capsys) -> None:
    mesh, moved = load_mesh(run / "mesh.ply"), shutil.copytree(run, tmp_path / "run")
    pointrecon.load(run)
    assert capsys.readouterr().err == "", "all are there"
    weights = [path.read_bytes() for path in moved.glob("tiles/2/1-0-0/checkpoints/*.pt")]
    shutil.rmtree(moved / "tiles" / "2" / "0-0-0" / "checkpoints")
    field = pointrecon.load(moved).field
    assert isinstance(field, TiledField) and len(field.parts) == 1, "what is not finished does not count"
    assert "warning: " in (said := capsys.readouterr().err) and "1 of 2 tiles are finished" in said
    assert main(["fit", "--resume", "--out", str(moved)]) == 0
    said = capsys.readouterr().out
    assert "tile 1 of 2" in said and "tile 2 of 2" not in said
    assert [path.read_bytes() for path in moved.glob("tiles/2/1-0-0/checkpoints/*.pt")] == weights
    assert np.array_equal(load_mesh(moved / "mesh.ply").vertices, mesh.vertices)
    assert main(["fit", "--resume", "--out", str(moved), "--tiles", "3"]) == 2
    assert "was made with another --tiles" in capsys.readouterr().err


def test_a_tile_that_is_stopped_goes_on_with_the_whole(run: Path, tmp_path: Path, monkeypatch) -> None:
    moved, named = shutil.copytree(run, tmp_path / "run"), []
    shutil.rmtree(moved / "tiles" / "2" / "0-0-0" / "checkpoints")

    def stop(trainer: Trainer, run: Run, *_: object) -> bool:
        named.append(run.main)
        return run.folder == moved

    monkeypatch.setattr("pointrecon.fit.run_loop", stop)
    assert main(["fit", "--resume", "--out", str(moved)]) == 130 and named == [moved, moved]


def test_tiles_are_for_the_pull(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "ball.npy", "--out", str(tmp_path), "--tiles", "2", "--loss.objective", "siren"]) == 2
    assert "--tiles 2: is for the objective pull" in capsys.readouterr().err
