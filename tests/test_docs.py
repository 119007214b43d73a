"""The documents and the code say the same: keys, defaults, options, names, files and scripts."""

from __future__ import annotations

import configparser
import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import psgrad
from psgrad import cli, config, faults
from psgrad.data import DatasetOptions
from psgrad.layout import SegmentOptions
from psgrad.optimizers import OPTIMIZERS
from psgrad.roles import Roles
from psgrad.schedules import SCHEDULES
from psgrad.train import TABLES, configure

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = (ROOT / "docs" / "configuration.rst").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "design.rst").read_text(encoding="utf-8")
README = (ROOT / "README.rst").read_text(encoding="utf-8")
PAGES = [*sorted((ROOT / "docs").glob("*.rst")), ROOT / "README.rst", ROOT / "CHANGES.rst"]

# Defaults that are not values: what the table says instead.
IN_WORDS = {
    "staleness": "3 in ssp",
    "clip_norm": "none",
    "weight_decay": "the optimizer's",
    "members": "all",
}


def rows(options, prefix="", only_with_metadata=False):
    """(key, default) of the fields of a dataclass that are keys."""
    return [
        (prefix + entry.name, entry.default)
        for entry in dataclasses.fields(options)
        if entry.metadata or not only_with_metadata
    ]


TABLE_ROWS = [
    *rows(config.Config, only_with_metadata=True),
    *rows(TABLES["model"]["mlp"], "model."),
    *rows(TABLES["model"]["transformer"], "model."),
    *rows(DatasetOptions, "dataset."),
    *rows(SegmentOptions),
]


def written(key: str, default: object) -> str:
    """How the page writes a default."""
    if default is None:
        return IN_WORDS[key]
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f'``"{default}"``'
    if isinstance(default, tuple):
        return f"``{list(default)}``"
    return str(default) if isinstance(default, int) else f"{default:g}"


@pytest.mark.parametrize(("key", "default"), TABLE_ROWS, ids=[key for key, _ in TABLE_ROWS])
def test_each_key_is_in_a_table_with_its_default(key, default):
    cells = re.findall(rf"\* - ``{re.escape(key)}``\n +- (.*)\n", CONFIGURATION)
    assert written(key, default) in cells


@pytest.mark.parametrize("option", cli.OPTIONS)
def test_each_option_is_with_its_key(option):
    key = cli.OPTIONS[option][0]
    after = CONFIGURATION.partition(f"``{key}``")[2]
    assert f"``{option}``" in after[:400]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_listed_with_its_keys_and_defaults(name):
    found = re.search(rf"^``{name}`` .*(\n  .*)*", CONFIGURATION, re.MULTILINE)
    assert found
    row = found[0]
    if name == "adamw":
        row += re.search(r"^``adam`` .*(\n  .*)*", CONFIGURATION, re.MULTILINE)[0]
    for entry in dataclasses.fields(OPTIMIZERS[name]):
        if entry.name == "learning_rate":
            assert row.split()[1] == f"{entry.default:g}"
        elif entry.name != "weight_decay" or entry.default:
            text = f"{entry.default:g}".replace("e-0", "e-")
            assert f"``optimizer.{entry.name}`` {text}" in " ".join(row.split())


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_is_listed_with_its_keys_and_defaults(name):
    assert f"``{name}``" in CONFIGURATION
    for entry in dataclasses.fields(SCHEDULES[name]):
        default = "" if entry.default is dataclasses.MISSING else f" {entry.default:g}"
        assert f"``schedule.{entry.name}``{default}" in CONFIGURATION


@pytest.mark.parametrize("table", TABLES)
def test_the_default_of_each_table_is_said(table):
    first = next(iter(TABLES[table]))
    after = " ".join(CONFIGURATION.partition(f"``{table}.name``")[2].split())
    assert re.match(rf"[^.]*``{first}`` \(the default", after)


def test_each_fault_is_one_that_can_be_planted():
    examples = re.findall(r"^``(\w+:[\w=,]+)``", CONFIGURATION, re.MULTILINE)
    assert {faults.parse(text, Roles(4, 1)).kind for text in examples} == set(faults.KINDS)


def test_the_toml_example_is_a_configuration(tmp_path):
    block = re.search(r"code-block:: toml\n\n((?:   .*\n|\n)+)", CONFIGURATION)
    file = tmp_path / "config.toml"
    file.write_text(re.sub(r"^   ", "", block[1], flags=re.MULTILINE), encoding="utf-8")
    resolved = configure([config.from_toml(file)])
    assert (resolved.model.name, resolved.schedule.name) == ("softmax", "cosine")
    assert resolved.segments == (SegmentOptions("*.bias", weight_decay=0.0),)


def test_the_script_of_the_readme_is_the_example():
    block = re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", README)
    script = re.sub(r"^   ", "", block[1], flags=re.MULTILINE).strip()
    example = (ROOT / "examples" / "linear_regression.py").read_text(encoding="utf-8")
    assert script == example.strip()


@pytest.mark.parametrize("name", sorted(set(psgrad.__all__) - {"Session", "__version__"}))
def test_each_public_name_is_on_the_page_of_the_interface(name):
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. auto\w+:: {name}(\(\))?$", page, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"``((?:psgrad|docs|examples|bin|tests)/[\w./-]+)``", text):
        assert (ROOT / path).exists(), path
    for document in re.findall(r":doc:`(\w+)`", text):
        assert (ROOT / "docs" / f"{document}.rst").exists(), document


def test_each_function_that_the_design_names_exists():
    # What needs an extra stays out.
    extra = ("psgrad.__main__", "psgrad.kernels.cuda", "psgrad.kernels.compiled")
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.iter_modules(psgrad.__path__, "psgrad.")
        if info.name not in extra
    ]
    for package in [module for module in modules if hasattr(module, "__path__")]:
        modules += [
            importlib.import_module(info.name)
            for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
            if info.name not in extra
        ]
    known = {name: thing for module in modules for name, thing in vars(module).items()}
    known |= {module.__name__.rpartition(".")[2]: module for module in modules}
    named = re.findall(r"``([A-Za-z]\w+)\.(_?[a-z]\w+)``", DESIGN)
    named = [(owner, name) for owner, name in named if name != "py"]
    assert len(named) > 15
    for owner, name in named:
        if owner == "worker":  # a worker, as a script has it
            owner = "Worker"
        if owner != "kernels":  # a protocol's attribute
            assert hasattr(known[owner], name), f"{owner}.{name}"


def test_each_dependency_has_its_reason():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    page = (ROOT / "docs" / "dependencies.rst").read_text(encoding="utf-8")
    requirements = setup["options"]["install_requires"].split("\n")
    extras = setup["options.extras_require"]
    requirements += [line for name in ("test", "docs") for line in extras[name].split("\n")]
    for requirement in filter(None, requirements):
        name = re.match(r"[\w-]+", requirement)[0]
        assert f"``{name}``" in page
    for extra in extras:
        assert f"``{extra}``" in page
