"""Iso-points lie on the surface, evenly, as many as asked for; their losses and weights are those of the formulas."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor

from shared.field import FieldConfig, Geometry, build_field
from shared.iso_losses import bilateral_weights, iso_normal_loss, iso_sdf_loss, pca_normals
from shared.isopoints import (
    IsoPoints,
    extract,
    insertions,
    project,
    repulsion,
    resample,
    smooth_normals,
    upsample,
    wlop,
)

HALF = torch.tensor([0.6, 0.4, 0.25])


pytestmark = pytest.mark.usefixtures("one_thread")


class Analytic:
    """A field by formula. It notes how many points it is asked about, and with which levels."""

    def __init__(self, sdf: Callable[[Tensor], Tensor]) -> None:
        self.sdf = sdf
        self.asked: list[int] = []
        self.levels: set[int | None] = set()

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        assert not torch.is_grad_enabled() and torch.isfinite(x).all()
        self.asked.append(len(x))
        self.levels.add(active)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            sdf = self.sdf(x)
            (gradient,) = torch.autograd.grad(sdf.sum(), x)
        return Geometry(sdf.detach(), gradient, x.detach()[:, :0])


def ball(radius: float = 0.5, steepness: float = 1.0) -> Analytic:
    return Analytic(lambda x: steepness * (x.norm(dim=1) - radius))


def box() -> Analytic:
    def sdf(x: Tensor) -> Tensor:
        beyond = x.abs() - HALF
        return beyond.clamp_min(0).norm(dim=1) + beyond.amax(dim=1).clamp_max(0)

    return Analytic(sdf)


def broken_ball() -> Analytic:
    """A ball that answers nan where x is negative."""
    return Analytic(lambda x: (x.norm(dim=1) - 0.5) / (x[:, 0] >= 0))


def plane(height: float = 0.0) -> Analytic:
    return Analytic(lambda x: x[:, 2] - height)


def seeds(count: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1


def sphere(count: int, radius: float = 0.5, crowded: float = 0.0, seed: int = 0) -> IsoPoints:
    """Random points on a sphere, the denser towards +z the more `crowded`."""
    directions = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    normals = F.normalize(F.normalize(directions, dim=1) + torch.tensor([0.0, 0.0, crowded]), dim=1)
    return IsoPoints(radius * normals, normals)


def sheet(side: int = 15, spacing: float = 0.1) -> IsoPoints:
    """A square lattice in the plane z = 0."""
    steps = spacing * (torch.arange(side) - (side - 1) / 2)
    points = torch.cartesian_prod(steps, steps, torch.zeros(1))
    return IsoPoints(points, torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(points), 1))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps(points: Tensor) -> Tensor:
    """From each point to its nearest other."""
    return torch.cdist(points, points).fill_diagonal_(math.inf).amin(dim=1)


def unevenness(points: Tensor) -> float:
    """Spread of the gaps, relative to their mean: 0.52 for random points."""
    return float(gaps(points).std() / gaps(points).mean())


def assert_on_sphere(iso: IsoPoints, radius: float = 0.5) -> None:
    torch.testing.assert_close(iso.points, radius * iso.normals, atol=2e-5, rtol=0)
    torch.testing.assert_close(iso.normals.norm(dim=1), torch.ones(len(iso)))


@pytest.mark.parametrize("steepness", [0.3, 1.0, 7.0])
def test_points_are_projected_from_both_sides(steepness: float):
    points = torch.cat([sphere(50, radius).points for radius in (0.05, 0.49, 0.51, 0.95)])
    iso = project(ball(steepness=steepness), points)
    assert len(iso) == 200
    assert_on_sphere(iso)
    torch.testing.assert_close(iso.normals, F.normalize(points, dim=1), atol=1e-4, rtol=0)


def test_a_function_that_is_no_distance_has_newtons_own_steps():
    iso = project(Analytic(lambda x: x.square().sum(dim=1) - 0.25), sphere(100, 0.6).points)
    assert len(iso) == 100
    assert_on_sphere(iso)


def test_ten_steps_of_a_tenth_are_the_farthest():
    iso = project(plane(0.9), torch.tensor([[0.0, 0.0, -0.08], [0.0, 0.1, -0.12], [0.0, 0.2, 0.95]]))
    torch.testing.assert_close(iso.points, torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.2, 0.9]]))


def test_only_points_that_have_not_arrived_are_asked_about_again():
    field = plane()
    project(field, torch.tensor([[0.1, 0.0, 0.0], [0.2, 0.0, 0.05], [0.3, 0.0, -0.15], [0.4, 0.0, 0.25]]), active=3)
    assert field.asked == [4, 3, 2, 1]
    assert field.levels == {3}


@pytest.mark.parametrize(
    "sdf",
    [lambda x: x.norm(dim=1) + 0.1, lambda x: 0 * x[:, 0] + 1, lambda x: 0 * x[:, 0], lambda x: x[:, 2] - 1.2],
    ids=["no zero", "no gradient", "zero everywhere", "beyond the box"],
)
def test_points_that_do_not_arrive_are_left_out(sdf: Callable[[Tensor], Tensor]):
    assert len(project(Analytic(sdf), seeds(100))) == 0


def test_points_where_a_field_is_not_finite_are_left_out():
    points = sphere(200, 0.7).points
    iso = project(broken_ball(), points)
    assert len(iso) == int((points[:, 0] >= 0).sum())
    assert_on_sphere(iso)


def test_two_points_push_each_other_within_their_planes():
    """One neighbour at distance d: its disc has the area pi d^2, of which a patch is 0.4."""
    up, along = torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.tensor([[1.0, 0.0, 0.0]] * 2)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]])
    reach = math.sqrt(0.4 * math.pi) * 0.2 * math.exp(-1 / (0.4 * math.pi))
    torch.testing.assert_close(repulsion(IsoPoints(points, up)), torch.tensor([[-reach, 0.0, 0.0], [reach, 0.0, 0.0]]))
    assert not repulsion(IsoPoints(points, along)).any()


def test_a_lattice_is_at_rest():
    iso = sheet()
    inner = iso.points.abs().amax(dim=1) < 0.6
    assert repulsion(iso)[inner].norm(dim=1).max() < 1e-6


@pytest.mark.parametrize("radius", [0.05, 0.5, 0.9])
def test_resampling_evens_points_at_every_size(radius: float):
    before = sphere(800, radius, crowded=0.3)
    after = resample(ball(radius), before, rounds=12)
    assert len(after) == 800
    assert_on_sphere(after, radius)
    assert unevenness(after.points) < 0.5 * unevenness(before.points)


def test_a_point_that_does_not_find_back_stays():
    before = sphere(300)
    after = resample(broken_ball(), before, rounds=1)
    lost = before.points[:, 0] < -0.1
    assert torch.equal(after.points[lost], before.points[lost])
    moved = (after.points != before.points).any(dim=1)
    assert moved[before.points[:, 0] > 0.1].all()


def test_a_patch_is_the_papers_on_a_sphere_of_radius_0_7_and_grows_with_the_shape():
    assert sphere(5000, 0.7).patch == pytest.approx(2 * math.sqrt(3) * 0.7 / 5000, rel=0.05)
    assert sphere(500, 0.2).patch == pytest.approx(sphere(500, 0.1).patch * 4, rel=1e-3)


def test_wlop_takes_noise_away():
    noise = 0.01 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    cloud = sphere(4000).points + noise
    thinned = wlop(cloud, 1000, generator())
    rms = [float((p.norm(dim=1) - 0.5).square().mean().sqrt()) for p in (cloud, thinned)]
    assert thinned.shape == (1000, 3)
    assert rms[1] < 0.7 * rms[0]


def test_wlop_evens_a_crowded_cloud():
    cloud = sphere(4000, crowded=0.6).points
    thinned = wlop(cloud, 500, generator())
    assert unevenness(thinned) < 0.6 * unevenness(cloud[:500])
    below = float((thinned[:, 2] < 0).float().mean())
    assert float((cloud[:, 2] < 0).float().mean()) < 0.25 and abs(below - 0.5) < 0.1


def test_a_single_point_of_wlop_is_in_the_middle_of_its_cloud():
    cloud = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, -0.1, 0.0]])
    torch.testing.assert_close(wlop(cloud, 1, generator(), rounds=50), torch.zeros(1, 3), atol=1e-4, rtol=0)


def test_wlop_does_not_mind_coincident_points():
    cloud = torch.cat([sphere(300).points, torch.full((300, 3), 0.1)])
    assert torch.isfinite(wlop(cloud, 300, generator())).all()
    torch.testing.assert_close(wlop(cloud[300:], 5, generator()), cloud[300:305])


@pytest.mark.parametrize("count", [0, 6])
def test_wlop_refuses_counts_out_of_its_range(count: int):
    with pytest.raises(ValueError, match="at most half"):
        wlop(seeds(10), count, generator())


def test_equal_normals_stay_and_noisy_ones_are_smoothed():
    iso = sheet()
    torch.testing.assert_close(smooth_normals(iso.points, iso.normals), iso.normals)
    noise = 0.05 * torch.randn(iso.normals.shape, generator=torch.Generator().manual_seed(0))
    noisy = F.normalize(iso.normals + noise, dim=1)
    smooth = smooth_normals(iso.points, noisy)
    assert (smooth - iso.normals).square().mean() < 0.5 * (noisy - iso.normals).square().mean()


def test_smoothing_keeps_an_edge():
    iso = sheet()
    slope = torch.tensor([math.sqrt(0.5), 0.0, math.sqrt(0.5)])
    normals = torch.where(iso.points[:, :1] > 0.05, slope, iso.normals)
    torch.testing.assert_close(smooth_normals(iso.points, normals), normals, atol=1e-3, rtol=0)


def priority_of(iso: IsoPoints, neighbours: Tensor, p: int, i: int, edge_sensitivity: float) -> float:
    """By loops, for normals that are smooth already."""
    middle = (iso.points[p] + iso.points[i]) / 2
    room = math.inf
    for s in [p, *neighbours[p].tolist()]:
        way = middle - iso.points[s]
        room = min(room, float((way - (way @ iso.normals[s]) * iso.normals[s]).norm()))
    return room * float(2 - iso.normals[p] @ iso.normals[i]) ** edge_sensitivity


@pytest.mark.parametrize("edge_sensitivity", [0.0, 2.0])
def test_insertions_are_those_of_the_priorities_by_loops(edge_sensitivity: float):
    iso = sphere(60)
    iso = IsoPoints(iso.points, smooth_normals(iso.points, iso.normals))
    smooth = IsoPoints(iso.points, smooth_normals(iso.points, iso.normals))
    neighbours = torch.cdist(iso.points, iso.points).argsort(dim=1)[:, 1:9]
    expected = []
    for p in range(60):
        priorities = [priority_of(smooth, neighbours, p, int(i), edge_sensitivity) for i in neighbours[p]]
        partner = neighbours[p, int(np.argmax(priorities))]
        expected.append((max(priorities), (2 * iso.points[p] + iso.points[partner]) / 3))
    expected.sort(key=lambda pair: -pair[0])
    found = insertions(iso, 12, edge_sensitivity)
    torch.testing.assert_close(found, torch.stack([place for _, place in expected[:12]]))


def test_insertions_go_where_points_are_few():
    sparse, dense = sheet(11, 0.1), sheet(21, 0.05)
    beside = dense.points + torch.tensor([1.05, 0.0, 0.0])
    iso = IsoPoints(torch.cat([sparse.points, beside]), torch.cat([sparse.normals, dense.normals]))
    assert insertions(iso, 50)[:, 0].max() < 0.55
    assert insertions(iso, 10_000).shape == iso.points.shape


def test_insertions_go_to_edges_the_more_the_more_sensitive():
    iso = extract(box(), seeds(4000), 1000, None, generator())
    shares = []
    for sensitivity in (0.0, 3.0):
        added = insertions(iso, 100, sensitivity)
        to_edge = (HALF - added.abs()).sort(dim=1).values[:, 1]
        shares.append(float((to_edge < 0.05).float().mean()))
    assert shares[1] > 0.9 > 0.6 > shares[0]


def test_upsampling_keeps_what_there_is_and_adds_exactly_what_is_missing():
    before = sphere(250)
    after = upsample(ball(), before, 617)
    assert len(after) == 617
    assert torch.equal(after.points[:250], before.points)
    assert_on_sphere(after)
    assert gaps(after.points)[250:].min() > 0.1 * gaps(after.points).mean()
    assert upsample(ball(), before, 200) is before


def test_upsampling_few_points():
    assert len(upsample(ball(), sphere(20), 300)) == 300
    assert 2 < len(upsample(ball(), sphere(2), 300)) <= 300
    assert len(upsample(ball(), sphere(1), 300)) == 1


def test_upsampling_ends_where_nothing_arrives():
    before = sphere(50)
    assert len(upsample(Analytic(lambda x: 0 * x[:, 0] + 1), before, 300)) == 50
    half = IsoPoints(before.points[before.points[:, 0] > 0], before.normals[before.points[:, 0] > 0])
    after = upsample(broken_ball(), half, 300)
    assert len(after) == 300 and (after.points[:, 0] >= 0).all()


@pytest.mark.parametrize("neighbours", [3, 6, 40])
def test_pca_normals_of_planes_and_spheres(neighbours: int):
    flat, bent = sheet(), sphere(4000)
    torch.testing.assert_close(pca_normals(flat.points, neighbours).abs(), flat.normals, atol=1e-5, rtol=0)
    if neighbours > 3:  # so few of a random cloud are often nearly in a line
        assert (pca_normals(bent.points, neighbours) * bent.normals).sum(dim=1).abs().min() > 0.98


def test_more_neighbours_make_pca_normals_smoother():
    iso = sphere(4000)
    noisy = iso.points + 0.003 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    losses = [float(iso_normal_loss(pca_normals(noisy, k), iso.normals)) for k in (6, 16, 48)]
    assert losses[0] > 2 * losses[1] > 4 * losses[2]


@pytest.mark.parametrize(("points", "neighbours"), [(2, 16), (10, 1)])
def test_pca_normals_need_planes(points: int, neighbours: int):
    with pytest.raises(ValueError, match="span"):
        pca_normals(seeds(points), neighbours)


def test_points_on_a_sphere_are_extracted():
    iso = extract(ball(), seeds(4000), 1000, None, generator())
    assert len(iso) == 1000
    assert_on_sphere(iso)
    assert unevenness(iso.points) < 0.15
    ideal = math.sqrt(4 * math.pi * 0.25 / 1000)
    assert torch.cdist(sphere(5000, seed=7).points, iso.points).amin(dim=1).max() < 1.2 * ideal
    again = extract(ball(), iso.points, 1300, None, generator())
    assert len(again) == 1300 and unevenness(again.points) < 0.15


def test_points_on_a_box_are_extracted():
    """Its corners and edges are nearest to most seeds, which must not show in the end."""
    field = box()
    landed, iso = project(field, seeds(4000)), extract(field, seeds(4000), 1000, 2, generator())
    assert len(iso) == 1000 and field.levels == {None, 2}
    beyond = iso.points.abs() - HALF
    torch.testing.assert_close(beyond.amax(dim=1), torch.zeros(1000), atol=2e-5, rtol=0)
    at_edge = [
        float(((HALF - p.abs()).sort(dim=1).values[:, 1] < 1e-3).float().mean()) for p in (landed.points, iso.points)
    ]
    assert at_edge[0] > 0.4 and at_edge[1] < 0.15
    on_face = beyond.sort(dim=1).values[:, 1] < -0.05
    assert (iso.normals[on_face].abs().amax(dim=1) > 0.999).all()
    assert unevenness(iso.points) < 0.25


def test_equal_generators_give_equal_points():
    found = [extract(ball(), seeds(400), 100, None, generator(seed)).points for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(("given", "count"), [(1, 1), (2, 1), (3, 2), (40, 400)])
def test_few_seeds_are_enough(given: int, count: int):
    iso = extract(ball(), seeds(given), count, None, generator())
    assert len(iso) == count
    assert_on_sphere(iso)


def test_without_a_surface_there_are_no_points():
    assert len(extract(Analytic(lambda x: x.norm(dim=1) + 0.1), seeds(100), 50, None, generator())) == 0


def test_a_surface_of_one_point_is_survived():
    iso = extract(Analytic(lambda x: x.norm(dim=1)), seeds(100), 50, None, generator())
    assert len(iso) <= 50 and (iso.points.norm(dim=1) < 1e-3).all()


@pytest.mark.parametrize(
    ("given", "count"),
    [(torch.empty(0, 3), 10), (seeds(10), 0), (torch.full((10, 3), math.nan), 10), (seeds(10) / 0, 10)],
    ids=["no seeds", "no points", "nan", "infinite"],
)
def test_wrong_input_is_refused(given: Tensor, count: int):
    with pytest.raises(ValueError, match=r"at least one|not finite"):
        extract(ball(), given, count, None, generator())


@pytest.mark.parametrize(
    "keys",
    [{"levels": 4, "base": 4, "finest": 32, "log2_entries": 10}, {"backbone": "mlp", "width": 64, "layers": 5}],
    ids=["grid", "mlp"],
)
def test_real_fields_are_extracted_without_a_graph(keys: dict):
    torch.manual_seed(0)
    field = build_field(FieldConfig(**keys), torch.device("cpu"))
    iso = extract(field, seeds(1200), 300, field.active(1.0), generator())
    assert len(iso) == 300
    assert not iso.points.requires_grad and not iso.normals.requires_grad
    there = field.geometry(iso.points)
    assert there.sdf.abs().max() < 1e-5
    torch.testing.assert_close(F.normalize(there.gradient, dim=1), iso.normals, atol=1e-3, rtol=1e-3)
    iso_sdf_loss(there.sdf).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in field.parameters())


def test_losses_equal_their_formulas():
    sdf = torch.tensor([0.1, -0.3, 0.0], requires_grad=True)
    loss = iso_sdf_loss(sdf)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.4 / 3)
    torch.testing.assert_close(sdf.grad, torch.tensor([1.0, -1.0, 0.0]) / 3)
    gradient = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -1.0], [3.0, 0.0, 0.0], [0.0, 1.0, 1.0]], requires_grad=True)
    loss = iso_normal_loss(gradient, torch.tensor([[0.0, 0.0, 1.0]] * 4))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0 + 0 + 1 + 1 - math.sqrt(0.5)) / 4)
    assert gradient.grad[3].any()


def test_losses_of_no_points_are_zero():
    assert float(iso_sdf_loss(torch.empty(0))) == 0
    assert float(iso_normal_loss(torch.empty(0, 3), torch.empty(0, 3))) == 0


def test_nearest_iso_points_are_those_of_brute_force():
    iso, points = sphere(300), seeds(100)
    assert torch.equal(iso.nearest(points), torch.cdist(points, iso.points).argmin(dim=1))


def test_nearest_needs_points_and_numbers():
    with pytest.raises(ValueError, match="no iso-points"):
        IsoPoints(torch.empty(0, 3), torch.empty(0, 3)).nearest(seeds(3))
    with pytest.raises(ValueError, match="not finite"):
        sphere(10).nearest(torch.full((1, 3), math.nan))


def test_bilateral_weights_equal_their_formula():
    iso = sheet()
    heights, angles = [0.0, 0.1, -0.1, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 60.0, 180.0]
    points = torch.tensor([[0.01, -0.02, height] for height in heights])
    normals = torch.tensor([[2 * math.sin(math.radians(a)), 0.0, 2 * math.cos(math.radians(a))] for a in angles])
    weights = bilateral_weights(points, normals, iso, iso.nearest(points))
    expected = [
        math.exp(-(height**2) / (16 * iso.patch)) * math.exp(-(((1 - math.cos(math.radians(angle))) / 0.5) ** 2))
        for height, angle in zip(heights, angles)
    ]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert weights[0] == 1 and weights[3] < 0.03
    assert bilateral_weights(points, normals, iso, iso.nearest(points), reach=2.0)[1] == pytest.approx(expected[1] ** 4)


def test_bilateral_weights_are_not_differentiated():
    iso = sheet()
    points, normals = seeds(5).requires_grad_(), seeds(5, 1).requires_grad_()
    assert not bilateral_weights(points, normals, iso, iso.nearest(points)).requires_grad


def test_a_noisy_cloud_is_trusted_where_it_is_near():
    iso = extract(ball(), seeds(4000), 1000, None, generator())
    inliers, outliers = sphere(100, 0.51).points, sphere(20, 0.8).points
    cloud = torch.cat([inliers, outliers])
    weights = bilateral_weights(cloud, cloud, iso, iso.nearest(cloud))
    assert weights[:100].min() > 0.95 and weights[100:].max() < 0.05


def test_wrong_shapes_are_refused():
    with pytest.raises(TypeCheckError):
        iso_normal_loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(TypeCheckError):
        IsoPoints(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(TypeCheckError):
        project(ball(), torch.zeros(4, 2))
