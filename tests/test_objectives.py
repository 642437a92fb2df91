"""Every term of a fit by closed forms and by loops, the weights that follow from the objective, and that each fits."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointrecon.adapt import (
    CELL,
    CLEAN,
    CLOSENESS,
    IGR_NEIGHBOURS,
    NEIGHBOURS,
    NOISE,
    NOISY_NEIGHBOURS,
    RADIUS,
    RAW_CELL,
    SOFTNESS,
    adapt,
)
from pointrecon.config import Config, LossConfig
from pointrecon.objectives import direction_error, eikonal_error, gradient_error, off_surface_error
from pointrecon.survey import Survey
from pointrecon.trainer import Trainer
from shared.config import Schedule, read_config
from shared.errors import UserError
from shared.field import Geometry
from shared.pull import pull

CPU = torch.device("cpu")
PRESETS = Path(__file__).resolve().parents[1] / "configs" / "pointrecon"
SMALL = {
    "field.levels": "3",
    "field.finest": "16",
    "field.log2_entries": "9",
    "field.width": "16",
    "field.radius": "0.4",
    "train.cell": "0",
    "queries.batch": "256",
    "queries.pool": "2000",
    "loss.alignment": "0",
    "loss.alignment_points": "32",
}


pytestmark = pytest.mark.usefixtures("one_thread")


def directions(count: int = 500) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def config(**keys: str) -> Config:
    overrides = {**SMALL, **{name.replace("__", "."): text for name, text in keys.items()}}
    return adapt(read_config(Config, None, list(overrides.items())), Survey(0.05, 0.0, 0))


def trainer(normals: bool = False, below: float = 1.0, **keys: str) -> Trainer:
    """Of a sphere of radius 0.6, without the part above this share of it."""
    there = directions()
    there = there[there[:, 2] < below]
    return Trainer(config(**keys), 0.6 * there, CPU, there if normals else None)


def sphere(x: Tensor, radius: float = 0.6) -> Geometry:
    return Geometry(x.norm(dim=1) - radius, x / x.norm(dim=1, keepdim=True), x[:, :0])


def test_an_exact_distance_has_no_error():
    normals = torch.from_numpy(directions())
    at = sphere(0.6 * normals)
    for error in (at.sdf, eikonal_error(at.gradient), direction_error(at.gradient, normals)):
        torch.testing.assert_close(error, torch.zeros_like(error))
    torch.testing.assert_close(gradient_error(at.gradient, normals), torch.zeros(500).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(direction_error(-at.gradient, normals), torch.full((500,), 2.0).double())


def test_terms_equal_their_formulas():
    gradient = torch.tensor([[0.0, 0.0, 2.0], [3.0, 0.0, 4.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    normals = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert eikonal_error(gradient).tolist() == [1.0, 4.0, 0.5, 1.0]
    torch.testing.assert_close(direction_error(gradient, normals), torch.tensor([0.0, 1 - 3 / 5, 2.0, 1.0]))
    torch.testing.assert_close(gradient_error(gradient, normals), torch.tensor([1.0, math.sqrt(20), 1.5, 1.0]))
    sdf = torch.tensor([0.0, 0.01, -0.02])
    torch.testing.assert_close(off_surface_error(sdf), torch.exp(torch.tensor([0.0, -1.0, -2.0])))


@pytest.mark.parametrize("objective", ["siren", "igr"])
def test_gradients_of_the_terms_are_those_of_differences(objective: str):
    """Of a plane's distance times a, turned by b about the x axis, seen from points beside it."""
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    normals = torch.tensor([[0.0, 0.0, 1.0]]).double().expand(20, 3)

    def value(a: Tensor, b: Tensor) -> Tensor:
        normal = a * torch.stack([torch.zeros_like(b), torch.sin(b), torch.cos(b)])
        sdf, gradient = x @ normal, normal.expand(20, 3)
        if objective == "siren":
            errors = sdf.abs() + direction_error(gradient, normals) + off_surface_error(sdf) + eikonal_error(gradient)
        else:
            errors = sdf.abs() + gradient_error(gradient, normals) + eikonal_error(gradient).square()
        return errors.mean()

    start = tuple(torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (1.3, 0.4))
    assert torch.autograd.gradcheck(value, start)


def loops(fit: Trainer, progress: float) -> dict[str, float]:
    """The terms of the next step, query by query."""
    loss, queries = fit.config.loss, fit.queries
    state = queries.state_dict()
    batch, rows = queries.draw(fit.config.queries.batch)
    noise = queries.noise(fit.config.queries.batch)
    queries.load_state_dict(state)
    terms: dict[str, list[float]] = {}

    def ask(point: Tensor) -> tuple[float, Tensor]:
        at = fit.field.geometry(point[None], fit.field.active(progress))
        return float(at.sdf.detach()), at.gradient[0].detach()

    def add(name: str, error: float) -> None:
        terms.setdefault(name, []).append(error)

    def hole_error(x: Tensor, f: float, gradient: Tensor, nearest: Tensor, along: Tensor, facing: float) -> float:
        turned = torch.nn.functional.cosine_similarity(gradient, ask(nearest)[1], dim=0)
        at = x - f * gradient / gradient.norm()
        normal = ask(at)[1] / ask(at)[1].norm()
        beside = ask(at + 0.16 * (along - (along @ normal) * normal))[1]
        bent = (normal - beside / beside.norm()).square().sum()
        return (1 - facing) * (1 - float(turned)) + 0.6 * math.sqrt(float(bent) + 1e-4)

    for x, nearest, origin, in_space, row, along in zip(*batch, rows, noise, strict=True):
        f, gradient = ask(x)
        at_f, at_gradient = ask(origin)
        length, at_length = float(gradient.norm()), float(at_gradient.norm())
        normal = None if fit.normals is None else fit.normals[row]
        if loss.objective == "pull":
            apart = float((x - f * gradient / length - nearest).norm())
            facing = float(queries.facing(x[None], row[None])) if in_space else 1.0
            apart *= facing
            if in_space and not fit.closed:
                away = float((x - nearest).norm()) > 1.5 * float(queries.width(row[None]))
                missing = facing < 0.5 and abs(f) < 0.2 and away
                add("hole", hole_error(x, f, gradient, nearest, along, facing) if missing else 0)
            if not in_space and progress >= fit.plane:
                target = nearest if loss.target == "nearest" else origin
                there = torch.nn.functional.normalize(ask(target)[1], dim=0)
                middle, cosine = gradient / length + there, float(gradient @ there) / length
                apart = max(cosine, 0) * abs(float((x - target) @ middle) / max(1 + cosine, 0.2) - f)
            add("space" if in_space else "pull", apart)
            add("eikonal", (length - 1) ** 2)
            if normal is not None and not in_space:
                add("normal", 1 - float(gradient @ normal) / length)
        if loss.objective != "pull" and not in_space:
            assert torch.equal(origin, torch.from_numpy(queries.points[row]))
            add("surface", abs(at_f))
            if normal is not None and loss.objective == "siren":
                add("normal", 1 - float(at_gradient @ normal) / at_length)
            elif normal is not None:
                add("normal", float((at_gradient - normal).norm()))
        if loss.objective == "siren":
            add("eikonal", abs(length - 1))
            if in_space:
                add("off_surface", math.exp(-100 * abs(f)))
            else:
                add("eikonal", abs(at_length - 1))
        if loss.objective == "igr":
            add("eikonal", (length - 1) ** 2)
    return {name: float(np.mean(errors)) for name, errors in terms.items()}


@pytest.mark.parametrize(
    ("objective", "normals", "weights"),
    [
        ("pull", False, {"pull": 1, "space": 1, "eikonal": 0.1, "hole": 0.05}),
        ("pull", True, {"pull": 1, "space": 1, "eikonal": 0.1, "hole": 0.05, "normal": 0.01}),
        ("siren", False, {"surface": 1000, "off_surface": 50, "eikonal": 100}),
        ("siren", True, {"surface": 1000, "normal": 100, "off_surface": 50, "eikonal": 100}),
        ("igr", False, {"surface": 1, "eikonal": 0.1}),
        ("igr", True, {"surface": 1, "normal": 1, "eikonal": 0.1}),
    ],
)
def test_a_step_has_the_terms_of_its_objective(objective: str, normals: bool, weights: dict[str, float]):
    keys = {"loss__eikonal": "0.1", "queries__space_share": "0.4"} if objective == "pull" else {}
    fit = trainer(normals, below=0.0, loss__objective=objective, **keys)
    for _ in range(3):  # away from the sphere that a field starts as
        fit.step(0.0)
    expected = loops(fit, 0.1)
    found = {name: float(term) for name, term in fit.step(0.1).items()}
    total = sum(weight * expected[name] for name, weight in weights.items())
    assert found == pytest.approx({"loss": total, **expected}, rel=1e-4)
    assert expected.keys() == weights.keys()
    assert expected.get("hole", 1) > 0


def test_a_cloud_that_encloses_something_has_no_holes():
    whole, open_ = trainer(), trainer(below=0.0)
    assert whole.closed and not open_.closed
    assert "hole" not in whole.step(0.1) and "hole" in open_.step(0.1)


@pytest.mark.parametrize("target", ["nearest", "origin"])
def test_later_errors_near_the_cloud_count_along_chords(target: str):
    fit = trainer(loss__target=target, loss__eikonal="0.1", queries__factor="5")
    for _ in range(3):
        fit.step(0.0)
    expected = loops(fit, 0.5)
    found = {name: float(term) for name, term in fit.step(0.5).items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", ["pull", "siren", "igr"])
@pytest.mark.parametrize(
    ("kind", "at", "weight"),
    [
        ("cosine", "pulled", "sdf"),
        ("mse-normalised", "pulled", "none"),
        ("mse", "nearest", "euclidean"),
        ("cosine", "nearest", "sdf"),
    ],
)
def test_the_alignment_of_a_step_in_all_its_variants(objective: str, kind: str, at: str, weight: str):
    keys = {"loss__alignment": "2", "loss__alignment_decay": "7", "loss__objective": objective}
    fit = trainer(loss__alignment_kind=kind, loss__alignment_at=at, loss__alignment_weight=weight, **keys)
    for _ in range(3):
        fit.step(0.0)
    state = fit.queries.state_dict()
    x, nearest = (part[:32] for part in fit.queries.batch(256)[:2])
    fit.queries.load_state_dict(state)
    active = fit.field.active(0.1)
    there = fit.field.geometry(x, active)
    end = fit.field.geometry(
        pull(x, there.sdf, there.gradient) if at == "pulled" else nearest, active
    ).gradient.detach()
    f, here = there.sdf.detach(), there.gradient.detach()
    errors = []
    for i in range(32):
        a, b = (here[i], end[i]) if kind == "mse" else (here[i] / here[i].norm(), end[i] / end[i].norm())
        apart = 1 - float(a @ b) if kind == "cosine" else float((a - b).square().mean())
        distance = {"sdf": abs(float(f[i])), "euclidean": float((x[i] - nearest[i]).norm()), "none": 0.0}[weight]
        errors.append(math.exp(-7 * distance) * apart)
    terms = fit.step(0.1)
    assert float(terms["alignment"]) == pytest.approx(float(np.mean(errors)), rel=1e-3, abs=1e-7)
    others = {name: float(term) for name, term in terms.items() if name not in ("loss", "alignment")}
    weights = {name: fit.weights[name](0.1) for name in others}
    total = sum(weights[name] * term for name, term in others.items()) + 2 * float(terms["alignment"])
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("normals", [False, True])
@pytest.mark.parametrize("objective", ["pull", "siren", "igr"])
def test_each_objective_comes_nearer_to_a_sphere(objective: str, normals: bool):
    fit = trainer(normals, loss__objective=objective, loss__alignment="0.01")
    cloud = torch.from_numpy(fit.queries.points)

    def error() -> float:
        with torch.no_grad():
            return float(fit.field.sdf(cloud).abs().mean())

    before = error()
    for step in range(40):
        fit.step(step / 40)
    assert error() < 0.4 * before
    with torch.no_grad():
        assert float(fit.field.sdf(torch.zeros(1, 3))) < 0, "the inside stays inside"


def test_normals_turn_a_field_to_their_side():
    """Inward normals are asked for, and a field that starts as a ball begins to turn over."""
    keys = {"loss__objective": "siren", "loss__surface": "0", "loss__eikonal": "0", "optim__network": "0.03"}
    fit = Trainer(config(**keys), 0.6 * directions(), CPU, -directions())
    first = float(fit.step(0.0)["normal"])
    for step in range(40):
        last = float(fit.step(step / 40)["normal"])
    assert first > 1.9 and last < 0.5


def test_normals_stay_unused_at_weight_zero():
    fit, same = (trainer(normals, loss__objective="siren", loss__normal="0") for normals in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(fit.step(0.0).values(), same.step(0.0).values(), strict=True))


def test_weights_follow_from_the_objective_and_what_is_set_stays():
    pulled, siren, igr = (config(loss__objective=name) for name in ("pull", "siren", "igr"))
    asked = [(c.queries.neighbours, c.queries.closeness, c.queries.space_share) for c in (pulled, siren, igr)]
    assert asked == [(NEIGHBOURS, CLOSENESS, 0.1), (NEIGHBOURS, 0, 0.5), (IGR_NEIGHBOURS, 0, 0.1)]
    assert [siren.loss.surface, siren.loss.iso_normal] == [Schedule(1000), Schedule(100)]
    assert [igr.loss.eikonal, pulled.loss.eikonal] == [Schedule(0.1), Schedule(0)]
    own = config(loss__objective="siren", loss__surface="[0, 3, 4, 1]", queries__space_share="0.2")
    assert own.loss.surface == Schedule(0, 3, 4, 1) and own.queries.space_share == 0.2
    assert adapt(own, Survey(0.05, 0.1, 50)) == own, "a run that is continued keeps what was chosen"


@pytest.mark.parametrize("keys", [{"objective": "siren"}, {"objective": "igr"}, {"iso_points": 5}])
def test_open_weights_are_refused(keys: dict):
    chosen = {"target": "nearest", "softness": 0.0, "plane": 0.3, "space": Schedule(0.3)}
    base = config()
    closed = Config(field=base.field, queries=base.queries, loss=LossConfig(**chosen, **keys))
    with pytest.raises(ValueError, match="objective"):
        Trainer(closed, 0.6 * directions(), CPU)


def test_normals_of_another_cloud_are_refused():
    with pytest.raises(ValueError, match="normals"):
        Trainer(config(), 0.6 * directions(), CPU, directions(7))


@pytest.mark.parametrize("key", ["loss.objective", "loss.alignment_kind", "loss.alignment_at", "loss.alignment_weight"])
def test_unknown_choices_are_refused(key: str):
    with pytest.raises(UserError, match=key):
        read_config(Config, None, [(key, "something")])


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_read_and_complete(path: Path):
    chosen = adapt(read_config(Config, path), Survey(0.02, 0.0, 4))
    queries, loss = chosen.queries, chosen.loss
    assert None not in (queries.neighbours, queries.closeness, queries.space_share, loss.space, loss.iso_sdf)


def test_the_presets_of_a_kind_of_cloud_are_what_such_a_cloud_would_choose():
    noisy, sparse = (read_config(Config, PRESETS / f"{name}.yaml") for name in ("noisy", "sparse"))
    clean_cloud, noisy_cloud = Survey(0.01, 0.0, 4), Survey(0.01, 0.01, 4)
    as_noisy, as_clean = adapt(noisy, clean_cloud), adapt(sparse, noisy_cloud)
    for name, value in NOISE.items():
        assert getattr(as_noisy.loss, name) == value
    for name, value in CLEAN.items():
        assert getattr(as_clean.loss, name) == value
    assert (as_noisy.queries.neighbours, as_noisy.queries.closeness) == (NOISY_NEIGHBOURS, 0)
    assert noisy.train.cell == adapt(Config(), noisy_cloud).train.cell and as_clean.train.cell == CELL
    assert as_clean == adapt(sparse, clean_cloud) and as_clean.snap and not as_noisy.snap
    assert as_noisy.loss.bilateral / as_noisy.loss.softness == pytest.approx(RADIUS / SOFTNESS, rel=0.02)


def test_surfaces_are_brought_to_clean_clouds_and_for_a_pull_alone():
    clean, noisy = Survey(0.01, 0.001, 4), Survey(0.01, 0.01, 4)
    siren = read_config(Config, None, [("loss.objective", "siren")])
    assert [adapt(*args).snap for args in ((Config(), clean), (Config(), noisy), (siren, clean))] == [
        True,
        False,
        False,
    ]
    for asked in (True, False):
        assert adapt(replace(Config(), snap=asked), noisy).snap is asked
    assert not Config().snap, "nor are runs that were made before there was this"


def test_points_are_moved_in_noise_and_for_a_pull_alone():
    clean, noisy = Survey(0.01, 0.001, 4), Survey(0.01, 0.01, 4)
    siren = read_config(Config, None, [("loss.objective", "siren")])
    found = [adapt(*args).loss.bilateral for args in ((Config(), clean), (Config(), noisy), (siren, noisy))]
    assert found == [0, 0.01 * RADIUS, 0]
    kept = read_config(Config, None, [("loss.target", "nearest")])
    assert adapt(kept, noisy).loss.bilateral == 0
    for unmoved in (siren, kept, read_config(Config, None, [("loss.bilateral", "0")])):
        assert adapt(unmoved, noisy).train.cell == RAW_CELL, "cells are as fine as noise allows without it"
