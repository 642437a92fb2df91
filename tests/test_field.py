"""Fields start as spheres, and their gradients are those of their own distances."""

import pytest
import torch

from shared.errors import UserError
from shared.field import Field, FieldConfig, GridField, build_field, numerical_gradient

CPU = torch.device("cpu")
GRID = {"levels": 4, "base": 4, "finest": 32, "log2_entries": 10, "feature": 3}


def points(count: int, seed: int = 0) -> torch.Tensor:
    return 1.8 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.9


def build(**keys) -> Field:
    torch.manual_seed(3)
    return build_field(FieldConfig(**keys), CPU)


def rough(layers: int = 1, backend: str = "auto") -> GridField:
    """A grid field that is nothing like a sphere: every feature is used."""
    field = build(**GRID, layers=layers, width=16, backend=backend)
    with torch.no_grad():
        field.table.normal_(0, 0.2)
        field.first.weight.normal_(0, 0.3)
        field.first.bias.normal_(0, 0.3)
        field.out.weight.normal_(0, 0.3)
    return field


@pytest.mark.parametrize(
    ("keys", "mean"),
    [({**GRID}, 0.03), ({"backbone": "mlp", "width": 256, "layers": 8, "feature": 4}, 0.15)],
    ids=["grid", "mlp"],
)
@pytest.mark.parametrize("inside_out", [False, True])
def test_fields_start_as_spheres(keys: dict, mean: float, inside_out: bool):
    """On average over all directions: random weights leave dents, and softplus rounds the tip at the centre."""
    sign, field = -1 if inside_out else 1, build(**keys, radius=0.6, inside_out=inside_out)
    directions = torch.nn.functional.normalize(torch.randn(2000, 3), dim=1)
    for radius in (0.3, 0.6, 0.9):
        geometry = field.geometry(radius * directions)
        error = geometry.sdf - sign * (radius - 0.6)
        assert abs(float(error.detach().mean())) < mean
        assert float(error.detach().std()) < 0.25 * radius
        assert (torch.cosine_similarity(geometry.gradient, sign * directions) > 0.5).all()
    assert geometry.feature.shape == (2000, keys["feature"])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_grid_fields_gradient_is_that_of_autograd(layers: int, backend: str):
    field = rough(layers, backend).double() if backend == "reference" else rough(layers, backend)
    x = points(100).to(field.table.dtype).requires_grad_()
    geometry = field.geometry(x, 3)
    (expected,) = torch.autograd.grad(geometry.sdf.sum(), x)
    torch.testing.assert_close(geometry.gradient, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(field.sdf(x, 3), geometry.sdf, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["grid", "mlp", "siren"])
def test_the_gradient_is_the_limit_of_differences(field: str):
    built = rough(2, "reference") if field == "grid" else build(backbone=field, width=32, layers=3, feature=2)
    built, x = built.double(), points(200).double()
    exact = built.geometry(x).gradient
    errors = [(numerical_gradient(built, x, step) - exact).norm(dim=1).median() for step in (0.04, 0.004, 0.0004)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] or errors[2] < 1e-6
    assert errors[2] < 1e-3 * exact.norm(dim=1).median()


def test_wide_differences_average_over_a_grid_cell():
    class Ramp(GridField):
        def sdf(self, x, active=None):
            return 2 * x[:, 0] - x[:, 1] + (x[:, 2] > 0).to(x)

    field = Ramp(FieldConfig(**GRID), CPU)
    found = numerical_gradient(field, torch.tensor([[0.3, -0.2, 0.01], [0.0, 0.0, 0.5]]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[2.0, -1.0, 5.0], [2.0, -1.0, 0.0]]))


@pytest.mark.parametrize("layers", [1, 3])
def test_losses_on_the_normal_train_the_same_on_both_backends(layers: int):
    gradients = []
    for backend in ("reference", "cpu"):
        field, x = rough(layers, backend), points(300).requires_grad_()
        distance, normal, feature = field.geometry(x, 3)
        ((normal.norm(dim=1) - 1).square().mean() + distance.abs().mean() + feature.square().mean()).backward()
        gradients.append({"x": x.grad, **{name: p.grad for name, p in field.named_parameters()}})
    reference, cpu = gradients
    assert all(reference[name].any() for name in reference)
    for name, expected in reference.items():
        torch.testing.assert_close(cpu[name], expected, atol=1e-5 + 1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("backbone", ["mlp", "siren"])
def test_autograd_fields_differentiate_their_gradient_only_when_asked(backbone: str):
    field = build(backbone=backbone, width=16, layers=2, feature=0)
    field.geometry(points(5)).gradient.square().sum().backward()
    assert all(p.grad is not None for name, p in field.named_parameters() if not name.endswith("bias"))
    with torch.no_grad():
        assert not any(part.requires_grad for part in field.geometry(points(5)))


def test_levels_open_one_by_one():
    field = build(**GRID, first_levels=2, open_levels=0.4)
    opened = [field.active(progress) for progress in (0.0, 0.13, 0.14, 0.26, 0.27, 0.4, 1.0)]
    assert opened == [2, 2, 3, 3, 4, 4, 4]
    assert build(**GRID, first_levels=1, open_levels=0.0).active(0.0) == 4
    assert build(**GRID, first_levels=9).active(0.0) == 4
    assert build(backbone="siren", width=8).active(0.5) is None


def test_closed_levels_say_nothing():
    field, x = rough(), points(50)
    before = field.geometry(x, 2)
    with torch.no_grad():
        field.table[field.grid.offsets[2] :] += 1.0
    torch.testing.assert_close(field.geometry(x, 2).gradient, before.gradient)
    assert not torch.allclose(field.geometry(x, 3).gradient, before.gradient)


@pytest.mark.parametrize("backbone", ["grid", "mlp", "siren"])
def test_a_backend_that_cannot_run_is_refused_with_every_backbone(backbone: str):
    with pytest.raises(UserError, match=r"field\.backend triton: cannot run on cpu"):
        build_field(FieldConfig(backbone=backbone, backend="triton"), torch.device("cpu"))
