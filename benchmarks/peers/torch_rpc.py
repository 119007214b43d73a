"""A parameter server by ``torch.distributed.rpc`` on TensorPipe.

Each worker calls the server with its gradient and gets the parameters as the answer. The server
answers nobody before every gradient is there (an asynchronous execution), adds them up as they
come, and lets ``torch.optim.SGD`` change the parameters.
"""

from __future__ import annotations

import tempfile
import threading

import torch
import torch.distributed.rpc as rpc

from peers.case import Case
from peers.contract import RATE, Float32, Trace, drive, gradient, parse, report
from peers.processes import on_ranks

SERVER = "server"
TIMEOUT_S = 60.0


class Server:
    """The parameters, and the round that is open."""

    def __init__(self, case: Case) -> None:
        self.workers = case.workers
        self.params = torch.nn.Parameter(torch.zeros(case.n))
        # The sum of the gradients over their number is the mean; this saves a pass.
        self.optimizer = torch.optim.SGD([self.params], lr=RATE / case.workers)
        self.lock = threading.Lock()
        self.arrived = 0
        self.answer: torch.futures.Future[torch.Tensor] = torch.futures.Future()

    def take(self, grad: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        """Adds a gradient; the future is that of the parameters after this round."""
        with self.lock:
            answer = self.answer
            self.params.grad = grad if self.arrived == 0 else self.params.grad.add_(grad)
            self.arrived += 1
            complete = self.arrived == self.workers
            if complete:
                self.optimizer.step()
                self.arrived, self.answer = 0, torch.futures.Future()
        if complete:
            answer.set_result(self.params.detach())
        return answer


@rpc.functions.async_execution
def exchange(server: rpc.RRef[Server], grad: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """A step, as the server runs it."""
    return server.local_value().take(grad)


def work(server: rpc.RRef[Server], worker: int, case: Case) -> Trace:
    """One worker's steps, in its process."""
    mine = torch.from_numpy(gradient(worker, case.n))
    params = torch.zeros(0)

    def step() -> None:
        nonlocal params
        params = rpc.rpc_sync(SERVER, exchange, args=(server, mine))

    def held() -> Float32:
        found: Float32 = params.numpy()
        return found

    return drive(step, held, case)


def run_rank(rank: int, case: Case, store: str) -> list[Trace] | None:
    """Rank 0 is the server, which tells the workers what to do."""
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{store}", rpc_timeout=TIMEOUT_S)
    name = f"worker{rank - 1}" if rank else SERVER
    rpc.init_rpc(name, rank=rank, world_size=case.workers + 1, rpc_backend_options=options)
    traces = None
    if rank == 0:
        server = rpc.RRef(Server(case))
        futures = [
            rpc.rpc_async(f"worker{w}", work, args=(server, w, case), timeout=0)
            for w in range(case.workers)
        ]
        traces = [future.wait() for future in futures]
    rpc.shutdown()
    return traces


def main() -> None:
    """Starts server and workers, and reports."""
    found = parse()
    with tempfile.TemporaryDirectory() as folder:
        ranks = found.case.workers + 1
        traces = on_ranks(ranks, run_rank, found.case, f"{folder}/store")[0]
    report(found.system, found.case, traces or [], {"torch": torch.__version__})


if __name__ == "__main__":
    main()
