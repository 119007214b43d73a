"""``psgrad checkpoint``: list, verify and convert."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from psgrad.arguments import Parser
from psgrad.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from psgrad.checkpoint import Checkpoint

COLUMNS: Final = ("checkpoint", "saved at", "mode", "workers", "servers", "clocks", "size")


def checkpoint(argv: Sequence[str]) -> int:
    """``psgrad checkpoint WHAT ...``; returns the exit status."""
    parser = Parser(prog="psgrad checkpoint", description="Look after checkpoints.")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", parser_class=Parser)
    for name, (text, _) in KINDS.items():
        kinds.add_parser(name, help=text, add_help=False)
    arguments, _ = parser.parse_known_args(list(argv[:1]))
    if arguments.what is None:
        parser.error(f"name what to do: {', '.join(KINDS)}")
    return KINDS[arguments.what][1](argv[1:])


def ls(argv: Sequence[str]) -> int:
    """``psgrad checkpoint ls``: reads the manifests and the sizes of the files."""
    parser = Parser(
        prog="psgrad checkpoint ls",
        description="List checkpoints, newest first, by their manifests.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of checkpoints, or one of them")
    parser.add_argument("--json", action="store_true", help="a list of records on one line")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.folder)
    records = [_record(path) for path in _chosen(folder)]
    if arguments.json:
        from psgrad.metrics import to_json

        print(to_json(records))
    elif records:
        _print_table(records)
    else:
        print(f"there is no checkpoint in {folder}")
    return 0


def verify(argv: Sequence[str]) -> int:
    """``psgrad checkpoint verify``: status 1 where one is damaged."""
    parser = Parser(prog="psgrad checkpoint verify", description="Read every byte and check it.")
    parser.add_argument("folder", metavar="DIR", help="the folder of checkpoints, or one of them")
    folder = Path(parser.parse_args(argv).folder)
    chosen = _chosen(folder)
    if not chosen:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    return max([_verify(path) for path in chosen])


def convert(argv: Sequence[str]) -> int:
    """``psgrad checkpoint convert``."""
    parser = Parser(
        prog="psgrad checkpoint convert", description="Write the parameters, by name, into a file."
    )
    parser.add_argument("checkpoint", metavar="DIR/step-N", help="the checkpoint")
    parser.add_argument("out", metavar="OUT", help="a new file, .safetensors or .npz")
    arguments = parser.parse_args(argv)
    from psgrad.checkpoint.convert import convert as write

    out = Path(arguments.out)
    count = write(Path(arguments.checkpoint), out)
    print(f"{count} parameters in {out}")
    return 0


KINDS: Final[Mapping[str, tuple[str, Callable[[Sequence[str]], int]]]] = MappingProxyType(
    {
        "ls": ("list checkpoints", ls),
        "verify": ("read every byte and check it", verify),
        "convert": ("write the parameters as .safetensors or .npz", convert),
    }
)
"""Name -> (help, function)."""


def _chosen(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, or ``folder`` where it is one, be it damaged."""
    from psgrad.checkpoint.files import MANIFEST
    from psgrad.checkpoint.opened import found, step_of

    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; name the folder of the checkpoints")
    # "." and ".." have no name of their own.
    if (folder / MANIFEST).exists() or step_of(folder.resolve().name) is not None:
        return [folder]
    return found(folder)


def _verify(path: Path) -> int:
    from psgrad.checkpoint import Checkpoint
    from psgrad.checkpoint import verify as check

    name = path.resolve().name
    try:
        check(path)
        manifest = Checkpoint.open(path).manifest
    except CheckpointError as error:
        print(f"{name}  damaged: {error}")
        return 1
    print(f"{name}  ok, {len(manifest.files)} files, {_size(manifest.nbytes)}")
    return 0


def _record(path: Path) -> dict[str, Any]:
    from psgrad.checkpoint import Checkpoint

    record = {"path": str(path), "name": path.resolve().name}
    try:
        return {**record, **_of(Checkpoint.open(path)), "fault": None}
    except CheckpointError as error:
        return {**record, "fault": str(error)}


def _of(opened: Checkpoint) -> dict[str, Any]:
    """What a line says; None where the state does not."""
    manifest = opened.manifest
    kinds: dict[str, type | tuple[type, ...]] = {
        "saved_at": str, "mode": str, "workers": int, "servers": int, "clocks": dict,
        "cut_ms": (int, float), "wait_ms": (int, float),
    }  # fmt: skip
    known = {
        key: manifest.state[key] if isinstance(manifest.state.get(key), kind) else None
        for key, kind in kinds.items()
    }
    if known["saved_at"] is None:  # the manifest was written last
        from psgrad.checkpoint import MANIFEST

        saved_s = (opened.path / MANIFEST).stat().st_mtime
        known["saved_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(saved_s))
    return {"step": manifest.step, "nbytes": manifest.nbytes, "psgrad": manifest.psgrad, **known}


def _print_table(records: Sequence[Mapping[str, Any]]) -> None:
    """One line for each; a damaged one has its fault behind the name."""
    rows = [COLUMNS, *(_row(record) for record in records)]
    whole = [row for row in rows if len(row) == len(COLUMNS)]
    widths = [max(len(cell) for cell in column) for column in zip(*whole, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        )


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    if record["fault"] is not None:
        return (record["name"], f"damaged: {record['fault']}")
    said = [record[key] for key in ("saved_at", "mode", "workers", "servers")]
    clocks = [clock for clock in (record["clocks"] or {}).values() if isinstance(clock, int)]
    span = "-" if not clocks else str(min(clocks))
    if clocks and max(clocks) > min(clocks):
        span += f" to {max(clocks)}"
    cells = ("-" if value is None else str(value) for value in said)
    return (record["name"], *cells, span, _size(record["nbytes"]))


def _size(nbytes: int) -> str:
    if nbytes < 1000:
        return f"{nbytes} B"
    unit = "kB" if nbytes < 1e6 else "MB" if nbytes < 1e9 else "GB"
    return f"{nbytes / {'kB': 1e3, 'MB': 1e6, 'GB': 1e9}[unit]:.1f} {unit}"
