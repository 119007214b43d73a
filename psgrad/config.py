"""The frozen configuration of a training run: every key, its default, its limits, in one record.

Later sources win: defaults, TOML file, environment, command line, ``--set``. A key has a dotted
name, ``staleness`` or ``model.hidden``; in the environment it is ``PSGRAD_STALENESS`` or
``PSGRAD_MODEL__HIDDEN``. ``model``, ``optimizer``, ``schedule`` and ``outer`` choose an entry of a
table of names by ``name``; the entry's fields are the further keys. The tables are handed in, so
this module knows no model and no optimizer.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from psgrad.errors import ConfigError, unknown_name
from psgrad.kernels import PRECISIONS
from psgrad.layout import SegmentOptions
from psgrad.placement import PLACEMENTS, SPREAD

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

MODES: Final = ("sync", "ssp", "async")
METRICS: Final = ("first", "all")
LOG_LEVELS: Final = ("error", "warning", "info", "debug")
PROGRESS: Final = ("auto", "line", "plain", "off")
DEFAULT_STALENESS: Final = 3
ENVIRONMENT_PREFIX: Final = "PSGRAD_"
# No keys of a run: which MPI the launcher takes, and what it tells the ranks of the screen.
NOT_KEYS: Final = frozenset({"PSGRAD_MPI", "PSGRAD_TERMINAL"})

Tables = Mapping[str, Mapping[str, type]]
"""For each of ``model``, ``optimizer``, ...: name -> the dataclass of its options."""


@dataclass(frozen=True)
class Source:
    """Where keys come from: ``name`` as a person would say it, ``values`` by dotted key."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """An entry of a table of names, with its options filled in."""

    name: str
    value: Any


def _key(default: Any, text: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Config:
    """One run. ``flat`` gives all keys; ``bound`` is what mode and staleness come down to."""

    model: Choice
    dataset: Any
    optimizer: Choice
    schedule: Choice
    outer: Choice | None = None  # of the table, where it is handed in
    segments: tuple[SegmentOptions, ...] = ()
    mode: str = _key("ssp", "sync, ssp (bounded staleness) or async", among=MODES)
    staleness: int | None = _key(None, "staleness bound of ssp (3)", least=0)
    servers: int = _key(1, "server ranks", least=1)
    placement: str = _key(
        SPREAD, "server ranks: spread over the nodes, or the first ones", among=PLACEMENTS
    )
    epochs: int = _key(20, "passes over the training data", least=1)
    batch_size: int = _key(32, "samples in a (micro-)batch of one worker", least=1)
    accumulate: int = _key(1, "micro-batches in one step", least=1)
    local_steps: int = _key(1, "steps that a worker takes by itself between two pushes")
    elastic: float = _key(0.0, "elastic averaging: how far copy and centre move together; 0: off")
    overlap: str = _key(
        "off", "hide communication behind computation, layer by layer", among=("on", "off")
    )
    clip_norm: float | None = _key(None, "clip each worker's gradient to this L2 norm", above=0)
    codec: str = _key("none", "how gradients travel, such as topk:0.01 or int8")
    pull_codec: str = _key("none", "how parameters travel, such as int8 or fp16")
    feedback: str = _key(
        "auto", "what becomes of what a codec does not send: auto, none, ef, ef21, dgc"
    )
    zstd: str = _key("auto", "zstd behind the codec: auto (where it saves time), on, off")
    aggregate: str = _key("mean", "what of a synchronous round is applied, such as median")
    seed: int = _key(1, "of parameters, data split and batches", least=0)
    device: str = _key("auto", "auto, cpu or gpu", among=("auto", "cpu", "gpu"))
    gpu_share: bool = _key(False, "several workers may have one GPU")
    precision: str = _key(
        "float32", "of the factors of matrix products in gradients", among=PRECISIONS
    )
    loss_scale: str = _key("auto", "by what losses are multiplied, such as dynamic:first=1024")
    chunk_bytes: int = _key(0, "bytes of a chunk; 0: the default grid", least=0)
    window: int = _key(8, "unanswered chunks of a worker at one server", least=1)
    reference_bytes: int = _key(4 << 30, "most bytes of pull references on one server", least=0)
    shared_memory: str = _key(
        "auto", "within a node: auto (where it can be), on, off", among=("auto", "on", "off")
    )
    server_threads: int = _key(0, "threads of a server's arithmetic; 0: by its cores", least=0)
    fault_tolerant: bool = _key(False, "go on without workers that die")
    lease: float = _key(30.0, "seconds of silence after which a worker counts as dead", above=0)
    spares: int = _key(0, "ranks that take the places of workers that are lost", least=0)
    rejoin: bool = _key(False, "workers that were shut out may come back")
    replicas: int = _key(
        0, "copies of each server, on another one: 0 or 1; then one may die", least=0
    )
    checkpoint_every: str = _key("", "a checkpoint every so many steps (500) or seconds (600s)")
    checkpoint_dir: str = _key("", "where checkpoints are; empty: RUN_DIR/checkpoints")
    checkpoint_keep: int = _key(2, "how many checkpoints stay", least=1)
    resume: str = _key("", "go on from a checkpoint: auto (the newest, if there is one), a folder")
    stop_signals: tuple[str, ...] = _key(("USR1",), "signals that end a run behind a checkpoint")
    walltime_margin: float = _key(
        0.0, "seconds before the job's end to stop behind a checkpoint; 0: never", least=0
    )
    stall: float = _key(60.0, "seconds without movement until a report comes; 0: never", least=0)
    stall_abort: float = _key(0.0, "seconds without movement that end a run; 0: never", least=0)
    run_dir: str = _key("", "run folder; empty: runs/DATE-MODEL-DATASET-MODE")
    metrics: str = _key("first", "whose steps are kept: first (worker 0), all", among=METRICS)
    log_level: str = _key("info", "what goes to the screen beside the logs", among=LOG_LEVELS)
    progress: str = _key("auto", "auto, line, plain or off", among=PROGRESS)
    json: bool = _key(False, "print the summary as JSON on the last line")
    record: bool = _key(False, "write down what psgrad replay needs to repeat the run")
    simulate: str = _key("", "ranks in one process, without MPI, such as workers=16,latency=2e-5")
    pace: str = _key("constant:seconds=0.01", "how long a simulated step computes")
    inject: tuple[str, ...] = _key((), "planted faults, such as slow:rank=3,factor=5")

    @property
    def bound(self) -> int | None:
        """The staleness bound s: 0 sync, None async."""
        if self.mode == "ssp":
            return DEFAULT_STALENESS if self.staleness is None else self.staleness
        return 0 if self.mode == "sync" else None

    @property
    def local(self) -> bool:
        """Whether workers take steps by themselves."""
        return self.local_steps > 1 or self.elastic > 0

    def flat(self) -> dict[str, Any]:
        """Every key by its dotted name, in TOML's types; keys without a value are left out."""
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Choice):
                values[f"{entry.name}.name"] = value.name
                value = value.value
            if entry.name == "segments":
                values["segments"] = [_plain(dataclasses.asdict(s)) for s in value]
            elif dataclasses.is_dataclass(value):
                for option in dataclasses.fields(value):
                    values[f"{entry.name}.{option.name}"] = _plain(getattr(value, option.name))
            else:
                values[entry.name] = _plain(value)
        return {key: value for key, value in values.items() if value is not None}

    def nested(self) -> dict[str, Any]:
        """``flat`` as tables, scalars first: what a TOML file holds."""
        tree: dict[str, Any] = {}
        for key, value in sorted(self.flat().items(), key=lambda item: "." in item[0]):
            table, _, leaf = key.rpartition(".")
            (tree.setdefault(table, {}) if table else tree)[leaf] = value
        return tree


def resolve(sources: Sequence[Source], tables: Tables, dataset: type) -> Config:
    """The configuration from ``sources``, the later ones winning.

    Raises ``ConfigError`` for an unknown key (naming the nearest), a value of a wrong type or out
    of range, or options that do not go together.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source in sources:
        _forget_options(values, source.values, tables)
        for key, value in source.values.items():
            values[key] = value
            origin[key] = source.name
    hints = typing.get_type_hints(Config)
    arguments: dict[str, Any] = {}
    try:
        for table, names in tables.items():
            arguments[table] = _choose(table, names, values)
        arguments["dataset"] = _build("dataset", dataset, _take(values, "dataset"), "dataset")
        arguments["segments"] = _segments(values.pop("segments", []))
        for entry in dataclasses.fields(Config):
            if entry.metadata and entry.name in values:
                value = _convert(entry.name, values.pop(entry.name), hints[entry.name])
                _check(entry.name, value, entry.metadata)
                arguments[entry.name] = value
        if values:
            key = next(iter(values))
            raise ConfigError(unknown_name("key", key, _known(tables, dataset)))
    except ConfigError as error:
        raise _with_origin(error, origin) from error
    config = Config(**arguments)
    _check_mode(config)
    _check_overlap(config)
    _check_checkpoints(config)
    _check_newcomers(config)
    return config


def from_toml(path: Path) -> Source:
    """The keys of a TOML file; raises ``ConfigError`` when it is missing or malformed."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration file {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return Source(str(path), _flatten(tree))


def from_environment(environ: Mapping[str, str]) -> Source:
    """The keys of the variables that begin with ``PSGRAD_``."""
    values = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."): parse_value(text)
        for name, text in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in NOT_KEYS
    }
    return Source("the environment", _flatten(values))


def from_settings(settings: Iterable[str]) -> Source:
    """The keys of ``--set key=value`` arguments."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes key=value, got {setting!r}")
        values[key.strip()] = parse_value(text)
    return Source("--set", _flatten(values))


def parse_value(text: str) -> Any:
    """A TOML value; what is not one is a string: ``3``, ``[512, 512]``, ``mlp``."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in _flatten(value).items()})
        else:
            # `model = "mlp"` is short for `[model]` with `name = "mlp"`.
            named = key in ("model", "dataset", "optimizer", "schedule", "outer")
            flat[f"{key}.name" if named else key] = value
    return flat


def _forget_options(values: dict[str, Any], later: Mapping[str, Any], tables: Tables) -> None:
    """Drops what earlier sources said of an entry that a later source replaces by another."""
    for table in tables:
        name = f"{table}.name"
        if name in later and name in values and later[name] != values[name]:
            _take(values, table)


def _take(values: dict[str, Any], table: str) -> dict[str, Any]:
    keys = [key for key in values if key.startswith(f"{table}.")]
    return {key.removeprefix(f"{table}."): values.pop(key) for key in keys}


def _choose(table: str, names: Mapping[str, type], values: dict[str, Any]) -> Choice:
    options = _take(values, table)
    name = options.pop("name", next(iter(names)))
    if not isinstance(name, str) or name not in names:
        raise ConfigError(unknown_name(table, name, names))
    return Choice(name, _build(table, names[name], options, f"{table} {name!r}"))


def _build(table: str, kind: type, options: Mapping[str, Any], what: str) -> Any:
    # Python 3.10 takes the marker KW_ONLY for a type that it cannot be.
    hints = typing.get_type_hints(kind, localns={"KW_ONLY": Any})
    known = {entry.name for entry in dataclasses.fields(kind)}
    for key in options:
        if key not in known:
            raise ConfigError(f"{table}.{key}: {unknown_name(f'option of {what}', key, known)}")
    for entry in dataclasses.fields(kind):
        required = entry.default is entry.default_factory is dataclasses.MISSING
        if required and entry.name not in options:
            raise ConfigError(f"{what} needs {table}.{entry.name}; give it a value")
    converted = {key: _convert(f"{table}.{key}", v, hints[key]) for key, v in options.items()}
    return kind(**converted)


def _segments(entries: Any) -> tuple[SegmentOptions, ...]:
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise ConfigError(f"segments must be a list of tables ([[segments]]), got {entries!r}")
    return tuple(
        _build(f"segments[{i}]", SegmentOptions, entry, "a segment")
        for i, entry in enumerate(entries)
    )


def _convert(key: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` says, without guessing: a string is never a number."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(f"{key}[{i}]", v, item) for i, v in enumerate(value))
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{key} must be {_article(hint)}, got {value!r}")
    return value


def _article(hint: Any) -> str:
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return words.get(hint, str(hint))


def _check(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if value is None:
        return
    if "among" in limits and value not in limits["among"]:
        raise ConfigError(unknown_name(key, value, limits["among"]))
    if "least" in limits and value < limits["least"]:
        raise ConfigError(f"{key} must be at least {limits['least']}, got {value}")
    if "above" in limits and not value > limits["above"]:
        raise ConfigError(f"{key} must be above {limits['above']}, got {value}")


def _check_mode(config: Config) -> None:
    if config.mode == "sync" and config.staleness not in (None, 0):
        raise ConfigError(
            f"staleness is 0 in sync mode, got {config.staleness}; use --mode ssp for a bound"
        )
    if config.mode == "async" and config.staleness is not None:
        raise ConfigError(
            f"staleness has no bound in async mode, got {config.staleness}; use --mode ssp"
        )


def _check_overlap(config: Config) -> None:
    if config.overlap == "on" and config.local:
        raise ConfigError(
            "overlap hides the push of each step, local updates push none: use overlap off, or "
            "local_steps 1 and elastic 0"
        )
    if config.overlap == "on" and config.record:
        raise ConfigError(
            "overlap sends what the moment has room for, which a replay cannot repeat: use overlap "
            "off to record"
        )


def _check_checkpoints(config: Config) -> None:
    if config.resume == "auto" and not (config.run_dir or config.checkpoint_dir):
        raise ConfigError(
            "resume auto looks where the run before has written; give its --run-dir, or "
            "--checkpoint-dir"
        )
    if config.record and (config.checkpoint_every or config.resume):
        raise ConfigError(
            "a replay repeats a run from its start, without checkpoints: leave checkpoint_every "
            "and resume out to record"
        )


def _check_newcomers(config: Config) -> None:
    if not (config.spares or config.rejoin):
        return
    key = f"spares {config.spares}" if config.spares else "rejoin"
    if not config.fault_tolerant:
        raise ConfigError(
            f"{key} takes the place of workers that are lost, and without fault_tolerant a loss "
            "ends the run; start it with psgrad run --elastic"
        )
    if config.replicas:
        raise ConfigError(
            f"{key} and replicas {config.replicas} do not go together yet: use one of them, and "
            "checkpoints for the other"
        )
    if config.local:
        raise ConfigError(
            f"{key} goes on with the parameters of the servers, local updates have others: use "
            "local_steps 1 and elastic 0, or spares 0 and no rejoin"
        )
    if config.record:
        raise ConfigError(
            f"{key} has workers come in, which a replay cannot repeat: leave it out to record"
        )


def _known(tables: Tables, dataset: type) -> list[str]:
    keys = [entry.name for entry in dataclasses.fields(Config) if entry.metadata]
    keys += [f"{table}.name" for table in tables] + ["segments"]
    keys += [f"dataset.{entry.name}" for entry in dataclasses.fields(dataset)]
    for table, names in tables.items():
        keys += [f"{table}.{e.name}" for kind in names.values() for e in dataclasses.fields(kind)]
    return sorted(set(keys))


def _with_origin(error: ConfigError, origin: Mapping[str, str]) -> ConfigError:
    """The error with the file or variable that the value came from, where that is not plain."""
    text = str(error)
    for key, source in origin.items():
        table = key.removesuffix(".name")
        begins = (f"{key} ", f"{key}:", f"{key}[", f"unknown key {key!r}", f"unknown {table} ")
        if text.startswith(begins) and source != "the command line":
            return ConfigError(f"{text} (from {source})")
    return error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
