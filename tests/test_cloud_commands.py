"""What is made of a fitted run: coloured, cut and simplified surfaces, slices, iso-points, folders at once."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from test_commands import SMALL_FIT

import pointrecon
from pointrecon.checkpoint import load_run
from pointrecon.commands import main
from pointrecon.surface import save_isopoints
from pointrecon.trim import support
from shared.csv_table import read_table
from shared.errors import UserError
from shared.mesh import is_watertight, load_mesh
from shared.pointcloud import read_cloud

CENTRE = np.array([500_000.0, 5_000_000.0, 100.0])
STEPS = ["--train.steps", "60"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball of radius 5 far from the origin: red above, blue below, and one point that belongs to nothing."""
    points = np.random.default_rng(0).normal(size=(3000, 3))
    points = 5 * points / np.linalg.norm(points, axis=1, keepdims=True)
    points[0] = [4.6, 4.6, 4.6]
    colors = np.where(points[:, 2:] > 0, [[255, 0, 0]], [[0, 0, 255]])
    path = tmp_path_factory.mktemp("clouds") / "ball.xyz"
    np.savetxt(path, np.hstack([points + CENTRE, colors]), fmt="%.9g")
    return path


@pytest.fixture(scope="module")
def run(cloud: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ball"
    assert main(["fit", str(cloud), "--out", str(folder), *SMALL_FIT, *STEPS]) == 0
    return folder


def test_the_surface_has_the_clouds_colours_and_its_frame(run: Path) -> None:
    mesh = load_mesh(run / "mesh.ply")
    assert mesh.colors is not None
    height = mesh.vertices[:, 2] - CENTRE[2]
    assert (mesh.colors[height > 1] == [255, 0, 0]).all() and (mesh.colors[height < -1] == [0, 0, 255]).all()
    assert np.abs(np.linalg.norm(mesh.vertices - CENTRE, axis=1) - 5).max() < 1.5


def test_distances_in_the_clouds_own_units(run: Path) -> None:
    loaded = pointrecon.load(run)
    middle, above = CENTRE, CENTRE + np.array([0, 0, 60.0])
    distances = loaded.sdf([middle, above])
    assert distances.shape == (2,) and distances[0] < -2 and distances[1] == pytest.approx(55, rel=0.1)
    assert loaded.sdf(np.empty((0, 3))).shape == (0,)
    with pytest.raises(ValueError, match="not finite"):
        loaded.sdf([[0.0, np.nan, 0.0]])
    with pytest.raises(ValueError, match=r"shape \(2, 6\), not \(n, 3\)"):
        loaded.sdf(np.zeros((2, 6)))
    with pytest.raises(UserError, match="holds no run"):
        pointrecon.load(run.parent / "nowhere")


def test_a_run_is_read_where_what_it_was_made_with_is_missing(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    moved = shutil.copytree(run, tmp_path / "moved")
    text = (moved / "config.yaml").read_text()
    made = text.replace("device: auto", "device: cuda").replace("backend: auto", "backend: tinycudann")
    assert "backend: tinycudann" in made and "device: cuda" in made
    (moved / "config.yaml").write_text(made)
    where = [[0.3, -0.2, 0.1], [0.0, 0.0, 0.0]]
    assert np.array_equal(pointrecon.load(moved).sdf(where), pointrecon.load(run).sdf(where))
    warnings = capsys.readouterr().err
    assert "was made with CUDA" in warnings and "field.backend tinycudann: cannot run on cpu" in warnings
    with pytest.raises(UserError, match="torch finds no CUDA device"):
        load_run(moved, "cuda")


def test_a_surface_is_cut_snapped_and_simplified_when_asked(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["mesh", str(run), "--resolution", "48", "--faces", "300", "--out", str(tmp_path / "few.obj")]) == 0
    few = load_mesh(tmp_path / "few.obj")
    assert 200 <= len(few.faces) <= 300 and is_watertight(few)
    assert main(["mesh", str(run), "--resolution", "16", "--trim", "0.4", "--out", str(tmp_path / "cut.ply")]) == 0
    assert not is_watertight(load_mesh(tmp_path / "cut.ply"))
    for snap in ("true", "false"):
        out = ["--resolution", "32", "--out", str(tmp_path / f"{snap}.ply")]
        assert main(["mesh", str(run), "--snap", snap, *out]) == 0
        found = re.search(r"surface brought to the points: by (\S+) in the mean", capsys.readouterr().out)
        assert (found is not None and 0 < float(found[1]) < 0.1) == (snap == "true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pointrecon.surface.snap", lambda mesh, *_: mesh)  # as where the points do not tell
        assert main(["mesh", str(run), "--snap", "true", *out]) == 0
    assert "surface left as the field has it" in capsys.readouterr().out
    snapped, plain = (load_mesh(tmp_path / f"{snap}.ply") for snap in ("true", "false"))
    assert (snapped.faces == plain.faces).all() and 0 < np.abs(snapped.vertices - plain.vertices).max() < 0.1
    assert main(["mesh", str(run), "--trim", "much"]) == 2
    assert "--trim" in capsys.readouterr().err


def test_a_cloud_that_is_gone_is_said(run: Path, tmp_path: Path, capsys) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("ball.xyz", "gone.xyz"))
    try:
        assert main(["mesh", str(run), "--resolution", "16", "--out", str(tmp_path / "plain.ply")]) == 0
    finally:
        (run / "config.yaml").write_text(text)
    assert "gone.xyz" in capsys.readouterr().err
    assert load_mesh(tmp_path / "plain.ply").colors is None


def test_slices(run: Path, tmp_path: Path) -> None:
    assert main(["slice", str(run), "--axis", "x", "--count", "2", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("slice_x_*.png"))) == 2


def test_isopoints_lie_on_the_surface_in_the_clouds_frame(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "points.ply"
    assert main(["isopoints", str(run), "--count", "500", "--out", str(out)]) == 0
    points = read_cloud(out)
    assert points.normals is not None and 450 <= len(points) <= 500
    assert PlyData.read(out)["vertex"]["x"].dtype == np.float64, "map coordinates need it"
    loaded = pointrecon.load(run)
    as_it_is = replace(loaded, config=replace(loaded.config, snap=False))
    assert save_isopoints(as_it_is, 500, tmp_path / "field.ply") == len(points)
    field = read_cloud(tmp_path / "field.ply")
    assert np.abs(loaded.sdf(field.points)).max() < 0.01
    moved = ((points.points - field.points) * field.normals).sum(axis=1)
    np.testing.assert_allclose(points.points, field.points + moved[:, None] * field.normals, atol=1e-6)
    assert np.abs(moved).mean() > 1e-3, "brought to the cloud, as the mesh is"
    cut = replace(loaded, config=replace(loaded.config, trim=0.3))
    assert 450 <= save_isopoints(cut, 500, out) <= 500, "as many, of what the mesh keeps"
    cloud = read_cloud(loaded.config.cloud).points
    assert support(read_cloud(out).points, cloud).max() <= 0.3 < support(points.points, cloud).max()
    assert main(["isopoints", str(run), "--count", "0"]) == 2
    assert "--count" in capsys.readouterr().err


def test_a_folder_of_clouds_survives_a_bad_one_and_goes_on(cloud: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    clouds, out = tmp_path / "clouds", tmp_path / "out"
    clouds.mkdir()
    (clouds / "a.xyz").write_bytes(cloud.read_bytes())
    (clouds / "b.xyz").write_text("no numbers here at all\n" * 60)
    (clouds / "readme.md").write_text("not a cloud")
    line = ["batch", str(clouds), "--out", str(out), *SMALL_FIT, "--train.steps", "3"]
    assert main(line) == 2
    rows = {row["name"]: row for row in csv.DictReader((out / "metrics.csv").read_text().splitlines())}
    assert float(rows["a"]["points_to_surface.mean"]) > 0 and "b.xyz" in rows["b"]["error"]
    before = (out / "runs" / "a" / "mesh.ply").stat().st_mtime_ns
    (clouds / "b.xyz").write_bytes(cloud.read_bytes())
    assert main([*line, "--gt", str(clouds)]) == 0
    assert (out / "runs" / "a" / "mesh.ply").stat().st_mtime_ns == before, "what is done stays"
    assert (out / "b.ply").is_file()
    assert main(["batch", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert main(["batch", str(clouds), "--out", str(clouds)]) == 2, "surfaces would be clouds the next time"
    assert "nowhere" in capsys.readouterr().err
    finished = iter([True, False])
    monkeypatch.setattr("pointrecon.batch._fitted", lambda *_: next(finished))
    assert main(line) == 130
    assert [row["name"] for row in read_table(out / "metrics.csv")] == ["a", "b"], "an interruption loses none"
