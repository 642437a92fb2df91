"""Iso-points during a fit: when they come, where they lie, what they ask for and whom they trust; and exact resumes."""

import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pointrecon.adapt import adapt
from pointrecon.config import Config, LossConfig
from pointrecon.regularise import IsoRegulariser
from pointrecon.survey import Survey
from pointrecon.trainer import Trainer
from shared.config import read_config
from shared.field import FieldConfig, Geometry, SirenField
from shared.pull import pull

CPU = torch.device("cpu")
SMALL = {
    "field.levels": "3",
    "field.finest": "16",
    "field.log2_entries": "9",
    "field.width": "16",
    "field.radius": "0.5",
    "train.cell": "0",
    "queries.batch": "256",
    "queries.pool": "2000",
    "queries.refresh": "3",
    "loss.iso_points": "100",
    "loss.iso_warmup": "4",
    "loss.iso_every": "5",
}


pytestmark = pytest.mark.usefixtures("one_thread")


def directions(count: int = 600) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


class Ball(SirenField):
    """The distance to a sphere."""

    def __init__(self, radius: float = 0.6) -> None:
        super().__init__(FieldConfig(width=4))
        self.radius = radius

    def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
        length = x.norm(dim=1)
        return Geometry(length - self.radius, x / length[:, None], x[:, :0])


def regulariser(points: np.ndarray | None = None, **keys) -> IsoRegulariser:
    points = 0.6 * directions() if points is None else points
    config = LossConfig(**{"iso_points": 200, "iso_warmup": 3, "iso_every": 4} | keys)
    return IsoRegulariser(config, torch.from_numpy(points.astype(np.float32)), seed=0)


def trainer(seed: int = 0, **keys: str) -> Trainer:
    """Of a sphere with noise, and with normals."""
    overrides = {**SMALL, "train.seed": str(seed), **{name.replace("__", "."): text for name, text in keys.items()}}
    points = 0.6 * directions() + np.random.default_rng(1).normal(scale=0.05, size=(600, 3))
    chosen = adapt(read_config(Config, None, list(overrides.items())), Survey(0.08, 0.05, 10))
    return Trainer(chosen, points, CPU, directions())


def test_points_come_after_the_warm_up_and_are_renewed_in_time():
    iso, field, sets = regulariser(), Ball(), []
    for step in range(12):
        iso.update(field, step, None)
        sets.append(iso.iso)
        assert iso.ready == (step >= 3)
    changes = [step for step in range(1, 12) if sets[step] is not sets[step - 1]]
    assert changes == [3, 7, 11]
    assert len(iso.iso) == 200
    torch.testing.assert_close(iso.iso.points.norm(dim=1), torch.full((200,), 0.6), atol=1e-4, rtol=0)


def test_they_follow_the_surface_from_where_they_were():
    iso = regulariser()
    iso.update(Ball(0.6), 3, None)
    iso.update(Ball(0.45), 7, None)
    torch.testing.assert_close(iso.iso.points.norm(dim=1), torch.full((len(iso.iso),), 0.45), atol=1e-4, rtol=0)


def test_none_are_made_where_none_are_wanted_or_there_is_no_surface():
    iso = regulariser(iso_points=0)
    iso.update(Ball(), 3, None)
    assert not iso.ready and len(iso.iso) == 0
    iso = regulariser()
    iso.update(Ball(-1.0), 3, None)
    assert not iso.ready
    iso.update(Ball(), 7, None)
    assert iso.ready, "the cloud seeds them again"


def test_fewer_than_a_neighbourhood_are_none():
    iso = regulariser(iso_points=12, iso_neighbours=16)
    iso.update(Ball(), 3, None)
    assert not iso.ready


def test_terms_of_a_sphere_in_closed_form():
    iso = regulariser(iso_points=400)
    iso.update(Ball(), 3, None)
    same, other = iso.terms(Ball(), None), iso.terms(Ball(0.5), None)
    assert float(same["iso_sdf"]) < 1e-5 and float(other["iso_sdf"]) == pytest.approx(0.1, rel=1e-4)
    assert float(same["iso_normal"]) < 5e-3, "planes through neighbours are tangent planes"

    class Slanted(Ball):
        """Gradients at 60 degrees to the radii."""

        def geometry(self, x: Tensor, active: int | None = None) -> Geometry:
            radial = x / x.norm(dim=1, keepdim=True)
            beside = torch.linalg.cross(radial, torch.tensor([[0.1, 0.2, 0.97]]).expand_as(x))
            beside = beside / beside.norm(dim=1, keepdim=True)
            return Geometry(x.norm(dim=1) - 0.6, 0.5 * radial + math.sqrt(0.75) * beside, x[:, :0])

    assert float(iso.terms(Slanted(), None)["iso_normal"]) == pytest.approx(0.5, abs=0.03)


def test_more_neighbours_make_smoother_normals():
    bumpy = 0.6 * directions() * (1 + 0.03 * np.sin(25 * directions()[:, :1]))
    spread = []
    for neighbours in (4, 40):
        iso = regulariser(bumpy, iso_neighbours=neighbours, iso_points=300)
        iso.update(Ball(), 3, None)
        iso._take(type(iso.iso)(iso.iso.points * (1 + 0.03 * torch.sin(25 * iso.iso.points[:, :1])), iso.iso.normals))
        radial = iso.iso.points / iso.iso.points.norm(dim=1, keepdim=True)
        spread.append(float(1 - (radial * iso.normals).sum(dim=1).abs().mean()))
    assert spread[1] < 0.7 * spread[0]


def test_trust_is_that_of_the_nearest_iso_point_by_brute_force():
    points = 0.6 * directions()
    points[:50] *= np.linspace(0.5, 1.5, 50)[:, None]
    iso = regulariser(points)
    iso.update(Ball(), 3, None)
    rows = torch.arange(0, 100, 3)
    gradient = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = iso.trust(rows, iso.points[rows], gradient)
    assert not found.requires_grad
    for row, at, trust in zip(rows, gradient.detach(), found):
        point = iso.points[row]
        nearest = int((iso.iso.points - point).norm(dim=1).argmin())
        normal = iso.iso.normals[nearest]
        height = float((iso.iso.points[nearest] - point) @ normal)
        turned = (1 - float(at @ normal / at.norm())) / (1 - math.cos(math.radians(60)))
        expected = math.exp(-(height**2) / (16 * iso.iso.patch)) * math.exp(-(turned**2))
        assert float(trust) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_points_on_the_surface_are_trusted_and_those_far_from_it_are_not():
    points = 0.6 * directions()
    points[:60] *= 1.6
    iso = regulariser(points, iso_points=600)
    iso.update(Ball(), 3, None)
    trust = iso.trust(torch.arange(600), iso.points, torch.from_numpy(directions().astype(np.float32)))
    assert float(trust[60:].min()) > 0.9 and float(trust[:60].max()) < 0.1


def test_the_near_error_of_a_query_counts_by_the_trust_in_its_origin():
    fit, plain = trainer(), trainer(loss__iso_points="0")
    for step in range(5):
        fit.step(step / 20)
    plain.load_state_dict({**fit.state_dict(), "iso": plain.iso.state_dict()})
    batch = fit._draw()
    fit.queries.load_state_dict(plain.queries.state_dict())
    near = slice(batch.near)
    early = 0.5 * fit.plane  # pulls, not yet errors along normals
    active = fit.field.active(early)
    with torch.no_grad():
        at = fit.field.geometry(batch.x[near], active)
        errors = (pull(batch.x[near], at.sdf, at.gradient) - batch.nearest[near]).norm(dim=1)
        trust = fit.iso.trust(batch.rows, batch.origin, fit.field.geometry(batch.origin, active).gradient)
    assert 0.01 < float(trust.min()) < float(trust.max()) <= 1
    assert float(plain.step(early)["pull"]) == pytest.approx(float(errors.mean()), rel=1e-5)
    assert float(fit.step(early)["pull"]) == pytest.approx(float((trust * errors).mean()), rel=1e-5)


@pytest.mark.parametrize("objective", ["siren", "igr"])
def test_the_clouds_points_and_normals_count_by_their_trust(objective: str):
    fit, plain = (trainer(loss__objective=objective, loss__iso_points=count) for count in ("100", "0"))
    for step in range(5):
        fit.step(step / 20)
    plain.load_state_dict({**fit.state_dict(), "iso": plain.iso.state_dict()})
    weighted, unweighted = fit.step(0.05), plain.step(0.05)
    for name in ("surface", "normal"):
        assert 0.05 < float(weighted[name] / unweighted[name]) < 0.999
    assert torch.equal(weighted["eikonal"], unweighted["eikonal"])
    assert weighted.keys() - unweighted.keys() == {"iso_sdf", "iso_normal"}


@pytest.mark.parametrize("objective", ["pull", "siren", "igr"])
def test_a_resumed_fit_takes_the_same_steps(objective: str):
    """Saved before the first iso-points, between two sets of them, and just before new ones."""
    whole, curve, saved = trainer(loss__objective=objective), [], {}
    for step in range(18):
        if step in (2, 7, 14):
            file = io.BytesIO()
            torch.save(whole.state_dict(), file)
            saved[step] = file
        curve.append({name: float(term) for name, term in whole.step(step / 18).items()})
    assert "iso_sdf" not in curve[3] and "iso_sdf" in curve[4]
    for start, file in saved.items():
        file.seek(0)
        resumed = trainer(loss__objective=objective)
        for _ in range(6):  # what it did before does not matter
            resumed.step(0.5)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        rest = [{name: float(term) for name, term in resumed.step(step / 18).items()} for step in range(start, 18)]
        assert rest == curve[start:]


def test_queries_are_the_same_with_iso_points_and_without():
    fits = [trainer(loss__iso_points=count) for count in ("100", "0")]
    for _ in range(6):
        for fit in fits:
            fit.step(0.1)
    assert torch.equal(fits[0].queries.batch(50).x, fits[1].queries.batch(50).x)
