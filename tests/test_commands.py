"""Every command end to end on small input, with what users get wrong and what machines do to a run."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mvrecon.commands
import pointrecon.commands
from mvrecon.config import Config, DataConfig, TrainConfig
from mvrecon.datasets import load
from mvrecon.train import adapt
from scripts.make_scene import make_tiny_scene
from shared.checkpoint import latest_checkpoint
from shared.mesh import Mesh, load_mesh, save_mesh, volume


def flags(**values: object) -> list[str]:
    """`field__width=16` to `--field.width 16`."""
    return [text for name, value in values.items() for text in (f"--{name.replace('__', '.')}", str(value))]


# Small enough that torch does not start threads for its operations, which costs more than the work.
SMALL_FIELD = flags(field__levels=4, field__base=4, field__finest=32, field__log2_entries=10)
SMALL_SCENE = [
    *SMALL_FIELD,
    *flags(field__width=16, color__width=16, color__log2_entries=10, train__cell=0, train__rays=32, train__previews=1),
    *flags(sampling__volume=24, sampling__scan=48, sampling__importance=12, sampling__uniform=4),
]
SMALL_FIT = [
    *SMALL_FIELD,
    *flags(train__cell=0, train__threads=2, train__resolution=48, queries__batch=512, queries__pool=5000),
]


@pytest.fixture(autouse=True)
def _coarse_meshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh at the end of `mvrecon train` would take longer than everything else here."""
    monkeypatch.setattr("mvrecon.train.MESH_RESOLUTION", 64)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene") / "tiny"
    save_mesh(make_tiny_scene(folder, views=6, size=(48, 36)), folder.parent / "truth.ply")
    return folder


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(2000, 3))
    points = 5.0 * directions / np.linalg.norm(directions, axis=1, keepdims=True) + [100.0, -20.0, 7.0]
    path = tmp_path_factory.mktemp("cloud") / "sphere.xyz"
    np.savetxt(path, points)
    return path


def train(scene: Path, out: Path, *more: str) -> int:
    arguments = ["train", "--data.root", str(scene), "--data.holdout", "2", "--out", str(out), *SMALL_SCENE, *more]
    return mvrecon.commands.main(arguments)


def fit(cloud: Path, out: Path, *more: str) -> int:
    return pointrecon.commands.main(["fit", str(cloud), "--out", str(out), *SMALL_FIT, *more])


def curve(run: Path) -> list[dict]:
    """metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_mvrecon_from_photos_to_figures(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(scene, run, "--train.steps", "60") == 0
    assert (run / "config.yaml").is_file() and (run / "mesh.ply").is_file() and list((run / "previews").iterdir())
    for out in ("coarse.obj", "coarse.glb"):
        assert mvrecon.commands.main(["mesh", str(run), "--resolution", "32", "--out", str(tmp_path / out)]) == 0
        assert len(load_mesh(tmp_path / out).faces) > 0
    few = ["--resolution", "32", "--faces", "200", "--out", str(tmp_path / "few.ply")]
    assert mvrecon.commands.main(["mesh", str(run), *few]) == 0
    assert 0 < len(load_mesh(tmp_path / "few.ply").faces) <= 200
    assert mvrecon.commands.main(["render", str(run)]) == 0
    assert {path.name.split("_")[1] for path in (run / "render_test").iterdir()} == {
        "color.png",
        "normal.png",
        "depth.png",
    }
    film = tmp_path / "orbit.mp4"
    assert mvrecon.commands.main(["render", str(run), "--path", "orbit", "--frames", "3", "--out", str(film)]) == 0
    assert film.stat().st_size > 1000
    capsys.readouterr()
    line = refused(capsys, mvrecon.commands.main, ["render", str(run), "--out", str(tmp_path / "orbit.gif")])
    assert ".mp4 only" in line
    truth = scene.parent / "truth.ply"
    assert mvrecon.commands.main(["eval", str(run), "--gt-mesh", str(truth), "--gt-points", str(truth)]) == 0
    figures = json.loads((run / "eval.json").read_text())
    for name in (
        "psnr",
        "psnr_masked",
        "ssim",
        "chamfer_l1",
        "f_score",
        "threshold",
        "level_set_angle",
        "steps",
        "device",
    ):
        assert name in figures
    assert figures["steps"] == 60 and figures["points_to_surface"]["mean"] < 0.2 * figures["diagonal"]
    assert "chamfer_l1" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_mvrecon_without_masks_learns_a_background(scene: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(scene, run, "--train.steps", "100", "--data.masks", "false", "--loss.alignment", "0.01") == 0
    terms = set(curve(run)[0])
    assert {"color", "eikonal", "opacity", "alignment"} < terms and "mask" not in terms
    assert mvrecon.commands.main(["eval", str(run)]) == 0
    figures = json.loads((run / "eval.json").read_text())
    assert "psnr" in figures and "psnr_masked" not in figures
    early, late = curve(run)
    assert late["color"] < 0.9 * early["color"]


def test_mvrecon_with_samples_from_the_network(scene: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(scene, run, "--train.steps", "5", "--sampling.source", "network") == 0
    assert mvrecon.commands.main(["render", str(run)]) == 0


@pytest.mark.parametrize("door", ["mvrecon", "pointrecon"])
def test_a_resumed_run_ends_on_the_same_curve(door: str, scene: Path, cloud: Path, tmp_path: Path) -> None:
    start: Callable[..., int] = train if door == "mvrecon" else fit
    source = scene if door == "mvrecon" else cloud
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(source, whole, "--train.steps", "100", "--train.save_seconds", "0") == 0
    # A run that was killed after its checkpoint of step 50: later lines of its log are dropped and done again.
    assert start(source, parts, "--train.steps", "100", "--train.save_seconds", "0") == 0
    (parts / "checkpoints" / "step_00000100.pt").unlink()
    (parts / "mesh.ply").unlink()
    assert latest_checkpoint(parts, door).step == 50
    assert start(source, parts, "--train.steps", "100", "--resume") == 0
    assert [line["step"] for line in curve(whole)] == [50, 100]
    assert curve(parts) == curve(whole)
    assert (parts / "mesh.ply").read_bytes() == (whole / "mesh.ply").read_bytes()


def test_a_killed_run_ends_on_the_same_curve(cloud: Path, tmp_path: Path) -> None:
    # Each in a process of its own, as users run them: inside this one, what other tests had numba compile for arrays of
    # another layout may serve here too, and sum in another order.
    def start(out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "pointrecon", "fit", str(cloud), "--out", str(out), *SMALL_FIT]
        length = ["--train.steps", "500", "--train.save_seconds", "0"]
        here = Path(__file__).resolve().parents[1]
        return subprocess.Popen([*command, *length, *more], cwd=here, stdout=subprocess.DEVNULL)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(whole).wait(120) == 0
    process = start(parts)
    deadline = time.monotonic() + 120
    while not any((parts / "checkpoints").glob("step_*.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (parts / "mesh.ply").exists()
    assert start(parts, "--resume").wait(120) == 0
    assert curve(parts) == curve(whole)
    assert (parts / "mesh.ply").read_bytes() == (whole / "mesh.ply").read_bytes()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_gives_out_costs_only_the_steps_since_the_last_checkpoint(
    number: int, cloud: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lost = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000100.pt"

    def fail(path: Path, *arguments, **options):
        if lost.name in path.name:
            raise OSError(number, os.strerror(number))
        return open(path, *arguments, **options)

    length = ["--train.steps", "150", "--train.save_seconds", "0"]
    with monkeypatch.context() as patch:
        patch.setattr("shared.run_folder.open", fail, raising=False)
        assert fit(cloud, run, *length) == 2
    *bar, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {lost}: the disk is ") and "choose another folder" in line
    assert not any("error" in before or "Traceback" in before for before in bar)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000050.pt"]
    assert latest_checkpoint(run, "pointrecon").step == 50
    assert fit(cloud, run, *length, "--resume") == 0
    assert [line["step"] for line in curve(run)] == [50, 100, 150]


def test_pointrecon_from_cloud_to_figures(cloud: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(cloud, run, "--train.steps", "300", "--loss.alignment", "0.01") == 0
    mesh = load_mesh(run / "mesh.ply")
    radius = np.linalg.norm(mesh.vertices - [100.0, -20.0, 7.0], axis=1)
    assert abs(radius.mean() - 5.0) < 0.25, "the mesh is in the cloud's own frame and size"
    assert pointrecon.commands.main(["mesh", str(run), "--resolution", "24", "--out", str(tmp_path / "m.stl")]) == 0
    assert pointrecon.commands.main(["eval", str(run), "--gt", str(cloud)]) == 0
    assert json.loads((run / "eval.json").read_text())["points_to_surface"]["mean"] < 0.25
    assert pointrecon.commands.main(["eval", str(tmp_path / "m.stl"), "--gt", str(run / "mesh.ply")]) == 0


@pytest.mark.parametrize("sign, word", [(1, "normals: used"), (-1, "normals: used"), (0, "not used")])
def test_the_surface_faces_where_trusted_normals_do(sign: int, word: str, cloud: Path, tmp_path: Path, capsys) -> None:
    points = np.loadtxt(cloud)
    side = np.random.default_rng(1).choice([-1, 1], size=(len(points), 1)) if sign == 0 else sign
    path, run = tmp_path / "ball.xyz", tmp_path / "run"
    np.savetxt(path, np.concatenate([points, side * (points - [100.0, -20.0, 7.0]) / 5], axis=1))
    assert fit(path, run, "--train.steps", "200") == 0
    assert word in capsys.readouterr().out
    expected = 4 / 3 * np.pi * 5.0**3 * (sign or 1)
    assert volume(load_mesh(run / "mesh.ply")) == pytest.approx(expected, rel=0.1)
    far = pointrecon.load(run).sdf([[100.0, -20.0, 7.0], [500.0, -20.0, 7.0]])
    assert (sign or 1) * far[0] < -2 and (sign or 1) * far[1] > 300
    assert fit(path, tmp_path / "other", "--train.steps", "1", "--loss.normal", "0") == 0
    assert "used" not in capsys.readouterr().out


@pytest.mark.parametrize("backbone", ["mlp", "siren"])
def test_the_papers_backbones_fit(backbone: str, cloud: Path, tmp_path: Path) -> None:
    small = flags(field__backbone=backbone, field__layers=5, field__width=16, train__steps=3)
    assert fit(cloud, tmp_path / "run", *small) == 0


def refused(capsys: pytest.CaptureFixture[str], main: Callable[..., int], arguments: list[str]) -> str:
    """Run a command that must fail with exit code 2 and one line on stderr; returns the line."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_one_line_for_what_users_get_wrong(scene: Path, cloud: Path, tmp_path: Path, capsys) -> None:
    photos, points = mvrecon.commands.main, pointrecon.commands.main
    out = ["--out", str(tmp_path / "run")]
    steps = ["--train.steps", "1"]
    missing = str(tmp_path / "nowhere")
    assert missing in refused(capsys, photos, ["train", "--data.root", missing, *out, *steps])
    assert "data.root" in refused(capsys, photos, ["train", "--dato.root", str(scene), *out])
    assert "train.rays" in refused(capsys, photos, ["train", "--data.root", str(scene), "--train.rays", "0", *out])
    other = ["--config", str(Path(__file__).parents[1] / "configs/pointrecon/fast.yaml")]
    assert "is for `pointrecon`" in refused(capsys, photos, ["train", "--data.root", str(scene), *other, *out])
    typo = tmp_path / "typo.yaml"
    typo.write_text("train:\n  stepps: 3\n")
    line = refused(capsys, photos, ["train", "--config", str(typo), "--data.root", str(scene), *out])
    assert str(typo) in line and "train.steps" in line
    assert "--resume" in refused(capsys, photos, ["train", "--data.root", str(scene), *out, *steps, "--resume"])
    assert missing in refused(capsys, photos, ["render", missing])
    assert "nowhere.ply" in refused(capsys, points, ["fit", missing + ".ply", *out, *steps])
    assert f"{tmp_path}: is a folder" in refused(capsys, points, ["fit", str(tmp_path), *out])
    assert not (tmp_path / "run").exists(), "nothing is left behind by a command that could not start"


def test_an_existing_run_is_never_overwritten(cloud: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert fit(cloud, run, "--train.steps", "2") == 0
    before = (run / "config.yaml").read_bytes()
    capsys.readouterr()
    arguments = ["fit", str(cloud), "--out", str(run), "--train.steps", "2"]
    assert "--resume" in refused(capsys, pointrecon.commands.main, arguments)
    assert (run / "config.yaml").read_bytes() == before
    assert "mvrecon" in refused(capsys, mvrecon.commands.main, ["mesh", str(run)])


def test_a_finished_run_says_so_and_can_be_given_more(cloud: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert fit(cloud, run, "--train.steps", "70") == 0
    assert [line["step"] for line in curve(run)] == [50, 70], "the last steps are logged, too"
    assert "100%" in capsys.readouterr().err
    before = (run / "mesh.ply").read_bytes()
    (run / "mesh.ply").unlink()
    assert fit(cloud, run, "--resume") == 0
    assert "has used up its 70 step(s)" in capsys.readouterr().out
    assert (run / "mesh.ply").read_bytes() == before
    assert fit(cloud, run, "--resume", "--train.steps", "100") == 0
    assert [line["step"] for line in curve(run)] == [50, 70, 100]


def test_eval_says_when_the_mesh_is_of_before(cloud: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert fit(cloud, run, "--train.steps", "2") == 0
    assert pointrecon.commands.main(["eval", str(run), "--gt", str(cloud)]) == 0
    assert "older" not in capsys.readouterr().err
    os.utime(run / "mesh.ply", ns=(0, 0))
    assert pointrecon.commands.main(["eval", str(run), "--gt", str(cloud)]) == 0
    captured = capsys.readouterr()
    assert f"make it again with `pointrecon mesh {run}`" in captured.err and "% of the diagonal" in captured.out


def test_a_checkpoint_of_another_model_is_refused(cloud: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert fit(cloud, run, "--train.steps", "2") == 0
    capsys.readouterr()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("width: 64", "width: 32"))
    line = refused(capsys, pointrecon.commands.main, ["mesh", str(run)])
    assert "checkpoints" in line


def test_a_refused_resume_leaves_the_run_as_it_was(cloud: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert fit(cloud, run, "--train.steps", "50") == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert fit(cloud, run, "--train.steps", "100", "--resume", "--field.width", "32") == 2
    assert "step_00000050.pt: holds another model" in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_empty_surface_is_said_and_not_saved(tmp_path: Path) -> None:
    from shared.errors import UserError

    with pytest.raises(UserError, match=r"empty\.ply"):
        save_mesh(Mesh(np.empty((0, 3)), np.empty((0, 3), np.int64)), tmp_path / "empty.ply")
    assert not (tmp_path / "empty.ply").exists()


def test_cells_follow_the_photos(scene: Path) -> None:
    photos = load(DataConfig(root=str(scene)))
    pixel = float(np.median(np.linalg.norm(photos.cameras.centres, axis=1) / photos.cameras.intrinsics[:, 0, 0]))
    found = adapt(Config(train=TrainConfig(cell=0.1)), photos)
    assert found.field.finest == round(2 / (0.1 * pixel))
    growth = (found.field.finest / found.field.base) ** (1 / (found.field.levels - 1))
    assert 1.4 < growth < 1.55, "cells shrink alike from level to level"
    assert adapt(found, photos) == found, "a run that is continued keeps what was chosen"
    kept = Config(train=TrainConfig(cell=0))
    assert adapt(kept, photos) == kept
