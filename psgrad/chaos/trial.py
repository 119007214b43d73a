"""What happens to one run: drawn from a seed, so that it can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

WORKERS: Final = 3
EPOCHS: Final = 24
STEPS: Final = 15 * EPOCHS  # of one worker: 479 samples in batches of 32
EVERY: Final = 20  # steps between checkpoints
RESTARTS: Final = 3

MODES: Final = ("sync", "ssp", "async")
CODECS: Final = ("none", "topk:0.05", "int8")
VICTIMS: Final = ("worker", "server", "rank 0", "mpiexec")
MOMENTS: Final = ("step", "step", "step", "write", "start")


@dataclass(frozen=True)
class Kill:
    """One blow, against whom (``rank`` -1: mpiexec) and when.

    ``moment`` is ``step``: the attempt has come to step ``step`` of worker 0, or is beyond it;
    ``write``: it writes a checkpoint beyond that step; ``start``: its processes have come up.
    ``frozen``: the victim is stopped first, and killed half a second later.
    """

    victim: str
    rank: int
    moment: str
    step: int = 0
    frozen: bool = False

    def __str__(self) -> str:
        who = self.victim if self.victim in ("mpiexec", "rank 0") else f"{self.victim} {self.rank}"
        when = "start" if self.moment == "start" else f"{self.moment} {self.step}"
        return f"{who} at {when}" + (" (frozen)" if self.frozen else "")


@dataclass(frozen=True)
class Trial:
    """One run, and what is done to it."""

    seed: int
    index: int
    mode: str
    codec: str
    servers: int
    kills: tuple[Kill, ...]

    @property
    def ranks(self) -> int:
        """How many the job has."""
        return self.servers + WORKERS

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of ``psgrad train``, without checkpoints."""
        return (
            "--mode", self.mode, "--codec", self.codec, "--servers", str(self.servers),
            "--epochs", str(EPOCHS), "--progress", "off",
        )  # fmt: skip

    @property
    def repeat(self) -> str:
        """The command that does it again."""
        return f"bin/chaos --seed {self.seed} --first {self.index} --runs 1"


def draw(seed: int, index: int) -> Trial:
    """Run ``index`` of the campaign of ``seed``, the same whatever the others are."""
    chance = random.Random(f"{seed} {index}")  # no secret
    mode, codec = chance.choice(MODES), chance.choice(CODECS)
    servers = chance.randint(1, 2)
    count = chance.choices((1, 2, 3), (6, 3, 1))[0]
    return Trial(
        seed, index, mode, codec, servers, tuple(_kill(chance, servers) for _ in range(count))
    )


def _kill(chance: random.Random, servers: int) -> Kill:
    victim = chance.choice(VICTIMS)
    if victim == "server" and servers == 1:
        victim = "rank 0"
    rank = {"mpiexec": -1, "rank 0": 0, "server": servers - 1}.get(victim)
    if rank is None:
        rank = servers + chance.randrange(WORKERS)
    moment = chance.choice(MOMENTS)
    step = 0 if moment == "start" else chance.randint(1, STEPS * 9 // 10)
    return Kill(victim, rank, moment, step, frozen=chance.random() < 0.2)
