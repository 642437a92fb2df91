"""The written scene against projections of its own mesh with its own cameras."""

import importlib.util
import itertools
import sys
from pathlib import Path

import cv2
import igl
import numpy as np
import pytest
import torch

from scripts.demo_object import LATTICE, noise, owl_distance, scales
from scripts.make_scene import SceneConfig, make_scene, make_tiny_scene, new_folder
from scripts.path_tracer import to_up
from shared.config import read_config
from shared.errors import UserError
from shared.meshing import component_count, extract_mesh, is_watertight, keep_components, load_mesh

VIEWS = 5
needs_mitsuba = pytest.mark.skipif(importlib.util.find_spec("mitsuba") is None, reason="mitsuba is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "ball"
    make_tiny_scene(folder, views=VIEWS, size=(96, 64))
    return folder


def projected(folder: Path, view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 2) and depths (n,) of world points by the written camera alone."""
    world_mat = np.load(folder / "cameras_sphere.npz")[f"world_mat_{view}"]
    h = points @ world_mat[:3, :3].T + world_mat[:3, 3]
    return h[:, :2] / h[:, 2:], h[:, 2]


def read(folder: Path, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    name = f"{view:06d}"
    image, mask = cv2.imread(str(folder / f"image/{name}.png")), cv2.imread(str(folder / f"mask/{name}.png"), 0)
    return image, mask, np.load(folder / f"depth/{name}.npy"), np.load(folder / f"normal/{name}.npy")


@pytest.mark.parametrize("view", range(VIEWS))
def test_vertices_fall_on_the_mask_and_the_nearest_agree_with_the_depth(tiny: Path, view: int) -> None:
    pixels, depths = projected(tiny, view, load_mesh(tiny / "mesh.ply").vertices)
    image, mask, depth, _ = read(tiny, view)
    assert image.shape == (64, 96, 3) and set(np.unique(mask)) == {0, 255}
    x, y = pixels.round().astype(int).T
    assert cv2.dilate(mask, np.ones((3, 3)))[y, x].all()
    # a tenth of a pixel is 0.01 units here; at the usual slant the depth differs by no more
    on_pixel = (np.abs(pixels - pixels.round()).max(axis=1) < 0.1) & (mask[y, x] > 0)
    seen = on_pixel & (depths < depth[y, x] + 0.05)
    assert seen.sum() > 20
    assert np.median(np.abs(depths - depth[y, x])[seen]) < 0.01


@pytest.mark.parametrize("view", range(VIEWS))
def test_unprojected_depth_lies_on_the_mesh(tiny: Path, view: int) -> None:
    mesh = load_mesh(tiny / "mesh.ply")
    _, mask, depth, normal = read(tiny, view)
    assert ((depth > 0) == (mask > 0)).all()
    y, x = np.nonzero(mask)
    world_mat = np.load(tiny / "cameras_sphere.npz")[f"world_mat_{view}"]
    z = depth[y, x].astype(np.float64)
    points = np.stack([x * z, y * z, z, np.ones_like(z)], axis=-1) @ np.linalg.inv(world_mat).T
    distances = igl.point_mesh_squared_distance(points[:, :3], mesh.vertices, mesh.faces)[0]
    assert np.sqrt(distances).max() < 1e-5
    eye = -np.linalg.inv(world_mat[:3, :3]) @ world_mat[:3, 3]
    assert np.abs(np.linalg.norm(normal[y, x], axis=-1) - 1).max() < 1e-5
    assert ((normal[y, x] * (eye - points[:, :3])).sum(-1) > 0).all()


def test_scale_mat_bounds_the_mesh_by_the_unit_sphere(tiny: Path) -> None:
    cameras = np.load(tiny / "cameras_sphere.npz")
    assert len(cameras.files) == 2 * VIEWS
    scale = cameras["scale_mat_0"]
    inside = (load_mesh(tiny / "mesh.ply").vertices - scale[:3, 3]) / scale[0, 0]
    assert 0.85 < np.linalg.norm(inside, axis=1).max() < 1


def test_a_taken_folder_and_a_failure_leave_nothing_behind(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        make_tiny_scene(tiny)
    with pytest.raises(KeyError), new_folder(tmp_path / "scene") as aside:
        (aside / "half").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("size", "400", "WIDTHxHEIGHT"),
        ("lowest", "80", "above"),
        ("material", "glosy", "glossy"),
        ("views", "0", "small"),
    ],
)
def test_impossible_options_are_one_line(name: str, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_config(SceneConfig, None, [(name, text)])


def test_the_turn_to_y_up_is_a_rotation() -> None:
    turn = to_up(np.eye(3), "y")
    assert np.linalg.det(turn) == 1
    assert (to_up(np.array([0.0, 0.0, 1.0]), "y") == [0, 1, 0]).all()


def test_noise_is_the_trilinear_blend_of_its_lattice() -> None:
    x = torch.tensor([[0.3, 40.6, -7.2], [3.0, 2.0, 1.0]])
    for point, value in zip(x, noise(x, 1.0), strict=True):
        cell = point.floor()
        t = point - cell
        t = t * t * (3 - 2 * t)
        expected = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = torch.where(torch.tensor(corner) == 1, t, 1 - t).prod()
            i, j, k = (int(c) % 32 for c in cell + torch.tensor(corner))
            expected += float(weight * LATTICE[i, j, k])
        assert float(value) == pytest.approx(expected, abs=1e-5)


def test_the_relief_of_the_scales_has_no_steps() -> None:
    v = torch.linspace(-3, 3, 60001)
    for u in (0.0, 0.13, 0.5, 0.77):
        height = scales(torch.full_like(v, u), v)[0]
        assert float(height.diff().abs().max()) < 2e-3
        assert 0 <= float(height.min()) and float(height.max()) <= 1


def test_the_demo_object_is_one_closed_solid() -> None:
    mesh = keep_components(extract_mesh(owl_distance, 48, lipschitz=1.5), 0.5)
    assert is_watertight(mesh) and component_count(mesh) == 1


@needs_mitsuba
@pytest.mark.parametrize("background", ["none", "ground"])
def test_traced_photos_line_up_with_the_truth(tmp_path: Path, tiny: Path, background: str) -> None:
    mesh = load_mesh(tiny / "mesh.ply")
    config = SceneConfig(views=2, size="64x48", samples=4, background=background, up="y", material="glossy")
    make_scene(mesh, tmp_path / "scene", config)
    for view in range(2):
        image, mask, _, _ = read(tmp_path / "scene", view)
        lit = image.max(axis=-1) > 0
        assert lit[cv2.erode(mask, np.ones((3, 3))) > 0].all()
        if background == "none":
            assert not lit[cv2.dilate(mask, np.ones((3, 3))) == 0].any()
        else:
            assert lit.mean() > 0.99


def test_missing_mitsuba_is_one_line(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(UserError, match=r"pip install isopull\[demo\]"):
        make_scene(load_mesh(tiny / "mesh.ply"), tmp_path / "scene")
    assert not list(tmp_path.iterdir())
