"""``psgrad replay``: a recorded run once more, in one process, message by message.

Every rank takes its messages in the recorded order, and codecs that were chosen by a clock are
those of the record. All else follows: the answers of the servers, which are compared with the
recorded ones, and the parameters in the end, bit for bit, on a CPU of the same type with the same
NumPy, BLAS and number of threads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psgrad.config import from_toml
from psgrad.errors import DataError
from psgrad.invariants import CheckedShard
from psgrad.record import Record, by_message, differences, read_all
from psgrad.session import Session
from psgrad.train import configure, train_in
from psgrad.transport.clockwork import SimulationError
from psgrad.transport.network import Network
from psgrad.transport.simulated import SimulatedTransport, Simulation


@dataclass(frozen=True)
class Outcome:
    """What a replay came to. ``text`` is for a person."""

    equal: bool
    text: str
    record: dict[str, Any]


def replay(run: Path, records: Sequence[Record], stamp: str, about: Mapping[str, Any]) -> Outcome:
    """Repeats the run in the folder ``run``. ``about`` is what a record would say of this process.

    Raises ``DataError`` where the run did not end well or there is nothing to repeat it from.
    """
    records = [by_message(record) for record in records]
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{run} is not the folder of a run that has ended well: {error}") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("params_sha256"), str):
        raise DataError(f"{run}/summary.json has no params_sha256: it is not that of a run")
    with tempfile.TemporaryDirectory(prefix="psgrad-replay-") as folder:
        again = Path(folder) / "run"
        config = replace(
            configure([from_toml(run / "config.toml")]),
            run_dir=str(again), record=True, progress="off", json=False,
        )  # fmt: skip
        order = {rank: record.order for rank, record in enumerate(records)}
        # Time means nothing here: the order says what comes next.
        network = Network(latency_s=0.0, bandwidth=float("inf"))
        simulation = Simulation(len(records), network, order=order)

        def program(transport: SimulatedTransport) -> None:
            choices = records[transport.rank].choices
            shard, mute = CheckedShard, lambda _: None
            with Session(transport=transport, shard=shard, report=mute) as session:
                train_in(
                    session,
                    lambda: config,
                    stamp,
                    about=about,
                    choices=choices,
                    show=lambda _: None,
                )

        try:
            simulation.run(program)
        except SimulationError as error:
            # Messages that wait for one that never comes, or one that cannot be in this place.
            text = f"the replay is not the run, it came to an end: {error}"
            return Outcome(False, text, {"equal": False, "ranks": len(records)})
        repeated = read_all(again / "records")
        now = json.loads((again / "summary.json").read_text(encoding="utf-8"))
    return _outcome(summary, now, records, repeated, about)


def _outcome(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    records: Sequence[Record],
    repeated: Sequence[Record],
    about: Mapping[str, Any],
) -> Outcome:
    entries = sum(len(record.entries) for record in records)
    equal = then["params_sha256"] == now["params_sha256"]
    lines = []
    for rank, (one, other) in enumerate(zip(records, repeated, strict=True)):
        first = next(differences(one, other), None)
        if first is not None:
            equal = False
            lines.append(f"rank {rank} differs: {first}")
    if equal:
        lines.append(
            f"{entries} entries of {len(records)} ranks repeated, parameters equal bit for bit "
            f"(sha256 {now['params_sha256'][:16]}...)"
        )
    else:
        lines.append(
            f"the replay is not the run: parameters {now['params_sha256'][:16]}... instead of "
            f"{then['params_sha256'][:16]}..."
        )
        recorded = records[-1].about
        lines += [
            f"{key} was {recorded.get(key)}, here it is {value}"
            for key, value in about.items()
            if recorded.get(key) != value
        ]
    return Outcome(
        equal,
        "\n".join(lines),
        {
            "equal": equal,
            "entries": entries,
            "ranks": len(records),
            "recorded": then["params_sha256"],
            "repeated": now["params_sha256"],
        },
    )
