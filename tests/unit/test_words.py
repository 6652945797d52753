"""The words of docs/glossary.md are kept, and sentences that had to be read twice do not come back."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path
from typing import Any

from typer.main import get_command

from birdwire.api.errors import PROBLEMS
from birdwire.cli.command_line import COMMANDS, build, load
from birdwire.runtime.metrics import METRICS
from birdwire.settings import Settings
from birdwire.surfaces.openapi.document import document

ROOT = Path(__file__).parents[2]
PLACES = ("src", "docs", "deploy", "tests")
KINDS = {".md", ".py", ".html", ".yaml", ".toml", ".cfg", ".conf", ".sh", ""}
"""Files with sentences; one without a suffix is a Makefile, a Dockerfile or the like."""

REPLACED = {
    "local X": "sandbox",
    "Local X": "Sandbox",
    "LocalX": "Sandbox",
    "local_x": "sandbox",
    "self-serve tier": "self-serve access level",
    "Renewed not yet": "Not renewed yet; no renewal is planned.",
    "this call does not know": "Unknown field: foo.",
    "The request lacks": "`text` is missing.",
    "is no time.": "is not a time.",
    "cannot start as it should": "Not ready to start:",
    "as X last told": "as X last reported",
    "stand on every answer": "every response to a valid key carries them in its headers",
    "auth_url` it answers": "the auth_url it returns",
    "Put a link in use": "Confirm a link",
    "Do you not know this key": "Don't recognise",
    "nothing more is to be done": "you are done",
    "not one of ours": "This link is unknown or has expired.",
    "it answers by itself": "when a limit is used up, it answers without calling X",
    "on order": "on demand",
    "belongs into": "belongs in",
    "eporting a hole": "Reporting a vulnerability",
    "release is mended": "gets fixes",
    "process of Birdwire is about to end": "This Birdwire process is shutting down.",
}
"""What is not to be written any more, and the form that took its place."""


def written() -> dict[str, str]:
    """Return each file's text by its path, on one line, as a sentence may break anywhere; but not this file's."""
    paths = [
        *ROOT.iterdir(),
        *(ROOT / "bench").iterdir(),
        *(path for place in PLACES for path in (ROOT / place).rglob("*")),
    ]
    return {
        str(path.relative_to(ROOT)): " ".join(path.read_text(errors="replace").split())
        for path in paths
        if path.suffix in KINDS and path.is_file() and path != Path(__file__) and "node_modules" not in path.parts
    }


def test_a_replaced_form_is_not_written_any_more() -> None:
    """In code, pages, documents and tests."""
    texts = written()
    assert {"README.md", "Makefile", "docs/glossary.md", "src/birdwire/api/errors.py"} <= set(texts)
    assert [(path, old, REPLACED[old]) for path, text in texts.items() for old in REPLACED if old in text] == []


def _help(command: Any) -> list[str]:
    own = [
        command.help or "",
        command.epilog or "",
        *(getattr(option, "help", None) or "" for option in command.params),
    ]
    return [*own, *(text for inner in getattr(command, "commands", {}).values() for text in _help(inner))]


def _descriptions(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in _descriptions(item)]
    if not isinstance(value, dict):
        return []
    own = [text for name, text in value.items() if name in {"summary", "description"} and isinstance(text, str)]
    return [*own, *(text for inner in value.values() for text in _descriptions(inner))]


PLAINER = {
    r"\b(whoever|whomever)\b": "the caller, the client, the operator",
    r"\bfor who\b": "for the caller who",
    r"\b(tells?|told)\b": "reports, reported",
    r"\b(says?|said)\b": "states, returns",
    r"\blooks? (whether|after)\b|\ba look\b": "checks, polls, scans",
    r"\blately\b": "recently",
    r"\banew\b": "again",
    r"\bbegun\b": "started",
    r"\bso many\b": "at most N",
    r"\bbe it\b": "whether",
    r"\b(goes|go|went|going) before\b": "takes precedence over",
    r"\bgone\b(?! (wrong|through)\b)|\b(is|are|was|were) away\b": "deleted, unavailable",
    r"\bg[ai]ves? way\b": "is evicted",
    r"\bno more\b(?! than\b)": "no longer",
    r"\bbeside\b": "alongside",
    r"\bat once\b": "immediately, concurrently",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(hold|holds|held) up\b": "blocks",
    r"\b(run|runs|ran) out\b(?! of (?!time\b))": "expires, is used up",
    r"\bif it lasts\b": "if the error persists",
    r"\bleft alone\b|\bleaves? (it |them )?alone\b": "paused, unchanged",
    r"\b(let|lets|letting) in\b|\bturn(s|ed)? away\b": "accepts, rejects",
    r"\bputs? back\b": "restores",
    r"\b(stands?|stood) (in|on|there|together)\b(?! for\b)": "is in, is on",
    r"\b(is|are|was|were|not) whole\b": "complete",
    r"\bunder way\b": "running, in progress",
    r"\bof ours\b": "our",
    r"(?<!there )\b(is|are) (none\b|no (?!longer\b))": "is not a, is not one of",
}
"""Patterns that occur in no text for people, in any case, and what to write instead."""

DOCUMENTS = ("*.md", "docs/**/*.md", "docs/fronts/*", "deploy/**/*", "tests/data/**/*.md")
ELSEWHERE = ("docs/reference/",)
"""What is generated from texts that other tests read."""


def private(texts: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return where a text breaks PLAINER: its name, the words around the place, and what to write instead."""
    return [
        (name, text[max(0, found.start() - 40) : found.end() + 40], better)
        for name, text in texts.items()
        for pattern, better in PLAINER.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


def prose(text: str) -> str:
    """Return a document without what it sets as code, on one line."""
    text = re.sub(r"^```.*?^```$", " ", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]+`", "CODE", text)
    return " ".join(re.sub(r"^ {4,}(?![-*|\d ]).+$", " ", text, flags=re.MULTILINE).split())


def test_documents_use_plain_words() -> None:
    """Every page, and the comments of the configurations that we ship."""
    paths = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern) if path.is_file()}
    names = {str(path.relative_to(ROOT)): path for path in paths}
    texts = {name: prose(path.read_text("utf-8")) for name, path in names.items() if not name.startswith(ELSEWHERE)}
    assert {"README.md", "docs/operating.md", "docs/fronts/nginx.conf", "deploy/plain/two-replicas.sh"} <= set(texts)
    assert private(texts) == []


def test_the_patterns_find_what_they_name_and_pass_good_english() -> None:
    """A pattern with false positives would be worked around, one that finds nothing would be trusted."""
    bad = "Whoever runs out of time is told so at once. The key is no key of ours, and its row is gone."
    assert len(private({"": bad})) == 7
    good = (
        "There is no such key. The link is no longer valid. A lookup looks up an account. This stands in for X. "
        "It keeps away from the database. Look at the log. The link has ended. Nobody else is allowed to."
    )
    assert private({"": good}) == []


def test_texts_for_callers_and_operators_use_plain_words() -> None:
    """Refusals, settings, metrics, the OpenAPI document, and what people read on the pages of a link."""
    texts = {reason: f"{problem.message} {problem.fix}" for reason, problem in PROBLEMS.items()}
    texts |= {name: info.description or "" for name, info in Settings.model_fields.items()}
    texts |= {name: f"{row.meaning} {' '.join(row.labels.values())}" for name, row in METRICS.items()}
    texts |= {text: text for text in _descriptions(document(Settings()))}
    pages = [page for page in (ROOT / "src").rglob("*.html") if "sandbox" not in page.parts]
    texts |= {page.name: re.sub(r"{[{%].*?[%}]}|<.*?>", " ", page.read_text()) for page in pages}
    assert private(texts) == []


def test_the_command_line_and_the_sandbox_use_plain_words() -> None:
    """Check every help text, option, message and docstring, and the sandbox's pages."""
    commands = [get_command(build()), *(load(row.name) for row in COMMANDS)]
    texts = {f"help {number}": text for number, text in enumerate(t for one in commands for t in _help(one))}
    source = ROOT / "src" / "birdwire"
    for path in (path for part in ("cli", "sandbox") for path in (source / part).rglob("*.py")):
        strings = (
            node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
        )
        texts[str(path.relative_to(ROOT))] = "\n".join(
            text for text in strings if isinstance(text, str) and " " in text
        )
    pages = (source / "sandbox").rglob("*.html")
    texts |= {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in pages}
    assert len(texts) > 300
    assert private(texts) == []


SOURCE = ROOT / "src" / "birdwire"
MODULES = [path for path in SOURCE.rglob("*.py") if "versions" not in path.parts]
"""Every module, without the migrations: they are a chronicle."""


def documented(path: Path) -> dict[str, str]:
    """Return a module's docstrings by their place, also those of names, on one line. `None` is code, not a word."""
    bodies = (
        body for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(body := getattr(node, "body", 0), list)
    )
    return {
        f"{path.relative_to(SOURCE)}:{node.lineno}": re.sub(r"\bNone\b", "null", " ".join(node.value.value.split()))
        for body in bodies
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def comments(path: Path) -> list[tuple[int, str, bool]]:
    """Return a module's comments: the line, the text, and whether code precedes the comment on the line."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    return [(token.start[0], token.string.lstrip("# "), bool(token.line[: token.start[1]].strip())) for token in tokens]


def commented(path: Path) -> dict[str, str]:
    """Return a module's comments by their place; those on successive lines are one text."""
    texts: dict[str, str] = {}
    place, last = "", -1
    for line, text, trailing in comments(path):
        if trailing or line != last + 1:
            place = f"{path.relative_to(SOURCE)}:{line}"
        texts[place] = f"{texts.get(place, '')} {text}"
        last = -1 if trailing else line
    return texts


def test_docstrings_and_comments_use_plain_words() -> None:
    """A new engineer reads them first."""
    texts = {place: text for path in MODULES for place, text in (documented(path) | commented(path)).items()}
    assert len(texts) > 2_000
    assert private(texts) == []


def test_a_comment_stands_above_its_line() -> None:
    """Behind code there are only markers for tools, such as `noqa: S311 - with a reason`."""
    marker = re.compile(r"(noqa|type|fmt|pragma): ")
    trailing = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in MODULES
        for line, text, behind_code in comments(path)
        if behind_code and not marker.match(text)
    ]
    assert trailing == []
