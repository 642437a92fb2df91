"""Several processes on one run: `torchrun --nproc-per-node N -m mvrecon train ...`.

Every rank holds the whole model and draws the same random numbers for the whole batch; it computes those rows of the
batch that are its own. A loss is a sum over own rows divided by the number of all, and gradients are summed over the
ranks: a run takes the same steps on any number of them, but for the order of sums. Only the first one writes and
talks.

Not DistributedDataParallel: its hooks want gradients that autograd makes, while the encoding's backward adds to the
tables' gradients in place, and it averages, which is wrong where ranks have different numbers of rows.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import UserError

Rows = TypeVar("Rows", Tensor, range)
# A rank that is alive answers within this; the first one may be drawing a preview.
PATIENCE = timedelta(minutes=5)


# What torch's transports say when the other side is gone.
LOST = re.compile("closed by peer|reset by peer|timed out|broken pipe", re.IGNORECASE)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Inside, this process is one of those that torchrun started; without torchrun nothing happens.

    Raises UserError when the ranks do not find each other, or when another one is lost on the way (with NCCL it may be
    torchrun that ends the run first).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # An optimiser's first step imports this; were a group open by then, it would be held for ever, and its threads,
    # alive when the interpreter ends, now and then abort the process.
    import torch._dynamo

    try:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"the processes of this run cannot join: {error}; start them by torchrun, one a GPU") from error
    try:
        with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(None):
            yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        remedy = "see its error, then continue from the last checkpoint with --resume"
        raise UserError(f"another rank of this run was lost; {remedy}") from error
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes and talks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def shard(rows: Rows) -> Rows:
    """This rank's rows of a whole batch: every n-th, so that all ranks have their part of each kind of row."""
    return rows[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else rows


def all_sum(numbers: Tensor) -> Tensor:
    """The sum of each number over the ranks. Not differentiated."""
    if not dist.is_initialized():
        return numbers
    summed = numbers.detach().clone()
    dist.all_reduce(summed)
    return summed


def part_of_mean(values: Tensor, rows: Tensor | int) -> Tensor:
    """What the sum of these values adds to their mean over the rows of all ranks, of which `rows` are this rank's."""
    if not dist.is_initialized():
        return values.sum() / (rows.clamp_min(1) if isinstance(rows, Tensor) else max(1, rows))
    count = rows.to(values.dtype) if isinstance(rows, Tensor) else values.new_full((), rows)
    return values.sum() / all_sum(count).clamp_min(1)


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the parameters' gradients over the ranks, in place."""
    if not dist.is_initialized():
        return
    gradients = []
    for parameter in parameters:
        # What no row of this rank used, a row of another may have.
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append(parameter.grad)
    together = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(together)
    for gradient, summed in zip(gradients, together.split([g.numel() for g in gradients])):
        gradient.copy_(summed.view_as(gradient))


def broadcast(*numbers: float) -> tuple[float, ...]:
    """The first rank's numbers: what depends on its clock is the same everywhere."""
    if not dist.is_initialized():
        return numbers
    told = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.broadcast(told, 0)
    return tuple(told.tolist())


def barrier() -> None:
    """Until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
