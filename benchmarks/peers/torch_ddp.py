"""PyTorch's DistributedDataParallel on gloo: one parameter of n float32 and ``torch.optim.SGD``.

The backward pass writes the worker's gradient straight into the memory that DDP reduces (its
bucket), which is the least it can do: the reduction leaves the mean there. A gradient that autograd
hands over as a tensor is cloned and then copied there, which takes longer.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from peers.case import Case
from peers.contract import RATE, Float32, Trace, drive, gradient, parse, report
from peers.processes import on_ranks


class Given(torch.autograd.Function):
    """A loss of 0 whose gradient with respect to ``params`` is ``grad``."""

    @staticmethod
    def forward(ctx: Any, params: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Keeps both."""
        ctx.params, ctx.given = params, grad
        return params.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        """Into ``params.grad``, which DDP has made a view of its bucket after the first time."""
        if ctx.params.grad is None:
            return ctx.given.clone(), None
        ctx.params.grad.copy_(ctx.given)
        return None, None


class Model(torch.nn.Module):
    """A model of one parameter."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(n))

    def forward(self, grad: torch.Tensor) -> torch.Tensor:
        """The loss."""
        loss: torch.Tensor = Given.apply(self.weight, grad)
        return loss


def work(rank: int, case: Case, store: str) -> Trace:
    """One worker."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=case.workers
    )
    model = DistributedDataParallel(Model(case.n), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    mine = torch.from_numpy(gradient(rank, case.n))

    def step() -> None:
        model(mine).backward()
        optimizer.step()

    def params() -> Float32:
        held: Float32 = model.module.weight.detach().numpy()
        return held

    trace = drive(step, params, case)
    dist.barrier()
    dist.destroy_process_group()
    return trace


def main() -> None:
    """Starts the workers and reports."""
    found = parse()
    with tempfile.TemporaryDirectory() as folder:
        traces = on_ranks(found.case.workers, work, found.case, f"{folder}/store")
    report(found.system, found.case, traces, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
