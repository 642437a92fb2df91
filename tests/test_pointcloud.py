"""Every format gives the same cloud back; everything that is no usable cloud is refused in one line."""

import struct
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from shared.errors import UserError
from shared.pointcloud import read_cloud

RNG = np.random.default_rng(0)
COUNT = 60
POINTS = RNG.normal(size=(COUNT, 3)).astype(np.float32)
NORMALS = (POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)).astype(np.float32)
COLORS = RNG.integers(0, 256, (COUNT, 3), dtype=np.uint8)


def write_ply(path: Path, text: bool = False, byte_order: str = "<", color: str = "u1") -> None:
    names = [(n, "f4") for n in ("x", "y", "z", "nx", "ny", "nz")] + [(n, color) for n in ("red", "green", "blue")]
    rows = np.empty(COUNT, dtype=names)
    colors = COLORS if color == "u1" else COLORS / 255
    for (name, _), column in zip(names, np.hstack([POINTS, NORMALS, colors]).T, strict=True):
        rows[name] = column
    PlyData([PlyElement.describe(rows, "vertex")], text=text, byte_order=byte_order).write(path)


def write_text(path: Path, table: np.ndarray, delimiter: str = " ", header: str = "") -> None:
    np.savetxt(path, table, fmt="%.9g", delimiter=delimiter, header=header, comments="")


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_cloud(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and ";" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "options",
    [{}, {"text": True}, {"byte_order": ">"}, {"color": "f4"}],
    ids=["little", "ascii", "big", "float colors"],
)
def test_ply(tmp_path, options):
    write_ply(tmp_path / "cloud.ply", **options)
    cloud = read_cloud(tmp_path / "cloud.ply")
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    np.testing.assert_array_equal(cloud.colors, COLORS)
    assert cloud.points.dtype == np.float64 and len(cloud) == COUNT


@pytest.mark.parametrize("suffix", ["xyz", "txt", "csv"])
@pytest.mark.parametrize(
    ("delimiter", "header"), [(" ", ""), (",", "x,y,z"), (";", '"X";"Y";"Z"'), ("\t", "# made by\n")]
)
def test_text_with_any_separator_and_header(tmp_path, suffix, delimiter, header):
    path = tmp_path / f"cloud.{suffix}"
    write_text(path, POINTS, delimiter, header)
    cloud = read_cloud(path)
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)
    assert cloud.normals is None and cloud.colors is None


@pytest.mark.parametrize("order", [(NORMALS, COLORS), (COLORS, NORMALS), (NORMALS,), (COLORS,), ()])
def test_text_columns_are_told_apart(tmp_path, order):
    write_text(tmp_path / "cloud.xyz", np.hstack([POINTS, *order]), header="// exported\n// x y z")
    cloud = read_cloud(tmp_path / "cloud.xyz")
    has_normals, has_colors = (any(block is kind for block in order) for kind in (NORMALS, COLORS))
    assert (cloud.normals is not None) == has_normals and (cloud.colors is not None) == has_colors
    if has_normals:
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    if has_colors:
        np.testing.assert_array_equal(cloud.colors, COLORS)


def test_numpy_files(tmp_path):
    np.save(tmp_path / "cloud.npy", np.hstack([POINTS, NORMALS]))
    np.savez(tmp_path / "cloud.npz", points=POINTS, normals=2 * NORMALS, colors=COLORS, loc=np.zeros(3))
    bare, archive = read_cloud(tmp_path / "cloud.npy"), read_cloud(tmp_path / "cloud.npz")
    for cloud in (bare, archive):
        np.testing.assert_array_equal(cloud.points, POINTS.astype(np.float64))
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    np.testing.assert_array_equal(archive.colors, COLORS)


def test_obj_pairs_normals_only_without_faces(tmp_path):
    path = tmp_path / "cloud.obj"
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in POINTS] + [f"vn {x} {y} {z}" for x, y, z in NORMALS]
    path.write_text("# cloud\n" + "\n".join(lines))
    cloud = read_cloud(path)
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-5)
    path.write_text("\n".join([*lines, "f 1//2 2//3 3//1"]))
    assert read_cloud(path).normals is None


def test_rows_that_are_not_finite_and_repetitions_are_dropped_and_counted(tmp_path):
    spoilt = np.vstack([POINTS, POINTS[5:8], [[np.nan, 0, 0], [0, np.inf, 0]], POINTS[5:6]])
    write_text(tmp_path / "cloud.xyz", spoilt)
    cloud = read_cloud(tmp_path / "cloud.xyz")
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)  # the first of equal rows stays, in place
    assert cloud.dropped == {"non-finite": 2, "duplicate": 4, "unusable normals": 0}
    summary = cloud.summary()
    assert "60 points" in summary and "dropped 2 non-finite" in summary and "4 duplicate" in summary


def test_normals_without_direction_are_left_out(tmp_path):
    normals = NORMALS.copy()
    normals[3] = 0
    np.savez(tmp_path / "cloud.npz", points=POINTS, normals=normals)
    cloud = read_cloud(tmp_path / "cloud.npz")
    assert cloud.normals is None and cloud.dropped["unusable normals"] == 1


def test_missing_foreign_and_empty_files(tmp_path):
    refused(tmp_path / "absent.ply", "no such file")
    refused(tmp_path, "folder")
    (tmp_path / "cloud.las").write_bytes(b"LASF")
    refused(tmp_path / "cloud.las", ".las", ".ply")
    for suffix in ("ply", "xyz", "npy", "npz", "obj"):
        (tmp_path / f"cloud.{suffix}").write_bytes(b"")
        refused(tmp_path / f"cloud.{suffix}", "empty")


@pytest.mark.parametrize("text", [False, True])
def test_truncated_ply(tmp_path, text):
    path = tmp_path / "cloud.ply"
    write_ply(path, text=text)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 40, 60, 2):
        path.write_bytes(whole[:length])
        refused(path, "truncated")


def test_ply_without_vertices_or_coordinates(tmp_path):
    path = tmp_path / "cloud.ply"
    path.write_text("ply\nformat ascii 1.0\nelement face 1\nproperty int a\nend_header\n1\n")
    refused(path, "no vertices")
    path.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    refused(path, "no x, y and z")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_truncated_numpy(tmp_path, suffix):
    path = tmp_path / f"cloud.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, POINTS)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 20, 5):
        path.write_bytes(whole[:length])
        refused(path, "truncated")


def test_numpy_of_other_content(tmp_path):
    np.save(tmp_path / "flat.npy", POINTS[:, 0])
    refused(tmp_path / "flat.npy", "(60,)")
    np.save(tmp_path / "words.npy", np.array([["a", "b", "c"]] * COUNT))
    refused(tmp_path / "words.npy", "not rows of x y z")
    np.savez(tmp_path / "other.npz", weights=POINTS)
    refused(tmp_path / "other.npz", "no key 'points'", "weights")
    np.savez(tmp_path / "short.npz", points=POINTS, normals=NORMALS[:5])
    refused(tmp_path / "short.npz", "normals", "(5, 3)")


@pytest.mark.parametrize(
    "content",
    [
        "hello world again\nthis is text\n",
        "1 2 3\n4 five 6\n",
        "1 2 3\n4 5\n",
        "1 2\n3 4\n",
        "# only a comment\n",
        "\x00\x01",
    ],
)
def test_text_where_numbers_belong(tmp_path, content):
    (tmp_path / "cloud.xyz").write_text(content)
    refused(tmp_path / "cloud.xyz")


def test_binary_content_in_a_text_file(tmp_path):
    (tmp_path / "cloud.xyz").write_bytes(struct.pack("<3d", 1.5, -2.5, 1e300) * 50 + b"\xff\xfe")
    refused(tmp_path / "cloud.xyz")
    (tmp_path / "cloud.obj").write_bytes(b"v 1 2 3\nv one 2 3\n")
    refused(tmp_path / "cloud.obj", "OBJ")
    (tmp_path / "cloud.obj").write_bytes(b"v 1 2\n" * 60)
    refused(tmp_path / "cloud.obj", "OBJ")


def test_too_few_or_equal_points(tmp_path):
    path = tmp_path / "cloud.xyz"
    write_text(path, POINTS[:49])
    refused(path, "49 usable points", "at least 50")
    write_text(path, np.vstack([POINTS[:40], POINTS[:40]]))
    refused(path, "40 usable points (of 80, 40 dropped as duplicate)")
    write_text(path, np.ones((80, 3)))
    refused(path, "all points are equal")
    write_text(path, np.full((80, 3), np.nan))
    refused(path, "80 dropped as non-finite")


def test_real_scan(data_root):
    cloud = read_cloud(data_root / "points" / "gargoyle.ply")
    assert len(cloud) + sum(cloud.dropped.values()) == 95_435 and cloud.normals is not None
