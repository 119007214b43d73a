"""Seeded schedules: small trainings in which everything that can differ does.

A scenario is a frozen value that follows from a seed: how many ranks, which mode, chunks, codecs,
paces and faults of the network. ``rehearsal`` runs it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from psgrad.codecs.feedback import NOT_FED_BACK
from psgrad.kernels.hashing import stream
from psgrad.layout import Float32
from psgrad.optimizers import OPTIMIZERS, Optimizer
from psgrad.transport.faults import Delay, Drop, Duplicate, Fault, Messages, Partition
from psgrad.transport.network import Network

CODECS: Final = (
    "none", "none", "none", "topk:0.1", "topk:0.2,select=threshold", "topk:0.1,scope=global",
    "topk:0.1,scope=tensor", "int8", "int4", "int8:rounding=stochastic", "sign", "bf16",
    "randk:0.2", "qsgd", "adaptive",
)  # fmt: skip
PULL_CODECS: Final = ("none", "none", "none", "fp16", "int8", "topk:0.2", "sign")
PACES: Final = (
    "constant:seconds=0", "constant:seconds=0.001", "exponential:mean=0.001",
    "pareto:mean=0.001,alpha=1.2", "constant:seconds=0.001;slow:worker=0,factor=7",
    "exponential:mean=0.001;slow:factor=10,start=2,stop=4",
)  # fmt: skip
CHECKPOINTS: Final = ("1", "2", "3", "0.002s", "0.01s")
LEARNING_RATE: Final = 0.05
LOSSES: Final = 1 << 64  # what is drawn of deaths has a stream of its own
NEWCOMERS: Final = 1 << 67  # and so has what is drawn of those that come in their place
REPLICAS: Final = 1 << 66  # and so has what is drawn of replicas
SPLITS: Final = 1 << 65  # and so has what is drawn of splits
LEASE_S: Final = 0.5


@dataclass(frozen=True)
class Scenario:
    """One schedule. ``steps`` is what the busiest worker does; ``uneven`` how many less others do.

    ``skips``, ``pushes``, ``overlaps``, ``delays``, ``duplicates`` and ``drops`` are shares: of
    steps that are not finite, without a pull, and that leave layer by layer; of messages. ``hosts``
    is on how many machines the ranks are, in turn; 0: each on its own. ``checkpoints`` is when they
    are made; one of them is gone on from with ``then_workers`` and ``then_servers`` (0: as many as
    before).

    Workers may die: each of ``deaths`` is a number of transport calls after which one does, and at
    ``death_s`` seconds up to two more die at once. With ``lease_s`` above 0, one worker is frozen
    in its step ``freeze``, for far longer, and another one has a long step there in which it says
    that it is alive. With ``freeze_s`` that is how long it is frozen, and that it comes back
    afterwards. ``spares`` more ranks wait to take the places of the dead. With ``replicas``,
    servers have them, and one server dies after ``server_death`` calls, where that is not 0.

    ``split`` are machines, as bits, that at ``split_s`` lose the others for ``split_for_s``
    seconds. With ``lease_s`` above 0, workers behind it may be shut out, though they live.
    """

    seed: int
    workers: int = 3
    servers: int = 1
    bound: int | None = 0
    steps: int = 4
    uneven: int = 0
    sizes: tuple[int, ...] = (24, 7)  # elements of each parameter
    chunk_bytes: int = 64
    window: int = 8
    codec: str = "none"
    pull_codec: str = "none"
    feedback: str = "auto"
    zstd: str = "off"
    hosts: int = 0
    optimizer: str = "sgd"
    clip_norm: float | None = None
    skips: float = 0.0
    pushes: float = 0.0
    overlaps: float = 0.0
    pace: str = "constant:seconds=0.001"
    latency_s: float = 1e-4
    bandwidth: float = 1e8
    jitter: float = 0.0
    delays: float = 0.0
    duplicates: float = 0.0
    drops: float = 0.0
    partition: bool = False
    checkpoints: str = ""
    then_workers: int = 0
    then_servers: int = 0
    deaths: tuple[int, ...] = ()
    death_s: float = 0.0
    lease_s: float = 0.0
    freeze: int = 0
    freeze_s: float = 0.0
    spares: int = 0
    replicas: int = 0
    server_death: int = 0
    split: int = 0
    split_s: float = 0.0
    split_for_s: float = 0.0

    @classmethod
    def of(cls, seed: int) -> Scenario:
        """The scenario of a seed: always the same one."""
        draw = _Draw(seed)
        scenario = cls(
            seed,
            workers=draw.among((1, 2, 2, 3, 3, 4, 6)),
            servers=draw.among((1, 1, 2, 3)),
            bound=draw.among((0, 0, 1, 3, None)),
            steps=draw.among((1, 2, 3, 5, 8)),
            uneven=draw.among((0, 0, 1, 3)),
            sizes=tuple(draw.among((1, 5, 16, 40, 90)) for _ in range(draw.among((1, 2, 3)))),
            chunk_bytes=draw.among((64, 128, 4096)),
            window=draw.among((1, 2, 8)),
            codec=draw.among(CODECS),
            pull_codec=draw.among(PULL_CODECS),
            zstd=draw.among(("off", "off", "on", "auto")),
            hosts=draw.among((0, 0, 1, 2)),
            optimizer=draw.among(("sgd", "sgd", "momentum", "adam")),
            skips=draw.among((0.0, 0.0, 0.1, 0.5)),
            pushes=draw.among((0.0, 0.0, 0.3)),
            overlaps=draw.among((0.0, 0.0, 0.5, 1.0)),
            clip_norm=draw.among((None, None, None, 0.7)),
            pace=draw.among(PACES),
            latency_s=draw.among((0.0, 1e-5, 1e-4, 1e-3)),
            bandwidth=draw.among((1e6, 1e8, math.inf)),
            jitter=draw.among((0.0, 0.5, 20.0)),
            delays=draw.among((0.0, 0.0, 0.1)),
            duplicates=draw.among((0.0, 0.0, 0.1)),
            drops=draw.among((0.0, 0.0, 0.05)),
            partition=draw.among((False, False, False, True)),
        )
        scenario = replace(
            scenario,
            feedback=draw.among(scenario.feedbacks()),
            # Each is several runs, so few seeds have them.
            checkpoints=draw.among(CHECKPOINTS) if draw.among((1, 0, 0, 0, 0)) else "",
            then_workers=draw.among((0, 0, 0, 1, 2, 3, 5)),
            then_servers=draw.among((0, 0, 1, 2, 3)),
        )
        scenario = replace(scenario, **_losses(scenario))
        scenario = replace(scenario, **_split(scenario))
        scenario = replace(scenario, **_replicas(scenario))
        return replace(scenario, **_newcomers(scenario))

    def feedbacks(self) -> tuple[str, ...]:
        """What may be done with what the codec does not send."""
        if self.codec.partition(":")[0] in NOT_FED_BACK:
            return ("auto",)
        even = self.bound == 0 and not self.uneven
        return ("auto", "auto", "none", "dgc", "ef21" if even else "ef")

    @property
    def size(self) -> int:
        """How many ranks."""
        return self.workers + self.servers + self.spares

    @property
    def names(self) -> list[str]:
        """What the ranks are."""
        servers = [f"server {rank}" for rank in range(self.servers)]
        spares = [f"spare {i}" for i in range(self.spares)]
        return servers + [f"worker {worker}" for worker in range(self.workers)] + spares

    @property
    def machines(self) -> list[str]:
        """The host of each rank; those of one share memory."""
        return [f"node{self._machine(rank)}" for rank in range(self.size)]

    @property
    def behind(self) -> frozenset[int]:
        """The ranks behind the split: those of whole machines, without rank 0."""
        parted = {bool(self.split >> self._machine(rank) & 1) for rank in range(self.size)}
        if len(parted) < 2:
            return frozenset()
        here = self.split >> self._machine(0) & 1
        ranks = range(self.size)
        return frozenset(r for r in ranks if (self.split >> self._machine(r) & 1) != here)

    @property
    def fated(self) -> list[int]:
        """The workers in the order in which something becomes of them."""
        return sorted(range(self.workers), key=lambda w: stream(self.seed, 0xDEAD, w))

    @property
    def has_losses(self) -> bool:
        """Whether ranks may die or are shut out."""
        return self.loses_workers or self.replicas > 0

    @property
    def loses_workers(self) -> bool:
        """Whether workers may die or are shut out."""
        return bool(self.deaths or self.death_s or self.lease_s)

    @property
    def victim(self) -> int:
        """The server that dies, if one does."""
        return self._number("victim", 0, 0) % self.servers

    @property
    def calm(self) -> Scenario:
        """The same without anything that goes wrong with ranks."""
        whole = replace(self, replicas=0, server_death=0, split=0)
        whole = replace(whole, deaths=(), death_s=0.0, lease_s=0.0, freeze=0)
        return replace(whole, freeze_s=0.0, spares=0)

    @property
    def network(self) -> Network:
        return Network(self.latency_s, self.bandwidth, self.jitter)

    @property
    def faults(self) -> list[Fault]:
        """What goes wrong on the network: everything that no message is lost by."""
        faults: list[Fault] = []
        if self.delays:
            faults.append(Delay(0.0, 0.02, Messages(share=self.delays)))
        if self.duplicates:
            faults.append(Duplicate(1e-3, Messages(share=self.duplicates)))
        if self.drops:
            faults.append(Drop(5e-3, Messages(share=self.drops)))
        if self.partition:
            faults.append(Partition((self.size - 1,), 2e-3, 8e-3))
        if self.behind:
            faults.append(Partition(self.behind, self.split_s, self.split_s + self.split_for_s))
        return faults

    def steps_of(self, worker: int) -> int:
        """How many steps a worker does."""
        return max(0, self.steps - self._number("steps", worker, 0) % (self.uneven + 1))

    def is_skipped(self, worker: int, step: int) -> bool:
        return self._share("skip", worker, step) < self.skips

    def is_push(self, worker: int, step: int) -> bool:
        """Whether the step is a push alone."""
        return self._share("push", worker, step) < self.pushes

    def is_overlapped(self, worker: int, step: int) -> bool:
        """Whether the step leaves layer by layer, and is waited for in the same way."""
        return self._share("overlap", worker, step) < self.overlaps

    def order(self, worker: int, step: int) -> list[str]:
        """Parameters in the order in which their gradients are final; some are told at the end."""
        names = [f"p{i}" for i in range(len(self.sizes))]
        names.sort(key=lambda name: self._number("order" + name[1:], worker, step))
        return names[: 1 + self._number("told", worker, step) % len(names)]

    def weight(self, worker: int, step: int) -> float:
        return 1.0 + self._number("weight", worker, step) % 3

    def arrays(self) -> dict[str, Float32]:
        """Initial parameters."""
        rng = np.random.default_rng(self.seed)
        return {
            f"p{i}": rng.standard_normal(size, dtype=np.float32)
            for i, size in enumerate(self.sizes)
        }

    def gradient(self, worker: int, step: int, params: Float32) -> Float32:
        """Of the flat vector; NaN somewhere, where the step is to be skipped."""
        rng = np.random.default_rng((self.seed, worker, step))
        noise = rng.standard_normal(params.size, dtype=np.float32)
        grad: Float32 = (params - np.float32(worker)) * np.float32(0.5) + noise
        if self.is_skipped(worker, step):
            grad[self._number("nan", worker, step) % grad.size] = np.nan
        return grad

    def resumed(self) -> Scenario:
        """What goes on from a checkpoint of this scenario."""
        workers, servers = self.then_workers or self.workers, self.then_servers or self.servers
        return replace(self, workers=workers, servers=servers, then_workers=0, then_servers=0)

    def chosen(self, count: int) -> int:
        """Which of ``count`` checkpoints is gone on from."""
        return self._number("chosen", 0, count) % count

    @property
    def rule(self) -> Optimizer:
        return OPTIMIZERS[self.optimizer](learning_rate=LEARNING_RATE)

    def _machine(self, rank: int) -> int:
        return rank % (self.hosts or self.size)

    def _number(self, what: str, worker: int, step: int) -> int:
        return stream(self.seed, int.from_bytes(what.encode(), "little"), worker << 32 | step) >> 8

    def _share(self, what: str, worker: int, step: int) -> float:
        return (self._number(what, worker, step) % (1 << 32)) / (1 << 32)


class _Draw:
    """Choices from a seed. ``random()`` is what Python promises never to change."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def among(self, choices: Sequence[Any]) -> Any:
        return choices[int(self._random.random() * len(choices))]


def _losses(scenario: Scenario) -> dict[str, Any]:
    """Fields that say which workers die, or none: drawn by themselves, so that others stay."""
    draw = _Draw(LOSSES | scenario.seed)
    if scenario.workers == 1 or scenario.feedback == "ef21" or draw.among((1, 1, 0)):
        return {}
    most = scenario.workers - 1
    calls = draw.among((8, 20, 60, 200, 400))
    count = draw.among((0, 1, 1, 1, 2, most))
    deaths = tuple(1 + draw.among(range(calls)) for _ in range(min(count, most)))
    at_once = len(deaths) < most and draw.among((True, False, False))
    frozen = len(deaths) + 2 * at_once + 1 <= most and draw.among((True, False, False))
    return {
        "deaths": deaths,
        "death_s": draw.among(range(1, 200)) * 1e-3 if at_once else 0.0,
        "lease_s": LEASE_S if frozen else 0.0,
        "freeze": draw.among((1, 2, 3)) if frozen else 0,
    }


def _replicas(scenario: Scenario) -> dict[str, Any]:
    """Fields that say whether servers have replicas, and when one of them dies."""
    draw = _Draw(REPLICAS | scenario.seed)
    # Who is behind a split depends on where the coordinator is, and that may move.
    apart = scenario.split and scenario.lease_s
    if scenario.servers == 1 or scenario.feedback == "ef21" or apart or draw.among((1, 1, 0)):
        return {}
    if scenario.behind and scenario.lease_s:
        # Who is cut off from the coordinator depends on where that is: on either side, one day.
        return {}
    calls = draw.among((20, 100, 400, 1500))
    return {
        "replicas": 1,
        "server_death": draw.among((0, 1, 1, 1)) * (1 + draw.among(range(calls))),
    }


def _split(scenario: Scenario) -> dict[str, Any]:
    """Fields that say which machines lose which, and when; or none."""
    draw = _Draw(SPLITS | scenario.seed)
    machines = len(set(scenario.machines))
    if machines == 1 or draw.among((1, 1, 0)):
        return {}
    fields = {
        "split": 1 + draw.among(range((1 << machines) - 2)),
        "split_s": draw.among((1e-3, 1e-2, 1e-1)) * draw.among(range(1, 20)),
        "split_for_s": draw.among((1e-3, 2e-2, 0.3, 2.0)),
    }
    split = replace(scenario, **fields)
    spoken_for = len(scenario.deaths) + (2 if scenario.death_s else 0) + bool(scenario.freeze)
    left = {scenario.servers + worker for worker in scenario.fated[spoken_for:]} - split.behind
    cut_off = any(rank >= scenario.servers for rank in split.behind)
    if scenario.feedback != "ef21" and left and cut_off and draw.among((True, True, False)):
        # Somebody goes on; who is behind it has time to be missed.
        return {**fields, "lease_s": LEASE_S, "split_for_s": draw.among((0.3, 2.0, 20.0))}
    if scenario.lease_s and not left:
        fields["split_for_s"] = min(fields["split_for_s"], LEASE_S / 4)
    return fields


def _newcomers(scenario: Scenario) -> dict[str, Any]:
    """Fields that say who comes in the place of workers that are lost, or nobody."""
    draw = _Draw(NEWCOMERS | scenario.seed)
    apart = scenario.replicas or scenario.split
    if not scenario.loses_workers or apart or draw.among((1, 0)):
        return {}
    spares = draw.among((1, 1, 2, 3)) if scenario.deaths or scenario.death_s else 0
    # Long enough that others are still there when somebody comes.
    changes: dict[str, Any] = {"spares": spares, "steps": draw.among((8, 12, 20))}
    if scenario.feedback == "dgc":  # its momentum and a difference as pull diverge in the end
        changes["steps"] = 8
    changes["skips"] = min(scenario.skips, 0.1)  # ten in a row end a worker
    if scenario.freeze:
        steps = draw.among((20, 28))
        pace = draw.among(("constant:seconds=0.05", "exponential:mean=0.05"))
        freeze_s = draw.among((0.6, 0.8))
        changes |= {"freeze_s": freeze_s, "steps": steps, "pace": pace, "latency_s": 1e-4}
    return changes
