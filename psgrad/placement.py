"""Where servers, GPUs and threads go on the nodes of a job: pure functions, mostly of a table of
ranks. NumPy is not needed: thread counts are settled before it loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from psgrad.errors import ConfigError

SPREAD: Final = "spread"
FIRST: Final = "first"
PLACEMENTS: Final = (SPREAD, FIRST)
"""Which ranks are the servers: one of each node in turn, or the first ones."""


MOST_COMPONENTS: Final = 128  # of a heterogeneous job: Slurm's own limit


@dataclass(frozen=True)
class Seat:
    """What a rank has on its node.

    ``cores`` are the processors that it may use. ``gpus`` are the PCI ids of the GPUs that it sees,
    in the order of their numbers in its process.
    """

    host: str
    cores: frozenset[int] = frozenset()
    gpus: tuple[str, ...] = ()
    server: bool = False


def het_servers(environ: Mapping[str, str]) -> int:
    """The tasks of component 0 of a heterogeneous job of Slurm, for a rank of a step over all its
    components; 0 for any other process. Slurm says in one of two ways how many each has."""
    size, total = (_count(environ.get(name)) for name in ("SLURM_HET_SIZE", "SLURM_NTASKS"))
    if not 2 <= size <= MOST_COMPONENTS or "SLURM_PROCID" not in environ:
        return 0
    tasks = [
        _count(environ.get(f"SLURM_NTASKS_HET_GROUP_{i}"))
        or _per_node(environ.get(f"SLURM_TASKS_PER_NODE_HET_GROUP_{i}", ""))
        for i in range(size)
    ]
    # A step of some components has another total.
    return tasks[0] if all(tasks) and sum(tasks) == total else 0


def _count(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _per_node(text: str) -> int:
    """The sum of what Slurm writes as 2(x3),1; 0 for anything else."""
    total = 0
    for part in text.split(","):
        tasks, _, times = part.removesuffix(")").partition("(x")
        total += _count(tasks) * (_count(times) if times else 1)
    return total


def order(hosts: Sequence[str], servers: int, placement: str) -> list[int]:
    """The ranks in the order of their roles: the servers' first, then the workers'.

    ``hosts`` are the nodes of the ranks. Spread, the first rank of each node is a server, then the
    second of each, and so on, until there are ``servers``. Rank 0 is the first in any case.
    """
    ranks = list(range(len(hosts)))
    if placement == FIRST:
        return ranks
    met: Counter[str] = Counter()
    places = []
    for host in hosts:
        places.append(met[host])
        met[host] += 1
    chosen = set(sorted(ranks, key=lambda rank: (places[rank], rank))[:servers])
    return sorted(chosen) + [rank for rank in ranks if rank not in chosen]


def threads(seats: Sequence[Seat]) -> list[int]:
    """For each rank, how many threads its cores are for, 1 at least.

    A core that several ranks may use is shared by them, so ranks that are bound to the same ones
    have the same part of them.
    """
    users = Counter((seat.host, core) for seat in seats for core in seat.cores)
    shares = (sum(Fraction(1, users[s.host, core]) for core in s.cores) for s in seats)
    return [max(1, int(share)) for share in shares]


def local_workers(seats: Sequence[Seat]) -> list[int | None]:
    """For each rank, its place among the workers of its node, from 0; None for servers."""
    met: Counter[str] = Counter()
    places: list[int | None] = []
    for seat in seats:
        places.append(None if seat.server else met[seat.host])
        met[seat.host] += not seat.server
    return places


def bind_gpus(seats: Sequence[Seat], share: bool = False) -> list[int | None]:
    """For each rank, which of the GPUs that it sees it takes; None for servers, and without one.

    The workers of a node take them in turn. Each takes one that no other has, those that see the
    fewest first, which finds one for each where what they see is the same, disjoint or nested.
    Raises ``ConfigError`` where a GPU would be taken twice, unless they are to ``share``.
    """
    places = local_workers(seats)
    found: list[int | None] = [None] * len(seats)
    takers: dict[tuple[str, str], int] = {}
    for rank in sorted(range(len(seats)), key=lambda r: (len(seats[r].gpus), r)):
        seat, place = seats[rank], places[rank]
        if place is None or not seat.gpus:
            continue
        n = len(seat.gpus)
        turn = [(place + i) % n for i in range(n)]
        free = [i for i in turn if (seat.host, seat.gpus[i]) not in takers]
        if not free and not share:
            raise ConfigError(_taken(seats, takers, rank))
        found[rank] = (free or turn)[0]
        takers.setdefault((seat.host, seat.gpus[found[rank] or 0]), rank)
    return found


def _taken(seats: Sequence[Seat], takers: dict[tuple[str, str], int], rank: int) -> str:
    seat = seats[rank]
    other = takers[seat.host, seat.gpus[0]]
    workers = [s for s in seats if s.host == seat.host and not s.server]
    gpus = {gpu for s in workers for gpu in s.gpus}
    return (
        f"ranks {other} and {rank} on {seat.host} have GPU {seat.gpus[0]} both: {len(workers)} "
        f"workers there see {len(gpus)} GPU{'s' * (len(gpus) != 1)}; start one worker for each GPU "
        "(srun --gpus-per-task=1, mpirun --map-by ppr:N:node), or allow it with --gpu-share"
    )
