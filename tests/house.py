"""The house: who may import whom, and what each floor must not touch. Read from the sources.

``HOUSE`` lists the modules of the package from the ground up, row by row. A module imports from the
rows above its own in the table, never from its own row or from those below; so the rows of one
floor say in which order its modules stand. A package (``data``, ``kernels``) is one room, free
inside. Whoever adds a module gives it a place here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loaders import loads_code

import psgrad

ROOT = Path(psgrad.__file__).parent


class Row(NamedTuple):
    floor: float
    rooms: str
    sees: float = 99  # the highest floor that it may look down on, where that is not all


HOUSE = (
    Row(0, "errors version"),
    Row(0, "crash preemption processes watchdog"),
    Row(1, "segments stored"),
    Row(1, "kernels layout messages metrics placement roles"),
    Row(1, "control record"),
    Row(1, "arrays config pace"),
    Row(2, "aggregate codecs consistency cuts data guard models optimizers schedules"),
    Row(2, "checkpointing commits loss_scale outer update"),
    Row(2, "aggregator"),
    Row(2.5, "transport", sees=1),  # stands beside the floors
    Row(3, "checkpoint coordinator leases numbering options references seats worker_state"),
    Row(3, "admission links pools sharing turns"),
    Row(3, "chunk_state registered registration"),
    Row(3, "applying committing params_encoder push_encoder shard_state waiting"),
    Row(3, "resuming shard"),
    Row(3, "marking opening"),
    Row(3, "exchange intake invariants open_steps"),
    Row(3, "halting joining outbox saving"),
    Row(3, "admitting rounds stall"),
    Row(3, "inspector"),
    Row(4, "server worker"),
    Row(4, "farewell local replicas standby"),
    Row(4, "hosting"),
    Row(4, "serving"),
    Row(5, "session"),
    Row(6, "bench causes compute faults frozen launch leftovers progress runfolder scenario"),
    Row(6, "scattered scenario_text starting stops summary survival tally"),
    Row(6, "toy"),
    Row(6, "interruption"),
    Row(6, "rehearsal"),
    Row(6, "jobs launcher soak trainer"),
    Row(6, "chaos relaunch train"),
    Row(6, "replay simulate"),
    Row(6, "doctor scale"),
    Row(7, "arguments"),
    Row(7, "run_command run_options slurm"),
    Row(7, "bench_commands checkpoint_commands doctor_command"),
    Row(7, "commands"),
    Row(7, "cli"),
    Row(7, "__main__"),
)
PLACE = {room: (i, row) for i, row in enumerate(HOUSE) for room in row.rooms.split()}
FRONT_DOOR = "__init__"  # its public names load lazily; at once it imports the ground floor only

QUIET = (2, 5)  # these floors know no time, no threads and no state of a module
FORBIDDEN_IN_QUIET = {
    "_thread", "asyncio", "concurrent", "datetime", "multiprocessing", "random", "sched",
    "threading", "time",
}  # fmt: skip
WRITES_FILES_ASIDE = "checkpoint.writer"  # the seam: work on files in a thread
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
READS_THE_ENVIRONMENT = {"cli", "commands"}  # and hand it on

# Calls whose result cannot be changed, given that their arguments cannot.
FROZEN_CALLS = frozenset(
    ("NewType", "Struct", "TypeVar", "compile", "finfo", "float", "int", "len", "max", "min")
)
WRAPPERS = {"MappingProxyType", "frozenset", "tuple"}  # around what is built for them alone
CACHES = {"cache", "lru_cache"}


class Source(NamedTuple):
    """One file: ``name`` is dotted, without the leading ``psgrad.``."""

    name: str
    tree: ast.Module
    file: str = ""

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def floor(self) -> float:
        return PLACE[self.room][1].floor if self.room in PLACE else 0


@dataclass(frozen=True)
class Import:
    """``lazy``: inside a function; ``typing``: under ``if TYPE_CHECKING``."""

    module: str
    line: int
    lazy: bool
    typing: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def sources() -> list[Source]:
    return [
        Source(
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"),
            ast.parse(path.read_text(encoding="utf-8")),
            str(path.relative_to(ROOT.parent)),
        )
        for path in sorted(ROOT.rglob("*.py"))
    ]


def imports(source: Source) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(a.name, node.lineno, lazy, typing) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"{base}.{a.name}" for a in node.names]
            found.extend(Import(name, node.lineno, lazy, typing) for name in names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, typing)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, lazy or inside, typing)

    visit(source.tree, False, False)
    return found


# The rules: each yields (line, text) for what breaks it


Faults = Iterator[tuple[int, str]]


def stands_in_the_house(source: Source) -> Faults:
    if source.room not in PLACE and source.room != FRONT_DOOR:
        yield 1, f"{source.room} has no place in HOUSE"


def imports_strictly_down(source: Source) -> Faults:
    for it in imports(source):
        if it.module.startswith("."):
            yield it.line, f"imports {it.module}: relative, write it out"
        if it.top != "psgrad":
            continue
        room = [*it.module.split("."), FRONT_DOOR][1]
        if room == source.room:
            continue
        if room not in PLACE:
            yield it.line, f"imports {it.module}, which has no place in HOUSE"
        elif source.room == FRONT_DOOR:
            if PLACE[room][1].floor > 0 and not (it.lazy or it.typing):
                yield it.line, f"imports {room} at once; public names load lazily"
        elif source.room in PLACE:
            mine, row = PLACE[source.room]
            if PLACE[room][0] >= mine or PLACE[room][1].floor > row.sees:
                yield it.line, f"imports {room}, which is not below it"


def finds_modules_by_import_only(source: Source) -> Faults:
    for node in ast.walk(source.tree):
        name = getattr(node, "id", getattr(node, "attr", None))
        if name in ("import_module", "__import__") and source.room != FRONT_DOOR:
            yield node.lineno, f"uses {name}"


def keeps_mpi_in_its_place(source: Source) -> Faults:
    for it in imports(source):
        if it.top == "mpi4py" and not it.typing:
            if source.name != "transport.mpi":
                yield it.line, "imports mpi4py; only transport/mpi.py does"
            elif not it.lazy:
                yield it.line, "imports mpi4py at once; that starts MPI"


def keeps_cupy_in_its_place(source: Source) -> Faults:
    for it in imports(source):
        if it.top in ("cupy", "cupyx", "cupy_backends") and source.room != "kernels":
            yield it.line, f"imports {it.top}; only kernels/ does"
        # The modules of CUDA need CuPy themselves, and may import one another.
        at_once = not (it.lazy or it.typing or source.name.startswith("kernels.cuda"))
        if it.module.startswith("psgrad.kernels.cuda") and at_once:
            yield it.line, "imports kernels.cuda at once; that needs CuPy"


def knows_no_time_and_no_threads(source: Source) -> Faults:
    if QUIET[0] <= source.floor <= QUIET[1] and source.room != "transport":
        for it in imports(source):
            seam = source.name == WRITES_FILES_ASIDE and it.top == "threading"
            if it.top in FORBIDDEN_IN_QUIET and not seam:
                yield it.line, f"imports {it.top} on floor {source.floor}"


def leaves_the_environment_alone(source: Source) -> Faults:
    if source.room in READS_THE_ENVIRONMENT:
        return
    for node in ast.walk(source.tree):
        of_os = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if of_os and node.value.id == "os" and node.attr in ENVIRONMENT:
            yield node.lineno, f"uses os.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in ENVIRONMENT:
                    yield node.lineno, f"uses os.{alias.name}"


def pickles_nothing(source: Source) -> Faults:
    yield from loads_code(source.tree)


def has_no_state_of_a_module(source: Source) -> Faults:
    """Names at module level and class level are bound once, to what cannot change.

    That is: constants, names, types and arithmetic of them; tuples; the calls of FROZEN_CALLS and
    of frozen dataclasses in the same file; and what is built inside one of WRAPPERS, where nothing
    else can reach it. ``__all__`` is a list by convention. A cache is state too.
    """
    if not QUIET[0] <= source.floor <= QUIET[1] or source.room == "transport":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for decorator in node.decorator_list:
                if _called(decorator) in CACHES:
                    yield node.lineno, f"{node.name} keeps a cache"
    frozen_calls = FROZEN_CALLS | _frozen_dataclasses(source.tree)
    for statement in _statements(source.tree.body):
        if isinstance(statement, ast.AugAssign):
            yield statement.lineno, f"changes {ast.unparse(statement.target)}"
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets = getattr(statement, "targets", None) or [statement.target]
            name = ast.unparse(targets[0])
            if name != "__all__" and not _frozen(statement.value, frozen_calls):
                yield statement.lineno, f"{name} can be changed"


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements that run on import: not those inside of functions."""
    for statement in body:
        yield statement
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for block in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, block, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _frozen_dataclasses(tree: ast.Module) -> set[str]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        node.name
        for node in classes
        if "dataclass(frozen=True)" in [ast.unparse(d) for d in node.decorator_list]
    }


def _called(node: ast.expr) -> str:
    function = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(function).rpartition(".")[2]


TRANSPARENT = (
    ast.Attribute, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Starred, ast.Subscript,
    ast.Tuple, ast.UnaryOp,
)  # fmt: skip


def _frozen(node: ast.expr, calls: frozenset[str]) -> bool:
    if isinstance(node, (ast.Constant, ast.Name, ast.Lambda, ast.JoinedStr)):
        return True
    if isinstance(node, ast.Call):
        arguments = [*node.args, *(k.value for k in node.keywords)]
        if _called(node) in WRAPPERS:
            return all(_built(a, calls) for a in arguments)
        if _called(node) == "field":  # of a dataclass: an object gets a default of its own
            return all(_frozen(k.value, calls) for k in node.keywords if k.arg == "default")
        return _called(node) in calls and all(_frozen(a, calls) for a in arguments)
    parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
    return isinstance(node, TRANSPARENT) and all(_frozen(part, calls) for part in parts)


def _built(node: ast.expr, calls: frozenset[str]) -> bool:
    """A new container of frozen things, or something frozen."""
    if isinstance(node, ast.Dict):
        unpacked = [v for k, v in zip(node.keys, node.values, strict=True) if k is None]
        values = [v for k, v in zip(node.keys, node.values, strict=True) if k is not None]
        return all(_built(v, calls) for v in unpacked) and all(_frozen(v, calls) for v in values)
    if isinstance(node, (ast.List, ast.Set)):
        return all(_frozen(element, calls) for element in node.elts)
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
        return _frozen(node.elt, calls)
    if isinstance(node, ast.DictComp):
        return _frozen(node.value, calls)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict.fromkeys":
        return all(_frozen(argument, calls) for argument in node.args)
    return _frozen(node, calls)


RULES = (
    stands_in_the_house,
    imports_strictly_down,
    finds_modules_by_import_only,
    keeps_mpi_in_its_place,
    keeps_cupy_in_its_place,
    knows_no_time_and_no_threads,
    leaves_the_environment_alone,
    pickles_nothing,
    has_no_state_of_a_module,
)
