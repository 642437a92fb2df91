"""The lazy Adam against torch's own, and what laziness adds."""

import copy
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from shared.optim import OptimConfig, Optimisers, TableAdam, rate_factor


def tables(dtype: torch.dtype, rows: int = 300) -> tuple[nn.Parameter, nn.Parameter]:
    values = torch.randn(rows, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(values.clone()), nn.Parameter(values.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "torch"])
def test_it_is_adam_where_every_entry_has_a_gradient(dtype: torch.dtype):
    lazy, dense = tables(dtype, rows=20_000)
    ours = TableAdam([lazy], lr=0.02)
    theirs = torch.optim.Adam([dense], lr=0.02, betas=(0.9, 0.99), eps=1e-15)
    for seed in range(12):
        gradient = torch.randn(lazy.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) + 3.0
        lazy.grad += gradient
        dense.grad = gradient.clone()
        ours.step()
        theirs.step()
        assert not lazy.grad.any()
    torch.testing.assert_close(lazy, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "torch"])
def test_untouched_entries_keep_value_and_moments(dtype: torch.dtype):
    table, start = tables(dtype)
    adam = TableAdam([table], lr=0.1)
    table.grad += 1.0
    adam.step()
    before, moments = table.detach().clone(), [adam.state[table][name].clone() for name in ("mean", "square")]
    table.grad[7] = 2.0
    adam.step()
    assert (table[7] != before[7]).all() and (before != start).all()
    others = torch.arange(len(table)) != 7
    assert torch.equal(table[others], before[others])
    for name, old in zip(("mean", "square"), moments):
        assert torch.equal(adam.state[table][name][others], old[others])
        assert (adam.state[table][name][7] != old[7]).all()


@pytest.mark.skipif(not find_spec("triton"), reason="no triton for this platform")
def test_the_kernel_for_gpus_makes_the_same_step():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    theirs, start = tables(torch.float32, rows=1500)
    ours = nn.Parameter(start.detach().to(device))
    known, fast = TableAdam([theirs], lr=0.02), TableAdam([ours], lr=0.02, backend="triton")
    for step in range(1, 4):
        gradient = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(step))
        gradient[step::3] = 0
        for table, adam in ((theirs, known), (ours, fast)):
            table.grad += gradient.to(table.device)
            adam.step()
            assert not table.grad.any()
    torch.testing.assert_close(ours.cpu(), theirs, atol=1e-6, rtol=1e-5)
    for name in ("mean", "square"):
        torch.testing.assert_close(fast.state[ours][name].cpu(), known.state[theirs][name], atol=1e-6, rtol=1e-5)


def test_the_gradient_buffer_is_there_from_the_start_and_stays():
    table, _ = tables(torch.float32)
    adam = TableAdam([table], lr=0.1)
    buffer = table.grad
    table.grad += 1.0
    adam.zero_grad()
    assert table.grad.all()
    adam.step()
    assert table.grad is buffer and not buffer.any()


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.05), (0.1, 0.525), (0.2, 1.0), (0.6, 0.1 + 0.9 * 0.5), (1.0, 0.1), (1.5, 0.1)],
)
def test_rates_rise_and_fall(progress: float, expected: float):
    assert rate_factor(progress, warmup=0.2, final=0.1) == pytest.approx(expected)


def test_rates_without_a_warm_up_or_with_nothing_else():
    assert rate_factor(0.0, warmup=0.0, final=0.5) == 1.0
    assert rate_factor(1.0, warmup=1.0, final=0.5) == 1.0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(6, 2))
        self.layer = nn.Linear(2, 1)
        self.steady = nn.Parameter(torch.tensor(0.5))

    def loss(self, row: int) -> torch.Tensor:
        return (self.layer(self.table[row]) * self.steady).square().sum()


CONFIG = OptimConfig(table=0.1, network=0.01, warmup=0.0, final=0.0)


def test_every_kind_of_parameter_moves_at_its_own_rate():
    """Adam's first step has the length of the rate."""
    torch.manual_seed(0)
    model, progress = Model(), 0.5
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Optimisers(model, CONFIG, constant=("steady",)).step(model.loss(2), progress)
    moved = {name: (p.detach() - before[name]).abs() for name, p in model.named_parameters()}
    torch.testing.assert_close(moved["table"][2], torch.full((2,), 0.1 * 0.5))
    assert not moved["table"][[0, 1, 3, 4, 5]].any()
    torch.testing.assert_close(moved["layer.weight"], torch.full((1, 2), 0.01 * 0.5))
    torch.testing.assert_close(moved["steady"], torch.tensor(0.01))


def test_a_restored_state_continues_exactly():
    def steps(model: Model, optimisers: Optimisers, first: int, last: int) -> None:
        for step in range(first, last):
            optimisers.step(model.loss(step % 4), step / 12)

    torch.manual_seed(0)
    one = Model()
    whole = Optimisers(one, CONFIG, constant=("steady",))
    steps(one, whole, 0, 6)
    two = Model()
    two.load_state_dict(one.state_dict())
    resumed = Optimisers(two, CONFIG, constant=("steady",))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    steps(one, whole, 6, 12)
    steps(two, resumed, 6, 12)
    for expected, found in zip(one.parameters(), two.parameters()):
        assert torch.equal(found, expected)


def test_the_result_is_the_mean_of_every_tenth_state_of_the_last_part():
    torch.manual_seed(0)
    model, states, length = Model(), [], 100
    optimisers = Optimisers(model, replace(CONFIG, average=0.8), constant=("steady",))
    for step in range(length):
        optimisers.step(model.loss(step % 4), step / length)
        if step in (80, 90):
            states.append([p.detach().clone() for p in model.parameters()])
        if step == 85:  # a run that is stopped and resumed has the same mean
            resumed = Optimisers(model, replace(CONFIG, average=0.8), constant=("steady",))
            resumed.load_state_dict(copy.deepcopy(optimisers.state_dict()))
            optimisers = resumed
    last = [p.detach().clone() for p in model.parameters()]
    assert optimisers.finish()
    for parameter, first, second, before in zip(model.parameters(), *states, last):
        torch.testing.assert_close(parameter.detach(), (first + second) / 2)
        assert not torch.equal(parameter, before)
    assert not optimisers.finish(), "once is enough"


@pytest.mark.parametrize("average", [0.8, 1.0])
def test_a_run_made_longer_forgets_the_mean_of_its_first_end(average: float):
    torch.manual_seed(0)
    model = Model()
    short = Optimisers(model, replace(CONFIG, average=0.8), constant=("steady",))
    short.step(model.loss(1), 0.95)
    longer = Optimisers(model, replace(CONFIG, average=average), constant=("steady",))
    longer.load_state_dict(short.state_dict())
    longer.step(model.loss(2), 0.475)
    before = [p.detach().clone() for p in model.parameters()]
    assert not longer.finish() and all(torch.equal(p, b) for p, b in zip(model.parameters(), before))


def test_an_average_from_the_end_on_changes_nothing():
    model = Model()
    optimisers = Optimisers(model, replace(CONFIG, average=1.0))
    optimisers.step(model.loss(1), 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    optimisers.finish()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
