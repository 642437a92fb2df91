"""Short runs of both doors on real measurements: far from converged, but on the way to the right surface."""

import json
from pathlib import Path

import pytest

import mvrecon.commands
import pointrecon.commands
from shared.mesh import load_mesh
from shared.metrics import point_to_mesh
from shared.pointcloud import read_cloud
from shared.report import diagonal


def test_skull_from_photos(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained, the PSNR inside the masks is 6 dB and the points lie 17 mm, 4.9 % of the diagonal, from the sphere."""
    scene, run = data_root / "dtu_scan65", tmp_path / "run"
    monkeypatch.setattr("mvrecon.train.MESH_RESOLUTION", 128)
    keys = ["--data.root", str(scene), "--data.downscale", "8", "--data.holdout", "10,30", "--train.previews", "0"]
    keys += ["--train.steps", "150", "--train.rays", "128", "--optim.network", "0.003"]
    assert mvrecon.commands.main(["train", *keys, "--out", str(run)]) == 0
    assert mvrecon.commands.main(["eval", str(run), "--gt-points", str(scene / "sfm_points.ply")]) == 0
    figures = json.loads((run / "eval.json").read_text())
    assert figures["psnr_masked"] > 13
    assert figures["points_to_surface"]["mean"] < 0.025 * figures["diagonal"], "in the photos' world, millimetres"
    assert figures["watertight"]


def test_gargoyle_from_points(data_root: Path, tmp_path: Path) -> None:
    scan, run = data_root / "points" / "gargoyle.ply", tmp_path / "run"
    keys = ["--train.steps", "300", "--train.resolution", "128", "--queries.batch", "4096", "--queries.pool", "200000"]
    assert pointrecon.commands.main(["fit", str(scan), "--out", str(run), *keys]) == 0
    points = read_cloud(scan).points
    distances, _ = point_to_mesh(points, load_mesh(run / "mesh.ply"))
    assert distances.mean() < 0.01 * diagonal(points)
