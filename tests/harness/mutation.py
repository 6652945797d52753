"""Mutation testing: changes one place of a module at a time, and runs tests that should notice it.

`python tests/harness/mutation.py MODULE TEST…` prints each change that no test noticed, and the share that was noticed.
A child process for each change loads the changed module in place of the real one; no file is changed.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import os
import resource
import signal
import sys
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MAX_CPU_S: Final = 60
DEADLINE_S: Final = 900
"""How long a child may run, also on a machine with much else to do: a changed loop may not end."""

_SOURCE = Path(__file__).parents[2] / "src"

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """A changed module: where, what was done, and its source."""

    line: int
    what: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Yield a module with each of its places changed."""
    tree = ast.parse(source)
    places = [(number, change) for number, node in enumerate(ast.walk(tree)) for change in _changes(node)]
    for number, (what, change) in places:
        changed = copy.deepcopy(tree)
        node = next(node for at, node in enumerate(ast.walk(changed)) if at == number)
        change(node)
        text = ast.unparse(ast.fix_missing_locations(changed))
        yield Mutant(getattr(node, "lineno", 0), what, text)


Change = tuple[str, "Callable[[Any], None]"]


def _changes(node: ast.AST) -> Iterator[Change]:
    """Yield what may be changed at a node. Names, texts, imports, annotations and what is for type checking stay."""
    if isinstance(node, ast.expr):
        yield from _of_expression(node)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "None is returned", lambda node: setattr(node, "value", ast.Constant(None))
    if isinstance(node, ast.IfExp | ast.If) and not _is_type_checking(node):
        yield "the condition is negated", lambda node: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    for name in ("body", "orelse"):
        block = getattr(node, name, None)
        for at, statement in enumerate(block if isinstance(block, list) and not _is_type_checking(node) else ()):
            if _may_be_dropped(statement):
                yield f"line {statement.lineno} is dropped", _dropping(name, at)


def _of_expression(node: ast.expr) -> Iterator[Change]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
            yield f"{type(op).__name__} is flipped", _flip
        case ast.BoolOp(op=op):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield f"{type(op).__name__} becomes {other.__name__}", lambda node: setattr(node, "op", other())
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            yield f"{type(op).__name__} is flipped", lambda node: setattr(node, "op", _OPERATORS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not()):
            # `not not x` is the truth of x.
            yield "not is dropped", lambda node: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.Constant(value=bool(value)):
            yield f"{value} is flipped", lambda node: setattr(node, "value", not value)
        case ast.Constant(value=int(value)):
            yield f"{value} becomes {value + 1}", lambda node: setattr(node, "value", value + 1)


def _flip(node: ast.Compare) -> None:
    node.ops = [_COMPARISONS[type(node.ops[0])]()]


def _dropping(name: str, at: int) -> Callable[[Any], None]:
    def drop(node: Any) -> None:
        getattr(node, name)[at] = ast.Pass()

    return drop


def _may_be_dropped(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.AugAssign | ast.Raise | ast.Continue | ast.Break)


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class _Changed(MetaPathFinder, Loader):
    """Loads one module from a changed source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a spec for the changed module alone."""
        del path, target
        return (
            importlib.util.spec_from_loader(fullname, self, origin=str(self._path)) if fullname == self._name else None
        )

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed source."""
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)  # noqa: S102 - the point of it


def start(path: Path, mutant: Mutant, tests: Sequence[str]) -> int:
    """Run the tests with a change in a child process, and return its id. It ends with 0 if all of them pass."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
        signal.alarm(DEADLINE_S)
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            os._exit(_run(path, mutant, tests))
    return child


def _run(path: Path, mutant: Mutant, tests: Sequence[str]) -> int:
    import pytest  # noqa: PLC0415 - the parent has imported it

    sys.meta_path.insert(0, _Changed(_name(path), path, mutant.source))
    options = ["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
    # The parent has imported hypothesis before pytest could.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    try:
        return int(pytest.main([*options, *tests]))
    except BaseException:  # noqa: BLE001 - whatever the change broke
        return 1


def _name(path: Path) -> str:
    return ".".join(path.relative_to(_SOURCE).with_suffix("").parts)


def score(path: Path, tests: Sequence[str], workers: int = 2) -> tuple[list[Mutant], int]:
    """Return the changes that no test noticed, and how many there were.

    Raises:
        RuntimeError: a test fails without any change.
    """
    for name in ("hypothesis", "pytest", "pydantic", "birdwire.api.errors", "birdwire.x.catalog.prices"):
        importlib.import_module(name)
    path = path.resolve()
    source = path.read_text(encoding="utf-8")
    if os.waitpid(start(path, Mutant(0, "nothing", source), tests), 0)[1]:
        raise RuntimeError("a test fails without any change")
    every = list(mutants(source))
    alive: list[Mutant] = []
    running: dict[int, Mutant] = {}
    for mutant in [*every, *[None] * workers]:
        if mutant is not None:
            running[start(path, mutant, tests)] = mutant
        if running and (mutant is None or len(running) == workers):
            child, status = os.waitpid(-1, 0)
            ended = running.pop(child)
            alive += [] if status else [ended]
    return sorted(alive, key=lambda mutant: mutant.line), len(every)


def main(arguments: Sequence[str]) -> None:
    """Print the survivors of a module, and its score."""
    path = Path(arguments[0])
    survivors, total = score(path, arguments[1:])
    with contextlib.suppress(BrokenPipeError):
        for mutant in survivors:
            sys.stdout.write(f"{path.name}:{mutant.line}: {mutant.what}\n")
        sys.stdout.write(
            f"{path.name}: {total - len(survivors)} of {total} noticed ({1 - len(survivors) / total:.1%})\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
