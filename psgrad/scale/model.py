"""What the cost model is told: a cluster, a job, and what each thing costs. All of it is frozen.

A step of one worker is: compute for as long as its ``Pace`` says, judge the gradient, encode and
send it chunk by chunk, take the parameters of each chunk, decode them. ``flow`` plays it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from psgrad.errors import ConfigError
from psgrad.layout import ITEMSIZE, Chunk, Layout, Segment, Tensor, assign
from psgrad.messages import HEADER_NBYTES
from psgrad.pace import Constant, Pace
from psgrad.segments import SegmentOptions
from psgrad.transport.network import Network

WORKERS_LIMIT: Final = 4096
SERVERS_LIMIT: Final = 64


@dataclass(frozen=True)
class Costs:
    """Seconds of a rank's processor. All 0: only the network and the pace take time.

    ``receive_s`` is for the copy of what arrives, where the processor and not a NIC makes it.
    ``accumulate_s`` is for each push, ``apply_s`` for each update: in sync mode a round is one
    update, otherwise every push is.
    """

    worker_message_s: float = 0.0  # for each chunk of a step: to send it and to take its answer
    server_message_s: float = 0.0  # for each chunk of a step: to take it and to send its answer
    receive_s: float = 0.0  # for each byte
    judge_s: float = 0.0  # worker, for each element of a step, before the first chunk leaves
    encode_s: float = 0.0  # worker, for each element
    accumulate_s: float = 0.0  # server, for each element of a push, decoding included
    apply_s: float = 0.0  # server, for each element of an update
    reply_s: float = 0.0  # server, for each element of an answer (pull codec, snapshot)
    decode_s: float = 0.0  # worker, for each element of an answer

    def __post_init__(self) -> None:
        for cost in fields(self):
            value = getattr(self, cost.name)
            if not 0 <= value < math.inf:
                raise ConfigError(
                    f"cost {cost.name} must be a finite number of at least 0, got {value}"
                )


@dataclass(frozen=True)
class Case:
    """One job on one cluster.

    ``n`` float32 parameters in the chunk grid of ``chunk_bytes`` (0: the default one), dealt to
    ``servers`` as a session deals them. ``staleness`` is the bound: 0 sync, None async. A gradient
    takes ``push_bytes`` for each element on the wire, parameters ``pull_bytes``. Every worker does
    ``steps`` steps. The network may have neither jitter nor links of their own.

    ``cores``, where given, says that all ranks run on one machine with so many cores, and share
    them (``traffic``); None: every rank has one for itself.
    """

    workers: int
    servers: int = 1
    n: int = 1 << 20
    chunk_bytes: int = 0
    staleness: int | None = 0
    window: int = 8
    steps: int = 100
    pace: Pace = field(default_factory=lambda: Constant(0.1))
    network: Network = field(default_factory=Network)
    costs: Costs = Costs()
    push_bytes: float = float(ITEMSIZE)
    pull_bytes: float = float(ITEMSIZE)
    cores: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "workers": (1, WORKERS_LIMIT),
            "servers": (1, SERVERS_LIMIT),
            "n": (1, 1 << 36),
            "window": (1, 1 << 30),
            "steps": (1, 1 << 20),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} must be from {least} to {most}, got {value}")
        if self.staleness is not None and self.staleness < 0:
            raise ConfigError(
                f"staleness must be at least 0, or None for async, got {self.staleness}"
            )
        if self.cores is not None and self.cores < 1:
            raise ConfigError(f"cores must be at least 1, or None, got {self.cores}")
        for name in ("push_bytes", "pull_bytes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.network.jitter or self.network.links:
            raise ConfigError("the cost model knows neither jitter nor links of their own")

    @property
    def mode(self) -> str:
        """sync, ssp(3) or async."""
        return {None: "async", 0: "sync"}.get(self.staleness, f"ssp({self.staleness})")

    def chunks(self) -> tuple[Chunk, ...]:
        """The chunk grid of one flat vector."""
        whole = Layout(
            (Tensor("params", (self.n,), 0, self.n, 0),), (Segment(0, 0, self.n, SegmentOptions()),)
        )
        return whole.chunks(self.chunk_bytes)


@dataclass(frozen=True)
class Grid:
    """The chunks of a step in the order in which workers send them: arrays of K entries.

    ``back`` is the position of the chunk that has to be answered before this one may be sent: the
    one ``window`` chunks earlier to the same server; -1 where there is none.
    """

    size: NDArray[np.int64]  # elements
    owner: NDArray[np.intp]
    push: NDArray[np.float64]  # bytes on the wire, header included
    pull: NDArray[np.float64]
    back: NDArray[np.intp]

    @classmethod
    def of(cls, case: Case) -> Grid:
        """The grid of a case."""
        chunks = case.chunks()
        size = np.array([chunk.size for chunk in chunks])
        owner = np.array(assign(chunks, case.servers), dtype=np.intp)
        back = np.full(size.size, -1, dtype=np.intp)
        for server in range(case.servers):
            mine = np.flatnonzero(owner == server)
            back[mine[case.window :]] = mine[: max(0, mine.size - case.window)]
        return cls(
            size,
            owner,
            HEADER_NBYTES + size * case.push_bytes,
            HEADER_NBYTES + size * case.pull_bytes,
            back,
        )

    @property
    def chunks(self) -> int:
        """K."""
        return self.size.size

    @property
    def limited(self) -> bool:
        """Whether a step has more chunks for some server than the window has room for."""
        return bool((self.back >= 0).any())
