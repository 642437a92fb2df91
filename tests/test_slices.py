"""Slices through fields whose level sets are known, pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image

from pointrecon.checkpoint import LoadedRun
from pointrecon.config import Config
from pointrecon.slices import INK, INSIDE, OUTSIDE, plane_values, round_step, slice_picture, write_slices
from shared.errors import UserError
from shared.field import FieldConfig, build_field
from shared.geometry import Similarity
from shared.mesh import Mesh, save_mesh

CPU = torch.device("cpu")


def ball(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=1) - 0.5


def run_at(
    scale: float, translation: tuple[float, float, float] = (0.0, 0.0, 0.0), folder: Path = Path("run")
) -> LoadedRun:
    """A run whose field is still the sphere that it starts as."""
    torch.manual_seed(0)
    field = build_field(FieldConfig(levels=2, base=4, finest=8, log2_entries=8, feature=0), CPU)
    return LoadedRun(folder, Config(), field, Similarity(scale, translation), CPU, {})


def darkness(picture: np.ndarray) -> np.ndarray:
    """1 where a pixel is ink, about 0 where it is pale."""
    brightness = picture.astype(float).mean(axis=2)
    return (255 - brightness) / (255 - INK.mean())


@pytest.mark.parametrize(("axis", "right", "up"), [("x", 1, 2), ("y", 0, 2), ("z", 0, 1)])
def test_where_a_pixel_is(axis, right, up):
    """The first row is on top, and centres of pixels lie half a pixel within the box."""
    weight = torch.tensor([1.0, 10.0, 100.0])
    values = plane_values(lambda x: x @ weight, axis, 0.25, 4, chunk=5)
    centres = np.array([-0.75, -0.25, 0.25, 0.75])
    for row in range(4):
        for column in range(4):
            point = np.full(3, 0.25)
            point[right], point[up] = centres[column], -centres[row]
            assert values[row, column] == pytest.approx(point @ weight.numpy(), rel=1e-5)


def test_the_field_is_asked_in_chunks():
    sizes = []

    def counted(x):
        assert not torch.is_grad_enabled()
        sizes.append(len(x))
        return ball(x)

    assert np.array_equal(plane_values(counted, "z", 0.1, 30, chunk=128), plane_values(ball, "z", 0.1, 30))
    assert max(sizes) == 128 and sum(sizes) == 900


def test_a_ball():
    """Along a row through the middle: bold at radius 0.5, thin every 0.1 from there, blue inside, ochre outside."""
    size = 800
    picture = slice_picture(ball, "y", 0.0, size, 0.1)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    row, radius = darkness(picture)[size // 2], np.abs((np.arange(size) + 0.5) / size * 2 - 1)
    pixel = 2 / size
    assert (row[np.abs(radius - 0.5) < 0.5 * pixel] > 0.9).all()
    for thin in (0.2, 0.3, 0.7, 0.8, 0.9):
        ring, beside = np.abs(radius - thin) < 1.1 * pixel, np.abs(np.abs(radius - thin) - 5 * pixel) < pixel
        assert row[beside].mean() + 0.1 < row[ring].max() < 0.9
    red, _, blue = picture[size // 2].astype(float).T
    clear = np.abs(radius - 0.5) > 5 * pixel
    assert (blue > red)[clear & (radius < 0.5)].all() and (blue < red)[clear & (radius > 0.5)].all()
    between = np.isclose(radius % 0.1, 0.05, atol=pixel)
    assert (np.diff(row[between & (radius < 0.5)][:5]) > 0).all(), "deeper is darker"


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4])
def test_lines_are_smooth(angle):
    """Whatever the angle of a line, the shares of pixels under it add up to width times length."""
    size, towards = 400, torch.tensor([np.cos(angle), np.sin(angle), 0.0], dtype=torch.float32)
    picture = slice_picture(lambda x: 0.001 * (x @ towards), "z", 0.0, size, 1.0)
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    inside = centres * np.cos(angle) - centres[:, None] * np.sin(angle) < 0
    ground = np.where(inside, INSIDE[0].mean(), OUTSIDE[0].mean())
    covered = (ground - picture.mean(axis=2)) / (ground - INK.mean())
    covered[np.abs(covered) < 0.02] = 0  # the ground is not quite even
    length = size / max(np.cos(angle), np.sin(angle))
    assert covered.sum() / length == pytest.approx(0.0045 * size, rel=0.1)
    assert ((covered > 0.2) & (covered < 0.8)).any() or angle == 0


def test_pictures_look_alike_at_any_size():
    small, large = (slice_picture(ball, "z", 0.0, size, 0.2).astype(float) for size in (200, 400))
    shrunk = large.reshape(200, 2, 200, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 2


def test_a_slice_that_misses_the_surface_has_no_bold_line():
    picture = slice_picture(ball, "x", 0.9, 100, 0.05)
    assert darkness(picture).max() < 0.8
    assert (picture[:, :, 0] > picture[:, :, 2]).all()


def test_values_that_are_no_distances_do_not_draw_without_end():
    picture = slice_picture(lambda x: 1e9 * ball(x), "z", 0.0, 50, 0.1)
    assert picture[0, 0] == pytest.approx(OUTSIDE[-1], abs=1)
    assert picture[25, 25] == pytest.approx(INSIDE[-1], abs=1)


def test_refused_fields_and_steps():
    with pytest.raises(UserError, match="not finite"):
        slice_picture(lambda x: ball(x) / 0, "z", 0.0, 10, 0.1)
    with pytest.raises(ValueError, match="apart"):
        slice_picture(ball, "z", 0.0, 10, 0.0)
    with pytest.raises(TypeCheckError):
        slice_picture(ball, "z", "middle", 10, 0.1)


@pytest.mark.parametrize(
    ("length", "step"),
    [
        (1.0, 1),
        (1.3, 1),
        (1.5, 2),
        (3.1, 2),
        (3.3, 5),
        (7.0, 5),
        (7.2, 10),
        (0.048, 0.05),
        (9.9e-4, 1e-3),
        (2.4e5, 2e5),
    ],
)
def test_round_steps(length, step):
    assert round_step(length) == pytest.approx(step)


def test_one_slice_is_the_middle_of_the_cloud(tmp_path, capsys):
    run = run_at(24.0, (5.0, -3.0, 0.25))
    (path,) = write_slices(run, "z", 1, tmp_path / "slices", size=40)
    assert path == tmp_path / "slices" / "slice_z_+0.250.png"
    said = capsys.readouterr().out
    assert "level sets every 2 of the cloud's units" in said and str(path) in said
    with Image.open(path) as file:
        assert np.array_equal(np.asarray(file), slice_picture(run.field.sdf, "z", 0.0, 40, 2 / 24))


def test_several_slices_are_the_middles_of_slabs(tmp_path):
    paths = write_slices(run_at(10.0, (100.0, 0.0, -1e-9)), "x", 4, tmp_path, size=8)
    names = ["slice_x_+92.500.png", "slice_x_+97.500.png", "slice_x_+102.500.png", "slice_x_+107.500.png"]
    assert [path.name for path in paths] == names
    assert [path.name for path in write_slices(run_at(10.0, (0.0, 0.0, -1e-9)), "z", 1, tmp_path, size=8)] == [
        "slice_z_+0.000.png"
    ]


def test_slabs_are_those_of_the_mesh_where_there_is_one(tmp_path):
    run = run_at(10.0, (100.0, 0.0, 0.0), folder=tmp_path)
    flat = Mesh(np.array([[95.0, 0, 1], [105, 1, 1], [100, 0, 3]]), np.array([[0, 1, 2]]))
    save_mesh(flat, tmp_path / "mesh.ply")
    names = [path.name for path in write_slices(run, "z", 2, tmp_path, size=8)]
    assert names == ["slice_z_+1.500.png", "slice_z_+2.500.png"]


def test_names_of_a_tiny_cloud_differ(tmp_path):
    paths = write_slices(run_at(1e-5), "y", 3, tmp_path, size=8)
    assert [path.name for path in paths] == [f"slice_y_{p}.png" for p in ("-0.0000067", "+0.0000000", "+0.0000067")]


def test_refused_orders(tmp_path):
    run = run_at(1.0)
    with pytest.raises(UserError, match="use one of x, y, z"):
        write_slices(run, "w", 1, tmp_path)
    with pytest.raises(UserError, match="at least one"):
        write_slices(run, "x", 0, tmp_path)
    with pytest.raises(UserError, match="2 pixels"):
        write_slices(run, "x", 1, tmp_path, size=1)
    assert not list(tmp_path.iterdir())
