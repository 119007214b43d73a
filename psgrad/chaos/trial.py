"""What happens to one run: drawn from a seed, so that it can be repeated.

``KINDS`` is the table of what can be: how a job is started, and whom of it one may strike.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType
from typing import Final

WORKERS: Final = 3
BATCH: Final = 32
STEPS: Final = 15  # of one worker in an epoch: 479 samples
EVERY: Final = 20  # steps between checkpoints
RESTARTS: Final = 3
LEASE_S: Final = 4.0  # far longer than a healthy rank is silent on a machine that is busy

MODES: Final = ("sync", "ssp", "async")
CODECS: Final = ("none", "topk:0.05", "int8")
MOMENTS: Final = ("step", "step", "step", "write", "start")

KILLED: Final = "killed"
FROZEN: Final = "frozen, then killed"  # half a second later
STOPPED: Final = "stopped"  # for ever
WOKEN: Final = "stopped, then woken"  # when it was shut out
HELD: Final = "held up"  # for less than its lease


@dataclass(frozen=True)
class Victim:
    """Whom one may strike, and how. ``survived``: the job goes on without it, live."""

    name: str
    blows: tuple[str, ...] = (KILLED, KILLED, KILLED, KILLED, FROZEN)
    survived: bool = False


@dataclass(frozen=True)
class Kind:
    """How a job is started, and its victims, the likelier ones more often."""

    victims: tuple[Victim, ...]
    run: tuple[str, ...] = ()  # more arguments of ``psgrad run``
    train: tuple[str, ...] = ()  # and of ``psgrad train``
    servers: tuple[int, ...] = (1, 2)
    restarts: tuple[int, ...] = (RESTARTS,)
    epochs: int = 24


ENDING: Final = (Victim("worker"), Victim("server"), Victim("rank 0"), Victim("mpiexec"))
LIVING: Final = Victim("worker", (KILLED, KILLED, FROZEN, STOPPED, WOKEN, HELD), survived=True)
LED: Final = (  # by a rank that others can stand in for
    Victim("server", survived=True),
    Victim("rank 0", survived=True),
)
KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "restarts": Kind(ENDING),
        "elastic": Kind(
            (LIVING, LIVING, LIVING, LIVING, *ENDING[1:]),
            ("--elastic",),
            ("--set", f"lease={LEASE_S:g}"),
            restarts=(RESTARTS, RESTARTS, 0),
            # What a worker has left is gone through last, by itself: that takes time to even out.
            epochs=60,
        ),
        "replicas": Kind(
            (LIVING, *LED, *LED, *LED, ENDING[3]),
            ("--elastic",),
            ("--set", f"lease={LEASE_S:g}", "--replicas", "1"),
            servers=(2,),
            restarts=(RESTARTS, RESTARTS, 0),
            epochs=60,
        ),
    }
)
ANYWHERE: Final = ("restarts",)  # kinds that every MPI can; the others need Open MPI 5


@dataclass(frozen=True)
class Strike:
    """One blow, against whom (``rank`` -1: mpiexec) and when.

    ``moment`` is ``step``: some worker of the attempt has come to step ``step``, or is beyond it;
    ``write``: the attempt writes a checkpoint beyond that step; ``start``: its processes have come
    up. ``survived``: the job is to go on without a restart.
    """

    victim: str
    rank: int
    moment: str
    step: int = 0
    blow: str = KILLED
    survived: bool = False

    @property
    def loses(self) -> bool:
        """Whether a worker is out of a run that goes on."""
        return self.survived and self.victim == "worker" and self.blow != HELD

    def __str__(self) -> str:
        who = self.victim if self.victim in ("mpiexec", "rank 0") else f"{self.victim} {self.rank}"
        when = "start" if self.moment == "start" else f"{self.moment} {self.step}"
        return f"{who} {self.blow} at {when}"


@dataclass(frozen=True)
class Trial:
    """One run, and what is done to it."""

    seed: int
    index: int
    kind: str
    mode: str
    codec: str
    servers: int
    strikes: tuple[Strike, ...]
    restarts: int = RESTARTS
    epochs: int = 24
    workers: int = WORKERS

    @property
    def ranks(self) -> int:
        """How many the job has."""
        return self.servers + self.workers

    @property
    def steps(self) -> int:
        """How many one worker has to do."""
        return STEPS * self.epochs

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of ``psgrad train``, without checkpoints."""
        return (
            "--mode", self.mode, "--codec", self.codec, "--servers", str(self.servers),
            "--epochs", str(self.epochs), "--set", f"batch_size={BATCH}",
            "--set", "metrics=all", "--progress", "off", *KINDS[self.kind].train,
        )  # fmt: skip

    @property
    def repeat(self) -> str:
        """The command that does it again."""
        return f"bin/chaos --seed {self.seed} --first {self.index} --runs 1 --kind {self.kind}"


def draw(seed: int, index: int, kinds: Sequence[str] = tuple(KINDS)) -> Trial:
    """Run ``index`` of the campaign of ``seed``, the same whatever the others are.

    Of one kind it is the same, too, whatever other kinds there are.
    """
    kind = random.Random(f"{seed} {index}").choice(kinds)  # no secret
    chance = random.Random(f"{seed} {index} {kind}")
    mode, codec = chance.choice(MODES), chance.choice(CODECS)
    servers = chance.choice(KINDS[kind].servers)
    restarts = chance.choice(KINDS[kind].restarts)
    strikes: list[Strike] = []
    for _ in range(chance.choices((1, 2, 3), (6, 3, 1))[0]):
        # What was struck since the last one that ended an attempt.
        since = list(takewhile(lambda strike: strike.survived, reversed(strikes)))
        strike = _strike(chance, KINDS[kind], servers, begun=bool(since))
        if strike.victim != "worker" and any(s.victim != "worker" for s in since):
            strike = replace(strike, survived=False)  # one server may die, not two
        # Nobody is struck twice in a run that goes on, and one worker is left to do so.
        gone = {s.rank for s in strikes if s.survived and s.victim == "worker"}
        one_more = strike.survived and strike.victim == "worker"
        if not (one_more and (strike.rank in gone or len(gone) == WORKERS - 1)):
            strikes.append(strike)
    epochs = KINDS[kind].epochs
    return Trial(seed, index, kind, mode, codec, servers, tuple(strikes), restarts, epochs)


def _strike(chance: random.Random, kind: Kind, servers: int, begun: bool) -> Strike:
    """``begun``: the attempt that it is in has struck before, so this is not its start."""
    victim = chance.choice(kind.victims)
    if victim.name == "server" and servers == 1:
        victim = next(v for v in kind.victims if v.name == "rank 0")
    rank = {"mpiexec": -1, "rank 0": 0, "server": servers - 1}.get(victim.name)
    if rank is None:
        rank = servers + chance.randrange(WORKERS)
    moment = chance.choice(MOMENTS[:-1] if begun else MOMENTS)
    # Before all ranks have come up, nobody goes on without one.
    survived = victim.survived and moment != "start"
    step = 0 if moment == "start" else chance.randint(1, STEPS * kind.epochs * 9 // 10)
    blow = chance.choice(victim.blows)
    if moment == "start" and blow not in (KILLED, FROZEN):
        blow = KILLED
    return Strike(victim.name, rank, moment, step, blow, survived)
