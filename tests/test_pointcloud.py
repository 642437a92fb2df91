"""Every format gives the same cloud back; everything that is no usable cloud is refused in one line."""

import struct
from pathlib import Path

import laspy
import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from shared import cloud_columns, cloud_headed
from shared.cloud_columns import first_occurrences
from shared.cloud_formats import READERS
from shared.errors import UserError
from shared.mesh import Mesh, save_mesh
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


def write_off(path: Path, first: str = "OFF", *blocks: np.ndarray) -> None:
    rows = "\n".join(" ".join(f"{number:.9g}" for number in row) for row in np.hstack([POINTS, *blocks]))
    path.write_text(f"{first}\n# vertices, faces, edges\n\n{COUNT} 1 0\n{rows}\n3 0 1 2\n")


def write_stl(path: Path, text: bool = False, points: np.ndarray = POINTS) -> None:
    """Two facets at each three points, back to back."""
    corners = points.reshape(-1, 3, 3)
    corners = np.concatenate([corners, corners[:, ::-1]])
    if text:
        facets = [
            "facet normal 0 0 1\nouter loop\n" + "".join(f"  vertex {x} {y} {z}\n" for x, y, z in facet) + "endloop\n"
            for facet in corners
        ]
        path.write_text("solid cloud\n" + "endfacet\n".join(facets) + "endfacet\nendsolid cloud\n")
    else:
        rows = b"".join(struct.pack("<12fH", 0, 0, 1, *facet.ravel(), 0) for facet in corners)
        path.write_bytes(b"solid in name only".ljust(80) + struct.pack("<I", len(corners)) + rows)


def lzf(data: bytes) -> bytes:
    """A plain compressor: the longest repetition from the last place where the next three bytes occurred."""
    packed, literal, seen, at = bytearray(), bytearray(), {}, 0

    def flush():
        for start in range(0, len(literal), 32):
            packed.append(len(literal[start : start + 32]) - 1)
            packed.extend(literal[start : start + 32])
        literal.clear()

    while at < len(data):
        place = seen.get(data[at : at + 3])
        seen[data[at : at + 3]] = at
        if place is None or at - place > 8192 or at + 3 > len(data):
            literal.append(data[at])
            at += 1
            continue
        flush()
        length = 3
        while length < 264 and at + length < len(data) and data[place + length] == data[at + length]:
            length += 1
        back = at - place - 1
        packed.append(min(length - 2, 7) << 5 | back >> 8)
        packed.extend(([length - 9] if length >= 9 else []) + [back & 255])
        at += length
    flush()
    return bytes(packed)


def write_pcd(path: Path, data: str = "binary", rgb: str = "F", points: np.ndarray = POINTS) -> None:
    """With a field that fills a gap, and colours packed into what the header calls a float or an integer."""
    bits = COLORS.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    rows = np.zeros(COUNT, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("_", "u1", 4), ("n", "<f4", 3), ("rgb", "<u4")])
    rows["x"], rows["y"], rows["z"], rows["n"], rows["rgb"] = *points.T, NORMALS, bits
    header = "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z _ normal_x normal_y normal_z rgb\n"
    header += f"SIZE 4 4 4 1 4 4 4 4\nTYPE F F F U F F F {rgb}\nCOUNT 1 1 1 4 1 1 1 1\nWIDTH {COUNT}\nHEIGHT 1\n"
    header += f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {COUNT}\nDATA {data}\n"
    if data == "ascii":
        color = rows["rgb"].view("<f4") if rgb == "F" else rows["rgb"]
        lines = zip(points, NORMALS, color, strict=True)
        body = "".join(f"{x} {y} {z} 0 0 0 0 {n} {m} {k} {c}\n" for (x, y, z), (n, m, k), c in lines).encode()
    elif data == "binary":
        body = rows.tobytes()
    else:
        columns = [rows["x"], rows["y"], rows["z"], rows["_"], *rows["n"].T, rows["rgb"]]
        whole = b"".join(column.tobytes() for column in columns)
        body = struct.pack("<II", len(lzf(whole)), len(whole)) + lzf(whole)
    path.write_bytes(header.encode() + body)


def write_las(path: Path, points: np.ndarray = POINTS, colors: np.ndarray | None = COLORS, shift: int = 8) -> None:
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.offsets, header.scales = np.floor(points.min(axis=0)), np.full(3, 1e-6)
    las = laspy.LasData(header)
    las.x, las.y, las.z = points.T
    if colors is not None:
        las.red, las.green, las.blue = colors.T.astype(np.uint16) << shift
    las.write(path)


def write(path: Path, points: np.ndarray = POINTS) -> None:
    """These points, as many as POINTS, in the plainest file of a suffix."""
    match path.suffix:
        case ".ply":
            rows = np.array([tuple(point) for point in points], [(name, "f8") for name in "xyz"])
            PlyData([PlyElement.describe(rows, "vertex")]).write(path)
        case ".npy":
            np.save(path, points)
        case ".npz":
            np.savez(path, points=points)
        case ".obj":
            path.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in points))
        case ".off":
            rows = "".join(f"{x} {y} {z}\n" for x, y, z in points)
            path.write_text(f"OFF\n{len(points)} 0 0\n{rows}")
        case ".stl":
            write_stl(path, points=points)
        case ".pcd":
            write_pcd(path, points=points)
        case ".las" | ".laz":
            write_las(path, points)
        case _:
            np.savetxt(path, points)


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


def test_ply_beside_lists_and_other_elements(tmp_path):
    """What is not read here but by plyfile gives the same cloud."""
    vertices = np.array([tuple(point) for point in POINTS], [(name, "f4") for name in "xyz"])
    faces = np.array([([0, 1, 2],), ([2, 3, 4],)], [("vertex_indices", "i4", 3)])
    elements = [PlyElement.describe(faces, "face"), PlyElement.describe(vertices, "vertex")]
    for order in (elements, elements[::-1]):
        for text in (False, True):
            PlyData(order, text=text, comments=["made by hand"]).write(tmp_path / "cloud.ply")
            np.testing.assert_array_equal(read_cloud(tmp_path / "cloud.ply").points, POINTS.astype(np.float64))


@pytest.mark.parametrize("first", ["OFF", "COFF", "NOFF", "CNOFF", "off by one"])
def test_off(tmp_path, first):
    path = tmp_path / "cloud.off"
    letters = first.removesuffix("OFF")
    opaque = np.full((COUNT, 1), 255)
    blocks = ([NORMALS] if "N" in letters else []) + ([COLORS, opaque] if "C" in letters else [])
    write_off(path, first, *blocks)
    if first == "off by one":
        refused(path, "OFF", "first line")
        return
    cloud = read_cloud(path)
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)
    assert (cloud.normals is not None, cloud.colors is not None) == ("N" in letters, "C" in letters)
    if cloud.normals is not None:
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    if cloud.colors is not None:
        np.testing.assert_array_equal(cloud.colors, COLORS)


def test_off_with_fractions_of_colors_with_columns_not_announced_and_with_counts_in_the_first_line(tmp_path):
    path = tmp_path / "cloud.off"
    write_off(path, "COFF", COLORS / 255, np.ones((COUNT, 1)))
    np.testing.assert_array_equal(read_cloud(path).colors, COLORS)
    write_off(path, "OFF", COLORS)
    np.testing.assert_array_equal(read_cloud(path).colors, COLORS)
    write_off(path, "COFF")
    assert read_cloud(path).colors is None
    path.write_text(path.read_text().replace("COFF\n# vertices, faces, edges\n\n", "OFF"))
    assert path.read_text().startswith(f"OFF{COUNT} 1 0")
    assert len(read_cloud(path)) == COUNT


@pytest.mark.parametrize("text", [False, True])
def test_corners_that_facets_share_are_one_point(tmp_path, text):
    write_stl(tmp_path / "cloud.stl", text)
    cloud = read_cloud(tmp_path / "cloud.stl")
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-6)
    assert not any(cloud.dropped.values())


@pytest.mark.parametrize("rgb", ["F", "U"])
@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path, data, rgb):
    write_pcd(tmp_path / "cloud.pcd", data, rgb)
    cloud = read_cloud(tmp_path / "cloud.pcd")
    np.testing.assert_array_equal(cloud.points, POINTS.astype(np.float64))
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6)
    np.testing.assert_array_equal(cloud.colors, COLORS)


def test_lzf_gives_back_what_was_packed():
    for data in (b"", b"a", b"a" * 1000, bytes(RNG.integers(0, 3, 5000, np.uint8)), bytes(range(256)) * 3):
        assert cloud_headed._lzf(lzf(data), len(data)) == data


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_las(tmp_path, suffix):
    path = tmp_path / f"cloud.{suffix}"
    for shift in (8, 0):  # 16 bits as they should be, or bytes as some programs write them
        write_las(path, colors=COLORS, shift=shift)
        cloud = read_cloud(path)
        np.testing.assert_allclose(cloud.points, POINTS, atol=1e-6)
        np.testing.assert_array_equal(cloud.colors, COLORS)
    write_las(path, colors=None)
    assert read_cloud(path).colors is None, "colours that were never filled in"


@pytest.mark.parametrize("suffix", [suffix for suffix in READERS if suffix not in (".stl", ".pcd")])
def test_map_coordinates_are_kept_and_named(tmp_path, suffix):
    points = POINTS.astype(np.float64) + np.array([431_234.5678, 5_412_345.6789, 123.456])
    write(tmp_path / f"cloud{suffix}", points.round(6))
    cloud = read_cloud(tmp_path / f"cloud{suffix}")
    np.testing.assert_allclose(cloud.points, points, rtol=0, atol=2e-6)
    assert "far from the origin: around 43123" in cloud.summary() and "stay in that frame" in cloud.summary()


def test_what_is_near_the_origin_is_not_called_far(tmp_path):
    write(tmp_path / "cloud.npy", POINTS + 500)
    assert "far" not in read_cloud(tmp_path / "cloud.npy").summary()


@pytest.mark.parametrize("same_key", [False, True])
def test_first_occurrences(monkeypatch, same_key):
    """Against a dictionary; with keys that tell rows apart and with keys that do not."""
    if same_key:
        monkeypatch.setattr(cloud_columns, "_hash_rows", lambda points: np.zeros(len(points), np.uint64))
    for values in (1, 3, 1000):
        points = RNG.integers(-values, values + 1, (500, 3)) * np.array([1.0, -0.5, 1e-9])
        first: dict[tuple[float, ...], int] = {}
        expected = [first.setdefault(tuple(row), place) == place for place, row in enumerate(points)]
        assert first_occurrences(points).tolist() == expected
    assert first_occurrences(np.array([[0.0, 0, 0], [-0.0, 0, 0]])).tolist() == [True, False]
    assert first_occurrences(np.empty((0, 3))).tolist() == []


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
    (tmp_path / "cloud.doc").write_bytes(b"1 2 3")
    refused(tmp_path / "cloud.doc", ".doc", ".ply")
    for suffix in READERS:
        (tmp_path / f"cloud{suffix}").write_bytes(b"")
        refused(tmp_path / f"cloud{suffix}", "empty")


@pytest.mark.parametrize("suffix", READERS)
def test_content_of_another_format(tmp_path, suffix):
    path, other = tmp_path / f"cloud{suffix}", tmp_path / "other"
    write_ply(other.with_suffix(".ply"), text=True)
    write_las(other.with_suffix(".laz"))
    save_mesh(Mesh(POINTS.astype(np.float64), np.array([[0, 1, 2]])), other.with_suffix(".glb"))
    Image.fromarray(COLORS).save(other.with_suffix(".png"))
    for content, words in ((".ply", ".ply"), (".laz", ".las"), (".png", "an image"), (".glb", "a glTF scene")):
        path.write_bytes(other.with_suffix(content).read_bytes())
        if READERS[suffix] is not READERS.get(content):
            refused(path, f"is really {words}")
    path.write_text("hello world again\nthis is text\n")
    refused(path)


@pytest.mark.parametrize("suffix", READERS)
def test_rows_without_coordinates_one_point_and_three_points(tmp_path, suffix):
    path = tmp_path / f"cloud{suffix}"
    write(path, np.ones((COUNT, 3)))
    refused(path, "all points are equal" if suffix != ".stl" else "1 usable points")
    write(path, POINTS[[0, 1, 2] * (COUNT // 3)])
    refused(path, "3 usable points", "at least 50")
    if READERS[suffix] is not READERS[".las"]:  # whose coordinates are integers
        points = POINTS.copy()
        points[4, 1], points[7, 2] = np.nan, np.inf
        write(path, points)
        # In an STL the not-a-number is the corner of two facets, and equals no other.
        assert read_cloud(path).dropped["non-finite"] == (3 if suffix == ".stl" else 2)


@pytest.mark.parametrize("name", ["binary.stl", "text.stl", "cloud.las", "cloud.laz", "cloud.off"])
def test_truncated_files(tmp_path, name):
    path = tmp_path / name
    write_stl(path, text=True) if name == "text.stl" else write(path)
    whole = path.read_bytes()
    for length in (len(whole) - 30, len(whole) // 2, 230, 90, 10, 2):
        path.write_bytes(whole[:length])
        refused(path, "truncated")


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_truncated_pcd(tmp_path, data):
    path = tmp_path / "cloud.pcd"
    write_pcd(path, data)
    whole = path.read_bytes()
    for length in (len(whole) - 30, len(whole) // 2, whole.index(b"DATA") + 25, whole.index(b"DATA"), 60, 2):
        path.write_bytes(whole[:length])
        refused(path, "truncated")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("FIELDS x y", "FIELDS u v", "x, y and z"),
        ("TYPE F", "TYPE Q", "unknown type"),
        ("DATA binary", "DATA zipped", "zipped"),
        ("SIZE 4 4", "SIZE 4", "PCD"),
        ("POINTS 60", "POINTS many", "many"),
    ],
)
def test_pcd_with_a_wrong_header(tmp_path, old, new, words):
    write_pcd(tmp_path / "cloud.pcd")
    content = (tmp_path / "cloud.pcd").read_bytes()
    assert old.encode() in content
    (tmp_path / "cloud.pcd").write_bytes(content.replace(old.encode(), new.encode()))
    refused(tmp_path / "cloud.pcd", words)


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
    ("content", "words"),
    [
        ("hello world again\nthis is text\n", "line 2 is 'this is text'"),
        ("1 2 3\n4 five 6\n", "line 2 is '4 five 6'"),
        ("x,y,z\n# a comment\n\n1,2,3\n4,5,\n", "line 5 is '4,5,'"),
        ("1,2,3\n,,\n4,5,6\n", "line 2 is ',,'"),
        ("1 2 3\n4 5\n", "line 2 has less than 3 numbers: '4 5'"),
        ("1 2 3\n4 5 6 7\n", "line 2 has 4 numbers, not 3"),
        ("1000\n1 2 3\n4 5 6\n", "line 1 has less than 3 numbers: '1000'"),
        ("1 2\n3 4\n", ""),
        ("# only a comment\n", "no points"),
        ("\x00\x01", ""),
    ],
)
def test_text_where_numbers_belong(tmp_path, content, words):
    (tmp_path / "cloud.xyz").write_text(content)
    refused(tmp_path / "cloud.xyz", words)


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
