"""Spacing, noise and stray points of clouds that are known, and the settings that follow."""

from dataclasses import replace

import numpy as np
import pytest

from pointrecon.adapt import ALIGNMENT, CELL, CELL_OF_CUBE, CELL_OF_NOISE, NEIGHBOURS, RAW_CELL, WIDEST, adapt
from pointrecon.config import Config, LossConfig, QueryConfig
from pointrecon.survey import Survey, stray, survey
from shared.config import Schedule


def sphere(count: int, radius: float = 0.8, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return radius * points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.02])
@pytest.mark.parametrize("count", [5_000, 40_000])
def test_noise_is_found_whatever_the_spacing(noise: float, count: int) -> None:
    points = sphere(count) + np.random.default_rng(1).normal(scale=noise, size=(count, 3))
    found = survey(points)
    # Of 5,000 points on this sphere neighbours are 0.02 apart: less noise than a quarter of that is hardly seen.
    assert found.noise == pytest.approx(noise, rel=0.25, abs=0.002)


def test_curvature_is_not_noise() -> None:
    for count in (200, 2_000, 40_000):
        found = survey(sphere(count))
        assert found.noise < 0.2 * found.spacing


@pytest.mark.parametrize("count", [50, 63, 64, 100, 127, 128])
def test_the_smallest_clouds_have_a_spacing(count: int) -> None:
    found = survey(sphere(count))
    assert 0.05 < found.spacing < 0.5 and 0 <= found.noise < found.spacing


def test_strays_are_found() -> None:
    anywhere = np.random.default_rng(3).uniform(-1, 1, (500, 3))
    found = stray(np.concatenate([sphere(10_000), anywhere]))
    far = np.abs(np.linalg.norm(anywhere, axis=1) - 0.8) > 0.2
    assert found[10_000:][far].mean() > 0.8
    assert found[:10_000].mean() < 0.001


def test_what_lies_beside_the_surface_is_found_where_there_are_strays() -> None:
    """The points of the sphere are 0.02 apart. One look finds 85 % of those 4.5 spacings off, a second one 96 %."""
    anywhere = np.random.default_rng(3).uniform(-1, 1, (500, 3))
    cloud = np.concatenate([sphere(10_000), anywhere])
    off = np.abs(np.linalg.norm(anywhere, axis=1) - 0.8)
    found = stray(cloud)
    assert found[10_000:][off > 0.09].mean() > 0.97
    assert not found[10_000:][off < 0.01].any(), "who could tell?"
    assert found[:10_000].mean() < 0.001
    assert not stray(np.concatenate([sphere(10_000), anywhere[off < 0.06][:5]])).any(), "a few are no litter"


def test_little_that_is_left_beside_litter_is_looked_at_once() -> None:
    close = np.random.default_rng(0).normal(scale=0.01, size=(12, 3))
    litter = np.array([[3.0**i, 0.0, 0.0] for i in range(40)])
    assert stray(np.concatenate([close, litter])).shape == (52,)


def test_a_thin_scan_beside_a_dense_one_is_no_litter() -> None:
    rng = np.random.default_rng(1)
    dense, thin = rng.uniform(-1, 1, (20_000, 3)), rng.uniform(-1, 1, (2000, 3))
    dense[:, 2], thin[:, 2] = 0, 0.02
    found = stray(np.concatenate([dense, thin, rng.uniform(-1, 1, (300, 3))]))
    assert found[:22_000].mean() < 0.01 and found[22_000:].mean() > 0.5


def test_parts_that_were_scanned_thinly_are_kept() -> None:
    # The lower half of the sphere is twenty times thinner than the upper one.
    surface = sphere(10_000)
    surface = surface[(surface[:, 2] > 0) | (np.arange(10_000) < 500)]
    assert stray(surface).mean() < 0.002


def test_small_clouds_have_no_strays() -> None:
    assert not stray(np.random.default_rng(0).normal(size=(40, 3))).any()


def test_settings_follow_from_the_cloud_and_what_is_set_stays() -> None:
    clean, noisy = (adapt(Config(), Survey(0.01, noise, 30)) for noise in (0.0005, 0.01))
    assert (clean.loss.target, clean.loss.softness, clean.queries.neighbours) == ("nearest", 0.0, NEIGHBOURS)
    assert (noisy.loss.target, noisy.queries.neighbours) == ("origin", 30), "as wide as twice the noise"
    assert noisy.loss.softness == pytest.approx(0.0025)
    nearly = adapt(Config(), Survey(0.01, 0.002, 5))
    assert nearly.queries == clean.queries and nearly.loss.hole == clean.loss.hole
    assert nearly.loss.bend > noisy.loss.bend > clean.loss.bend == 0
    assert (nearly.loss.target, nearly.loss.bilateral, nearly.snap, clean.snap) == ("origin", 0.004, True, True)
    assert (nearly.loss.softness, nearly.loss.plane) == (pytest.approx(0.0005), noisy.loss.plane)
    for one in (LossConfig(bilateral=0.0), LossConfig(target="nearest"), LossConfig(objective="siren")):
        for noise in (0.002, 0.004):
            assert adapt(Config(loss=one), Survey(0.01, noise, 5)) == adapt(Config(loss=one), Survey(0.01, 0.0005, 5))
    border = [adapt(Config(), Survey(0.01, noise, 5)) for noise in (0.0045, 0.0055)]
    assert [one.snap for one in border] == [True, False] and border[0].queries == clean.queries
    assert [one.loss.bend for one in border] == [nearly.loss.bend, noisy.loss.bend]
    for found in (clean, nearly):
        assert found.loss.alignment == Schedule(ALIGNMENT * 0.01)
    assert noisy.loss.alignment == adapt(Config(loss=LossConfig(objective="siren")), Survey(0.01, 0, 5)).loss.alignment
    assert noisy.loss.alignment == Schedule(0.0)
    assert adapt(Config(), Survey(np.inf, 0.0, 0)).loss.alignment == Schedule(ALIGNMENT * WIDEST), "of three points"
    unmoved = LossConfig(target="nearest", bilateral=0.02)
    assert adapt(Config(loss=unmoved), Survey(0.01, 0.01, 30)).train.cell == RAW_CELL
    raw = adapt(Config(loss=LossConfig(bilateral=0.0)), Survey(0.01, 0.01, 30))
    assert raw.loss.softness == pytest.approx(0.015), "points that are not brought together keep their noise"
    assert clean.field.finest == round(2 / (CELL * 0.01))
    for noise, cell in ((0.8, CELL), (1.2, CELL_OF_CUBE * 1.2**3), (3, CELL_OF_NOISE * 3)):
        found = adapt(Config(), Survey(0.01, noise * 0.01, 30))
        assert found.train.cell == pytest.approx(cell) and found.field.finest == round(2 / (cell * 0.01))
    own = Config(queries=QueryConfig(neighbours=7), loss=LossConfig(target="nearest", softness=0.0))
    own = adapt(own, Survey(0.01, 0.01, 30))
    assert (own.queries.neighbours, own.loss.target, own.loss.softness) == (7, "nearest", 0.0)
    assert adapt(noisy, Survey(0.01, 0.0, 0)) == noisy, "a run that is continued keeps what was chosen"


def test_fine_clouds_get_larger_tables_and_finer_meshes() -> None:
    coarse, fine = (adapt(Config(), Survey(spacing, 0.0, 0)) for spacing in (0.02, 0.003))
    assert (coarse.field.log2_entries, coarse.train.resolution) == (Config().field.log2_entries, 384)
    assert fine.field.finest == round(2 / (CELL * 0.003))
    assert 2**fine.field.log2_entries >= 4 * fine.field.finest**2 and fine.train.resolution == 512
    assert adapt(Config(), Survey(0.0005, 0.0, 0)).field.log2_entries == 19, "no more than fit a cache"
    assert adapt(Config(field=replace(Config().field, log2_entries=22)), Survey(0.003, 0.0, 0)).field.log2_entries == 22


def test_stray_points_among_stray_points_are_found_when_these_are_gone() -> None:
    """Chance brings some together, so that one is no more alone than another, or lie in a plane."""
    left = 0
    for seed in range(9, 20):
        rng = np.random.default_rng(seed)
        ball = rng.normal(size=(5000, 3))
        ball *= 0.5 / np.linalg.norm(ball, axis=1, keepdims=True)
        litter = rng.uniform(-0.8, 0.8, (250, 3))
        found = stray(np.concatenate([ball, litter]))
        assert not found[:5000].any()
        left += (~found[5000:] & (np.abs(np.linalg.norm(litter, axis=1) - 0.5) > 0.1)).sum()
    assert left <= 11, "ten of 2,750; 33 without looking again"
