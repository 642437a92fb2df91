"""`pointrecon eval`: volumes, parallelism of the field around the cloud, and published figures where they are wanted.

What it measured before is tested elsewhere.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from test_commands import SMALL_FIT

import pointrecon
from pointrecon import evaluate
from pointrecon.commands import main
from pointrecon.evaluate import NEIGHBOURS, QUERIES, queries_around
from shared import protocols, report
from shared.levelset import parallelism
from shared.mesh import Mesh, load_mesh, save_mesh, save_points
from shared.pointcloud import read_cloud
from shared.protocols import FIGURES, published
from shared.report import against_mesh, write_report


def ball(radius: float = 1.0) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return Mesh(np.array(sphere.vertices), np.array(sphere.faces, np.int64))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 points of a unit sphere, without normals."""
    points = np.random.default_rng(0).normal(size=(3000, 3))
    path = tmp_path_factory.mktemp("clouds") / "ball.ply"
    save_points(points / np.linalg.norm(points, axis=1, keepdims=True), None, path)
    return path


@pytest.fixture(scope="module")
def run(cloud: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ball"
    assert main(["fit", str(cloud), "--out", str(folder), *SMALL_FIT, "--train.steps", "20"]) == 0
    return folder


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    save_mesh(ball(), tmp_path / "truth.obj")
    return tmp_path / "truth.obj"


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers of samples; of the published figures all different."""
    for name, number in {"STANDARD": 400, "SPARSE": 300, "DENSE": 500, "MATCHED": 60}.items():
        monkeypatch.setattr(protocols, name, number)
    monkeypatch.setattr(report, "QUERIES", 1000)
    for name in ("compare_meshes", "compare_cloud"):
        monkeypatch.setattr(report, name, partial(getattr(report, name), samples=1000))


def figures_of(run: Path, *more: object) -> dict:
    assert main(["eval", str(run), *map(str, more)]) == 0
    return json.loads((run / "eval.json").read_text())


def test_published_figures_come_when_asked_for(run: Path, truth: Path, capsys) -> None:
    plain = figures_of(run, "--gt", truth)
    assert "published" not in plain and "published" not in capsys.readouterr().out
    both = figures_of(run, "--gt", truth, "--published")
    found = both.pop("published")
    assert both == plain
    assert found.pop("seed") == 0 and list(found) == list(FIGURES)
    assert found == published(load_mesh(run / "mesh.ply"), load_mesh(truth), seed=0)
    captured = capsys.readouterr()
    rows = {line.split()[0]: line for line in captured.out.splitlines()}
    assert rows["published.neural_pull.l2_cd"].endswith("squared, unit cube, 100,000 points")
    assert "left out" not in captured.err


def test_published_figures_are_not_even_loaded_for_nothing(run: Path, truth: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.protocols", None)
    figures_of(run, "--gt", truth)
    with pytest.raises(ImportError):
        main(["eval", str(run), "--gt", str(truth), "--published", "--debug"])


def test_what_a_cloud_cannot_give_is_named(run: Path, tmp_path: Path, cloud: Path, capsys) -> None:
    points = read_cloud(cloud).points
    save_points(points[:55], None, tmp_path / "small.ply")
    save_points(points, points, tmp_path / "normals.ply")
    found = figures_of(run, "--gt", tmp_path / "small.ply", "--published")["published"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "published" in line]
    assert len(lines) == 2 and all(str(tmp_path / "small.ply") in line for line in lines)
    assert "no normals" in lines[0] and lines[0].endswith("occupancy_networks.normal_consistency")
    assert lines[1].endswith("55 points, fewer than 60, so published figures are left out: neural_pull.emd")
    named = {name for line in lines for name in line.split(": ")[-1].split(", ")}
    assert set(found) == {"seed", *FIGURES} - named
    assert set(figures_of(run, "--gt", tmp_path / "normals.ply", "--published")["published"]) == {"seed", *FIGURES}
    assert "published" not in capsys.readouterr().err


def test_a_mesh_alone_has_published_figures_and_no_parallelism(truth: Path, tmp_path: Path, capsys) -> None:
    save_mesh(ball(0.9), tmp_path / "small.ply")
    assert main(["eval", str(tmp_path / "small.ply"), "--gt", str(truth), "--published"]) == 0
    out = capsys.readouterr().out
    assert "published.srb.chamfer" in out and "parallelism" not in out
    assert not (tmp_path / "eval.json").exists()


def test_parallelism_around_the_runs_cloud(run: Path, truth: Path, cloud: Path, capsys) -> None:
    found = figures_of(run, "--gt", truth)["parallelism_degrees"]
    loaded = pointrecon.load(run)
    queries = queries_around(loaded.to_world.to_unit(read_cloud(cloud).points), QUERIES, evaluate.SEED)
    assert found == pytest.approx(parallelism(loaded.field, torch.from_numpy(queries)), rel=1e-6)
    assert 0 < found < 90 and "parallelism_degrees" in capsys.readouterr().out


def test_a_cloud_that_is_gone_costs_its_figure_alone(run: Path, truth: Path, cloud: Path, capsys) -> None:
    before = figures_of(run, "--gt", truth)
    aside = cloud.rename(cloud.with_name("elsewhere.ply"))
    try:
        capsys.readouterr()
        after = figures_of(run, "--gt", truth)
    finally:
        aside.rename(cloud)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(cloud) in line and line.endswith("parallelism_degrees is left out")
    del before["parallelism_degrees"]
    assert after == before


def test_queries_spread_as_far_as_the_neighbours_reach() -> None:
    """On a square grid the 50th neighbour is 4.12 cells away, at (1, 4); what leaves the box is no query."""
    side = np.linspace(-0.99, 0.99, 100)
    grid = np.stack([*np.meshgrid(side, side), np.zeros((100, 100))], axis=2).reshape(-1, 3)
    queries = queries_around(grid, 20_000, seed=1)
    assert NEIGHBOURS == 50 and 18_000 < len(queries) < 20_000 and np.abs(queries).max() < 1
    inner = queries[np.abs(queries[:, :2]).max(axis=1) < 0.5]
    assert inner[:, 2].std() == pytest.approx(0.02 * np.sqrt(17), rel=0.05)
    np.testing.assert_array_equal(queries, queries_around(grid, 20_000, seed=1))
    assert queries_around(grid[:3], 10, seed=1).shape[1] == 3, "fewer points than neighbours"


def test_volumes_compare_where_both_are_closed() -> None:
    large = ball()
    inward = Mesh(large.vertices, large.faces[:, ::-1])
    for exact in (large, inward):
        assert against_mesh(ball(0.5), exact)["volume_ratio"] == pytest.approx(0.125)
    assert against_mesh(inward, large)["volume_ratio"] == pytest.approx(-1)
    far = np.array([5e5, 5e6, 100.0])
    small, there = Mesh(ball(0.5).vertices + far, large.faces), Mesh(large.vertices + far, large.faces)
    assert against_mesh(small, there)["volume_ratio"] == pytest.approx(0.125, rel=1e-6), "in map coordinates"
    sheet = Mesh(large.vertices, np.concatenate([large.faces[:1], large.faces[:1, ::-1]]))
    assert "volume_ratio" not in against_mesh(large, sheet)
    opened = Mesh(large.vertices, large.faces[1:])
    assert "volume_ratio" not in against_mesh(opened, large) and "volume_ratio" not in against_mesh(large, opened)


def test_topology_is_in_the_report(run: Path, truth: Path, capsys) -> None:
    figures = figures_of(run, "--gt", truth)
    assert figures["components"] >= 1 and figures["watertight"] in (True, False)
    assert ("volume_ratio" in figures) == figures["watertight"]
    assert {"components", "watertight"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_long_names_stay_in_line(capsys) -> None:
    write_report({"steps": 3, "published": {"neural_pull.normal_consistency_released": 0.5}}, None)
    short, long = capsys.readouterr().out.splitlines()
    assert short.index("3") == long.index("0.5")
