"""The structure of the code: allowed imports, and the rules that keep each thing in one place."""

from __future__ import annotations

import ast
import json
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import birdwire
from birdwire.settings import PREFIX, Settings

SOURCE = Path(birdwire.__file__).parent
ROOT = SOURCE.parent.parent

ALLOWED: dict[str, str] = {
    "birdwire": "",
    "api": "",
    "runtime": "api birdwire",
    "settings": "api runtime",
    "store": "runtime",
    "edge": "api runtime",
    "x.client": "api birdwire runtime settings store",
    "x.catalog": "api runtime settings store x.client",
    "x.limits": "api runtime settings store x.client x.catalog",
    "keys": "api runtime settings store x.catalog x.client",
    "accounts": "api runtime settings store x.client x.catalog x.limits keys",
    "outcomes": "api runtime store x.client x.catalog x.limits keys accounts",
    "gateway": "api runtime store x.client x.catalog x.limits keys accounts outcomes",
    "surfaces": "api birdwire runtime settings x.client x.catalog keys accounts outcomes gateway",
    "startup": "api runtime settings store accounts",
    "routes": "api runtime settings edge x.catalog keys accounts outcomes gateway surfaces",
    "app": "api birdwire runtime settings store edge x.client x.catalog x.limits keys accounts outcomes gateway "
    "surfaces routes startup",
}
"""Each package of the gateway, and the packages that it may import besides itself. The command line may import all."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package; migrations are a chronicle, not modules."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if "migrations" not in parts:
            found[".".join(part for part in parts if part != "__init__") or "birdwire"] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(tree: ast.AST) -> set[str]:
    """Return the Birdwire modules that a module imports, also for type checking or inside a function."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "birdwire":
                inner = name.removeprefix("birdwire.")
                found.add(inner if inner in MODULES else inner.rpartition(".")[0] or "birdwire")
    return found


GRAPH = {name: imports(tree) for name, tree in TREES.items()}


def part(name: str) -> str:
    """Which of the three programs a module belongs to."""
    first = name.partition(".")[0]
    return first if first in {"cli", "sandbox"} else "gateway"


def nodes(kind: type[ast.AST], *, leaving_out: set[str]) -> list[tuple[str, Any]]:
    """Every node of a kind, with its module's name."""
    kept = [(name, tree) for name, tree in TREES.items() if part(name) not in leaving_out and name not in leaving_out]
    return [(name, node) for name, tree in kept for node in ast.walk(tree) if isinstance(node, kind)]


def package(name: str) -> str:
    """Return the row of ALLOWED that a module belongs to."""
    first, _, rest = name.partition(".")
    return f"x.{rest.partition('.')[0]}" if first == "x" and rest else first


def test_packages_import_what_the_table_allows() -> None:
    """A new edge is a decision: add it to the table, or do without."""
    for name, found in GRAPH.items():
        if part(name) == "gateway" and name != "x":
            more = {package(one) for one in found} - {package(name), *ALLOWED[package(name)].split()}
            assert not more, f"{name} must not import {', '.join(sorted(more))}"


def test_the_graph_of_modules_has_at_most_twelve_levels() -> None:
    """A reader can follow imports down in a few steps."""
    levels: dict[str, int] = {}
    for name in TopologicalSorter(GRAPH).static_order():
        levels[name] = 1 + max((levels[one] for one in GRAPH.get(name, ())), default=0)
    gateway = {name: level for name, level in levels.items() if part(name) == "gateway"}
    assert max(gateway.values()) <= 12, sorted(gateway.items(), key=lambda pair: -pair[1])[:5]


def test_no_import_goes_round_in_circles() -> None:
    """Neither what is, nor what the table allows."""
    TopologicalSorter(GRAPH).prepare()
    TopologicalSorter({name: allowed.split() for name, allowed in ALLOWED.items()}).prepare()


def test_the_sandbox_and_the_gateway_know_nothing_of_each_other() -> None:
    """A sandbox that shared our reading of X would be wrong wherever we are. Only the command line starts both."""
    for name, found in GRAPH.items():
        if part(name) == "sandbox":
            assert {part(one) for one in found} <= {"sandbox"}, name
        elif part(name) != "cli":
            assert {part(one) for one in found} <= {"gateway"}, name


def test_no_module_grows_past_five_hundred_lines() -> None:
    """Before that, it has become two things."""
    for name, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= 500, name


def test_the_package_has_at_most_four_modules_at_its_top() -> None:
    """Everything else has a package that states what it owns."""
    top = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert len(top) <= 4, sorted(top)


PACKAGES = {
    str(path.parent.relative_to(ROOT)): path for path in SOURCE.rglob("__init__.py") if "versions" not in path.parts
}
"""The `__init__` of every package, except the migrations' scripts."""


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_states_its_duties(package: str) -> None:
    """What it owns, and what it must never do, on one screen."""
    text = ast.get_docstring(ast.parse(PACKAGES[package].read_text())) or ""
    assert 5 <= len(text.splitlines()) <= 40
    assert "Owns " in text
    assert "Must never " in text


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_function_has_more_than_sixty_lines() -> None:
    """It fits on a screen. The composition root is a list of parts."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS) and name != "app":
                assert (node.end_lineno or 0) - node.lineno < 60, f"{name}:{node.lineno} {node.name}"


def test_no_constructor_takes_more_than_nine_parts() -> None:
    """A part with more has two duties. The composition root and generated constructors are not counted."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__" and name != "app":
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(taken) - 1 <= 9, f"{name}:{node.lineno}"


def test_every_module_states_what_it_owns_in_its_first_line() -> None:
    """A sentence, on the first line."""
    for name, tree in TREES.items():
        first = (ast.get_docstring(tree) or "").splitlines()[0]
        assert first.endswith((".", "?")), name


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "base", "manager", "misc", "core"])
def test_no_module_has_a_meaningless_name(word: str) -> None:
    """A name that would fit any module fits none."""
    assert not [name for name in MODULES if word in name.split(".")]


def test_the_environment_is_read_in_one_place_of_the_command_line() -> None:
    """Everything else gets its settings handed down."""
    readers = {name for name, node in nodes(ast.Attribute, leaving_out=set()) if node.attr in {"environ", "getenv"}}
    assert readers <= {"cli.inputs"}


def test_no_module_calls_print() -> None:
    """The command line has one voice, and logs have theirs."""
    assert not [name for name, node in nodes(ast.Call, leaving_out=set()) if getattr(node.func, "id", "") == "print"]


def test_the_error_envelope_is_built_in_one_place() -> None:
    """The sandbox speaks X's forms, the command line its own document, and JSON-RPC has an error of its own."""
    writers = {
        name
        for name, node in nodes(ast.Dict, leaving_out={"sandbox", "cli"})
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "error" and not isinstance(value, ast.Constant)
    }
    assert writers == {"api.errors", "surfaces.mcp.jsonrpc"}


def test_sql_is_spoken_in_the_store_alone() -> None:
    """Elsewhere SQLAlchemy's names serve type checking only."""
    for name, tree in TREES.items():
        if name.startswith("store"):
            continue
        typing_only = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in typing_only:
                assert (node.module or "").split(".")[0] not in {"sqlalchemy", "sqlite3", "aiosqlite"}, name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"(SELECT|INSERT INTO|UPDATE|DELETE FROM|PRAGMA) ", node.value), name


SECRETS = {"raw_key", "secret", "secret_hash", "undo_token", "undo_hash", "verifier", "access_token", "refresh_token"}


def test_secrets_are_never_compared_by_equals() -> None:
    """hmac.compare_digest takes the same time whatever differs. The store's equals are SQL, and compare hashes."""
    for name, node in nodes(
        ast.Compare, leaving_out={"sandbox", *(name for name in MODULES if name.startswith("store"))}
    ):
        if any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
            sides = [side for side in (node.left, *node.comparators) if not isinstance(side, ast.Constant)]
            words = set(re.findall(r"\w+", " ".join(map(ast.unparse, sides)))) if len(sides) > 1 else set()
            assert not words & SECRETS, f"{name}:{node.lineno}"


def test_every_setting_has_a_description() -> None:
    """A sentence each, which `birdwire check --help` shows."""
    from birdwire.cli.commands.check import SETTINGS  # noqa: PLC0415 - the command line is heavy to import

    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name
        assert f"{PREFIX}{name.upper()}: {field.description}" in SETTINGS


LOCKS = [*(f"requirements/{name}.txt" for name in ("runtime", "dev", "generator")), "bench/requirements.txt"]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.trust("T21")
def test_a_lock_pins_by_hash_and_names_no_place(lock: str) -> None:
    """The installer decides where packages come from; the lock decides what they are."""
    text = (ROOT / lock).read_text()
    for word in ("://", "--find-links", "--extra-index-url", "--index-url", "--trusted-host", "-e "):
        assert word not in text
    pins = re.findall(r"^([a-z0-9_.\[\]-]+)==\S+.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(pins) > 10
    for requirement in re.split(r"\n(?=[a-z0-9])", text.strip()):
        assert re.match(r"[a-z0-9_.\[\]-]+==", requirement) or requirement.startswith("#"), requirement[:60]
        assert "--hash=sha256:" in requirement, requirement[:60]


NPM_LOCKS = [
    found for where in ("bench/*", "tests/node", "tests/node/*") for found in ROOT.glob(f"{where}/package-lock.json")
]


@pytest.mark.parametrize("folder", sorted(str(lock.parent.relative_to(ROOT)) for lock in NPM_LOCKS))
def test_an_npm_lock_pins_by_hash_and_names_no_place(folder: str) -> None:
    """The same for npm, whose lock would say where each package came from."""
    lock = json.loads((ROOT / folder / "package-lock.json").read_text())
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name
        assert not name or package["integrity"].startswith("sha512-"), name


def test_the_dev_lock_pins_the_same_versions_as_the_runtime_lock() -> None:
    """Tests must run on what is shipped."""

    def pins(name: str) -> set[str]:
        return set(
            re.findall(r"^([a-z0-9_.\[\]-]+==[^\s;\\]+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
        )

    assert pins("runtime.txt") <= pins("dev.txt")


def test_text_is_normalised_in_one_place() -> None:
    """Only there is the time bounded that a caller's text takes; the sandbox serves no strangers."""
    users = {
        name
        for name, node in nodes(ast.ImportFrom, leaving_out={"sandbox"})
        if node.module == "unicodedata" and any(alias.name == "normalize" for alias in node.names)
    }
    importers = {
        name for name, node in nodes(ast.Import, leaving_out={"sandbox"}) if node.names[0].name == "unicodedata"
    }
    assert users | importers == {"x.catalog.unicode_nfc"}
