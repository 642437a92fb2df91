"""The contraction, and colours for every ray that one may ask about."""

import pytest
import torch

from mvrecon.background import Background, contract
from mvrecon.config import BackgroundConfig

CPU = torch.device("cpu")


@pytest.fixture
def background() -> Background:
    torch.manual_seed(0)
    background = Background(BackgroundConfig(width=16, samples=10), "auto", CPU)
    with torch.no_grad():
        background.table.normal_(0, 1)
    return background


def test_contraction():
    x = torch.tensor([[0.3, 0.0, -0.4], [0.0, 1.0, 0.0], [0.0, 0.0, 4.0], [3.0, 4.0, 0.0], [1e6, 0.0, 0.0]])
    expected = torch.tensor([[0.3, 0.0, -0.4], [0.0, 1.0, 0.0], [0.0, 0.0, 1.75], [1.08, 1.44, 0.0], [2.0, 0.0, 0.0]])
    torch.testing.assert_close(contract(x), expected)


def test_samples_lie_behind_the_sphere_evenly_in_inverse_radius(background: Background):
    origins = torch.tensor([[0.0, 0.0, -3.0], [0.5, 0.2, -0.1]])
    directions = torch.nn.functional.normalize(torch.tensor([[0.1, 0.2, 1.0], [1.0, -1.0, 0.3]]), dim=1)
    x, _ = background._sample(origins, directions, 0.5)
    expected = 1 - (torch.arange(10) + 0.5) / 10 * 0.98
    for ray, points in enumerate(x.reshape(2, 10, 3)):
        torch.testing.assert_close(1 / points.norm(dim=1), expected, atol=1e-4, rtol=1e-4)
        along = (points - origins[ray]) @ directions[ray]
        torch.testing.assert_close(origins[ray] + along[:, None] * directions[ray], points, atol=1e-4, rtol=1e-5)
        assert (along.diff() > 0).all() and float(along[0]) > 0


def test_a_ray_past_the_sphere_is_sampled_from_its_closest_point_on(background: Background):
    origins, directions = torch.tensor([[5.0, 0.0, -20.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    x, _ = background._sample(origins, directions, 0.5)
    assert (x[:, 0] == 5).all() and (x[:, 2] >= -1e-3).all() and (x[:, 2].diff() > 0).all()


@pytest.mark.parametrize("origin", [(0.0, 0.0, -3.0), (0.0, 0.0, 0.0), (0.0, 7.0, -3.0), (80.0, 0.0, -3.0)])
def test_colours_are_finite_in_range_and_train_everything(background: Background, origin: tuple[float, ...]):
    directions = torch.nn.functional.normalize(torch.randn(40, 3) + torch.tensor([0.0, 0.0, 3.0]), dim=1)
    origins = torch.tensor(origin).expand(40, 3)
    colors = background(origins, directions, torch.rand(40, 1))
    assert colors.isfinite().all() and (colors >= 0).all() and (colors <= 1).all()
    colors.sum().backward()
    for parameter in background.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
    again = (background(origins, directions) for _ in range(2))
    assert torch.equal(*again)


def test_it_is_opaque_at_infinity(background: Background):
    """A background of one colour shows that colour, whatever its density."""
    with torch.no_grad():
        for parameter in background.head[2].parameters():
            parameter.zero_()
        background.head[2].bias.fill_(0.25)
    colors = background(torch.zeros(5, 3), torch.eye(3)[[0, 1, 2, 0, 1]])
    torch.testing.assert_close(colors, torch.full((5, 3), 0.25))


def test_no_sample_lies_behind_a_camera_that_looks_away(background: Background):
    origins = torch.tensor([[0.0, 0.0, 3.0]])
    directions = torch.nn.functional.normalize(torch.tensor([[0.1, 0.0, 1.0]]), dim=1)
    x, _ = background._sample(origins, directions, 0.5)
    along = (x - origins) @ directions[0]
    assert (along > 0).all() and (along.diff() > 0).all()
