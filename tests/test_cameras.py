"""Rays, projections and paths against closed forms and per-pixel loops."""

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from mvrecon.cameras import Cameras, decompose_projection, interpolate, look_at_point, orbit
from shared.errors import UserError
from shared.geometry import look_at

K = np.array([[50.0, 0.3, 31.0], [0.0, 48.0, 22.5], [0.0, 0.0, 1.0]])


def pose(eye: ArrayLike, target: ArrayLike, up: ArrayLike) -> np.ndarray:
    return look_at(*(np.array(vector, dtype=np.float64) for vector in (eye, target, up)))


def ring(
    count: int, radius: float = 3.0, elevation: float = 0.4, target: tuple[float, ...] = (0.1, -0.2, 0.3)
) -> Cameras:
    """Cameras on a circle about `target` with +z up."""
    angles = 2 * np.pi * np.arange(count) / count
    flat = np.stack([np.cos(angles), np.sin(angles), np.full(count, np.tan(elevation))], axis=1)
    eyes = np.array(target) + radius * np.cos(elevation) * flat
    poses = np.stack([pose(eye, target, (0, 0, 1)) for eye in eyes])
    return Cameras(np.repeat(K[None], count, axis=0), poses, 64, 48)


def test_rays_agree_with_a_loop_in_float64():
    cameras, rng = ring(5), np.random.default_rng(0)
    view, pixels = rng.integers(5, size=40), rng.uniform(-0.5, 63.5, (40, 2))
    origins, directions = cameras.rays(torch.tensor(view), torch.tensor(pixels, dtype=torch.float32))
    for i in range(40):
        ray = cameras.cam_to_world[view[i], :, :3] @ np.linalg.inv(K) @ [*pixels[i], 1.0]
        np.testing.assert_allclose(directions[i], ray / np.linalg.norm(ray), atol=1e-6)
        np.testing.assert_allclose(origins[i], cameras.centres[view[i]], atol=1e-6)
    assert directions.dtype == torch.float32
    np.testing.assert_allclose(directions.norm(dim=1), 1.0, atol=1e-6)


def test_project_undoes_rays_and_gives_depth_along_z():
    cameras, rng = ring(4), np.random.default_rng(1)
    pixels, lengths = rng.uniform(0, 47, (30, 2)), rng.uniform(0.5, 4.0, 30)
    for view in range(4):
        origins, directions = cameras.rays(torch.full((30,), view), torch.tensor(pixels, dtype=torch.float32))
        points = origins.numpy() + lengths[:, None] * directions.numpy()
        back, depth = cameras.project(view, points)
        np.testing.assert_allclose(back, pixels, atol=1e-3)
        np.testing.assert_allclose(depth, lengths * (directions.numpy() @ cameras.forward[view]), atol=1e-5)


def test_axes_are_opencv():
    camera = Cameras(K[None], np.eye(3, 4)[None], 64, 48)
    pixels, depth = camera.project(0, np.array([[0, 0, 2.0], [1, 0, 2.0], [0, 1, 2.0], [0, 0, -1.0]]))
    assert pixels[1, 0] > pixels[0, 0] and pixels[2, 1] > pixels[0, 1]
    np.testing.assert_allclose(pixels[0], (31.0, 22.5))
    assert list(np.sign(depth)) == [1, 1, 1, -1]


def test_inside_spans_half_a_pixel_beyond_the_outer_centres():
    camera = ring(1)
    pixels = np.array([[-0.5, 0], [-0.6, 0], [63.4, 47.4], [63.5, 0], [0, 47.5], [0, np.nan]])
    assert list(camera.inside(pixels)) == [True, False, True, False, False, False]


def test_pixel_grid_is_row_major():
    grid = ring(1).pixel_grid()
    assert grid.shape == (64 * 48, 2)
    assert grid[1].tolist() == [1, 0] and grid[64].tolist() == [0, 1] and grid[-1].tolist() == [63, 47]


@pytest.mark.parametrize("size", [(32, 24), (21, 16), (64, 48), (128, 96)])
def test_resizing_keeps_the_rays_through_the_image_borders(size):
    cameras = ring(1)
    resized = cameras.with_size(*size)
    view = torch.zeros(2, dtype=torch.int64)
    before = cameras.rays(view, torch.tensor([[-0.5, -0.5], [63.5, 47.5]]))[1]
    after = resized.rays(view, torch.tensor([[-0.5, -0.5], [size[0] - 0.5, size[1] - 0.5]]))[1]
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


def test_resized_halves_the_principal_point_about_pixel_corners():
    half = ring(1).resized(0.5)
    assert (half.width, half.height) == (32, 24)
    np.testing.assert_allclose(half.intrinsics[0, 0], [25.0, 0.15, 31.5 * 0.5 - 0.5])


def test_select_reorders_and_to_moves_the_buffers():
    cameras = ring(4).to("cpu").select([2, 0])
    assert len(cameras) == 2
    np.testing.assert_array_equal(cameras.centres, ring(4).centres[[2, 0]])


@pytest.mark.parametrize("factor", [1.0, -3.0, 1e-6, 1e6])
def test_decompose_projection_recovers_what_was_composed(factor):
    expected = pose((1, 2, 3), (0, 0.5, 0), (0, 1, 0))
    rotation, centre = expected[:, :3].T, expected[:, 3]
    projection = factor * K @ np.column_stack([rotation, -rotation @ centre])
    intrinsics, recovered = decompose_projection(projection)
    np.testing.assert_allclose(intrinsics, K, atol=1e-9)
    np.testing.assert_allclose(recovered, expected, atol=1e-9)


def test_decompose_projection_drops_the_scale_of_field_space():
    expected = pose((10, 20, 30), (0, 5, 0), (0, 1, 0))
    world = K @ np.column_stack([expected[:, :3].T, -expected[:, :3].T @ expected[:, 3]])
    scale = np.diag([4.0, 4.0, 4.0, 1.0])
    scale[:3, 3] = (1, -2, 3)
    intrinsics, recovered = decompose_projection(world @ scale)
    np.testing.assert_allclose(intrinsics, K, atol=1e-9)
    np.testing.assert_allclose(recovered[:, 3], (expected[:, 3] - scale[:3, 3]) / 4.0, atol=1e-9)
    np.testing.assert_allclose(recovered[:, :3], expected[:, :3], atol=1e-9)


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.eye(3), np.diag([1.0, 0, 1, 1])])
def test_decompose_projection_refuses_unusable_matrices(bad):
    with pytest.raises(ValueError, match=r"singular|finite"):
        decompose_projection(bad)


def test_look_at_point_is_where_the_axes_meet():
    np.testing.assert_allclose(look_at_point(ring(7)), (0.1, -0.2, 0.3), atol=1e-9)


def test_look_at_point_of_one_camera_is_its_axis_nearest_the_origin():
    camera = Cameras(K[None], pose((3, 0, 1), (0, 0, 1), (0, 0, 1))[None], 64, 48)
    np.testing.assert_allclose(look_at_point(camera), (0, 0, 1), atol=1e-9)


def test_orbit_of_a_ring_is_the_ring():
    cameras = ring(6)
    np.testing.assert_allclose(orbit(cameras, 6).cam_to_world, cameras.cam_to_world, atol=1e-9)
    np.testing.assert_allclose(orbit(cameras, 12).cam_to_world[::2], cameras.cam_to_world, atol=1e-9)


@pytest.mark.parametrize("eye", [(0.0, 0.0, 3.0), (0.0, -2.0, 0.5), (-1.0, -1.0, -1.0)])
def test_orbit_of_one_camera_is_finite_rigid_and_keeps_the_distance(eye):
    camera = Cameras(K[None], pose(eye, (0, 0, 0), (0.1, 0.9, 0.2))[None], 64, 48)
    views = orbit(camera, 8)
    np.testing.assert_allclose(np.linalg.norm(views.centres, axis=1), np.linalg.norm(eye), atol=1e-9)
    for x, y, z in views.cam_to_world[:, :, :3].transpose(0, 2, 1):
        np.testing.assert_allclose(np.cross(x, y), z, atol=1e-9)
        np.testing.assert_allclose((x @ x, y @ y, x @ y), (1, 1, 0), atol=1e-9)


def test_orbit_refuses_a_panorama():
    poses = np.stack([pose((0, 0, 0), target, (0, 0, 1)) for target in ((1, 0, 0), (0, 1, 0), (-1, 0, 0))])
    with pytest.raises(UserError, match="one point outward"):
        orbit(Cameras(np.repeat(K[None], 3, axis=0), poses, 64, 48), 10)


def test_interpolate_passes_through_every_camera_with_rigid_rotations():
    cameras = ring(5)
    views = interpolate(cameras, 4 * 10 + 1)
    np.testing.assert_allclose(views.cam_to_world[::10], cameras.cam_to_world, atol=1e-9)
    np.testing.assert_allclose(views.intrinsics, np.repeat(K[None], 41, axis=0), atol=1e-9)
    gram = views.cam_to_world[:, :, :3].transpose(0, 2, 1) @ views.cam_to_world[:, :, :3]
    np.testing.assert_allclose(gram, np.repeat(np.eye(3)[None], 41, axis=0), atol=1e-9)
    steps = np.linalg.norm(np.diff(views.centres, axis=0), axis=1)
    assert steps.max() < 2.0 * steps.min()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_interpolate_works_with_few_cameras(count):
    views = interpolate(ring(5).select(list(range(count))), 7)
    assert len(views) == 7 and np.isfinite(views.cam_to_world).all()
