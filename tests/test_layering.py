"""Every module of the package keeps the rules of ``house``, and the rules see what breaks them."""

from __future__ import annotations

import ast

import pytest
from house import (
    HOUSE,
    PLACE,
    RULES,
    Source,
    finds_modules_by_import_only,
    has_no_state_of_a_module,
    imports_strictly_down,
    keeps_cupy_in_its_place,
    keeps_mpi_in_its_place,
    knows_no_time_and_no_threads,
    leaves_the_environment_alone,
    pickles_nothing,
    sources,
    stands_in_the_house,
)


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house(rule, source):
    assert [f"{source.file}:{line}: {text}" for line, text in rule(source)] == []


def test_the_table_has_no_room_without_a_module():
    assert PLACE.keys() <= {source.room for source in sources()}


def test_no_room_is_in_the_table_twice():
    assert len(PLACE) == sum(len(row.rooms.split()) for row in HOUSE)


def test_floors_rise():
    floors = [row.floor for row in HOUSE]
    assert floors == sorted(floors)


# The rules themselves: planted faults are seen, and what is allowed is not taken for one


PLANTED = [
    (stands_in_the_house, "newcomer", ""),
    (stands_in_the_house, "newcomer.inner", ""),
    (imports_strictly_down, "layout", "from psgrad.shard import Shard"),
    (imports_strictly_down, "layout", "import psgrad.shard"),
    (imports_strictly_down, "layout", "from psgrad import shard"),
    (imports_strictly_down, "layout", "def f():\n    from psgrad import shard"),
    (imports_strictly_down, "layout", "if TYPE_CHECKING:\n    from psgrad.shard import Shard"),
    (imports_strictly_down, "layout", "from psgrad.messages import Header"),
    (imports_strictly_down, "layout", "from psgrad.arrays import Arrays"),
    (imports_strictly_down, "layout", "from .errors import ConfigError"),
    (imports_strictly_down, "layout", "from . import errors"),
    (imports_strictly_down, "layout", "import psgrad"),
    (imports_strictly_down, "layout", "from psgrad import __version__"),
    (imports_strictly_down, "data.csv", "from psgrad.models import MLP"),
    (imports_strictly_down, "optimizers", "from psgrad.update import Updater"),
    (imports_strictly_down, "guard", "from psgrad.transport import Transport"),
    (imports_strictly_down, "transport", "from psgrad.schedules import Constant"),
    (imports_strictly_down, "transport.mpi", "from psgrad.links import ServerLinks"),
    (imports_strictly_down, "server", "from psgrad.worker import Worker"),
    (imports_strictly_down, "train", "from psgrad.cli import main"),
    (imports_strictly_down, "__init__", "from psgrad.layout import SegmentOptions"),
    (finds_modules_by_import_only, "worker", "import importlib\nimportlib.import_module('x')"),
    (finds_modules_by_import_only, "worker", "from importlib import import_module as f\nf('x')\n"
                                             "import_module"),
    (finds_modules_by_import_only, "worker", "__import__('psgrad.cli')"),
    (keeps_mpi_in_its_place, "worker", "from mpi4py import MPI"),
    (keeps_mpi_in_its_place, "worker", "def f():\n    from mpi4py import MPI"),
    (keeps_mpi_in_its_place, "transport", "def f():\n    import mpi4py.MPI"),
    (keeps_mpi_in_its_place, "transport.mpi", "from mpi4py import MPI"),
    (keeps_mpi_in_its_place, "transport.mpi", "if TYPE_CHECKING:\n    pass\nelse:\n"
                                              "    from mpi4py import MPI"),
    (keeps_cupy_in_its_place, "models.mlp", "import cupy"),
    (keeps_cupy_in_its_place, "models.mlp", "def f():\n    import cupyx.scipy"),
    (keeps_cupy_in_its_place, "kernels", "from psgrad.kernels.cuda import gelu"),
    (keeps_cupy_in_its_place, "kernels", "from psgrad.kernels import cuda"),
    (knows_no_time_and_no_threads, "optimizers", "import time"),
    (knows_no_time_and_no_threads, "data.csv", "def f():\n    from time import sleep"),
    (knows_no_time_and_no_threads, "session", "import threading"),
    (knows_no_time_and_no_threads, "worker", "from concurrent.futures import Future"),
    (knows_no_time_and_no_threads, "checkpoint.store", "import threading"),
    (knows_no_time_and_no_threads, "checkpoint.writer", "import time"),
    (leaves_the_environment_alone, "session", "import os\nos.environ['HOME']"),
    (leaves_the_environment_alone, "launch", "import os\nos.getenv('HOME')"),
    (leaves_the_environment_alone, "config", "from os import environ"),
    (pickles_nothing, "metrics", "import pickle"),
    (pickles_nothing, "metrics", "def f():\n    from pickle import loads"),
    (pickles_nothing, "data.npz", "np.load(path, allow_pickle=True)"),
    (pickles_nothing, "data.npz", "np.load(path, allow_pickle=flag)"),
    (pickles_nothing, "transport.mpi", "self._comm.allgather(1)"),
    (pickles_nothing, "transport.mpi", "mpi.COMM_WORLD.bcast(1)"),
    (pickles_nothing, "session", "comm.send(x, 1)"),
    (has_no_state_of_a_module, "shard", "TABLE = {}"),
    (has_no_state_of_a_module, "shard", "TABLE: Final = {'a': 1}"),
    (has_no_state_of_a_module, "shard", "names = ['a']"),
    (has_no_state_of_a_module, "shard", "names = {'a'}"),
    (has_no_state_of_a_module, "shard", "names = [n for n in 'abc']"),
    (has_no_state_of_a_module, "shard", "table = dict(a=1)"),
    (has_no_state_of_a_module, "shard", "cells = np.zeros(3)"),
    (has_no_state_of_a_module, "shard", "shared = Shard()"),
    (has_no_state_of_a_module, "shard", "@dataclass\nclass A: ...\n\nB = A(1)"),
    (has_no_state_of_a_module, "shard", "@dataclass(frozen=True)\nclass A: ...\n\nB = A([])"),
    (has_no_state_of_a_module, "shard", "pair = (1, [2])"),
    (has_no_state_of_a_module, "shard", "TABLE = MappingProxyType({'a': []})"),
    (has_no_state_of_a_module, "shard", "TABLE = MappingProxyType({'a': 1, **other()})"),
    (has_no_state_of_a_module, "shard", "count = 0\ncount += 1"),
    (has_no_state_of_a_module, "shard", "if True:\n    seen = set()"),
    (has_no_state_of_a_module, "shard", "try:\n    pass\nexcept E:\n    seen = set()"),
    (has_no_state_of_a_module, "shard", "class A:\n    seen = []"),
    (has_no_state_of_a_module, "shard", "class A:\n    class B:\n        seen: ClassVar = {}"),
    (has_no_state_of_a_module, "shard", "class A:\n    seen: list = field(default=[])"),
    (has_no_state_of_a_module, "shard", "def f():\n    global x\n    x = 1"),
    (has_no_state_of_a_module, "shard", "@functools.lru_cache(8)\ndef f(): ..."),
    (has_no_state_of_a_module, "shard", "class A:\n    @cache\n    def f(self): ..."),
]  # fmt: skip

INNOCENT = [
    (imports_strictly_down, "update", "from psgrad.optimizers import SGD"),
    (imports_strictly_down, "data.csv", "from psgrad.data.files import reading"),
    (imports_strictly_down, "links", "from psgrad.transport import Transport"),
    (imports_strictly_down, "transport.mpi", "from psgrad.messages import Header"),
    (imports_strictly_down, "cli", "import numpy\nfrom psgrad import config"),
    (imports_strictly_down, "__init__", "if TYPE_CHECKING:\n    from psgrad.session import run"),
    (imports_strictly_down, "__init__", "from psgrad.version import __version__"),
    (finds_modules_by_import_only, "__init__", "from importlib import import_module"),
    (finds_modules_by_import_only, "kernels.cuda", "from importlib import resources"),
    (keeps_mpi_in_its_place, "train", "if TYPE_CHECKING:\n    from mpi4py import MPI"),
    (keeps_mpi_in_its_place, "transport.mpi", "def f():\n    from mpi4py import MPI"),
    (keeps_cupy_in_its_place, "kernels.cuda", "import cupy"),
    (keeps_cupy_in_its_place, "kernels", "def load():\n    from psgrad.kernels import cuda"),
    (knows_no_time_and_no_threads, "cli", "import time"),
    (knows_no_time_and_no_threads, "checkpoint.writer", "import threading"),
    (knows_no_time_and_no_threads, "transport.mpi", "import time"),
    (leaves_the_environment_alone, "cli", "import os\nos.environ"),
    (leaves_the_environment_alone, "config", "import os\nos.replace(a, b)"),
    (leaves_the_environment_alone, "config", "def f(environ):\n    return environ['HOME']"),
    (pickles_nothing, "data.npz", "np.load(path, allow_pickle=False)"),
    (pickles_nothing, "transport.mpi", "self._comm.Allgather(a, b)\nself._comm.Isend(a)"),
    (pickles_nothing, "server", "self._transport.send(peer, header)"),
    (has_no_state_of_a_module, "shard", "__all__ = ['a']"),
    (has_no_state_of_a_module, "shard", "N: Final = 3 << 10\nT = f'{N}'\nAlias = dict[str, int]"),
    (has_no_state_of_a_module, "shard", "N = ('a', *OTHERS)\nF = lambda x: [x]\nT = TypeVar('T')"),
    (has_no_state_of_a_module, "shard", "TABLE = MappingProxyType({'a': (1, 2), 'b': SGD})"),
    (has_no_state_of_a_module, "shard", "T = MappingProxyType({**dict.fromkeys('ab', 1), 'c': 2})"),
    (has_no_state_of_a_module, "shard", "@dataclass(frozen=True)\nclass A: ...\n\nB = A(1)"),
    (has_no_state_of_a_module, "shard", "S = frozenset({1, 2})\nR = tuple(n for n in 'abc')"),
    (has_no_state_of_a_module, "shard", "class A:\n    x: list = field(default_factory=list)"),
    (has_no_state_of_a_module, "shard", "def f():\n    seen = []\n    return seen"),
    (has_no_state_of_a_module, "shard", "class A:\n    def f(self):\n        self.x = {}"),
    (has_no_state_of_a_module, "shard", "class A:\n    @cached_property\n    def f(self): ..."),
    (has_no_state_of_a_module, "cli", "TABLE = {}"),
    (has_no_state_of_a_module, "transport.mpi", "TABLE = {}"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "name", "text"), PLANTED)
def test_a_planted_fault_is_seen(rule, name, text):
    assert list(rule(Source(name, ast.parse(text))))


@pytest.mark.parametrize(("rule", "name", "text"), INNOCENT)
def test_what_is_allowed_is_not_taken_for_a_fault(rule, name, text):
    assert list(rule(Source(name, ast.parse(text)))) == []


def test_every_rule_has_been_broken_and_kept():
    assert {rule for rule, _, _ in PLANTED} == set(RULES)
    assert {rule for rule, _, _ in INNOCENT} == set(RULES) - {stands_in_the_house}


def test_lines_are_those_of_the_fault():
    source = Source("layout", ast.parse("import json\n\n\ndef f():\n    import psgrad.shard\n"))
    assert list(imports_strictly_down(source)) == [(5, "imports shard, which is not below it")]
