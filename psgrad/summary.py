"""What a training run says of itself: the lines at its start, the summary at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psgrad import runfolder
from psgrad.config import Config
from psgrad.layout import Layout, assign, balance
from psgrad.version import __version__
from psgrad.worker import Worker


def opening(config: Config, worker: Worker, folder: Path) -> str:
    """What is trained, and by whom."""
    mode = {0: "sync", None: "async"}.get(config.bound, f"ssp, staleness {config.bound}")
    if config.local:
        mode += f", {_count(config.local_steps, 'local step')}"
    if config.aggregate != "mean":
        mode += f", {config.aggregate}"
    if config.precision != "float32":
        mode += f", {config.precision}"
    if config.elastic:
        mode += f", elastic {config.elastic:g}"
    return (
        f"psgrad {__version__}: {config.model.name} with {worker.layout.size:,} parameters on "
        f"{Path(config.dataset.name).name}, {_count(config.servers, 'server')}, "
        f"{_count(worker.size, 'worker')}, {_spares(config)}{mode}\n"
        f"shard balance (max/mean bytes) {_balance(worker.layout, config):.3f}, "
        f"run folder {folder}" + "".join(f"\n{line}" for line in _news(worker))
    )


def _news(worker: Worker) -> list[str]:
    said = [] if worker.resumed is None else [f"goes on from checkpoint {worker.resumed.number}"]
    return [*said, worker.notice] if worker.notice else said


def closing(
    config: Config,
    worker: Worker,
    test: tuple[float, float],
    totals: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The summary of a run that is over; ``worker`` has the final parameters.

    ``test`` is loss and accuracy, ``totals`` are sums over the workers: samples, steps, skipped.
    """
    servers = worker.server_stats()
    local = {"local_steps": config.local_steps, "elastic": config.elastic}
    return {
        "test_accuracy": test[1],
        "test_loss": test[0],
        "steps": round(totals["steps"]),
        "skipped_steps": round(totals["skipped"]),
        "updates": worker.updates,
        "seconds": seconds,
        # Virtual time may stand still.
        "samples_per_second": totals["samples"] / seconds if seconds else math.inf,
        "mode": config.mode,
        "staleness_bound": config.bound,
        "staleness_max": max(stats["staleness_max"] for stats in servers),
        **(local if config.local else {}),
        **({"aggregate": config.aggregate} if config.aggregate != "mean" else {}),
        **({"precision": config.precision} if config.precision != "float32" else {}),
        "workers": worker.size,
        **({"workers_lost": sorted(worker.lost)} if config.fault_tolerant else {}),
        **_newcomers(worker),
        "servers": config.servers,
        **_commits(servers),
        "shard_balance": servers[0]["balance"],
        "bytes_pushed": sum(stats["bytes_pushed"] for stats in servers),
        "bytes_pulled": sum(stats["bytes_pulled"] for stats in servers),
        **({"codecs_used": worker.codecs_used} if config.codec != "none" else {}),
        "params_sha256": runfolder.sha256(worker.params),
        "psgrad_version": __version__,
    }


def _newcomers(worker: Worker) -> dict[str, Any]:
    """How many workers came in the place of others, where some did."""
    came = sum(span.began is not None for spans in worker.spans.values() for span in spans)
    return {"workers_joined": came} if came else {}


def _commits(servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How long synchronous rounds that were complete have waited for their commit, if they had to:
    the median, on the server where that is longest."""
    waits = [stats["commit_wait_s"] for stats in servers if "commit_wait_s" in stats]
    return {"commit_wait_s": max(waits)} if waits else {}


def _balance(layout: Layout, config: Config) -> float:
    chunks = layout.chunks(config.chunk_bytes)
    return balance(chunks, assign(chunks, config.servers), config.servers)


def _spares(config: Config) -> str:
    return f"{_count(config.spares, 'spare')}, " if config.spares else ""


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
