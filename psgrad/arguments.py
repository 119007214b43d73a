"""What the command lines share: a parser whose errors read like psgrad's own, kinds of values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from psgrad.errors import ConfigError

SCALES: Final = MappingProxyType({"K": 1 << 10, "M": 1 << 20, "G": 1 << 30})
FLOAT32: Final = 4  # bytes


# How Open MPI, PMIx (Slurm, Open MPI) and PMI (MPICH, Intel MPI, Slurm) tell a rank who it is.
RANKED: Final = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def is_rank(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as a rank of a job."""
    return any(name in environ for name in RANKED)


class Parser(argparse.ArgumentParser):
    """argparse with errors that read like psgrad's own: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
    """4096, 64K or 16M."""
    number, scale = text[:-1], SCALES.get(text[-1:].upper())
    if scale is None:
        number, scale = text, 1
    if not number.isdecimal() or not number.isascii() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a count of at least 1, such as 4096, 64K or 16M, got {text!r}"
        )
    return int(number) * scale


def output(text: str) -> Path:
    """A file that is written at the end: whether it can be, is looked at before the work."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}; make it first")
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file; name one in that folder")
    return path


def size(text: str) -> int:
    """Bytes of a float32 array: 4096, 4K or 64M."""
    nbytes = count(text)
    if nbytes % FLOAT32:
        raise argparse.ArgumentTypeError(
            f"expected bytes of float32, a multiple of {FLOAT32} such as 4K or 64M, got {text!r}"
        )
    return nbytes


def sizes(text: str) -> tuple[int, ...]:
    """Several of them, each once: 4K,1M,64M."""
    return tuple(dict.fromkeys(size(part.strip()) for part in text.split(",")))
