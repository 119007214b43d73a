"""The options of ``psgrad.run``: one frozen record, checked as a whole before anything starts."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Final

from psgrad import preemption
from psgrad.aggregate import Aggregate, check_workers
from psgrad.aggregate import check as check_aggregate
from psgrad.checkpointing import CheckpointOptions
from psgrad.codecs import Compression
from psgrad.errors import ConfigError, unknown_name
from psgrad.layout import SMALLEST_CHUNK_BYTES, SegmentOptions
from psgrad.optimizers import OPTIMIZERS, SGD, Optimizer
from psgrad.placement import PLACEMENTS, SPREAD
from psgrad.roles import Roles
from psgrad.schedules import SCHEDULES, Constant, Schedule

LARGEST_CHUNK_BYTES: Final = 1 << 30  # MPI counts bytes in 32 bits
REFERENCE_BYTES: Final = 4 << 30
SHARED_MEMORY: Final = ("auto", "on", "off")
MOST_THREADS: Final = 8  # they fill the memory bus of most nodes


@dataclass(frozen=True)
class Options:
    """What ``psgrad.run`` describes; raises ``ConfigError`` for what cannot be."""

    servers: int = 1
    placement: str = SPREAD
    staleness: int | None = 0
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Constant)
    segments: Sequence[SegmentOptions] = ()
    clip_norm: float | None = None
    chunk_bytes: int = 0
    window: int = 8
    reference_bytes: int = REFERENCE_BYTES
    shared_memory: str = "auto"
    server_threads: int = 0
    codec: str = "none"
    pull_codec: str = "none"
    feedback: str = "auto"
    zstd: str = "auto"
    seed: int = 0
    fault_tolerant: bool = False
    lease: float = 30.0
    rejoin: bool = False
    spares: int = 0
    replicas: int = 0
    checkpoint_dir: str = ""
    checkpoint_every: str = ""
    checkpoint_keep: int = 2
    resume: str = ""
    stop_signals: Sequence[str] = preemption.DEFAULT
    walltime_margin: float = 0.0
    stall: float = 60.0
    stall_abort: float = 0.0
    checkpoints: CheckpointOptions = field(init=False, repr=False)
    aggregate: str = "mean"
    compression: Compression = field(init=False, repr=False)
    robust: Aggregate | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fixed = {
            "servers": _whole("servers", self.servers, 1),
            "staleness": None
            if self.staleness is None
            else _whole("staleness", self.staleness, 0, "; 0 is synchronous, None asynchronous"),
            "segments": _segments(self.segments),
            "clip_norm": _clip_norm(self.clip_norm),
            "chunk_bytes": _whole("chunk_bytes", self.chunk_bytes, 0),
            "window": _whole("window", self.window, 1),
            "reference_bytes": _whole("reference_bytes", self.reference_bytes, 0),
            "server_threads": _whole("server_threads", self.server_threads, 0),
            "seed": _whole("seed", self.seed, 0),
            "spares": _whole("spares", self.spares, 0),
            "replicas": _whole("replicas", self.replicas, 0),
            "stop_signals": preemption.check(self.stop_signals),
            "walltime_margin": _seconds("walltime_margin", self.walltime_margin),
            "stall": _seconds("stall", self.stall),
            "stall_abort": _seconds("stall_abort", self.stall_abort),
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)
        check_chunk_bytes(self.chunk_bytes)
        check_stall(self.stall, self.stall_abort)
        if self.seed >= 1 << 32:
            raise ConfigError(f"seed must be below 2^32, got {self.seed}")
        _known("optimizer", self.optimizer, tuple(OPTIMIZERS.values()), "psgrad.SGD(0.1)")
        _known("schedule", self.schedule, tuple(SCHEDULES.values()), "psgrad.Cosine(total=1000)")
        if self.shared_memory not in SHARED_MEMORY:
            raise ConfigError(unknown_name("shared_memory", self.shared_memory, SHARED_MEMORY))
        if self.placement not in PLACEMENTS:
            raise ConfigError(unknown_name("placement", self.placement, PLACEMENTS))
        for name in ("codec", "pull_codec", "feedback", "zstd", "aggregate"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a string, got {getattr(self, name)!r}")
        compression = Compression.of(self.codec, self.pull_codec, self.feedback, self.zstd)
        if compression.feedback == "ef21" and self.staleness != 0:
            raise ConfigError(
                f"feedback ef21 needs sync mode (staleness 0), got staleness {self.staleness}; "
                "use feedback ef"
            )
        if self.shared_memory == "on" and compression.pull is not None:
            raise ConfigError(
                f"with pull codec {self.pull_codec!r} parameters travel, with shared_memory on "
                "they do not; use shared_memory auto, or pull codec none"
            )
        object.__setattr__(self, "compression", compression)
        _check_tolerance(self)
        check_replicas(self.replicas, self.servers, self.fault_tolerant, self.shared_memory)
        if self.replicas and (self.spares or self.rejoin):
            name = f"spares {self.spares}" if self.spares else "rejoin"
            raise ConfigError(
                f"{name} and replicas {self.replicas} do not go together yet: use one of them, and "
                "checkpoints for the other"
            )
        if self.replicas:
            object.__setattr__(self, "shared_memory", "off")
        checkpoints = CheckpointOptions(
            self.checkpoint_dir, self.checkpoint_every, self.checkpoint_keep, self.resume
        )
        object.__setattr__(self, "checkpoints", checkpoints)
        robust = check_aggregate(self.aggregate, self.staleness, compression.feedback)
        object.__setattr__(self, "robust", robust)

    @property
    def commits(self) -> bool:
        """Whether synchronous rounds close when the coordinator commits them."""
        return self.fault_tolerant and self.staleness == 0

    @property
    def room(self) -> int:
        """How many unanswered chunks a worker may have at a server; a round that is to be committed
        as a whole has to be there as a whole."""
        return LARGEST_CHUNK_BYTES if self.commits else self.window

    def describe(self) -> dict[str, Any]:
        """What ranks compare."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    def threads(self, cores: int, servers: int) -> int:
        """How many threads share a server's arithmetic, with ``cores`` for ``servers`` servers."""
        return self.server_threads or max(1, min(MOST_THREADS, cores // servers))

    def roles(self, size: int) -> Roles:
        """The roles of ``size`` ranks; raises ``ConfigError`` where there are too few."""
        roles = Roles(size, self.servers, spares=self.spares)
        if self.robust is not None:
            check_workers(self.robust, roles.workers)
        for segment in self.segments:
            if segment.members is not None and segment.members[-1] >= roles.workers:
                raise ConfigError(
                    f"segment {segment.match!r} has member {segment.members[-1]}, but worker "
                    f"indices go from 0 to {roles.workers - 1}"
                )
            if self.robust is not None and segment.members is not None:
                of = f" as members of segment {segment.match!r}"
                check_workers(self.robust, len(segment.members), of)
        return roles


def _check_tolerance(options: Options) -> None:
    if not isinstance(options.fault_tolerant, bool):
        raise ConfigError(f"fault_tolerant must be True or False, got {options.fault_tolerant!r}")
    lease: Any = options.lease
    if isinstance(lease, bool) or not isinstance(lease, Real) or not 0 < float(lease) < math.inf:
        raise ConfigError(f"lease must be a number of seconds above 0, got {lease!r}")
    if not isinstance(options.rejoin, bool):
        raise ConfigError(f"rejoin must be True or False, got {options.rejoin!r}")
    if (options.rejoin or options.spares) and not options.fault_tolerant:
        name = "rejoin" if options.rejoin else f"spares {options.spares}"
        raise ConfigError(
            f"{name} takes the place of workers that are lost, and without fault_tolerant a loss "
            "ends the run; start it with psgrad run --elastic, or fault_tolerant=True"
        )
    if not options.fault_tolerant or options.staleness != 0:
        return
    if options.compression.feedback == "ef21":
        raise ConfigError(
            "feedback ef21 needs all workers in every round, fault_tolerant goes on without those "
            "that die; use feedback ef, or leave fault_tolerant out"
        )
    for segment in options.segments:
        if segment.members is not None:
            raise ConfigError(
                f"segment {segment.match!r} has members, and fault_tolerant in sync mode commits "
                "rounds of all workers; use ssp mode, or leave fault_tolerant out"
            )


def check_stall(stall: float, abort: float) -> None:
    """Raises ``ConfigError`` where a run would end before anybody has looked at what is wrong."""
    if 0 < abort < stall or (abort and not stall):
        raise ConfigError(
            f"stall_abort must be 0, or at least stall, got {abort:g} with stall {stall:g}"
        )


def check_replicas(replicas: int, servers: int, fault_tolerant: bool, shared_memory: str) -> None:
    """Raises ``ConfigError`` where servers cannot have replicas."""
    if replicas == 0:
        return
    if replicas != 1:
        raise ConfigError(f"replicas must be 0 or 1, got {replicas}")
    if servers < 2:
        raise ConfigError(
            f"replicas 1 needs a second server to keep them, servers is {servers}; use --servers 2"
        )
    if not fault_tolerant:
        raise ConfigError(
            "replicas 1 is for runs that go on when a rank dies; use psgrad run --elastic, or "
            "--fault-tolerant"
        )
    if shared_memory == "on":
        raise ConfigError(
            "with replicas 1 gradients and parameters go by message, with shared_memory on they do "
            "not; use shared_memory auto"
        )


def check_chunk_bytes(chunk_bytes: int) -> None:
    """Raises ``ConfigError`` for a size that chunks cannot have."""
    if chunk_bytes and not SMALLEST_CHUNK_BYTES <= chunk_bytes <= LARGEST_CHUNK_BYTES:
        raise ConfigError(
            f"chunk_bytes must be from {SMALLEST_CHUNK_BYTES} to {LARGEST_CHUNK_BYTES}, or 0 for "
            f"the default grid, got {chunk_bytes}"
        )


def _whole(name: str, value: Any, least: int, more: str = "") -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}{more}")
    return number


def _seconds(name: str, value: Any) -> float:
    """A number of seconds that may be 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ConfigError(f"{name} must be a number of seconds of at least 0, got {value!r}")
    return float(value)


def _clip_norm(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ConfigError(f"clip_norm must be a number above 0, or None, got {value!r}")
    return float(value)


def _segments(value: Any) -> tuple[SegmentOptions, ...]:
    entries = (value,) if isinstance(value, (str, SegmentOptions)) else tuple(value)
    for entry in entries:
        if not isinstance(entry, SegmentOptions):
            raise ConfigError(
                f"segments must be a list of psgrad.SegmentOptions('*.bias', ...), got {entry!r}"
            )
    return entries


def _known(name: str, value: Any, kinds: tuple[type, ...], example: str) -> None:
    if not isinstance(value, kinds):
        raise ConfigError(f"{name} must be one such as {example}, got {value!r}")
