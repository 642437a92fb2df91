"""The reference against finite differences and a naive hash; the kernels against the reference."""

from importlib.util import find_spec

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from shared.encoding import HashGrid, choose_backend, encode, interpolate
from shared.errors import UserError

# Triton's kernels run in its interpreter where there is no GPU; see conftest.py.
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="no triton for this platform")
FAST = ["cpu", pytest.param("triton", marks=needs_triton)]
DENSE = HashGrid(levels=1, base=4, finest=4, log2_entries=8)
MIXED = HashGrid(levels=4, base=2, finest=40, log2_entries=10)
TINY = HashGrid(levels=2, base=1, finest=5, log2_entries=3)  # one dense level, one hashed


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


def table_of(grid: HashGrid, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(grid.entries, 2, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def points(count: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1


def borders(grid: HashGrid) -> Tensor:
    """Nodes of every level, faces, edges and corners of the box, and points outside it."""
    nodes = [torch.tensor([-1.0, -1 + 2 / r, 0.0, 1 - 2 / r, 1.0]) for r in grid.resolutions]
    line = torch.cat([torch.cat(nodes).unique(), torch.tensor([-1.5, -1 - 1e-6, 1 + 1e-6, 3.0, 0.37])])
    return torch.stack([line, line.roll(1), line.roll(5)], dim=1)


def test_resolutions_grow_geometrically_and_offsets_add_up():
    assert HashGrid(levels=5, base=4, finest=64, log2_entries=10).resolutions == (4, 8, 16, 32, 64)
    grid = HashGrid(levels=3, base=4, finest=16, log2_entries=10)
    assert grid.offsets == (0, 125, 125 + 729, 125 + 729 + 1024)
    assert grid.entries == 1878
    assert [grid.is_dense(level) for level in range(3)] == [True, True, False]
    assert HashGrid(levels=1, base=7, finest=7, log2_entries=9).is_dense(0), "8^3 nodes just fit"


def test_entries_equal_a_naive_hash():
    node = torch.randint(0, 41, (200, 3), generator=torch.Generator().manual_seed(0))
    naive = [MIXED.offsets[3] + ((x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32) % 1024 for x, y, z in node.tolist()]
    assert MIXED.entry(3, node).tolist() == naive
    dense = [(x * 3 + y) * 3 + z for x in range(3) for y in range(3) for z in range(3)]
    lattice = torch.cartesian_prod(*[torch.arange(3)] * 3)
    assert MIXED.entry(0, lattice).tolist() == dense == list(range(27))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_features_equal_naive_interpolation(backend: str):
    table, x = table_of(MIXED), points(20)
    features, _ = encode(x, table, MIXED, backend=backend)
    for n in range(len(x)):
        for level, resolution in enumerate(MIXED.resolutions):
            position = [(float(c) + 1) * resolution / 2 for c in x[n]]
            expected = torch.zeros(2)
            for corner in range(8):
                weight, node = 1.0, []
                for axis in range(3):
                    bit, cell = corner >> axis & 1, int(position[axis])
                    weight *= position[axis] - cell if bit else 1 - position[axis] + cell
                    node.append(cell + bit)
                expected += weight * table[MIXED.entry(level, torch.tensor(node))].detach()
            torch.testing.assert_close(features[n, 2 * level : 2 * level + 2], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_jacobian_is_the_finite_difference_of_the_features(backend: str):
    grid, table, step = DENSE, table_of(DENSE), 1e-3
    x = (points(50) * 2).round() / 2 + 0.2  # 0.2 from the cells' borders
    x = x.clamp(-0.8, 0.8)
    _, jacobian = encode(x, table, grid, backend=backend)
    for axis in range(3):
        offset = step * torch.eye(3)[axis]
        ahead, behind = (interpolate(x + s * offset, table, grid, backend=backend) for s in (1, -1))
        torch.testing.assert_close(jacobian[:, axis], (ahead - behind) / (2 * step), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("output", [0, 1])
def test_gradients_of_the_reference_to_second_order(output: int):
    table = table_of(TINY, torch.float64)
    x = points(3).double().requires_grad_()

    def one(x: Tensor, table: Tensor) -> Tensor:
        return encode(x, table, TINY)[output]

    assert gradcheck(one, (x, table))
    assert gradgradcheck(one, (x, table))


def both(
    x: Tensor, grid: HashGrid, active: int | None, with_features: bool = True, fast: str = "cpu"
) -> list[list[Tensor]]:
    """Outputs and gradients of one random linear loss, for the reference and the kernels."""
    results = []
    for backend in ("reference", fast):
        device = device_of(backend)
        at, table = x.to(device).clone().requires_grad_(), table_of(grid).detach().to(device).requires_grad_()
        features, jacobian = encode(at, table, grid, active, backend)
        weights = torch.Generator().manual_seed(2)
        loss = (jacobian * torch.randn(jacobian.shape, generator=weights).to(device)).sum()
        if with_features:
            loss = loss + (features * torch.randn(features.shape, generator=weights).to(device)).sum()
        grads = torch.autograd.grad(loss, (at, table))
        results.append([t.detach().cpu() for t in (features, jacobian, *grads)])
    return results


@pytest.mark.parametrize("grid", [DENSE, MIXED, HashGrid(levels=3, base=30, finest=90, log2_entries=9)])
@pytest.mark.parametrize("where", ["random", "borders"])
@pytest.mark.parametrize("active", [None, 1])
@pytest.mark.parametrize("backend", FAST)
def test_kernels_equal_the_reference(grid: HashGrid, where: str, active: int | None, backend: str):
    x = points(700) if where == "random" else borders(grid)
    reference, kernels = both(x, grid, active, fast=backend)
    for expected, found in zip(reference, kernels):
        torch.testing.assert_close(found, expected, atol=2e-4 * max(1.0, float(expected.abs().max())), rtol=0)
    assert kernels[0].shape == (len(x), 2 * (active or grid.levels))


@pytest.mark.parametrize("backend", FAST)
def test_a_loss_on_the_jacobian_alone(backend: str):
    for expected, found in zip(*both(points(50), MIXED, None, with_features=False, fast=backend)):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_clamped_axes_have_no_slope_and_an_empty_batch_no_rows(backend: str):
    device = device_of(backend)
    table = table_of(MIXED).detach().to(device).requires_grad_()
    x = torch.tensor([[1.5, 0.3, -2.0]], device=device)
    features, jacobian = encode(x, table, MIXED, backend=backend)
    assert (jacobian[:, [0, 2]] == 0).all() and (jacobian[:, 1] != 0).any()
    torch.testing.assert_close(features, encode(x.clamp(-1, 1), table, MIXED, backend=backend)[0])
    features, jacobian = encode(torch.empty(0, 3, device=device), table, MIXED, backend=backend)
    assert features.shape == (0, 8) and jacobian.shape == (0, 3, 8)
    (features.sum() + jacobian.sum()).backward()
    assert table.grad is not None and not table.grad.any()


@pytest.mark.parametrize("fast", FAST)
def test_interpolate_is_the_first_output_and_trains_the_table_alone(fast: str):
    gradients = []
    for backend in ("reference", fast):
        device = device_of(backend)
        x, table = points(60).to(device).requires_grad_(), table_of(MIXED).detach().to(device).requires_grad_()
        features = interpolate(x, table, MIXED, 3, backend)
        torch.testing.assert_close(features, encode(x, table, MIXED, 3)[0])
        features.square().sum().backward()
        gradients.append(table.grad.cpu())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    assert x.grad is None


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_points_that_are_not_numbers_have_features_that_are_none(backend: str):
    x = points(20)
    x[3, 1], x[7] = torch.nan, torch.nan
    device = device_of(backend)
    features, jacobian = encode(x.to(device), table_of(MIXED).detach().to(device), MIXED, backend=backend)
    assert torch.equal(features.isfinite().all(dim=1).cpu(), x.isfinite().all(dim=1))
    assert jacobian.cpu()[x.isfinite().all(dim=1)].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_gradients_are_added_in_place_to_those_of_the_table(backend: str):
    device = device_of(backend)
    x, table = points(40).to(device), table_of(MIXED).detach().to(device).requires_grad_()
    encode(x, table, MIXED, backend=backend)[1].square().sum().backward()
    once = table.grad.clone()
    table.grad.fill_(1.0)
    buffer = table.grad.data_ptr()
    encode(x, table, MIXED, backend=backend)[1].square().sum().backward()
    assert table.grad.data_ptr() == buffer
    torch.testing.assert_close(table.grad, once + 1, atol=1e-3, rtol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(both(points(3000), MIXED, None)[1])
    for one, two in zip(*results):
        assert torch.equal(one, two)


def test_wrong_shapes_and_backends_are_refused():
    with pytest.raises(TypeCheckError):
        encode(torch.zeros(5, 2), table_of(MIXED), MIXED)
    with pytest.raises(UserError, match="cannot run on cuda"):
        choose_backend("cpu", torch.device("cuda"))
    for table, active in ((table_of(MIXED)[1:], None), (table_of(MIXED), 5)):
        with pytest.raises(ValueError, match="do not fit"):
            encode(torch.zeros(5, 3), table, MIXED, active)
    with pytest.raises(ValueError, match="no kernels"):
        encode(torch.zeros(5, 3), table_of(MIXED), MIXED, backend="auto")
    with pytest.raises(UserError, match="choose one of"):
        choose_backend("tritn", torch.device("cpu"))
    assert choose_backend("auto", torch.device("cpu")) == "cpu"
    with pytest.raises(UserError, match="cannot run on cpu"):
        choose_backend("triton", torch.device("cpu"))


@needs_triton
def test_without_triton_a_gpu_has_the_reference(monkeypatch: pytest.MonkeyPatch):
    assert choose_backend("auto", torch.device("cuda")) == "triton"
    monkeypatch.setattr("shared.encoding.has_triton", lambda: False)
    assert choose_backend("auto", torch.device("cuda")) == "reference"
    with pytest.raises(UserError, match="pip install -U triton"):
        choose_backend("triton", torch.device("cuda"))
    with pytest.raises(UserError, match="tiny-cuda-nn"):
        choose_backend("tinycudann", torch.device("cuda"))
    monkeypatch.setattr("shared.encoding.has_tinycudann", lambda: True)
    assert choose_backend("auto", torch.device("cuda")) == "tinycudann"


@needs_triton
def test_half_tables_are_read_and_trained():
    device = device_of("triton")
    table, x = table_of(MIXED).detach().to(device).half().requires_grad_(), points(100).to(device)
    features, jacobian = encode(x, table, MIXED, backend="triton")
    exact = encode(x.cpu(), table.detach().cpu().float(), MIXED)
    torch.testing.assert_close(features.detach().cpu(), exact[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(jacobian.detach().cpu(), exact[1], atol=1e-3, rtol=1e-4)
    features.sum().backward()
    weight = float(table.grad.float().sum().detach()) / (100 * MIXED.levels * 2)
    assert table.grad.dtype == torch.float16 and weight == pytest.approx(1, abs=0.01)
