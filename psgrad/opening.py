"""How a server opens its shard: which chunks are its own, by what rules, from which checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from psgrad.chunk_state import Rules
from psgrad.errors import CheckpointError
from psgrad.layout import Chunk, Layout, assign, balance
from psgrad.options import Options
from psgrad.registration import reference_memory
from psgrad.resuming import Resuming
from psgrad.roles import Roles
from psgrad.shard import Shard


class Share(NamedTuple):
    """What one server has of a layout of ``of`` chunks; ``balance`` is max/mean over servers."""

    chunks: list[Chunk]
    of: int
    balance: float

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters."""
        return sum(chunk.nbytes for chunk in self.chunks)


def refusal(
    options: Options,
    layout: Layout,
    roles: Roles,
    workers: Sequence[int],
    resuming: Resuming | None,
) -> tuple[str | None, str]:
    """Why the run cannot be, in words, if it cannot; and what there is to say of its memory.

    The same on every server, so that all of them refuse or none does.
    """
    said, problem = reference_memory(options, layout, roles.servers, workers)
    if problem is None and resuming is not None:
        problem = resuming.differs(layout)
    return problem, said or ""


def share_of(layout: Layout, options: Options, roles: Roles, rank: int) -> Share:
    """The chunks of the server on ``rank``."""
    chunks = layout.chunks(options.chunk_bytes)
    owner = assign(chunks, roles.servers)
    mine = [chunk for chunk in chunks if owner[chunk.index] == rank]
    return Share(mine, len(chunks), balance(chunks, owner, roles.servers))


def rules_of(options: Options, threads: int) -> Rules:
    """The rules of a shard whose arithmetic ``threads`` share."""
    return Rules(
        optimizer=options.optimizer,
        schedule=options.schedule,
        bound=options.staleness,
        ef21=options.compression.feedback == "ef21",
        differences=options.compression.differences,
        seed=options.seed,
        threads=threads,
        committed=options.commits,
        aggregate=options.robust,
    )


def clocks_of(resuming: Resuming | None, workers: Sequence[int]) -> dict[int, int]:
    """At which clocks workers begin."""
    return {w: 0 if resuming is None else resuming.clock_of(w) for w in workers}


def load(shard: Shard, resuming: Resuming | None, options: Options, workers: Sequence[int]) -> None:
    """Has ``shard`` go on from a checkpoint, if there is one; raises ``CheckpointError``.

    A learning rate that is not that of the saved run is meant: it counts from now on.
    """
    if resuming is None:
        return
    given = options.optimizer.learning_rate
    rate = None if given == resuming.learning_rate else given
    clocks = clocks_of(resuming, workers)
    try:
        shard.load(clocks, resuming.chunk_records, resuming.source, rate)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {resuming.number}: {error}") from error


def about(options: Options, roles: Roles, layout: Layout) -> dict[str, Any]:
    """What a checkpoint says of this run."""
    return {
        "servers": roles.servers,
        "workers": roles.workers,
        "mode": {0: "sync", None: "async"}.get(options.staleness, "ssp"),
        "staleness": options.staleness,
        "layout": asdict(layout),
        "chunk_bytes": options.chunk_bytes,
        "optimizer": repr(options.optimizer),
        "learning_rate": options.optimizer.learning_rate,
    }
