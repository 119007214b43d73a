"""The configuration: sources and their order, types and limits, texts, round trips.

The tables of names are the test's own: what is true of them is true of any.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import KW_ONLY, dataclass

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psgrad import config
from psgrad.config import (
    MODES,
    PROGRESS,
    Choice,
    Config,
    Source,
    from_environment,
    from_settings,
    from_toml,
    parse_value,
    resolve,
)
from psgrad.errors import ConfigError
from psgrad.layout import SegmentOptions


@dataclass(frozen=True)
class Net:
    hidden: tuple[int, ...] = (64, 32)
    activation: str = "relu"

    def __post_init__(self):
        if not all(width > 0 for width in self.hidden):
            raise ConfigError(f"hidden widths must be at least 1, got {list(self.hidden)}")


@dataclass(frozen=True)
class Flat:
    bias: bool = True


@dataclass(frozen=True)
class Descent:
    learning_rate: float = 0.1
    _: KW_ONLY
    decay: float | None = None


@dataclass(frozen=True)
class Decay:
    every: int
    gamma: float = 0.5


@dataclass(frozen=True)
class Constant:
    pass


@dataclass(frozen=True)
class Data:
    name: str = "digits"
    fraction: float = 0.2
    classes: int | None = None


TABLES = {
    "model": {"net": Net, "flat": Flat},
    "optimizer": {"descent": Descent},
    "schedule": {"constant": Constant, "decay": Decay},
}


def make(*sources, **values):
    """From sources and then from keys, where ``__`` stands for the dot."""
    given_here = Source("the command line", {k.replace("__", "."): v for k, v in values.items()})
    return resolve([*sources, given_here], TABLES, Data)


def refusal(*sources, **values):
    with pytest.raises(ConfigError) as caught:
        make(*sources, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KEYS = [entry for entry in dataclasses.fields(Config) if entry.metadata]


# Defaults and sources


def test_the_defaults():
    made = make()
    assert made.model == Choice("net", Net())
    assert made.optimizer == Choice("descent", Descent())
    assert made.schedule == Choice("constant", Constant())
    assert made.dataset == Data()
    assert made.segments == ()
    assert (made.mode, made.staleness, made.bound) == ("ssp", None, 3)
    for entry in KEYS:
        assert getattr(made, entry.name) == entry.default


@pytest.mark.parametrize("key", [entry.name for entry in KEYS])
def test_every_key_has_help(key):
    text = next(entry for entry in KEYS if entry.name == key).metadata["help"]
    assert text.strip() == text != ""
    assert "\n" not in text


def test_every_default_is_within_its_limits():
    for entry in KEYS:
        assert getattr(make(**{entry.name: entry.default}), entry.name) == entry.default


def test_later_sources_win_key_by_key():
    sources = [
        Source("file", {"seed": 1, "epochs": 1, "servers": 1, "batch_size": 1}),
        Source("the environment", {"epochs": 2, "servers": 2, "batch_size": 2}),
        Source("the command line", {"servers": 3, "batch_size": 3}),
        Source("--set", {"batch_size": 4}),
    ]
    made = resolve(sources, TABLES, Data)
    assert (made.seed, made.epochs, made.servers, made.batch_size) == (1, 2, 3, 4)


def test_the_same_key_in_every_kind_of_source(tmp_path):
    (tmp_path / "a.toml").write_text("model = 'net'\n[optimizer]\nlearning_rate = 0.5\n")
    sources = [
        from_toml(tmp_path / "a.toml"),
        from_environment({"PSGRAD_OPTIMIZER__LEARNING_RATE": "0.5", "PSGRAD_MODEL": "net"}),
        from_settings(["optimizer.learning_rate=0.5", "model=net"]),
    ]
    for source in sources:
        assert source.values == {"optimizer.learning_rate": 0.5, "model.name": "net"}


# TOML files


def toml(tmp_path, text, name="run.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return from_toml(path)


def test_tables_and_dotted_keys_of_a_file_are_the_same(tmp_path):
    texts = [
        "[model]\nname = 'net'\nhidden = [3]\n",
        "model.name = 'net'\nmodel.hidden = [3]\n",
        "model = {name = 'net', hidden = [3]}\n",
        "'model.name' = 'net'\n'model.hidden' = [3]\n",
    ]
    assert {str(toml(tmp_path, text).values) for text in texts} == {
        "{'model.name': 'net', 'model.hidden': [3]}"
    }


@pytest.mark.parametrize("key", ["model", "dataset", "optimizer", "schedule"])
def test_a_name_alone_is_short_for_its_table(tmp_path, key):
    assert toml(tmp_path, f"{key} = 'x'").values == {f"{key}.name": "x"}


def test_segments_of_a_file(tmp_path):
    text = "[[segments]]\nmatch = 'b*'\nweight_decay = 0\n[[segments]]\nmembers = [1, 0]\n"
    assert make(toml(tmp_path, text)).segments == (
        SegmentOptions("b*", weight_decay=0.0),
        SegmentOptions("*", members=(0, 1)),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = ", "(at end of document)"),
        ("seed = 1\nseed = 2\n", "(at line 2, column 9)"),
        ("a b", "(at line 1, column 3)"),
        (b"seed = '\xff'", "cannot read configuration file"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(tmp_path, text, problem):
    with pytest.raises(ConfigError) as caught:
        toml(tmp_path, text)
    assert str(tmp_path / "run.toml") in str(caught.value)
    assert problem in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"configuration file .*none\.toml does not exist"):
        from_toml(tmp_path / "none.toml")


def test_a_folder_for_a_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read configuration file"):
        from_toml(tmp_path)


# The environment and --set


def test_variables_with_our_prefix_are_keys():
    source = from_environment(
        {
            "PSGRAD_BATCH_SIZE": "64",
            "PSGRAD_MODEL__HIDDEN": "[512, 512]",
            "PSGRAD_DATASET": "my data.csv",
            "PSGRAD_MPI": "system",
            "PATH": "/bin",
            "OTHER_PSGRAD_SEED": "1",
        }
    )
    assert source.values == {
        "batch_size": 64,
        "model.hidden": [512, 512],
        "dataset.name": "my data.csv",
    }


def test_a_variable_that_is_no_key():
    text = refusal(from_environment({"PSGRAD_BATCHSIZE": "64"}))
    assert text.startswith("unknown key 'batchsize'; did you mean 'batch_size'?")
    assert text.endswith("(from the environment)")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-3", 0.001),
        ("0.5", 0.5),
        ("true", True),
        ("[512, 512]", [512, 512]),
        ("[]", []),
        ('"3"', "3"),
        ("'a b'", "a b"),
        ("mlp", "mlp"),
        ("True", "True"),
        ("", ""),
        ("a b", "a b"),
        ("slow:rank=3,factor=5", "slow:rank=3,factor=5"),
        ("/tmp/x y", "/tmp/x y"),
        ("1.2.3", "1.2.3"),
        ("{a = 1}", {"a": 1}),
    ],
)
def test_a_value_is_toml_or_else_a_string(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("seed=3", {"seed": 3}),
        (" seed = 3", {"seed": 3}),
        ("run_dir=a=b", {"run_dir": "a=b"}),
        ("run_dir=", {"run_dir": ""}),
        ("model=net", {"model.name": "net"}),
        ("model={name='net', hidden=[3]}", {"model.name": "net", "model.hidden": [3]}),
    ],
)
def test_a_setting(setting, values):
    assert from_settings([setting]).values == values


def test_the_last_setting_wins():
    assert make(from_settings(["seed=1", "seed=2"])).seed == 2


@pytest.mark.parametrize("setting", ["seed", "", "=3", " =3"])
def test_a_setting_without_a_key_or_a_value(setting):
    with pytest.raises(ConfigError, match="--set takes key=value, got"):
        from_settings([setting])


# What is refused


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("batch_sizes", "unknown key 'batch_sizes'; did you mean 'batch_size'"),
        ("stalness", "unknown key 'stalness'; did you mean 'staleness'"),
        ("optimiser__learning_rate", "unknown key 'optimiser.learning_rate'; did you mean 'optim"),
        ("dataset__fractoin", "dataset.fractoin: unknown option of dataset 'fractoin'; did you m"),
        ("model__hiden", "model.hiden: unknown option of model 'net' 'hiden'; did you mean 'hid"),
        ("model__bias", "model.bias: unknown option of model 'net' 'bias'. Known: activation, hi"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, text):
    assert refusal(**{key: 1}).startswith(text)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model__name": "nett"}, "unknown model 'nett'; did you mean 'net'? Known: flat, net"),
        ({"model__name": 3}, "unknown model 3. Known: flat, net"),
        ({"model__name": ["net"]}, "unknown model ['net']"),
        ({"schedule__name": {"a": 1}}, "unknown schedule {'a': 1}"),
        ({"optimizer__name": "adam"}, "unknown optimizer 'adam'. Known: descent"),
        ({"mode": "synk"}, "unknown mode 'synk'; did you mean 'sync'"),
        ({"progress": "none"}, "unknown progress 'none'"),
        ({"device": "cuda"}, "unknown device 'cuda'"),
    ],
)
def test_an_unknown_name(values, text):
    assert refusal(**values).startswith(text)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"seed": "3"}, "seed must be an integer, got '3'"),
        ({"seed": 3.0}, "seed must be an integer, got 3.0"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"seed": [3]}, "seed must be an integer, got [3]"),
        ({"json": 1}, "json must be true or false, got 1"),
        ({"mode": ["sync"]}, "mode must be a string, got ['sync']"),
        ({"run_dir": 7}, "run_dir must be a string, got 7"),
        ({"staleness": "many"}, "staleness must be an integer, got 'many'"),
        ({"clip_norm": "1"}, "clip_norm must be a number, got '1'"),
        ({"clip_norm": True}, "clip_norm must be a number, got True"),
        ({"inject": "slow:rank=1,factor=2"}, "inject must be a list, got 'slow:rank=1,factor=2'"),
        ({"inject": ["a", 3]}, "inject[1] must be a string, got 3"),
        ({"model__hidden": 3}, "model.hidden must be a list, got 3"),
        ({"model__hidden": [3, "4"]}, "model.hidden[1] must be an integer, got '4'"),
        ({"optimizer__learning_rate": "0.1"}, "optimizer.learning_rate must be a number, got '0.1"),
        ({"optimizer__learning_rate": 10**400}, "optimizer.learning_rate must be a number, got 1"),
        ({"dataset__name": 3}, "dataset.name must be a string, got 3"),
        ({"dataset__classes": 2.5}, "dataset.classes must be an integer, got 2.5"),
        ({"segments": {"match": "b"}}, "segments must be a list of tables ([[segments]]), got {"),
        ({"segments": [3]}, "segments must be a list of tables ([[segments]]), got [3]"),
        ({"segments": [{}, {"buffer": 1}]}, "segments[1].buffer must be true or false, got 1"),
        ({"segments": [{"bufer": True}]}, "segments[0].bufer: unknown option of a segment 'bufer'"),
        ({"segments": [{"weight_decay": -1}]}, "weight_decay of segment '*' must be"),
    ],
)
def test_a_wrong_type(values, text):
    assert refusal(**values).startswith(text)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("staleness", -1, "staleness must be at least 0, got -1"),
        ("servers", 0, "servers must be at least 1, got 0"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("accumulate", 0, "accumulate must be at least 1, got 0"),
        ("clip_norm", 0, "clip_norm must be above 0, got 0.0"),
        ("clip_norm", -1.5, "clip_norm must be above 0, got -1.5"),
        ("clip_norm", math.nan, "clip_norm must be above 0, got nan"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("chunk_bytes", -1, "chunk_bytes must be at least 0, got -1"),
        ("window", 0, "window must be at least 1, got 0"),
        ("reference_bytes", -1, "reference_bytes must be at least 0, got -1"),
        ("checkpoint_keep", 0, "checkpoint_keep must be at least 1, got 0"),
        ("lease", 0, "lease must be above 0, got 0.0"),
        ("spares", -1, "spares must be at least 0, got -1"),
        ("replicas", -1, "replicas must be at least 0, got -1"),
        ("server_threads", -1, "server_threads must be at least 0, got -1"),
        ("walltime_margin", -1, "walltime_margin must be at least 0, got -1.0"),
        ("stall", -1, "stall must be at least 0, got -1.0"),
        ("stall_abort", -1, "stall_abort must be at least 0, got -1.0"),
    ],
)
def test_a_value_out_of_range(key, value, text):
    assert refusal(**{key: value}) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"spares": 1}, "spares 1 takes the place of workers that are lost, and without"),
        ({"rejoin": True}, "rejoin takes the place of workers that are lost, and without"),
        ({"rejoin": True, "fault_tolerant": True, "local_steps": 4}, "local updates have others"),
        ({"spares": 2, "fault_tolerant": True, "record": True}, "spares 2 has workers come in"),
    ],
)
def test_newcomers_where_there_can_be_none(options, text):
    assert text in refusal(**options)


def test_every_limit_is_tested():
    marks = test_a_value_out_of_range.pytestmark[0].args[1]
    limited = {e.name for e in KEYS if {"least", "above"} & e.metadata.keys()}
    assert {key for key, _, _ in marks} == limited


def test_the_errors_of_the_options_come_through():
    assert refusal(model__hidden=[3, 0]) == "hidden widths must be at least 1, got [3, 0]"


def test_an_option_without_a_default_must_be_given():
    assert refusal(schedule__name="decay") == (
        "schedule 'decay' needs schedule.every; give it a value"
    )
    assert make(schedule__name="decay", schedule__every=3).schedule.value == Decay(3)


def test_a_whole_number_is_a_number_too():
    made = make(optimizer__learning_rate=1, clip_norm=2)
    assert type(made.optimizer.value.learning_rate) is type(made.clip_norm) is float


@pytest.mark.parametrize(
    ("mode", "staleness", "bound"),
    [
        ("sync", None, 0),
        ("sync", 0, 0),
        ("ssp", None, 3),
        ("ssp", 0, 0),
        ("ssp", 7, 7),
        ("async", None, None),
    ],
)
def test_mode_and_staleness(mode, staleness, bound):
    assert make(mode=mode, staleness=staleness).bound == bound


@pytest.mark.parametrize(
    ("mode", "staleness", "text"),
    [
        ("sync", 3, "staleness is 0 in sync mode, got 3; use --mode ssp for a bound"),
        ("async", 0, "staleness has no bound in async mode, got 0; use --mode ssp"),
        ("async", 3, "staleness has no bound in async mode, got 3; use --mode ssp"),
    ],
)
def test_mode_and_staleness_that_do_not_go_together(mode, staleness, text):
    assert refusal(mode=mode, staleness=staleness) == text


# Where a wrong value comes from


@pytest.mark.parametrize(
    "values",
    [
        {"seed": "x"},
        {"sed": 1},
        {"mode": "synk"},
        {"model.name": "nett"},
        {"model.hiden": 3},
        {"model.hidden": [3, "4"]},
        {"segments": [{"bufer": True}]},
    ],
)
def test_an_error_names_the_source(values):
    assert refusal(Source("FILE", values), epochs=2).endswith(" (from FILE)")


def test_the_source_that_wins_is_the_one_that_is_named():
    text = refusal(Source("FILE", {"seed": "a"}), Source("the environment", {"seed": "b"}))
    assert text == "seed must be an integer, got 'b' (from the environment)"
    assert refusal(Source("FILE", {"seed": "a"}), seed="b") == "seed must be an integer, got 'b'"


@pytest.mark.parametrize(
    ("innocent", "guilty"),
    [
        ({"mode": "sync"}, {"model__hiden": 3}),
        ({"mode": "sync"}, {"model__hidden": "x"}),
        ({"model.name": "net"}, {"model__hidden": "x"}),
        ({"seed": 1}, {"seeds": 3}),
    ],
)
def test_a_source_is_not_blamed_for_a_key_that_only_begins_alike(innocent, guilty):
    assert "FILE" not in refusal(Source("FILE", innocent), **guilty)


# Round trips

names = st.text(min_size=1, max_size=8)
finite = st.floats(0, 1e6, allow_nan=False)
segments = st.fixed_dictionaries(
    {},
    optional={
        "match": names,
        "learning_rate_scale": finite,
        "weight_decay": finite,
        "buffer": st.booleans(),
        "members": st.lists(st.integers(0, 9), min_size=1, max_size=3),
    },
)
models = st.one_of(
    st.fixed_dictionaries(
        {"model.name": st.just("net")},
        optional={
            "model.hidden": st.lists(st.integers(1, 99), max_size=3),
            "model.activation": names,
        },
    ),
    st.fixed_dictionaries({"model.name": st.just("flat")}, optional={"model.bias": st.booleans()}),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "optimizer.learning_rate": finite,
        "dataset.name": names,
        "dataset.fraction": finite,
        "dataset.classes": st.integers(2, 9),
        "segments": st.lists(segments, max_size=3),
        "mode": st.sampled_from(MODES),
        "servers": st.integers(1, 99),
        "clip_norm": st.floats(1e-9, 1e9),
        "seed": st.integers(0, 2**63 - 1),
        "run_dir": st.text(max_size=8),
        "progress": st.sampled_from(PROGRESS),
        "json": st.booleans(),
        "inject": st.lists(names, max_size=2),
    },
)


@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(models, others)
def test_what_a_configuration_says_makes_it_again(tmp_path, model, other):
    made = make(Source("test", {**model, **other}))
    assert make(Source("flat", made.flat())) == made
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(made.nested()), encoding="utf-8")
    assert make(from_toml(path)) == made


def test_flat_has_every_key_that_has_a_value():
    flat = make(staleness=2, clip_norm=1).flat()
    assert flat.keys() == {entry.name for entry in KEYS} | {
        "segments",
        "model.name",
        "model.hidden",
        "model.activation",
        "optimizer.name",
        "optimizer.learning_rate",
        "schedule.name",
        "dataset.name",
        "dataset.fraction",
    }
    assert "staleness" not in make().flat()


def test_scalars_come_before_tables():
    tree = make(segments=[{"match": "b"}]).nested()
    tables = [isinstance(value, dict) for value in tree.values()]
    assert tables == sorted(tables)
    assert tree["model"] == {"name": "net", "hidden": [64, 32], "activation": "relu"}


def test_a_configuration_is_a_frozen_value():
    assert make() == make()
    assert make() != make(seed=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 3


def test_modes_and_styles_are_what_the_limits_say():
    hints = typing.get_type_hints(Config)
    assert hints["staleness"] == int | None
    limits = {entry.name: entry.metadata.get("among") for entry in KEYS}
    assert (limits["mode"], limits["progress"]) == (config.MODES, config.PROGRESS)
