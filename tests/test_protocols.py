"""Published figures: surfaces at known distances, loops over all pairs of samples, and what sampling alone costs."""

from itertools import permutations

import numpy as np
import pytest
import trimesh
from jaxtyping import TypeCheckError

from shared import protocols
from shared.errors import UserError
from shared.mesh import Mesh
from shared.metrics import sample_surface
from shared.pointcloud import PointCloud
from shared.protocols import (
    FIGURES,
    MU,
    Match,
    Pair,
    emd,
    f_score_2mu,
    f_score_mu,
    l1_cd,
    l1_cd_dense,
    l2_cd,
    l2_cd_sparse,
    missing,
    normal_consistency_dense,
    note,
    onet_chamfer_l1,
    points2surf_chamfer,
    points2surf_hausdorff,
    published,
    released_normal_consistency,
    srb_chamfer,
    srb_hausdorff,
    true_normal_consistency,
)

SQUARE = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
TWO_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def square(height=0.0, size=1.0):
    return Mesh(size * (SQUARE + np.array([0, 0, height])), TWO_FACES)


def cube(edge):
    box = trimesh.creation.box((edge, edge, edge))
    return Mesh(np.array(box.vertices), np.array(box.faces, np.int64))


def sphere(radius):
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return Mesh(np.array(ball.vertices), np.array(ball.faces, np.int64))


def cloud(points, normals=None):
    return PointCloud(points, normals, None, "cloud.ply", {})


@pytest.fixture
def few(monkeypatch):
    """Small numbers of samples, all different."""
    numbers = {"STANDARD": 40, "SPARSE": 30, "DENSE": 50, "MATCHED": 6}
    for name, number in numbers.items():
        monkeypatch.setattr(protocols, name, number)
    return numbers


def test_parallel_planes():
    """A distance of 0.25 everywhere, in a unit cube of edge 7: the floor of sampling adds little to so large a one."""
    pair = Pair(square(0.25, size=7), square(size=7))
    assert pair.longest_edge == 7
    assert l1_cd(pair) == pytest.approx(0.25, rel=1e-3)
    assert l2_cd(pair) == pytest.approx(0.0625, rel=1e-3)
    assert l2_cd_sparse(pair) == pytest.approx(0.0625, rel=1e-2)
    assert onet_chamfer_l1(pair) == pytest.approx(2.5, rel=1e-3)
    assert points2surf_chamfer(pair) == pytest.approx(0.5, rel=1e-2)
    assert points2surf_hausdorff(pair) == pytest.approx(0.25, rel=1e-2)
    assert emd(pair) == pytest.approx(0.25, rel=0.05)
    assert (f_score_mu(pair), f_score_2mu(pair)) == (0, 0)


def test_srb_is_in_the_units_of_the_scan(monkeypatch):
    monkeypatch.setattr(protocols, "DENSE", 50_000)
    pair = Pair(square(0.25, size=7), square(size=7))
    assert srb_chamfer(pair) == pytest.approx(1.75, rel=1e-3)
    assert srb_hausdorff(pair) == pytest.approx(1.75, rel=1e-2)
    assert l1_cd_dense(pair) == pytest.approx(0.25, rel=1e-3)


def test_concentric_spheres():
    """Longest edge 2: distances of 0.1 are 0.05 of the unit cube."""
    pair = Pair(sphere(0.9), sphere(1.0))
    assert l1_cd(pair) == pytest.approx(0.05, rel=0.02)
    assert l2_cd(pair) == pytest.approx(0.0025, rel=0.03)
    assert true_normal_consistency(pair) == pytest.approx(1, abs=2e-3)


def test_nested_cubes():
    """Inside a cube of edge 1, one of edge 0.8 is 0.1 away from it at each point; the corners are the farthest back."""
    pair = Pair(cube(0.8), cube(1.0))
    beyond = np.maximum(np.abs(np.linspace(-0.5, 0.5, 2001)) - 0.4, 0)
    back = np.sqrt(0.01 + beyond[:, None] ** 2 + beyond**2).mean()
    assert points2surf_chamfer(pair) == pytest.approx(0.1 + back, rel=0.02)
    assert l1_cd(pair) == pytest.approx((0.1 + back) / 2, rel=3e-3)
    assert points2surf_hausdorff(pair) == pytest.approx(0.1 * np.sqrt(3), rel=0.1)


def test_one_surface_has_the_floor_of_sampling_alone():
    """Of n points on an area A, the nearest lies farther than r with probability exp(-pi r^2 n / A)."""
    pair = Pair(square(), square())
    assert l1_cd(pair) == pytest.approx(np.sqrt(1e-5) / 2, rel=0.02)
    assert points2surf_chamfer(pair) == pytest.approx(np.sqrt(1e-4), rel=0.03)
    assert l2_cd(pair) == pytest.approx(1e-5 / np.pi, rel=0.04)
    for score, threshold in ((f_score_mu, MU), (f_score_2mu, 2 * MU)):
        assert score(pair) == pytest.approx(1 - np.exp(-np.pi * threshold**2 * 1e5), rel=0.01)
    assert true_normal_consistency(pair) == released_normal_consistency(pair) == pytest.approx(1)
    assert emd(pair) < 0.06


def test_normals_at_right_angles(few):
    """(1, 1, 0) and (1, -1, 0): the products of their components add up to 0, and without signs to 1."""
    along = np.array([[0.0, 0, 0], [1, -1, 0], [1, -1, 1], [0, 0, 1]])
    pair = Pair(Mesh(along, TWO_FACES), Mesh(along * [1, -1, 1], TWO_FACES))
    assert true_normal_consistency(pair) == pytest.approx(0, abs=1e-12)
    assert normal_consistency_dense(pair) == pytest.approx(0, abs=1e-12)
    assert released_normal_consistency(pair) == pytest.approx(1)


def test_normals_that_look_the_other_way_agree(few):
    flipped = Mesh(square().vertices, TWO_FACES[:, ::-1])
    assert true_normal_consistency(Pair(flipped, square())) == pytest.approx(1)


def samples(pair, count):
    return sample_surface(pair.mesh, count, pair.seed), sample_surface(pair.truth, count, pair.seed + 1)


def directed(source, target):
    """By a loop over all pairs: distances to the nearest point, and the |cosine| and the components' sum there."""
    rows = []
    for point, normal in zip(*source):
        apart = [np.linalg.norm(point - other) for other in target[0]]
        products = normal * target[1][int(np.argmin(apart))]
        rows.append((min(apart), abs(sum(products)), sum(abs(products))))
    return np.array(rows).T


def test_figures_equal_the_loops(few):
    rng = np.random.default_rng(2)
    soups = [Mesh(3 * rng.random((15, 3)), np.arange(15).reshape(5, 3)) for _ in range(2)]
    pair = Pair(*soups, seed=4)
    edge = max(np.ptp(soups[1].vertices, axis=0))
    assert pair.longest_edge == pytest.approx(edge)
    expected = {}
    for count in (few["STANDARD"], few["SPARSE"], few["DENSE"]):
        own, truth = samples(pair, count)
        expected[count] = directed(own, truth), directed(truth, own)
    (there, cosine, signless), (back, cosine_back, signless_back) = expected[few["STANDARD"]]
    assert l1_cd(pair) == pytest.approx((np.mean(there) + np.mean(back)) / 2 / edge)
    assert onet_chamfer_l1(pair) == pytest.approx((np.mean(there) + np.mean(back)) / 2 / (edge / 10))
    assert l2_cd(pair) == pytest.approx((np.mean(there**2) + np.mean(back**2)) / 2 / edge**2)
    assert true_normal_consistency(pair) == pytest.approx((np.mean(cosine) + np.mean(cosine_back)) / 2)
    assert released_normal_consistency(pair) == pytest.approx((np.mean(signless) + np.mean(signless_back)) / 2)
    (there, _, _), (back, _, _) = expected[few["SPARSE"]]
    assert l2_cd_sparse(pair) == pytest.approx((np.mean(there**2) + np.mean(back**2)) / 2 / edge**2)
    assert points2surf_chamfer(pair) == pytest.approx((sum(there) + sum(back)) / few["SPARSE"] / edge)
    assert points2surf_hausdorff(pair) == pytest.approx(max(*there, *back) / edge)
    (there, cosine, _), (back, cosine_back, _) = expected[few["DENSE"]]
    assert l1_cd_dense(pair) == pytest.approx((np.mean(there) + np.mean(back)) / 2 / edge)
    assert normal_consistency_dense(pair) == pytest.approx((np.mean(cosine) + np.mean(cosine_back)) / 2)
    assert srb_chamfer(pair) == pytest.approx((np.mean(there) + np.mean(back)) / 2)
    assert srb_hausdorff(pair) == pytest.approx(max(*there, *back))


def test_f_score_equals_the_count(few, monkeypatch):
    monkeypatch.setattr(protocols, "MU", 0.05)
    pair = Pair(square(0.03), square())
    own, truth = samples(pair, few["STANDARD"])
    (there, _, _), (back, _, _) = directed(own, truth), directed(truth, own)
    for score, threshold in ((f_score_mu, 0.05), (f_score_2mu, 0.1)):
        p, r = np.mean(there <= threshold), np.mean(back <= threshold)
        assert 0 < score(pair) < 1
        assert score(pair) == pytest.approx(2 * p * r / (p + r))


def test_emd_is_the_best_of_all_assignments(few):
    pair = Pair(sphere(1.0), square())
    (own, _), (truth, _) = samples(pair, few["MATCHED"])
    costs = [np.mean([np.linalg.norm(a - truth[j]) for a, j in zip(own, order)]) for order in permutations(range(6))]
    assert emd(pair) == pytest.approx(min(costs))


def test_all_at_once(monkeypatch):
    """Every figure under its name, the same as alone, with each number of points drawn once."""
    counts = []

    def counted(mesh, n, seed):
        counts.append(n)
        return sample_surface(mesh, n, seed)

    monkeypatch.setattr(protocols, "DENSE", 20_000)
    monkeypatch.setattr(protocols, "sample_surface", counted)
    figures = published(sphere(0.95), sphere(1.0), seed=3)
    assert sorted(counts) == [n for n in (2048, 10_000, 20_000, 100_000) for _ in range(2)]
    assert list(figures) == list(FIGURES) and all(type(value) is float for value in figures.values())
    assert figures["neural_pull.l1_cd"] == l1_cd(Pair(sphere(0.95), sphere(1.0), 3))
    assert figures["srb.chamfer"] == srb_chamfer(Pair(sphere(0.95), sphere(1.0), 3))
    assert figures["neural_pull.emd"] == emd(Pair(sphere(0.95), sphere(1.0), 3))
    assert figures["srb.chamfer"] == pytest.approx(2 * figures["level_set_alignment.l1_cd_1m"])


def test_a_cloud_as_the_truth_is_taken_whole(few):
    points = np.random.default_rng(0).random((70, 3)) * [1, 1, 0] * 4
    figures = published(square(0.1, size=4), cloud(points))
    assert not any("normal" in name for name in figures)
    own, _ = sample_surface(square(0.1, size=4), few["DENSE"], 0)
    apart = np.linalg.norm(own[:, None] - points, axis=2)
    assert figures["srb.chamfer"] == pytest.approx((apart.min(axis=1).mean() + apart.min(axis=0).mean()) / 2)
    assert figures["occupancy_networks.chamfer_l1"] == pytest.approx(10 * figures["neural_pull.l1_cd"], rel=1e-12)
    normals = np.tile([0.0, 0.6, 0.8], (70, 1))
    with_normals = published(square(0.1, size=4), cloud(points, normals))
    assert list(with_normals) == list(FIGURES)
    assert with_normals["neural_pull.normal_consistency"] == pytest.approx(0.8)


def test_what_a_cloud_cannot_give(few):
    small = Pair(square(), cloud(np.random.default_rng(0).random((5, 3))))
    assert "neural_pull.emd" not in published(small.mesh, small.truth)
    with pytest.raises(UserError, match="5 points, too few"):
        emd(small)
    with pytest.raises(UserError, match="no normals"):
        true_normal_consistency(small)


def test_what_is_missing_has_a_reason():
    """Without normals five figures, of too few points one; of a mesh, or a large cloud with normals, none."""
    rng = np.random.default_rng(0)
    large, small = rng.random((protocols.MATCHED, 3)), rng.random((protocols.MATCHED - 1, 3))
    assert missing(square()) == missing(cloud(large, large)) == {}
    assert set(missing(cloud(large)).values()) == {"it has no normals"} and len(missing(cloud(large))) == 5
    assert missing(cloud(small, small)) == {"neural_pull.emd": "it has 2,047 points, fewer than 2,048"}
    assert len(missing(cloud(small))) == 6


def test_all_figures_have_a_note():
    assert all("points" in note(name) for name in FIGURES) and note("seed") == ""


@pytest.mark.parametrize("figure", list(dict.fromkeys(FIGURES.values())))
def test_an_empty_surface_is_refused(figure):
    empty = Mesh(np.empty((0, 3)), np.empty((0, 3), np.int64))
    for pair in (Pair(empty, square()), Pair(square(), empty)):
        with pytest.raises(UserError, match="empty"):
            figure(pair)


def test_wrong_shapes_are_refused():
    with pytest.raises(TypeCheckError):
        Match(np.zeros(3), (np.zeros((2, 3)), np.zeros((3, 3))))
