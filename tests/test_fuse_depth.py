"""Fused depth frames of surfaces that are known: their points lie on them, in the world, in the right colours."""

from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from pointrecon.survey import survey
from scripts.fuse_depth import JUMP, ColorCamera, fuse, main, steady
from shared.errors import UserError
from shared.geometry import look_at
from shared.pointcloud import read_cloud

WIDTH, HEIGHT = 96, 72
INTRINSICS = np.array([[80.0, 0, 47.5], [0, 80.0, 35.5], [0, 0, 1]])
EYES = np.array([[3.0, 0.2, 0.5], [-0.4, 3.1, 0.3], [0.3, -2.0, 2.2]])
UP = np.array([0.0, 0, 1])


def rays(intrinsics=INTRINSICS):
    """Directions (H, W, 3) in the camera's frame, whose length along its axis is one."""
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([column, row, np.ones((HEIGHT, WIDTH))], axis=2) @ np.linalg.inv(intrinsics).T


def hit_sphere(origin, direction):
    """Depths (H, W) of the unit sphere about the origin, 0 beside it."""
    a, b, c = (direction**2).sum(2), direction @ origin, origin @ origin - 1
    root = b**2 - a * c
    return np.where(root > 0, (-b - np.sqrt(root.clip(0))) / a, 0)


def colors_of(points):
    """Colours (..., 3) that say where on the sphere a point is."""
    return np.rint(127.5 + 120 * points.clip(-1, 1)).astype(np.uint8)


def write_frame(folder, name, depth, image, pose):
    Image.fromarray(depth).save(folder / f"{name}.depth.png")
    Image.fromarray(image).save(folder / f"{name}.color.png")
    np.savetxt(folder / f"{name}.pose.txt", pose)


def make_sphere(folder, color_focal=80.0, color_right=0.0):
    """Three frames of the unit sphere, and a far wall in the corners of each."""
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "camera-intrinsics.txt", INTRINSICS)
    for number, eye in enumerate(EYES):
        pose = np.vstack([look_at(eye, np.zeros(3), UP), [0, 0, 0, 1]])
        directions = rays() @ pose[:3, :3].T
        depth = hit_sphere(eye, directions)
        stored = np.rint(1000 * depth).astype(np.uint16)
        stored[:5, :5], stored[-5:, -5:] = 65535, 9000
        own = np.array([[color_focal, 0, 47.5], [0, color_focal, 35.5], [0, 0, 1]])
        beside = eye + color_right * pose[:3, 0]
        seen = rays(own) @ pose[:3, :3].T
        there = hit_sphere(beside, seen)
        write_frame(folder, f"frame-{number:06d}", stored, colors_of(beside + there[..., None] * seen), pose)
    return folder


@pytest.fixture(scope="module")
def sphere(tmp_path_factory):
    return make_sphere(tmp_path_factory.mktemp("frames"))


def test_points_lie_on_the_sphere_from_all_sides(sphere):
    (points, normals, colors), count = fuse(sphere, stride=1)
    assert count == 3 and len(points) == len(colors) > 3000
    assert np.abs(np.linalg.norm(points, axis=1) - 1).max() < 2e-3, "depths are whole millimetres"
    assert np.percentile((normals * points).sum(axis=1), 1) > 0.95, "outward, where depths are not smoothed over a rim"
    assert (np.abs(colors.astype(int) - colors_of(points)) <= 1).all(), "the rounding of a depth, at most"
    for eye in EYES:
        assert (points @ eye / np.linalg.norm(eye)).max() > 0.98


@pytest.mark.parametrize("focal, right", [(70.0, 0.0), (80.0, 0.05), (70.0, -0.08)])
def test_colours_of_a_camera_beside_the_depths(tmp_path, focal, right):
    make_sphere(tmp_path, focal, right)
    (points, _, colors), _ = fuse(tmp_path, stride=1, camera=ColorCamera(focal, right))
    apart = np.abs(colors.astype(int) - colors_of(points)).mean()
    naive = fuse(tmp_path, stride=1)[0].colors
    assert apart < 2 and np.abs(naive.astype(int) - colors_of(points)).mean() > 2 * apart


def test_a_tilted_plane_is_flat_whatever_is_skipped(tmp_path):
    """z = 2 + 0.5 x, in the camera's frame and the world's."""
    direction = rays()
    depth = 2 / (1 - 0.5 * direction[..., 0])
    image = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8) + np.array([9, 8, 7], np.uint8)
    np.savetxt(tmp_path / "camera-intrinsics.txt", INTRINSICS)
    for name in "abcde":
        write_frame(tmp_path, name, np.rint(1000 * depth).astype(np.uint16), image, np.eye(4))
    (points, normals, colors), count = fuse(tmp_path, every=2, stride=3)
    assert count == 3 and len(points) == 3 * (HEIGHT // 3) * (WIDTH // 3)
    assert np.abs(points[:, 2] - 2 - 0.5 * points[:, 0]).max() < 1e-3 and (colors == [9, 8, 7]).all()
    np.testing.assert_allclose(normals, np.broadcast_to([0.5, 0, -1] / np.sqrt(1.25), normals.shape), atol=0.02)
    near = fuse(tmp_path, far=2.0)[0].points
    assert near[:, 2].max() <= 2 < points[:, 2].max()


def test_normals_beside_a_jump_are_those_of_their_own_side(tmp_path):
    """A box before a wall, both facing the camera."""
    depth = np.full((HEIGHT, WIDTH), 2000, np.uint16)
    depth[20:40, 30:60] = 1500
    np.savetxt(tmp_path / "camera-intrinsics.txt", INTRINSICS)
    write_frame(tmp_path, "a", depth, np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.eye(4))
    (points, normals, _), _ = fuse(tmp_path, stride=1)
    assert set(points[:, 2]) == {1.5, 2.0}
    np.testing.assert_allclose(normals, np.broadcast_to([0.0, 0, -1], normals.shape), atol=1e-6)


def test_edges_are_dropped_on_both_sides_and_slopes_are_not():
    depth = np.full((20, 30), 2.0)
    depth[:, 15:] = 3
    depth[10, 5] = 0
    kept = steady(depth, 4.0)
    assert not kept[:, 13:17].any() and not kept[10, 5], "two pixels on either side, and the one without a depth"
    expected = np.ones((20, 30), bool)
    expected[:, 13:17] = expected[10, 5] = False
    np.testing.assert_array_equal(kept, expected)
    slope = 2 * (1 + JUMP / 2.1) ** np.arange(30) * np.ones((20, 1))
    assert steady(slope, 100.0).all() and not steady(slope, 2.0)[:, 1:].any()


def test_the_command_writes_what_fit_reads(sphere, tmp_path, capsys):
    out = tmp_path / "cloud.ply"
    assert main([str(sphere), "--out", str(out), "--stride", "2"]) == 0
    cloud = read_cloud(out)
    assert cloud.colors is not None and not any(cloud.dropped.values())
    assert f"{len(cloud):,} points of 3 frames" in capsys.readouterr().out
    assert survey(cloud.points).noise < 2e-3
    fused, _ = fuse(sphere, stride=2)
    np.testing.assert_array_equal(cloud.points, fused.points)
    np.testing.assert_array_equal(cloud.colors, fused.colors)
    np.testing.assert_allclose(cloud.normals, fused.normals, atol=1e-6)


def test_frames_that_are_not_whole_are_named_and_left_out(tmp_path, capsys):
    make_sphere(tmp_path)
    (tmp_path / "frame-000001.pose.txt").unlink()
    assert fuse(tmp_path)[1] == 2
    assert "frame-000001: has no pose" in capsys.readouterr().err
    (tmp_path / "frame-000000.color.png").unlink()
    assert fuse(tmp_path)[1] == 1
    assert "frame-000000: has no colours" in capsys.readouterr().err
    np.savetxt(tmp_path / "frame-000002.pose.txt", np.full((4, 4), -np.inf))
    with pytest.raises(UserError, match="no frame gave a point"):
        fuse(tmp_path)
    assert "frame-000002: has no pose" in capsys.readouterr().err


def refused(capsys, *arguments: object) -> str:
    assert main([str(word) for word in arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_one_line_for_what_users_get_wrong(tmp_path, capsys):
    out = ("--out", tmp_path / "cloud.ply")
    assert "has no frames" in refused(capsys, tmp_path / "nowhere", *out)
    make_sphere(tmp_path)
    assert "cloud.obj" in refused(capsys, tmp_path, "--out", tmp_path / "cloud.obj")
    assert "--stride" in refused(capsys, tmp_path, *out, "--stride", "0")
    assert "--far" in refused(capsys, tmp_path, *out, "--far", "0.1")
    pose = tmp_path / "frame-000002.pose.txt"
    pose.write_text("nan 0 0\n")
    assert str(pose) in refused(capsys, tmp_path, *out)
    depth = tmp_path / "frame-000000.depth.png"
    depth.write_bytes(depth.read_bytes()[:60])
    assert str(depth) in refused(capsys, tmp_path, *out)
    (tmp_path / "camera-intrinsics.txt").write_text("0 0 0\n" * 3)
    assert "is no camera" in refused(capsys, tmp_path, *out)
    (tmp_path / "camera-intrinsics.txt").unlink()
    assert "camera-intrinsics.txt" in refused(capsys, tmp_path, *out)
    assert not (tmp_path / "cloud.ply").exists()


def test_distant_frames_of_a_kitchen_agree(data_root: Path, tmp_path: Path):
    """Two frames of the same table and cabinets from 0.45 m apart; the sensor's noise is one or two centimetres."""
    clouds = []
    for number in (0, 240):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in (data_root / "kitchen_rgbd").glob(f"frame-{number:06d}.*"):
            copy(path, folder)
        copy(data_root / "kitchen_rgbd" / "camera-intrinsics.txt", folder)
        clouds.append(fuse(folder, stride=4)[0].points)
    apart = cKDTree(clouds[0]).query(clouds[1])[0]
    common = apart < 0.1
    assert common.mean() > 0.3 and np.median(apart[common]) < 0.02
