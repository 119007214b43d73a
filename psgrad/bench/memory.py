"""``psgrad bench memory``: what memory gives on this machine, and what ranks take of it.

Rates are of traffic: a copy of n bytes moves 2 n, an addition into a third array 3 n. What a rank
takes is reckoned from the options, in the terms of the code that takes it, for ranks on one node;
the small scratch arrays of codecs, Python and MPI itself are not in it. What is shared is counted
where it is written: parameters on the servers, gradients on the workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from psgrad.bench.figures import Spread, in_bytes, milliseconds
from psgrad.bench.machine import describe
from psgrad.codecs.base import BLOCK
from psgrad.codecs.feedback import make
from psgrad.layout import ITEMSIZE, Chunk, Float32, Layout, assign
from psgrad.messages import HEADER_NBYTES
from psgrad.options import Options
from psgrad.references import references_nbytes
from psgrad.roles import Roles
from psgrad.sharing import Wishes
from psgrad.transport.mpi import INLINE_NBYTES, RING

# What is timed, and how many times its size it moves.
WORK: Final = (("copy", 2), ("add", 3), ("add in place", 3), ("read", 1))


@dataclass(frozen=True)
class Rate:
    """One kind of pass over arrays of ``nbytes`` bytes, by ``threads`` threads at once."""

    what: str
    threads: int
    nbytes: int
    moved: int  # bytes of traffic
    samples: tuple[float, ...]  # seconds

    @property
    def spread(self) -> Spread:
        """Of the samples, in seconds."""
        return Spread.of(self.samples)

    @property
    def rate(self) -> float:
        """GB/s of traffic, by the median."""
        return 1e-9 * self.moved / self.spread.median


@dataclass(frozen=True)
class Item:
    """Bytes that a rank holds, and what for."""

    what: str
    nbytes: int


def rates(nbytes: int, repeats: int, threads: int) -> list[Rate]:
    """Times each kind of work in turn, on arrays that are cut into a part for each thread."""
    n = nbytes // ITEMSIZE
    a, b, c = (np.full(n, value, np.float32) for value in (1.0, 2.0, 0.0))
    cuts = [n * i // threads for i in range(threads + 1)]
    parts = [slice(cuts[i], cuts[i + 1]) for i in range(threads)]
    samples: dict[str, list[float]] = {what: [] for what, _ in WORK}
    with ThreadPoolExecutor(threads) as pool:
        for i in range(repeats + 1):
            for what, _ in WORK:
                call = _call(what, a, b, c)
                start = time.perf_counter()
                list(pool.map(call, parts))
                if i > 0:
                    samples[what].append(time.perf_counter() - start)
    return [Rate(what, threads, nbytes, k * nbytes, tuple(samples[what])) for what, k in WORK]


def _call(what: str, a: Float32, b: Float32, c: Float32) -> Callable[[slice], Any]:
    def copy(part: slice) -> None:
        np.copyto(c[part], a[part])

    def add(part: slice) -> None:
        np.add(a[part], b[part], out=c[part])

    def add_in_place(part: slice) -> None:
        c[part] += a[part]

    def read(part: slice) -> None:
        np.dot(a[part], a[part])

    return {"copy": copy, "add": add, "add in place": add_in_place, "read": read}[what]


def server_items(layout: Layout, options: Options, roles: Roles) -> list[Item]:
    """What the server with the most parameters holds at most."""
    chunks = layout.chunks(options.chunk_bytes)
    owner = assign(chunks, roles.servers)
    loads = [sum(c.nbytes for c in chunks if owner[c.index] == s) for s in range(roles.servers)]
    fullest = loads.index(max(loads))
    mine = [chunk for chunk in chunks if owner[chunk.index] == fullest]
    push, pull = options.compression.push, options.compression.pull
    differences, together = options.compression.differences, options.staleness == 0
    workers, optimizer = roles.workers, options.optimizer
    references = 0
    if differences is not None:
        references = references_nbytes(layout, chunks, owner, range(workers), together)
        references += sum(differences.nbytes_max(chunk.size) for chunk in mine)
    encoded = 0
    if pull is not None and differences is None:
        encoded = sum(pull.nbytes_max(chunk.size) for chunk in mine)
    window, chunk_nbytes = _window(mine, options), max(chunk.nbytes for chunk in mine)
    encoding = 0 if push is None else max(push.nbytes_max(chunk.size) for chunk in mine)
    # Float32 comes from worker 0, the first values, and from whoever sends gradients so or pushes
    # what is left of them in the end. Memory that it has come into is kept.
    bare = window * chunk_nbytes * (1 if Wishes.of(options).grads or _loses(options) else workers)
    copied = not together and not Wishes.of(options).params
    under_way = workers * window * chunk_nbytes if copied else 0
    ef21 = options.compression.feedback == "ef21"
    return _present(
        Item("parameters", max(loads)),
        Item("optimizer state", len(optimizer.slots) * max(loads)),
        Item("estimate of the gradient (ef21)", max(loads) if ef21 else 0),
        Item("what workers hold (pull codec)", references),
        Item("encoded parameters (pull codec)", encoded),
        Item("float32 from workers", bare),
        Item("payloads from workers (codec)", workers * window * encoding),
        Item("parameters under way", under_way),
        Item("scratch of updates", ITEMSIZE * BLOCK * (1 + max(1, optimizer.scratch_rows))),
        Item("posted receives", _rings(workers)),
    )


def worker_items(layout: Layout, options: Options, roles: Roles) -> list[Item]:
    """What a worker that trains every parameter holds at most."""
    chunks = layout.chunks(options.chunk_bytes)
    owner = assign(chunks, roles.servers)
    push, pull = options.compression.push, options.compression.pull
    feedback = payloads = arriving = 0
    if push is not None:
        state = make(options.compression.feedback, layout.size).state_dict()
        feedback = sum(array.nbytes for array in state.values())
        payloads = sum(push.nbytes_max(chunk.size) for chunk in chunks)
    if pull is not None:
        for server in roles.server_ranks:
            mine = [chunk for chunk in chunks if owner[chunk.index] == server]
            most = max((pull.nbytes_max(chunk.size) for chunk in mine), default=0)
            arriving += _window(mine, options) * most
    read_there = Wishes.of(options).params and options.staleness == 0
    return _present(
        Item("parameters", 0 if read_there else layout.size * ITEMSIZE),
        Item("gradients", layout.size * ITEMSIZE),
        Item("feedback (codec)", feedback),
        Item("payloads (codec)", payloads),
        Item("encoded parameters under way", arriving),
        Item("posted receives", _rings(roles.servers)),
    )


def _present(*items: Item) -> list[Item]:
    return [item for item in items if item.nbytes]


def _window(chunks: Sequence[Chunk], options: Options) -> int:
    """How many of a worker's chunks one server may have before it that are not answered."""
    return min(options.window, len(chunks))


def _loses(options: Options) -> bool:
    """Whether gradients are encoded, and nothing of them is left to push when a worker leaves."""
    compression = options.compression
    return compression.push is not None and compression.feedback not in ("ef", "dgc")


def _rings(peers: int) -> int:
    return peers * RING * (HEADER_NBYTES + INLINE_NBYTES)


def layout_of(nbytes: int) -> Layout:
    """The layout of one array of ``nbytes``, which need not exist."""
    return Layout.of({"w": np.broadcast_to(np.float32(0), (nbytes // ITEMSIZE,))})


def bench_memory(
    nbytes: int, repeats: int, options: Options, roles: Roles, show: Callable[[str], None]
) -> dict[str, Any]:
    """Rates of this machine, by one thread and by one for each core; then what ranks take.

    ``show`` takes the two tables. Returns the record.
    """
    cores = len(os.sched_getaffinity(0))
    found = [rate for threads in sorted({1, cores}) for rate in rates(nbytes, repeats, threads)]
    show(rate_table(found, nbytes))
    layout = layout_of(nbytes)
    items = {
        "server": server_items(layout, options, roles),
        "worker": worker_items(layout, options, roles),
    }
    show(item_table(items, roles, nbytes))
    return {
        "what": "memory",
        "machine": describe(mpi=False),
        "nbytes": nbytes,
        "servers": roles.servers,
        "workers": roles.workers,
        "run": {name: str(value) for name, value in options.describe().items()},
        "rates": [
            {**asdict(rate), "median_s": rate.spread.median, "gb_per_s": rate.rate}
            for rate in found
        ],
        "items": {role: [asdict(item) for item in some] for role, some in items.items()},
    }


def rate_table(found: Sequence[Rate], nbytes: int) -> str:
    """The rates for a person."""
    head = (
        f"arrays of {in_bytes(nbytes)}; GB/s of traffic\n"
        f"{'':14}{'threads':>8}{'median ms':>11}{'min - max':>21}{'GB/s':>8}"
    )
    lines = []
    for one in found:
        spread = one.spread
        range_ms = f"{milliseconds(spread.least)} - {milliseconds(spread.most)}"
        lines.append(
            f"{one.what:14}{one.threads:8}{milliseconds(spread.median):>11}{range_ms:>21}"
            f"{one.rate:8.1f}"
        )
    return "\n".join([head, *lines])


def item_table(items: Mapping[str, Sequence[Item]], roles: Roles, nbytes: int) -> str:
    """What a server and a worker take, for a person; in times the ``nbytes`` of all parameters."""
    head = f"at most, with servers {roles.servers}, workers {roles.workers}; MiB, x all parameters"
    lines = []
    for role, some in items.items():
        total = Item("together", sum(item.nbytes for item in some))
        lines += [
            f"{role if i == 0 else '':8}{item.what:34}"
            f"{item.nbytes / (1 << 20):12.2f}{item.nbytes / nbytes:8.2f}"
            for i, item in enumerate([*some, total])
        ]
    return "\n".join([head, *lines])
