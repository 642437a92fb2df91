"""The DTU reader on a small scene written here, on each way such a folder can be wrong, and on real data."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from plyfile import PlyData

from mvrecon.datasets.dtu import load_dtu
from mvrecon.rays import RayPool
from shared.errors import UserError
from shared.geometry import look_at

K = np.array([[50.0, 0.0, 19.5], [0.0, 50.0, 14.5], [0.0, 0.0, 1.0]])
SCALE, OFFSET, VIEWS = 20.0, np.array([1.0, -2.0, 600.0]), 5
WIDTH, HEIGHT = 40, 30


def projection(index: int) -> np.ndarray:
    angle = 2 * np.pi * index / VIEWS
    pose = look_at(OFFSET + 60 * np.array([np.cos(angle), np.sin(angle), 0.3]), OFFSET, np.array([0.0, 0.0, 1.0]))
    matrix = np.eye(4)
    matrix[:3] = K @ np.column_stack([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3]])
    return matrix


def save_cameras(root: Path, **changes: np.ndarray | None) -> None:
    """Write cameras_sphere.npz with some matrices replaced, or with None left out."""
    scale = np.diag([SCALE, SCALE, SCALE, 1.0])
    scale[:3, 3] = OFFSET
    matrices = {f"world_mat_{i}": projection(i) for i in range(VIEWS)} | {f"scale_mat_{i}": scale for i in range(VIEWS)}
    matrices = {key: value for key, value in (matrices | changes).items() if value is not None}
    np.savez(root / "cameras_sphere.npz", **matrices)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "scan"
    (root / "image").mkdir(parents=True)
    (root / "mask").mkdir()
    for i in range(VIEWS):
        bgr = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        mask = np.zeros((HEIGHT, WIDTH, 3) if i % 2 else (HEIGHT, WIDTH), np.uint8)
        mask[10:20, 10:30] = 255
        cv2.imwrite(str(root / "image" / f"{i:06d}.png"), bgr)
        cv2.imwrite(str(root / "mask" / f"{i:03d}.png"), mask)
    save_cameras(root)
    return root


def refused(root: Path, *words: str, **arguments) -> None:
    """load_dtu raises a UserError of one line that starts with a path of the scene and contains `words`."""
    with pytest.raises(UserError) as caught:
        load_dtu(root, **arguments)
    message = str(caught.value)
    assert message.startswith(str(root)) and "\n" not in message and ";" in message
    for word in words:
        assert word in message


def test_reads_photos_masks_cameras_and_frame(root):
    scene = load_dtu(root, holdout=(3, 1))
    assert scene.images.shape == (VIEWS, HEIGHT, WIDTH, 3) and scene.view_size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(scene.images[2], cv2.imread(str(root / "image" / "000002.png"))[:, :, ::-1])
    assert scene.masks is not None and set(np.unique(scene.masks)) == {0, 255}
    assert scene.masks[1, 10:20, 10:30].min() == 255
    assert list(scene.train) == [0, 2, 4] and list(scene.test) == [3, 1]
    assert scene.names[4] == "000004" and scene.to_world.scale == SCALE
    np.testing.assert_allclose(scene.cameras.intrinsics, np.repeat(K[None], VIEWS, axis=0), atol=1e-8)


def test_cameras_project_field_space_as_the_matrices_do(root):
    scene, rng = load_dtu(root), np.random.default_rng(1)
    unit = rng.uniform(-0.5, 0.5, (20, 3))
    world = scene.to_world.to_world(unit)
    np.testing.assert_allclose(world, unit * SCALE + OFFSET)
    for view in range(VIEWS):
        homogeneous = np.column_stack([world, np.ones(20)]) @ projection(view)[:3].T
        pixels, depth = scene.cameras.project(view, unit)
        np.testing.assert_allclose(pixels, homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-7)
        np.testing.assert_allclose(depth * SCALE, homogeneous[:, 2], atol=1e-7)


def test_masks_can_be_left_out(root):
    shutil.rmtree(root / "mask")
    assert load_dtu(root, masks=False).masks is None
    refused(root, "mask", "switch the masks off")


def test_masks_of_zero_and_one_are_stretched(root):
    for path in (root / "mask").iterdir():
        cv2.imwrite(str(path), np.asarray(cv2.imread(str(path)) // 255, dtype=np.uint8))
    scene = load_dtu(root)
    assert scene.masks is not None and scene.masks.max() == 255


@pytest.mark.parametrize("downscale", [2, 3, 7])
def test_downscaling_averages_areas_and_keeps_the_image_borders(root, downscale):
    full, small = load_dtu(root), load_dtu(root, downscale=downscale)
    assert small.view_size == (round(WIDTH / downscale), round(HEIGHT / downscale))
    expected = cv2.resize(full.images[0], small.view_size, interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(small.images[0], expected)
    view = torch.zeros(2, dtype=torch.int64)
    corners = [torch.tensor([[-0.5, -0.5], [w - 0.5, h - 0.5]]) for w, h in (full.view_size, small.view_size)]
    before, after = full.cameras.rays(view, corners[0])[1], small.cameras.rays(view, corners[1])[1]
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


def test_differing_scale_matrices_share_the_frame_of_the_first(root):
    other = np.diag([7.0, 7.0, 7.0, 1.0])
    expected = load_dtu(root)
    save_cameras(root, scale_mat_2=other, scale_mat_3=None)
    scene = load_dtu(root)
    np.testing.assert_array_equal(scene.cameras.cam_to_world, expected.cameras.cam_to_world)


def test_photos_taken_out_are_matched_by_the_number_in_their_name(root):
    expected = load_dtu(root)
    (root / "image" / "000001.png").unlink()
    (root / "mask" / "001.png").unlink()
    scene = load_dtu(root)
    np.testing.assert_array_equal(scene.cameras.centres, expected.cameras.centres[[0, 2, 3, 4]])
    save_cameras(root, world_mat_1=None)
    np.testing.assert_array_equal(load_dtu(root).cameras.centres, scene.cameras.centres)
    save_cameras(root)
    (root / "image" / "000000.png").rename(root / "image" / "front.png")
    refused(root, "5 cameras for 4 photos")


def test_photos_counted_from_one_are_matched_by_rank_or_not_at_all(root):
    """Cameras are counted from 0: with a photo gone, its number would name its neighbour's camera."""
    expected = load_dtu(root)
    for i in reversed(range(VIEWS)):
        (root / "image" / f"{i:06d}.png").rename(root / "image" / f"{i + 1:06d}.png")
    np.testing.assert_array_equal(load_dtu(root).cameras.centres, expected.cameras.centres)
    (root / "image" / f"{VIEWS:06d}.png").unlink()
    (root / "mask" / f"{VIEWS - 1:03d}.png").unlink()
    refused(root, "5 cameras for 4 photos", "take the other cameras out")


def test_missing_folders_and_files(root):
    refused(root / "absent", "no such folder")
    (root / "cameras_sphere.npz").unlink()
    refused(root, "cameras_sphere.npz", "no such file")
    for path in (root / "image").iterdir():
        path.unlink()
    refused(root, "image", "no PNG or JPEG")
    (root / "image").rmdir()
    refused(root, "image", "no such folder")


@pytest.mark.parametrize("folder", ["image", "mask"])
def test_truncated_and_foreign_images(root, folder):
    path = sorted((root / folder).iterdir())[2]
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[: len(whole) - 30], b"", b"not an image"):
        path.write_bytes(broken)
        refused(root, path.name, "truncated")


@pytest.mark.parametrize("folder", ["image", "mask"])
def test_images_of_differing_sizes(root, folder):
    path = sorted((root / folder).iterdir())[3]
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8))
    refused(root, path.name, "42x30", "40x30")


def test_masks_of_another_size_or_count_or_all_black(root):
    paths = sorted((root / "mask").iterdir())
    for path in paths:
        cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH), np.uint8))
    refused(root, "mask", "black")
    for path in paths:
        cv2.imwrite(str(path), np.zeros((15, 20), np.uint8))
    refused(root, "mask", "20x15")
    paths[0].unlink()
    refused(root, "mask", "4 masks for 5 photos")


def test_broken_camera_archives(root):
    path = root / "cameras_sphere.npz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(broken)
        refused(root, "cameras_sphere.npz", "truncated")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("world_mat_3", None, "world_mat_3 is missing"),
        ("world_mat_4", None, "world_mat_4 is missing"),
        ("scale_mat_0", None, "scale_mat_0 is missing"),
        ("world_mat_2", np.zeros((4, 4)), "world_mat_2 is singular"),
        ("world_mat_2", np.full((4, 4), np.nan), "world_mat_2 is not finite"),
        ("world_mat_1", np.eye(3), "not a 4x4 matrix"),
        ("scale_mat_0", np.zeros((4, 4)), "scale_mat_0 is singular"),
        ("scale_mat_0", np.full((4, 4), np.inf), "scale_mat_0 is not finite"),
        ("scale_mat_0", np.diag([1.0, 2.0, 1.0, 1.0]), "not one positive scale"),
    ],
)
def test_unusable_matrices_are_named(root, key, value, words):
    save_cameras(root, **{key: value})
    refused(root, "cameras_sphere.npz", words)


@pytest.mark.parametrize(
    ("holdout", "words"),
    [
        ((5,), "view 5 does not exist"),
        ((-1,), "view -1"),
        ((2, 2), "more than once"),
        (tuple(range(5)), "leave 0"),
        (tuple(range(4)), "leave 1"),
    ],
)
def test_impossible_holdouts(root, holdout, words):
    refused(root, words, holdout=holdout)


@pytest.mark.parametrize(("downscale", "words"), [(0, "below 1"), (-2, "below 1"), (100, "leaves nothing")])
def test_impossible_downscales(root, downscale, words):
    refused(root, words, downscale=downscale)


def test_too_few_views(root):
    for folder in ("image", "mask"):
        for path in sorted((root / folder).iterdir())[1:]:
            path.unlink()
    refused(root, "1 views", "at least 2")


@pytest.mark.parametrize("downscale", [1, 3])
def test_real_surface_points_land_inside_the_masks(data_root, downscale):
    folder = data_root / "dtu_scan65"
    scene = load_dtu(folder, downscale=downscale, holdout=(8, 24, 40))
    assert len(scene.names) == 49 and len(scene.train) == 46
    vertex = PlyData.read(folder / "sfm_points.ply")["vertex"]
    unit = scene.to_world.to_unit(np.stack([vertex["x"], vertex["y"], vertex["z"]], axis=1))
    assert np.linalg.norm(unit, axis=1).max() < 1.0
    for view in range(49):
        pixels, depth = scene.cameras.project(view, unit)
        x, y = np.rint(pixels[scene.cameras.inside(pixels) & (depth > 0)]).astype(int).T
        assert len(x) > 1000 and (scene.masks[view, y, x] > 0).all()


def test_photos_on_disk_are_those_in_memory(root, monkeypatch):
    cache = root / "made" / "cache"
    held, mapped = load_dtu(root), load_dtu(root, cache=cache)
    assert isinstance(mapped.images, np.memmap) and isinstance(mapped.masks, np.memmap)
    assert np.array_equal(held.images, mapped.images) and np.array_equal(held.masks, mapped.masks)
    assert not any(cache.iterdir()), "the file has no name and goes with the process"
    draws = [RayPool(s, 0.5, torch.device("cpu")).draw(50, torch.Generator().manual_seed(0)) for s in (held, mapped)]
    for one, two in zip(*draws):
        assert torch.equal(one, two)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    refused(root, str(cache), "choose another --data.cache", cache=cache)
