"""Nothing that psgrad reads is ever run: no pickle and the like, in any source of the checkout."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from loaders import MODULES, loads_code

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("psgrad", "bin", "benchmarks", "examples")


def files(folder):
    found = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return sorted(p for p in found if p.suffix in (".py", ""))


def is_python(path):
    return path.suffix == ".py" or "python" in path.read_text(encoding="utf-8").split("\n")[0]


SOURCES = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in files(folder)}


def test_every_folder_is_looked_at():
    assert {name.partition("/")[0] for name in SOURCES} == set(FOLDERS)
    assert "bin/psgrad" in SOURCES
    assert "benchmarks/network/__main__.py" in SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_loads_code(name):
    text = SOURCES[name].read_text(encoding="utf-8")
    if is_python(SOURCES[name]):
        assert [f"{name}:{line}: {text}" for line, text in loads_code(ast.parse(text))] == []
    else:  # of the shell: what it has of Python is a few words
        assert not re.search(rf"\b({'|'.join(MODULES)}|eval|exec\()\b", text)


PLANTED = [
    *(f"import {module}" for module in sorted(MODULES)),
    "def f():\n    from pickle import loads",
    "import pickle as json",
    "import importlib\nimportlib.import_module('pickle')",
    "__import__('dill.source')",
    "import numpy as np\nnp.load(path)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "import numpy as np\nnp.load(path, allow_pickle=flag)",
    "import numpy as np\nnp.load(path, **options)",
    "import numpy\nnumpy.load(path)",
    "from numpy import load\nload(path)",
    "from numpy import load as read\nread(path)",
    "import numpy as np\nnp.lib.format.read_array(file)",
    "f(allow_pickle=True)",
    "array.dump(path)",
    "array.dumps()",
    "self.params.dump(file)",
    "comm.send(x, 1)",
    "comm.recv()",
    "self._comm.bcast(x)",
    "worker.comm.allgather(x)",
    "MPI.COMM_WORLD.reduce(x)",
    "node_comm.scatter(x)",
    "comm.Split(0).gather(x)",
    "world = MPI.COMM_WORLD\nworld.bcast(x)",
    "self.world = MPI.COMM_SELF.Dup()\nself.world.isend(x, 1)",
    "communicator.sendrecv(x, 1)",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=False)",
    "import torch as t\nt.load(path, weights_only=flag)",
    "import yaml\nyaml.load(text)",
    "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    "import yaml\nyaml.unsafe_load(text)",
    "from yaml import full_load\nfull_load(text)",
    "import pandas as pd\npd.read_pickle(path)",
    "eval(text)",
    "exec(text)",
    "compile(text, '', 'exec')",
    "import builtins\nbuiltins.eval(text)",
    "lambda: [eval(t) for t in texts]",
]

INNOCENT = [
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "from numpy import load\nload(path, allow_pickle=False)",
    "import json\njson.dumps(x)\njson.dump(x, file)\njson.load(file)",
    "import tomli_w\ntomli_w.dumps(x)",
    "import re\nre.compile('a')",
    "model.eval()",
    "import torch\ntorch.load(path, weights_only=True)",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)\nyaml.safe_load(text)",
    "comm.Send(x)\ncomm.Allgather(a, b)\nself._comm.Isend(a)\ncomm.barrier()",
    "transport.send(peer, header)\nqueue.gather(x)\nnp.add.reduce(x)",
    "self.commands.send(x)",
    "from psgrad.codecs import parse\nparse('int8')",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_loader_is_found(text):
    found = list(loads_code(ast.parse(text)))
    assert len(found) == 1
    assert found[0][0] == len(text.split("\n"))


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_harmless_is_not_taken_for_one(text):
    assert list(loads_code(ast.parse(text))) == []
