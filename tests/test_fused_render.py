"""Compositing and colour in one operation against the same written in torch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mvrecon.color import spherical_harmonics
from mvrecon.config import Config
from mvrecon.fused_render import Sections
from mvrecon.model import SurfaceModel
from mvrecon.sampling import SdfVolume
from shared.field import FieldConfig, Geometry

CONFIG = Config(field=FieldConfig(levels=3, base=4, finest=16, log2_entries=9, feature=3))


def model(sharpness: float) -> SurfaceModel:
    torch.manual_seed(0)
    built = SurfaceModel(CONFIG, False, torch.device("cpu"))
    with torch.no_grad():
        built.sharpness.fill_(sharpness)
        built.color.table.uniform_(-1, 1)
        built.color.mlp[-1].weight.mul_(8)
    return built


def along_rays(rays: int, samples: int) -> tuple[Geometry, Sections]:
    """Fields that fall through zero somewhere on most rays, and rise again on some, in sections of all lengths."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    start = 0.4 * torch.rand(rays, 1, generator=generator)
    sdf = start - torch.linspace(0, 0.4, samples) + 0.05 * random(rays, samples)
    directions = F.normalize(random(rays, 3), dim=1)
    gradient = 0.5 * random(rays * samples, 3) - directions.repeat_interleave(samples, 0)
    geometry = Geometry(sdf.reshape(-1), gradient, random(rays * samples, 3))
    spacing = 0.1 * torch.rand(rays, samples, generator=generator) + 1e-3
    within = torch.rand(rays, samples, generator=generator) < 0.9
    points = 0.5 * random(rays * samples, 3)
    return geometry, Sections(points, directions, spherical_harmonics(directions), spacing, within)


def results(built: SurfaceModel, name: str, rays: int, samples: int, anneal: float) -> list[torch.Tensor]:
    """Outputs, and the gradients of a random sum of them in the field's values and all parameters."""
    geometry, sections = along_rays(rays, samples)
    field = Geometry(*(part.requires_grad_() for part in geometry))
    built.zero_grad()
    outputs = getattr(built, name)(field, sections, anneal)
    generator = torch.Generator().manual_seed(2)
    sum((t * torch.randn(t.shape, generator=generator)).sum() for t in outputs).backward()
    parameters = [built.sharpness, *built.color.parameters()]
    return [*outputs, *(leaf.grad for leaf in (*field, *parameters))]


@pytest.mark.parametrize("sharpness", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("anneal", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("rays", "samples"), [(0, 4), (1, 1), (50, 9)])
def test_fused_equals_torch_in_values_and_all_gradients(
    sharpness: float, anneal: float, rays: int, samples: int
) -> None:
    built = model(sharpness)
    fused, truth = (results(built, name, rays, samples, anneal) for name in ("_fused", "_composited"))
    for ours, theirs in zip(fused, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5 * (1 + float(theirs.detach().abs().sum())) ** 0.5)


def test_the_radiance_of_these_tests_is_clipped_at_both_ends() -> None:
    built, radiance = model(0.3), []
    built.color.mlp[-1].register_forward_hook(lambda layer, inputs, output: radiance.append(output.detach()))
    built._composited(*along_rays(50, 9), 1.0)
    assert float(radiance[0].min()) < 0 and float(radiance[0].max()) > 1


def test_rendering_takes_the_fused_way_on_a_cpu_and_the_other_with_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, taken = model(0.3), []
    fused = built._fused
    monkeypatch.setattr(built, "_fused", lambda *given: taken.append("fused") or fused(*given))
    origins, directions = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    built.render(SdfVolume(16, torch.device("cpu")), origins, directions)
    assert taken == ["fused"]
    plain = replace(CONFIG, field=replace(CONFIG.field, backend="reference"))
    assert not SurfaceModel(plain, False, torch.device("cpu"))._can_fuse
