"""The words of docs/glossary.md are kept, and sentences that had to be read twice do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from birdwire.errors import PROBLEMS
from birdwire.settings import Settings
from birdwire.surfaces.openapi import document

ROOT = Path(__file__).parents[2]
KINDS = {".md", ".py", ".html", ".yaml", ".toml", ".cfg", ".conf", ".sh", ""}
PLACES = ("src", "docs", "deploy", "tests", "bench")
"""Where people read sentences; a file without a suffix is a Makefile, a Dockerfile or the like."""

GONE = {
    "sandbox": r"\blocal X\b",
    "access level of an X app": r"self-serve tier",
    "is not a time": r"is no (time\.|request's id|host with)",
    "Unknown field": r"this call does not know",
    "`text` is missing": r"The request lacks",
    "Not renewed yet": r"Renewed not yet",
    "Not ready to start": r"cannot start as it should",
    "as X last reported": r"as X last told",
    "per key, per 60 seconds": r"stand on every answer",
    "the auth_url it returns": r"`?auth_url`? (it|that `auth_twitter`) answer",
    "Confirm a link": r"Put a link in use",
    "Don't recognise": r"Do you not know this key",
    "you are done": r"nothing more is to be done",
    "unknown or has expired": r"not one of ours|long gone",
    "on demand": r"\bon order\b",
    "in the Authorization header": r"belongs? into",
    "vulnerability, fixes": r"[Rr]eporting a hole|release is mended",
    "shutting down": r"process of Birdwire is about to end",
}
"""By the form that took its place: what is not to be written any more, anywhere."""

ARCHAIC = re.compile(
    r"\b(whoever|anew|at once|begun|mended|lately|told|of ours|ran out|lacks)\b|(?<!there )\bis (no (?!longer)|none\b)",
    re.IGNORECASE,
)
"""What no caller is to read in a refusal or in the description of the API."""


def written() -> list[Path]:
    """Every file of the project with sentences in it, but this one."""
    inside = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in KINDS]
    top = [path for path in ROOT.iterdir() if path.suffix in KINDS]
    skipped = {"node_modules", "__pycache__", "results"}
    return [
        path
        for path in (*top, *inside)
        if path.is_file() and path.name != Path(__file__).name and not skipped & set(path.relative_to(ROOT).parts)
    ]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Each file's text, by its path, on one line: a sentence may break anywhere."""
    return {str(path.relative_to(ROOT)): " ".join(path.read_text(errors="replace").split()) for path in written()}


@pytest.mark.parametrize("better", GONE)
def test_an_old_form_is_not_written_any_more(texts: dict[str, str], better: str) -> None:
    """The name of the case is the form to use."""
    assert len(texts) > 300
    found = {path: match[0] for path, text in texts.items() if (match := re.search(GONE[better], text))}
    assert found == {}


def test_a_refusal_uses_plain_words() -> None:
    """In its message and in its fix."""
    found = {
        reason: match[0]
        for reason, problem in PROBLEMS.items()
        if (match := ARCHAIC.search(f"{problem.message} {problem.fix}"))
    }
    assert found == {}


def test_the_description_of_the_api_uses_plain_words() -> None:
    """Every summary, description and title of the OpenAPI document."""

    def words(value: object) -> list[str]:
        if isinstance(value, list):
            return [text for item in value for text in words(item)]
        if not isinstance(value, dict):
            return []
        own = [text for name, text in value.items() if name in {"summary", "description"} and isinstance(text, str)]
        return [*own, *(text for inner in value.values() for text in words(inner))]

    found = {text for text in words(document(Settings())) if ARCHAIC.search(text)}
    assert found == set()
