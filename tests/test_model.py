"""Rendering rays of a whole model: what hits the unit sphere, what misses it, and that it is the plain sum."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mvrecon.model
from mvrecon.config import Config, DataConfig
from mvrecon.datasets import load
from mvrecon.losses import total_loss
from mvrecon.model import SurfaceModel
from mvrecon.rays import RayBatch
from mvrecon.sampling import SdfVolume
from mvrecon.trainer import Trainer
from scripts.make_scene import make_tiny_scene
from shared.config import Schedule
from shared.field import FieldConfig
from shared.lazy_adam import TableAdam

CPU = torch.device("cpu")
CONFIG = Config(field=FieldConfig(levels=3, base=4, finest=16, log2_entries=9, feature=3))


def scene(with_background: bool) -> tuple[SurfaceModel, SdfVolume]:
    torch.manual_seed(0)
    model, volume = SurfaceModel(CONFIG, with_background, CPU), SdfVolume(32, CPU)
    with torch.no_grad():
        model.sharpness.fill_(0.6)
        volume.refresh(model.field.sdf, CONFIG.sampling.band)
    return model, volume


def rays() -> tuple[torch.Tensor, torch.Tensor]:
    """Through the initial sphere, past it but through the unit sphere, and past both."""
    origins = torch.tensor([[0.0, 0.0, -3.0], [0.8, 0.0, -3.0], [5.0, 0.0, -3.0]])
    return origins, torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)


@torch.no_grad()
def test_a_sphere_is_seen_where_it_is():
    model, volume = scene(with_background=False)
    seen = model.render(volume, *rays())
    assert seen.hit.tolist() == [True, True, False]
    assert seen.opacity.tolist() == pytest.approx([1, 0, 0], abs=0.02)
    assert float(seen.depth[0]) == pytest.approx(2.5, abs=0.02)
    assert torch.nn.functional.normalize(seen.normal[0], dim=0).tolist() == pytest.approx([0, 0, -1], abs=0.1)
    assert seen.color[2].tolist() == [0, 0, 0]


@torch.no_grad()
def test_samples_from_the_network_see_the_sphere_without_a_volume():
    model, volume = scene(with_background=False)
    model.config = replace(CONFIG, sampling=replace(CONFIG.sampling, source="network"))
    volume.values.fill_(1.0)
    seen = model.render(volume, *rays())
    assert seen.opacity.tolist() == pytest.approx([1, 0, 0], abs=0.02)
    assert float(seen.depth[0]) == pytest.approx(2.5, abs=0.01)


@torch.no_grad()
def test_what_the_surface_lets_through_is_background():
    model, volume = scene(with_background=True)
    origins, directions = rays()
    seen, without = model.render(volume, origins, directions), replace_background(model, volume)
    behind = model.background(origins, directions)
    torch.testing.assert_close(seen.color[2], behind[2])
    torch.testing.assert_close(seen.color, without + (1 - seen.opacity[:, None]) * behind, atol=1e-5, rtol=0)


def replace_background(model: SurfaceModel, volume: SdfVolume) -> torch.Tensor:
    """The colours of the same surface before nothing."""
    kept, model.background = model.background, None
    color = model.render(volume, *rays()).color
    model.background = kept
    return color


def test_a_batch_without_a_hit_has_finite_gradients():
    model, volume = scene(with_background=True)
    origins, directions = (part[2:] for part in rays())
    seen = model.render(volume, origins, directions, 0.5, lambda columns: torch.rand(len(origins), columns))
    seen.color.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_annealing_leads_from_halved_slopes_to_exact_ones():
    model, volume = scene(with_background=False)
    x = torch.linspace(-0.4, 0.4, 20)  # oblique rays: seen head-on, the two slopes are the same
    origins = torch.stack([x, torch.zeros(20), torch.full((20,), -3.0)], dim=1)
    directions = torch.tensor([[0.0, 0.0, 1.0]]).expand(20, 3)

    exact, early = (model.render(volume, origins, directions, anneal=anneal).weights for anneal in (1.0, 0.0))
    half = model.render(volume, origins, directions, anneal=0.5).weights
    assert (early - exact).abs().max() > (half - exact).abs().max() > 0.01
    torch.testing.assert_close(model.render(volume, origins, directions).weights, exact)


def test_a_logistic_is_never_narrower_than_an_eighth_of_a_cell():
    model = SurfaceModel(CONFIG, False, CPU)
    model.limit_sharpness()
    assert model.sharpness.item() == pytest.approx(0.3)
    with torch.no_grad():
        model.sharpness.fill_(2.0)
    model.limit_sharpness()
    assert 1 / model.inverse_width.item() == pytest.approx(2 / CONFIG.field.finest / 8, rel=1e-4)


ALL_TERMS = replace(CONFIG.loss, alignment=Schedule(0.1), opacity=Schedule(0.1))


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_not_worth_computing_changes_nothing_where_it_is_computed(masks: bool, monkeypatch):
    """As on a GPU: rays that miss the sphere are sampled, and all colours asked for."""
    found, chance = [], torch.rand(12, 1, generator=torch.Generator().manual_seed(3))
    for everything in (False, True):
        if everything:
            monkeypatch.setattr(mvrecon.model, "to_compute", lambda worth: torch.arange(len(worth)))
        model, volume = scene(with_background=not masks)
        model.color.backend = "reference"  # not the fused operation, which is the CPU's
        origins, directions = (part.repeat(4, 1) for part in rays())
        mask = torch.ones(12) if masks else None
        batch = RayBatch(origins, directions, torch.full((12, 3), 0.3), mask)
        seen = model.render(volume, origins, directions, 0.5, lambda columns: torch.full((12, columns), 0.4))
        loss, terms = total_loss(ALL_TERMS, model.field, batch, seen, 0.5, lambda columns: chance)
        loss.backward()
        assert terms.keys() == {"color", "eikonal", "mask" if masks else "opacity", "alignment"}
        found.append([seen.color, seen.depth, seen.normal, loss, *(p.grad for p in model.parameters())])
    assert len(seen.ray) == 12 and int(seen.hit.sum()) == 8
    for few, every in zip(*found):
        assert (few is None) == (every is None)
        if few is not None:
            torch.testing.assert_close(few, every, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("source", ["volume", "network"])
def test_rendering_and_losses_ask_for_no_value(masks: bool, source: str):
    """On a device without data, what asks for a number, or for how many there are, fails: on a GPU it would wait.

    Not shown: operators that treat this device apart, and copies to it; a GPU is needed for that, as below.
    """
    device = torch.device("meta")
    field, sampling = replace(CONFIG.field, backend="reference"), replace(CONFIG.sampling, source=source)
    config = replace(CONFIG, field=field, sampling=sampling)
    model, volume = SurfaceModel(config, not masks, device), SdfVolume(8, CPU)
    volume.values = volume.values.to(device)
    origins, color = torch.empty(32, 3, device=device), torch.empty(32, 3, device=device)
    batch = RayBatch(origins, origins, color, color[:, 0] if masks else None)
    seen = model.render(volume, origins, origins, 0.5, lambda columns: torch.empty(32, columns, device=device))
    rand = torch.empty(32, 1, device=device)
    loss, _ = total_loss(ALL_TERMS, model.field, batch, seen, 0.5, lambda columns: rand)
    loss.backward()
    TableAdam([model.field.table, model.color.table], lr=0.1, backend="reference").step()
    model.limit_sharpness()
    assert seen.depth.shape == (32,) and seen.normal.shape == (32, 3)
    for ask in (loss.item, seen.hit.nonzero):
        with pytest.raises(RuntimeError):
            ask()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("masks", [True, False])
def test_a_step_on_a_gpu_does_not_wait(masks: bool, tmp_path: Path):
    make_tiny_scene(tmp_path / "tiny", views=4, size=(32, 24))
    photos = load(DataConfig(root=str(tmp_path / "tiny"), masks=masks))
    trainer = Trainer(replace(CONFIG, loss=ALL_TERMS), photos, torch.device("cuda"))
    for _ in range(3):  # what is compiled and allocated at first, and a refresh of the cached distances
        trainer.step(0.5)
    assert trainer.steps < trainer.refresh_at
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
