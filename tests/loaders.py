"""What runs code that came with data, or may: read from the sources, for the tests to forbid."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

MODULES = {
    "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle",
    "shelve",
}  # fmt: skip
PICKLING_METHODS = {  # mpi4py's lower-case ones
    "allgather", "allreduce", "alltoall", "bcast", "bsend", "exscan", "gather", "ibsend", "improbe",
    "irecv", "isend", "issend", "mprobe", "recv", "reduce", "scan", "scatter", "send", "sendrecv",
    "ssend",
}  # fmt: skip
COMMUNICATOR = re.compile(r"comm(_world|_self|unicator)?\b", re.IGNORECASE)
NEEDED = {  # call -> the keyword that it must have, with a value of these
    "numpy.load": ("allow_pickle", ("False",)),
    "numpy.lib.format.read_array": ("allow_pickle", ("False",)),
    "torch.load": ("weights_only", ("True",)),
    "yaml.load": ("Loader", ("yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader", "CSafeLoader")),
}
NEVER = {"yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "pandas.read_pickle"}
BUILTINS = {"eval", "exec", "compile"}
DUMPS_TEXT = {"json", "tomli_w"}
IMPORTERS = {"__import__", "importlib.import_module", "importlib.__import__"}


def loads_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) for each place that unpickles, or runs text that is not in the sources."""
    names = _names(tree)
    communicators = _communicators(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _top(alias.name) in MODULES:
                    yield node.lineno, f"imports {alias.name}"
        elif isinstance(node, ast.ImportFrom) and _top(node.module or "") in MODULES:
            yield node.lineno, f"imports {node.module}"
        elif isinstance(node, ast.Call):
            for text in _of_call(node, names, communicators):
                yield node.lineno, text


def _of_call(node: ast.Call, names: dict[str, str], communicators: set[str]) -> Iterator[str]:
    called = _dotted(node.func, names)
    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if called in NEEDED:
        keyword, values = NEEDED[called]
        if keywords.get(keyword) not in values:
            yield f"calls {called} without {keyword}={values[0]}"
    elif keywords.get("allow_pickle", "False") != "False":
        yield "allows pickle"
    if called in NEVER:
        yield f"calls {called}"
    if called.removeprefix("builtins.") in BUILTINS:
        yield f"calls {called}"
    if called in IMPORTERS:
        for argument in node.args:
            if isinstance(argument, ast.Constant) and _top(str(argument.value)) in MODULES:
                yield f"imports {argument.value}"
    if not isinstance(node.func, ast.Attribute):
        return
    owner, method = ast.unparse(node.func.value), node.func.attr
    if method in ("dump", "dumps") and called.rpartition(".")[0] not in DUMPS_TEXT:
        yield f"calls {owner}.{method}, which pickles"
    if method in PICKLING_METHODS and (COMMUNICATOR.search(owner) or owner in communicators):
        yield f"calls {owner}.{method}, which pickles"


def _top(module: str) -> str:
    return module.partition(".")[0]


def _names(tree: ast.Module) -> dict[str, str]:
    """What names of this file stand for, as far as they were imported."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update((a.asname, a.name) for a in node.names if a.asname)
        elif isinstance(node, ast.ImportFrom):
            found.update((a.asname or a.name, f"{node.module}.{a.name}") for a in node.names)
    return found


def _communicators(tree: ast.Module) -> set[str]:
    """Names that are bound to a communicator."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and COMMUNICATOR.search(ast.unparse(node.value)):
            found.update(ast.unparse(target) for target in node.targets)
    return found


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    text = ast.unparse(node)
    first, dot, rest = text.partition(".")
    return names.get(first, first) + dot + rest
