"""``psgrad train --simulate``: a whole training run in one process, without MPI.

Real models, gradients and data; the ranks take turns under a virtual clock, and after every message
is checked what must hold (``invariants``). A step takes as long as ``--pace`` says, messages as the
network of ``--simulate`` does. ``breakpoint()`` works anywhere.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from psgrad import pace
from psgrad.checkpoint import InlineWriter
from psgrad.config import Config
from psgrad.crash import say
from psgrad.errors import ConfigError, PsgradError, unknown_name
from psgrad.invariants import CheckedShard
from psgrad.session import Session
from psgrad.train import NOTHING, train_in
from psgrad.transport.clockwork import RankError
from psgrad.transport.network import Network
from psgrad.transport.simulated import SimulatedTransport, Simulation
from psgrad.transport.trace import write_chrome_trace


@dataclass(frozen=True)
class Cluster:
    """What ``--simulate`` describes: ``workers=16,latency=20e-6,bandwidth=1.25e9``.

    Latency is in seconds, bandwidths are in bytes a second, jitter is relative to the latency;
    ``nic`` is the bandwidth of a rank's NIC, 0 that of a link; ``servers`` 0 are those of the
    configuration. Raises ``ConfigError``.
    """

    workers: int
    servers: int = 0
    seed: int = 0
    latency: float = 20e-6
    bandwidth: float = 1.25e9
    jitter: float = 0.0
    nic: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("servers", 0), ("seed", 0), ("nic", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"simulate: {name} must be at least {least}, got {getattr(self, name):g}"
                )
        _ = self.network  # refuses the rest

    @property
    def network(self) -> Network:
        """The same as the simulator takes it."""
        return Network(self.latency, self.bandwidth, self.jitter, self.nic or None)


def parse(text: str) -> Cluster:
    """The cluster that ``text`` describes; raises ``ConfigError`` where it makes no sense."""
    kinds = {field.name: str(field.type) for field in fields(Cluster)}
    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = part.partition("=")
        if key not in kinds:
            raise ConfigError(f"simulate {text!r}: {unknown_name('key', key, kinds)}")
        try:
            values[key] = int(number) if kinds[key] == "int" else float(number)
        except ValueError:
            what = "a whole number" if kinds[key] == "int" else "a number"
            raise ConfigError(f"simulate {text!r}: {key} must be {what}, got {number!r}") from None
    if "workers" not in values:
        raise ConfigError(f"simulate {text!r} needs workers, such as workers=16")
    return Cluster(**values)  # type: ignore[arg-type]  # as its fields say


def train(
    config: Config,
    stamp: str,
    terminal: bool = False,
    trace: Path | None = None,
    about: Mapping[str, Any] = NOTHING,
) -> None:
    """Trains as ``config`` says on the cluster that ``config.simulate`` describes.

    Writes a Chrome trace to ``trace``, also of a run that fails. Raises what ended the run.
    """
    cluster = parse(config.simulate)
    compute = pace.parse(config.pace, cluster.seed)
    size = cluster.workers + config.servers + config.spares
    # A step may take any time, and a run any number of them; a stall shows without that.
    simulation = Simulation(
        size,
        cluster.network,
        seed=cluster.seed,
        stall_after_s=math.inf,
        event_limit=sys.maxsize,
        trace=trace is not None,
    )

    said: list[str] = []

    def report(text: str) -> None:
        said.append(text)
        say(text)

    def program(transport: SimulatedTransport) -> None:
        with Session(
            transport=transport, shard=CheckedShard, report=report, writer=InlineWriter
        ) as session:
            train_in(session, lambda: config, stamp, terminal, compute, about)

    try:
        simulation.run(program)
    except RankError as error:
        if not said and isinstance(error.__cause__, PsgradError):
            error.__cause__.spokesman = None  # of all ranks alike: it is said once, here
            raise error.__cause__ from None
        error.spokesman = False if said else None
        raise
    finally:
        if trace is not None:
            names = [f"server {rank}" for rank in range(config.servers)]
            names += [f"worker {worker}" for worker in range(cluster.workers)]
            write_chrome_trace(trace, simulation.trace, names)


def configured(config: Config) -> Config:
    """``config`` with the servers of the cluster; raises ``ConfigError`` for what cannot be."""
    cluster = parse(config.simulate)
    pace.parse(config.pace, cluster.seed)
    return replace(config, servers=cluster.servers) if cluster.servers else config
