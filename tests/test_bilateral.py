"""Noisy points brought together: by loops, on planes, edges and spheres; block by block; and within a fit."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon import bilateral as module
from pointrecon.adapt import adapt
from pointrecon.bilateral import (
    AGREE,
    CLOSER,
    FIRST,
    MANY,
    MOST_BENT,
    RADIUS,
    SOME,
    UPDATES,
    Bilateral,
    bilateral,
)
from pointrecon.config import Config
from pointrecon.objectives import chord_error, soft_abs
from pointrecon.survey import Survey
from pointrecon.trainer import Trainer
from shared.config import read_config
from shared.field import Field, FieldConfig, Geometry, SirenField

CPU = torch.device("cpu")
SIGMA = 0.02

pytestmark = pytest.mark.usefixtures("one_thread")


class Shape(SirenField):
    """Only its normals are asked for."""

    def __init__(self) -> None:
        super().__init__(FieldConfig(width=4))
        self.asked = 0

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        self.asked += len(x)
        return Geometry(x[:, 0], self.normals(x), x[:, :0])

    def normals(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Ball(Shape):
    def normals(self, x: Tensor) -> Tensor:
        return 3 * x


class Plane(Shape):
    def normals(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 2.0]).expand_as(x)


class Edge(Shape):
    """The sides z = 0 and x = 0 of a body that is a quarter of space."""

    def normals(self, x: Tensor) -> Tensor:
        return F.one_hot(torch.where(x[:, 0] > x[:, 2], 0, 2), 3).to(x)


def moved(points: np.ndarray, field: Field, radius: float = 2 * SIGMA) -> np.ndarray:
    points = points.astype(np.float32)
    found = Bilateral(cKDTree(points), torch.from_numpy(points), radius)
    found.update(field, FIRST, None)
    return found.points.numpy()


def sphere(count: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_a_point_by_loops(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WIDTHS", (1.0,))
    generator = torch.Generator().manual_seed(0)
    points = 0.05 * torch.randn(3, 7, 3, generator=generator)
    up = torch.tensor([0.0, 0.0, 1.0])
    normals = F.normalize(up + 0.3 * torch.randn(3, 7, 3, generator=generator), dim=2)
    found = bilateral(points, normals, 0.06, 0.02)
    for at, theirs, result in zip(points, normals, found):

        def weight(square: float, one: Tensor, other: Tensor) -> float:
            return math.exp(-square / (2 * 0.06**2) - float((one - other).square().sum()) / (2 * AGREE**2))

        mean = sum(weight(float((p - at[0]).square().sum()), n, theirs[0]) * n for p, n in zip(at, theirs))
        own = mean / mean.norm()
        weights, heights = [], []
        for p, n in zip(at, theirs):
            heights.append(float((p - at[0]) @ (n + own) / (1 + n @ own)))
            weights.append(weight(max(float((p - at[0]).square().sum()) - heights[-1] ** 2, 0), n, own))
        total = sum(weights)
        centre = sum(w / total * p for w, p in zip(weights, at))
        turn = way = 0.0
        for w, p, n in zip(weights, at, theirs):
            along = (p - centre) - ((p - centre) @ own) * own
            turn, way = turn + w * float(n @ along), way + w * float(along @ along)
        bulge = min(max(0.02**2 * turn / way, -MOST_BENT * 0.02), MOST_BENT * 0.02)
        move = sum(w * h for w, h in zip(weights, heights)) / total - bulge
        torch.testing.assert_close(result, at[0] + move * own)


def test_the_radius_that_predicts_best():
    """On a plane the widest; where the field's normals miss a wave that is as short as the radius, the given one."""
    rng = np.random.default_rng(8)
    flat = np.column_stack([rng.uniform(-0.8, 0.8, (40_000, 2)), rng.normal(scale=SIGMA / 4, size=40_000)])
    wavy = flat + np.array([0, 0, 0.01]) * np.cos(flat[:, :1] * np.pi / 0.04)
    within, radius = np.abs(flat[:, :2]).max(axis=1) < 0.6, SIGMA / 2
    for points, width in ((flat, 2.0), (wavy, 1.0)):
        chosen = moved(points, Plane(), radius)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "WIDTHS", (1.0,))
            expected = moved(points, Plane(), width * radius)
        assert np.isclose(chosen[within, 2], expected[within, 2], atol=1e-6).mean() > 0.9, "but where chance has it"


def test_noise_about_a_plane_falls_as_that_of_a_mean():
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-0.8, 0.8, (8000, 2)), rng.normal(scale=SIGMA, size=8000)])
    found = moved(points, Plane())
    assert np.array_equal(found[:, :2], points[:, :2].astype(np.float32)), "along normals"
    within = np.pi * (2 * 2 * SIGMA) ** 2 * 8000 / 1.6**2  # points that a Gaussian's mean counts as one each
    assert found[:, 2].std() < 1.5 * SIGMA / math.sqrt(min(within, MANY))


def test_little_noise_takes_neighbours_as_far_as_points_are_apart():
    """By twice the noise next to none would count."""
    rng = np.random.default_rng(10)
    spacing = 1.6 / math.sqrt(8000)
    noise = 0.15 * spacing
    points = np.column_stack([rng.uniform(-0.8, 0.8, (8000, 2)), rng.normal(scale=noise, size=8000)])
    points[0, :2] = 0.95  # alone
    found = Bilateral(cKDTree(points), torch.from_numpy(points.astype(np.float32)), RADIUS * noise)
    assert found.nearly_clean and not found.settled and found.radius > 2 * RADIUS * noise
    x, rows = found.cloud[:100] + 0.01, torch.arange(100)
    found.update(Plane(), FIRST, None)
    assert found.points[:, 2].std() < 0.4 * noise and torch.equal(found.points[0], found.cloud[0])
    around, there = found.drawn_around(x, rows)
    torch.testing.assert_close(around - there, x - found.cloud[:100])
    settled = {**found.state_dict(), "settled": True}  # as runs have it that were made when there were no such clouds
    found.load_state_dict(settled)
    assert not found.settled


def test_edges_stay():
    """Plain means would move points beside the edge by about half the radius."""
    rng = np.random.default_rng(1)
    near, along = rng.uniform(0, 0.8, 6000), rng.uniform(-0.8, 0.8, 6000)
    side = np.arange(6000) % 2 == 0
    zero = np.zeros(6000)
    points = np.where(side[:, None], np.column_stack([-near, along, zero]), np.column_stack([zero, along, -near]))
    assert np.abs(moved(points, Edge()) - points).max() < 1e-3
    assert np.abs(moved(points, Plane()) - points)[near < 0.01].max() > 0.3 * SIGMA


def test_spheres_keep_their_size():
    rng = np.random.default_rng(2)
    points = sphere(8000, rng) * 0.5
    # Exact points are farther within than noise of this deviation would have them, by its square times the curvature.
    within = 0.5 - np.linalg.norm(moved(points, Ball(), RADIUS * SIGMA), axis=1)
    assert np.abs(within - SIGMA**2 / 0.5).max() < 3e-4
    found = np.linalg.norm(moved(points + rng.normal(scale=SIGMA, size=points.shape), Ball()), axis=1)
    assert found.std() < 0.2 * SIGMA and abs(found.mean() - 0.5) < 0.7 * SIGMA**2 / 0.5


def test_the_two_sides_of_a_sheet_stay_apart():
    rng = np.random.default_rng(3)
    side = np.where(rng.random(6000) < 0.5, 1, -1)
    points = np.column_stack([rng.uniform(-0.8, 0.8, (6000, 2)), 0.02 * side])

    class Sheet(Shape):
        def normals(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 0.0, 1.0]) * x[:, 2:].sign()

    assert np.abs(moved(points, Sheet()) - points).max() < 1e-6


def test_fewer_points_than_neighbours_and_equal_ones():
    assert np.isfinite(moved(np.zeros((5, 3)), Plane())).all()
    few = np.array([[0, 0.01 * i, 0.1 + 0.2 * (i % 2)] for i in range(4)])
    assert np.allclose(moved(few, Plane(), 1.0)[:, 2], 0.2, atol=1e-3)


def test_blocks_take_turns(monkeypatch: pytest.MonkeyPatch):
    points = sphere(500, np.random.default_rng(4)).astype(np.float32) * 0.2
    noisy = points + np.random.default_rng(5).normal(scale=SIGMA, size=points.shape).astype(np.float32)
    monkeypatch.setattr(module, "RUN", 10)
    whole = moved(noisy, Ball())
    for name, value in (("BLOCK", 200), ("CHUNK", 30)):
        monkeypatch.setattr(module, name, value)
    parts = Bilateral(cKDTree(noisy), torch.from_numpy(noisy), 2 * SIGMA)
    assert sorted(parts.order) == list(range(500)) and not parts.nearly_clean
    counts = []
    for number in range(4):
        before = parts.points.clone()
        for _ in range(2):  # one of them is not due
            parts.update(Ball(), FIRST + (1 - FIRST) * (number + 0.5) / UPDATES, None)
        counts.append(int((parts.points != before).any(dim=1).sum()))
    assert counts == [200, 200, 100, 0], "the last one is the first again, of the same field"
    np.testing.assert_allclose(parts.points.numpy(), whole, atol=1e-6)
    assert np.array_equal(parts.cloud.numpy(), noisy)


@pytest.mark.parametrize("steps", [3, 50, 400])
def test_updates_are_spread_over_the_run(steps: int):
    field, points = Ball(), sphere(60, np.random.default_rng(7)).astype(np.float32)
    found, times = Bilateral(cKDTree(points), torch.from_numpy(points), 0.1), []
    for step in range(steps):
        before = field.asked
        found.update(field, step / steps, None)
        times += [step / steps] if field.asked > before else []
    assert times[0] >= FIRST and len(times) == min(UPDATES, sum(step / steps >= FIRST for step in range(steps)))


def fit(**keys: str) -> Trainer:
    """To a sphere with noise."""
    small = {"levels": "3", "finest": "16", "log2_entries": "9", "width": "16", "radius": "0.5"}
    overrides = [(f"field.{name}", text) for name, text in small.items()]
    overrides += [("train.cell", "0"), ("queries.batch", "256"), ("queries.pool", "2000"), *keys.items()]
    rng = np.random.default_rng(6)
    points = 0.6 * sphere(2400, rng) + rng.normal(scale=1.5 * SIGMA, size=(2400, 3))
    return Trainer(adapt(read_config(Config, None, overrides), Survey(0.04, 1.5 * SIGMA, 10)), points, CPU)


def test_settings_that_are_open_are_refused():
    config = adapt(Config(), Survey(0.04, SIGMA, 10))
    with pytest.raises(ValueError, match="open"):
        Trainer(replace(config, loss=replace(config.loss, bilateral=None)), sphere(60, np.random.default_rng(6)), CPU)


def test_errors_are_those_of_the_points_where_they_were_moved():
    """Also where they count by the trust in them."""
    trainer = fit()
    trainer.step(0.1)
    assert trainer.bilateral is not None
    assert torch.equal(trainer.bilateral.points, trainer.bilateral.cloud), "not while there is no shape"
    trainer.step(0.5)
    assert not torch.equal(trainer.bilateral.points, trainer.bilateral.cloud)
    saved = trainer.queries.state_dict()
    drawn, _ = trainer.queries.draw(trainer.config.queries.batch)
    trainer.queries.load_state_dict(saved)
    batch = trainer._draw()
    assert torch.equal(batch.origin, trainer.bilateral.points[batch.rows])
    followed, _ = trainer.bilateral.drawn_around(drawn.x[: batch.near], batch.rows)
    assert torch.equal(batch.x[: batch.near], followed) and not torch.equal(followed, drawn.x[: batch.near])
    assert torch.equal(batch.x[batch.near :], drawn.x[batch.near :])
    near = slice(batch.near)
    active = trainer.field.active(0.5)
    with torch.no_grad():
        at, there = trainer.field.geometry(batch.x[near], active), trainer.field.geometry(batch.origin, active)
        error = chord_error(batch.x[near], at, trainer.bilateral.points[batch.rows], there.gradient)
    trainer.queries.load_state_dict(saved)
    expected = soft_abs(error, trainer.config.loss.softness or 0).mean()
    assert float(trainer.step(0.5)["pull"]) == pytest.approx(float(expected), rel=1e-5)


def test_queries_go_with_their_points_and_come_closer_when_these_are_settled():
    rng = np.random.default_rng(9)
    for noise, half in ((SIGMA, 0.8), (3 * SIGMA, 0.2)):  # as much as the filter is told, and more than it can know
        side = rng.uniform(-half, half, (3000, 2))
        points = np.column_stack([side, rng.normal(scale=noise, size=3000)]).astype(np.float32)
        x, rows = torch.from_numpy(points[:100] + 0.01), torch.arange(100)
        found = Bilateral(cKDTree(points), torch.from_numpy(points), RADIUS * SIGMA)
        torch.testing.assert_close(found.drawn_around(x, rows)[0], x)
        found.update(Plane(), FIRST, None)
        assert found.settled == (noise == SIGMA)
        _, index = found.tree.query(points[:100], k=MANY if found.settled else SOME)
        around = found.cloud[torch.from_numpy(index)]
        by_hand = bilateral(around, Plane().normals(around) / 2, RADIUS * SIGMA, SIGMA)
        assert torch.isclose(found.points[:100], by_hand, atol=1e-6).all(dim=1).float().mean() > 0.8, "but other radii"
        around, there = found.drawn_around(x, rows)
        torch.testing.assert_close(there, found.points[:100])
        torch.testing.assert_close(around, there + (CLOSER if found.settled else 1) * (x - found.cloud[:100]))


def test_where_points_are_not_asked_for_none_are_moved():
    for keys in ({"loss.bilateral": "0"}, {"loss.target": "nearest"}, {"loss.objective": "siren"}):
        assert fit(**keys).bilateral is None
    assert fit(**{"loss.target": "nearest", "loss.bilateral": "0.1"}).bilateral is None
    assert fit(**{"loss.objective": "siren", "loss.bilateral": "0.1"}).bilateral is not None


@pytest.mark.parametrize("settled", [True, False])
def test_a_resumed_fit_takes_the_same_steps(settled: bool, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RUN", 200), ("CHUNK", 400), ("BLOCK", 1000), ("SETTLED", 9.0 if settled else 0.0)):
        monkeypatch.setattr(module, name, value)
    whole, curve, file = fit(), [], io.BytesIO()
    for step in range(14):
        if step == 10:
            assert whole.bilateral is not None
            assert whole.bilateral.first == 2000 and whole.bilateral.settled == settled
            torch.save(whole.state_dict(), file)
        curve.append(float(whole.step(step / 14)["loss"]))
    file.seek(0)
    resumed = fit()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [float(resumed.step(step / 14)["loss"]) for step in range(10, 14)] == curve[10:]


def test_a_fit_that_had_none_goes_on_from_the_points_as_they_are():
    plain, other = fit(**{"loss.bilateral": "0"}), fit()
    plain.step(0.1)
    other.load_state_dict(plain.state_dict())
    assert other.bilateral is not None and torch.equal(other.bilateral.points, other.bilateral.cloud)
