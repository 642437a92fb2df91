"""Pictures of meshes: what is where, how bright, in what colour."""

import imageio.v2 as imageio
import numpy as np
import trimesh
from PIL import Image

from scripts.mesh_sheet import AMBIENT, CLAY, from_frames, from_two_sides, main
from shared.mesh import Mesh, save_mesh


def ball(**columns):
    sphere = trimesh.creation.icosphere(4)
    return Mesh(np.asarray(sphere.vertices), np.asarray(sphere.faces), **columns)


def test_a_ball_from_two_sides():
    picture = from_two_sides(ball(), np.array([0.6, 0.3, 1.0]), 41).astype(float)
    assert picture.shape == (41, 82, 3)
    assert np.allclose(picture[20, [20, 61]], CLAY, atol=3), "facing the eye"
    assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all(), "beside it"
    # 45 degrees from the middle, at sin 45 of the radius.
    shade = CLAY * (AMBIENT + (1 - AMBIENT) * np.sqrt(0.5))
    assert np.allclose(picture[20, 20 + round(20.5 * np.sqrt(0.5))], shade, atol=8)


def test_a_ball_from_the_camera_of_a_frame(tmp_path):
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[40.0, 0, 19.5], [0, 40, 14.5], [0, 0, 1]])
    pose = np.eye(4)
    pose[2, 3] = -3
    np.savetxt(tmp_path / "frame-000007.pose.txt", pose)
    Image.fromarray(np.full((30, 40, 3), [10, 200, 30], np.uint8)).save(
        tmp_path / "frame-000007.color.jpg", quality=100
    )
    mesh = ball(colors=np.tile(np.array([[250, 0, 40]], np.uint8), (2562, 1)))
    picture = from_frames(mesh, tmp_path, [7], 40)
    assert picture.shape == (30, 120, 3)
    assert np.allclose(picture[15, 20].astype(int), [10, 200, 30], atol=4)
    assert np.allclose(picture[15, 60].astype(int), CLAY, atol=4)
    assert (picture[15, 100] == [250, 0, 40]).all()
    # The ball's rim is at tan(asin(1 / 3)) x 40 = 14.1 pixels.
    assert (picture[15, [60 - 16, 60 + 16]] == 255).all() and (picture[15, [60 - 12, 60 + 12]] < 255).all()


def test_the_command_and_its_errors(tmp_path, monkeypatch, capsys):
    save_mesh(ball(), tmp_path / "ball.ply")
    out = tmp_path / "sheet.png"
    arguments = ["mesh_sheet.py", *2 * [str(tmp_path / "ball.ply")], "--out", str(out), "--size", "20"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0 and imageio.imread(out).shape == (20, 80, 3)
    monkeypatch.setattr("sys.argv", [*arguments, "--frames", str(tmp_path)])
    assert main() == 2 and "camera-intrinsics.txt" in capsys.readouterr().err
