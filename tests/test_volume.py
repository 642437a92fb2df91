"""Compositing against a loop."""

import pytest
import torch
from jaxtyping import TypeCheckError

from mvrecon.volume import composite


def test_it_equals_a_loop_over_rays_and_sections():
    alpha = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    weights, passed = composite(alpha)
    for r in range(5):
        light = 1.0
        for s in range(9):
            assert float(weights[r, s]) == pytest.approx(light * float(alpha[r, s]), abs=1e-6)
            light *= 1 - float(alpha[r, s])
        assert float(passed[r]) == pytest.approx(light, abs=1e-6)
    torch.testing.assert_close(weights.sum(dim=1) + passed, torch.ones(5))


def test_an_opaque_section_hides_the_rest_and_keeps_gradients_finite():
    alpha = torch.tensor([[0.0, 1.0, 0.7]], requires_grad=True)
    weights, passed = composite(alpha)
    assert weights.tolist() == [[0.0, 1.0, 0.0]] and passed.tolist() == [0.0]
    (weights[0, 2] + passed.sum()).backward()
    assert alpha.grad is not None and alpha.grad.isfinite().all()


def test_its_gradient_is_that_of_differences():
    alpha = 0.9 * torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(composite, alpha.requires_grad_())


def test_wrong_shapes_are_refused():
    with pytest.raises(TypeCheckError):
        composite(torch.zeros(4))
