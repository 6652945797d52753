"""docs/promises.md defines each id that a test carries, and at least one test shows each promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]
DOCUMENT = (TESTS.parent / "docs" / "promises.md").read_text()

FORM = re.compile(r"(?:[FGORT]|#)[1-9][0-9]*")
ROW_NAME = re.compile(r"(#\d\S*) ")
"""How the name of a numbered row starts in tests/harness/http_corpus.py."""

COMPUTED = {"number", "f'#{number}'", "f'#{n}'"}
"""How a mark takes its id from a row of a table. `carried` reads the rows instead."""


def defined(document: str) -> list[str]:
    """Return the first cell of each row of the document's tables, without the tables' heads."""
    cells = [cell.strip() for cell in re.findall(r"^\|([^|]*)\|", document, re.MULTILINE)]
    return [cell for cell in cells if cell != "Id" and not re.fullmatch("-+", cell)]


def carried(tree: ast.Module) -> Iterator[str]:
    """Yield the ids in a module's marks and in its numbered tables."""
    tables: dict[str, ast.expr] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                tables[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                tables[name] = value
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="trust"), args=ids):
                written = [each.value if isinstance(each, ast.Constant) else ast.unparse(each) for each in ids]
                yield from (str(each) for each in written if each not in COMPUTED)
            case ast.Call(func=ast.Name(id="rows"), args=[ast.Name(id=table)]) if table in tables:
                yield from numbers(tables[table])
            case ast.ListComp(elt=row, generators=[ast.comprehension(iter=ast.Name(id=table))]) if _numbered(row):
                yield from numbers(tables[table])
            case ast.Constant(value=str(text)) if found := ROW_NAME.match(text):
                yield found[1]


def _numbered(row: ast.expr) -> bool:
    return "trust(f'#{n}')" in ast.unparse(row)


def numbers(table: ast.AST) -> Iterator[str]:
    """Yield the ids of a table's rows. A row starts with a number and a text, or `enumerate` counts the rows."""
    match table:
        case (
            ast.Tuple(elts=[ast.Constant(value=int(number)), ast.Constant(value=str()) | ast.JoinedStr(), *_])
            | ast.Call(args=[ast.Constant(value=int(number)), ast.Constant(value=str()) | ast.JoinedStr(), *_])
        ):
            yield f"#{number}"
        case ast.Call(func=ast.Name(id="enumerate"), args=[ast.Tuple(elts=rows), ast.Constant(value=int(first))]):
            yield from (f"#{number}" for number in range(first, first + len(rows)))
        case _:
            for part in ast.iter_child_nodes(table):
                yield from numbers(part)


@pytest.fixture(scope="module")
def used() -> dict[str, str]:
    """Each id that the tests carry, with one of the files that carry it."""
    paths = [path for path in TESTS.rglob("*.py") if "node_modules" not in path.parts and path != Path(__file__)]
    return {each: path.name for path in paths for each in carried(ast.parse(path.read_text()))}


def test_every_id_in_a_test_is_well_formed_and_defined(used: dict[str, str]) -> None:
    """An undefined id names no promise."""
    assert {each: file for each, file in used.items() if not FORM.fullmatch(each)} == {}
    ids = set(defined(DOCUMENT))
    assert {each: file for each, file in used.items() if each not in ids} == {}


def test_every_promise_is_well_formed_and_shown_by_a_test(used: dict[str, str]) -> None:
    """A promise that no test shows is only a hope."""
    ids = defined(DOCUMENT)
    assert len(ids) > 300
    assert [each for each in ids if not FORM.fullmatch(each)] == []
    assert [each for each in ids if each not in used] == []


def test_no_id_is_defined_twice() -> None:
    """An id has one meaning."""
    ids = defined(DOCUMENT)
    assert [each for each in set(ids) if ids.count(each) > 1] == []


def test_every_group_is_a_heading_a_sentence_and_a_table() -> None:
    """Every row of a table has both cells."""
    _, *groups = re.split(r"^## .+\n", DOCUMENT, flags=re.MULTILINE)
    assert len(groups) > 10
    table = r"\n[^|.\n]+\.\n\n\| Id \| Promise \|\n\|---\|---\|\n(?:\| \S+ \| [^|\n]+ \|\n)+\n?"
    assert [group[:80] for group in groups if not re.fullmatch(table, group)] == []


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        ('@pytest.mark.trust("F1", "#2")\ndef test() -> None: ...', ["F1", "#2"]),
        ('pytest.param(1, marks=pytest.mark.trust("Q7"))', ["Q7"]),
        ("pytest.mark.trust(chosen)", ["chosen"]),
        ("pytest.mark.trust(number)", []),
        ('ROWS = [refused("#139 a length", b""), refused("a size", b"")]', ["#139"]),
        ('ROWS = [(1, "a", (401, "code")), at(2, f"b", 3)]\nrows(ROWS)', ["#1", "#2"]),
        (
            'IDS: list[Row] = [*enumerate(("a", "b"), 36), (40, "c")]\n[trust(f"#{n}") for n, value in IDS]',
            ["#36", "#37", "#40"],
        ),
        ('OTHERS = [(404, "not an id")]', []),
    ],
)
def test_ids_are_read_from_the_source(source: str, ids: list[str]) -> None:
    """In each form in which the tests write them; an unknown form is a malformed id."""
    assert list(carried(ast.parse(source))) == ids


def test_definitions_are_read_from_the_tables() -> None:
    """Malformed ids included, so that they fail."""
    assert defined("Text\n\n| Id | Promise |\n|---|---|\n| F1 | a |\n| f 2 | b |\n") == ["F1", "f 2"]
