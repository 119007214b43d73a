"""One rank of PyTorch's DistributedDataParallel over gloo: ``train_ddp.py PLACE.json RANK``.

It needs torch and NumPy, not MPI. The first values, batches and accuracy are those of psgrad's
ranks; forward, backward and SGD are torch's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from network import counters  # noqa: E402
from network.task import Lesson, Task, train  # noqa: E402


def network(lesson: Lesson) -> nn.Sequential:
    """psgrad's MLP with its first values; torch keeps weights as [out, in]."""
    layers: list[nn.Module] = []
    for i in range(len(lesson.initial) // 2):
        weight = torch.from_numpy(lesson.initial[f"layer{i}.weight"])
        linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(torch.from_numpy(lesson.initial[f"layer{i}.bias"]))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def accuracy(lesson: Lesson, model: nn.Sequential) -> float:
    """On the test samples, by psgrad's model with torch's parameters."""
    params = {}
    for i, linear in enumerate(m for m in model if isinstance(m, nn.Linear)):
        params[f"layer{i}.weight"] = linear.weight.detach().numpy().T
        params[f"layer{i}.bias"] = linear.bias.detach().numpy()
    return lesson.accuracy(params)


def main(place: Path, rank: int) -> None:
    """Runs what ``place`` describes and leaves this worker's diary beside it."""
    plan = json.loads(place.read_text(encoding="utf-8"))
    task = Task.from_json(json.dumps(plan["task"]))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=plan["meeting"], rank=rank, world_size=task.workers)
    pids: list[int] = [0] * task.workers
    dist.all_gather_object(pids, os.getpid())
    ranks = dict(zip(plan["ranks"], pids, strict=True))
    read = partial(counters.read, plan["switch"], plan["hosts"], ranks)
    lesson = Lesson(task, rank)
    model = network(lesson)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate)

    def step() -> float:
        start = time.perf_counter()
        x, y = lesson.batch()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(torch.from_numpy(x)), torch.from_numpy(y))
        forward = time.perf_counter() - start
        loss.backward()
        optimizer.step()
        return forward

    diary = train(
        task, step, dist.barrier, read if rank == 0 else None, lambda: accuracy(lesson, model)
    )
    if rank == 0:
        diary.facts.update(
            final_accuracy=accuracy(lesson, model),
            parameters=sum(p.numel() for p in model.parameters()),
            torch=torch.__version__,
        )
    diary.save(place.parent / f"worker-{rank}.json")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
