"""The run folder: what a training run leaves behind, and how it is named.

::

    runs/20260102-030405-mlp-digits-ssp/
        config.toml          every key but run_dir, resume; `psgrad train config.toml` repeats it
        metrics.jsonl        one record a line
        metrics-1.jsonl      with metrics = all, those of worker 1, and so on
        model.safetensors    the parameters, by name
        summary.json         accuracy, time, bytes, staleness, ...
        checkpoints/         with --checkpoint-every, the newest ones
        logs/                one file a rank, by role and rank
        checkpoints/         with --checkpoint-every: what --resume goes on from
        records/             with --record, one file a rank: what psgrad replay needs
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import tomli_w
from numpy.typing import NDArray
from safetensors.numpy import save

from psgrad.checkpointing import AUTO
from psgrad.config import Config
from psgrad.errors import ConfigError
from psgrad.metrics import to_json

SUMMARY: Final = "summary.json"


def default_name(config: Config, stamp: str) -> str:
    """The folder of a run without ``--run-dir``; ``stamp`` is its date and time."""
    dataset = Path(config.dataset.name).stem
    return f"runs/{stamp}-{config.model.name}-{dataset}-{config.mode}"


def make(config: Config, stamp: str) -> Path:
    """Makes a new folder for a run without a ``run_dir``; raises ``ConfigError``."""
    folder = Path(default_name(config, stamp))
    try:
        return _make_new(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def checkpoints(folder: Path) -> Path:
    """Where a run writes its checkpoints, unless it is told another place."""
    return folder / "checkpoints"


def metrics(worker: int) -> str:
    """The file that has the metrics of ``worker``."""
    return f"metrics-{worker}.jsonl" if worker else "metrics.jsonl"


def finished(config: Config) -> str | None:
    """The summary of the run that ``config`` would go on with, if that is finished: who starts it
    again and again until it is done has nothing more to do."""
    if config.resume != AUTO or not config.run_dir:
        return None
    try:
        return (Path(config.run_dir) / SUMMARY).read_text(encoding="utf-8")
    except OSError:
        return None


def say_finished(config: Config, summary: str) -> None:
    """Says that there is nothing to do, as a run of ``config`` would end."""
    sys.stderr.write(f"psgrad: run folder {config.run_dir} holds a finished run: nothing to do\n")
    sys.stderr.flush()
    if config.json:
        sys.stdout.write(summary)
        sys.stdout.flush()


def create(config: Config, stamp: str) -> Path:
    """Makes the run's folder, writes ``config.toml`` into it and returns it.

    Without a ``run_dir`` it is a new folder: of two runs that begin in one second, the second gets
    ``-2`` behind its name. Raises ``ConfigError`` for a ``run_dir`` that holds a finished run or
    that cannot be written.
    """
    folder = Path(config.run_dir or default_name(config, stamp))
    try:
        if config.run_dir:
            if (folder / SUMMARY).exists():
                raise ConfigError(
                    f"run_dir {folder} holds a finished run; choose another --run-dir or remove it"
                )
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _make_new(folder)
        # The file repeats the run from its start, and that must go into another folder.
        keys = {k: v for k, v in config.nested().items() if k not in ("run_dir", "resume")}
        _write(folder / "config.toml", tomli_w.dumps(keys).encode())
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def _cannot_write(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write the run folder {folder}: {error.strerror}; choose another --run-dir"
    )


def _make_new(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there is always another number")


def open_record(folder: Path, rank: int) -> BinaryIO:
    """The file of the record of ``rank``, to be written."""
    (folder / "records").mkdir(exist_ok=True)
    return (folder / "records" / f"rank-{rank}.record").open("wb")


def save_model(folder: Path, params: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes ``model.safetensors``."""
    arrays = {name: np.ascontiguousarray(value) for name, value in params.items()}
    _write(folder / "model.safetensors", save(arrays))


def save_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes ``summary.json``: when it exists, the run has ended well."""
    _write(folder / SUMMARY, (to_json(summary) + "\n").encode())


def sha256(params: Mapping[str, NDArray[np.float32]]) -> str:
    """The digest of all parameters in the order of the layout: equal for equal bits only."""
    digest = hashlib.sha256()
    for value in params.values():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def closing(summary: Mapping[str, Any], folder: Path) -> str:
    """The summary for a person."""
    pushed, pulled = summary["bytes_pushed"] / 1e6, summary["bytes_pulled"] / 1e6
    bound = "none" if summary["staleness_bound"] is None else summary["staleness_bound"]
    lines = [
        f"test accuracy  {summary['test_accuracy']:.4f} (loss {summary['test_loss']:.4f})",
        f"wall time      {summary['seconds']:.2f} s, {summary['steps']} steps, "
        f"{summary['samples_per_second']:,.0f} samples/s",
        f"bytes moved    {pushed:.1f} MB pushed, {pulled:.1f} MB pulled",
        f"staleness      at most {summary['staleness_max']} seen, bound {bound}",
        f"run folder     {folder}",
    ]
    if "commit_wait_s" in summary:
        ms = 1e3 * summary["commit_wait_s"]
        lines.append(f"commit wait    {ms:.3f} ms a round (median)")
    if summary["skipped_steps"]:
        lines.append(f"skipped        {summary['skipped_steps']} steps were not finite")
    return "\n".join(lines)


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing: a file of this name is never half written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
