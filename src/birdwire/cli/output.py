"""Output of a command: one JSON document for programs, or text for people."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from functools import cached_property
from string import Formatter
from typing import TYPE_CHECKING, Any

import typer

from birdwire.api.errors import PROBLEMS, GatewayError, describe, reason_named
from birdwire.cli.printable import printable
from birdwire.cli.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.text import Text

_WORD_BEGINS = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?]) +")


class Output:
    """Writes a command's output. Terminal colours follow NO_COLOR; text is never interpreted as markup."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def _people(self) -> Console:
        return _console(stderr=self.as_json)

    @cached_property
    def _errors(self) -> Console:
        return _console(stderr=True)

    def result(self, document: dict[str, Any], *lines: str | Text) -> None:
        """Print the command's result: the document for programs, or the lines for people."""
        if self.as_json:
            _document(document)
        else:
            self.lines(*lines)

    def table(
        self, document: dict[str, Any], rows: Sequence[dict[str, Any]], columns: Sequence[str], none: str
    ) -> None:
        """Print the document for programs, or its rows as a table for people; without rows, print `none`."""
        cells = [[_WORD_BEGINS.sub("_", name).upper() for name in columns]]
        cells += [[_cell(row.get(name)) for name in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        self.result(document, *(lines if rows else [none]))

    def lines(self, *lines: str | Text) -> None:
        """Print text for people only."""
        stream = sys.stderr if self.as_json else sys.stdout
        for line in lines:
            if isinstance(line, str):
                stream.write(f"{line}\n")
            else:
                self._people.print(line)
        stream.flush()

    def pending(self, document: dict[str, Any], *lines: str) -> None:
        """Print that there is no result yet: the document for programs, and the lines to stderr for people."""
        if self.as_json:
            _document(document)
        self.question(*lines)

    def question(self, *lines: str) -> None:
        """Print to stderr what a person is asked about."""
        sys.stderr.writelines(f"{line}\n" for line in lines)
        sys.stderr.flush()

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show a progress message while the block runs."""
        with self._errors.status(text):
            yield

    def aside(self, text: str) -> None:
        """Print a remark to stderr, alongside the result."""
        self._errors.print(text, style="dim")

    def stop(self, stop: Stop) -> None:
        """Print why the command ends, and the next step."""
        from rich.text import Text  # noqa: PLC0415 - as in _console

        self._errors.print(Text.assemble(("Error: ", "bold red"), stop.message))
        if stop.fix:
            self._errors.print(Text.assemble(("Fix: ", "bold"), stop.fix))
        if stop.request_id:
            self._errors.print(f"Request: {stop.request_id}", style="dim")
        if self.as_json:
            _document(stop.document)


@contextmanager
def saying(*, as_json: bool) -> Iterator[Output]:
    """Yield the command's output. A Stop raised inside is printed and becomes the exit code."""
    say = Output(as_json=as_json)
    try:
        yield say
    except Stop as stop:
        say.stop(stop)
        raise typer.Exit(int(stop.code)) from None


def family(**options: Any) -> typer.Typer:
    """Return a Typer app for related commands, with help in Markdown and tracebacks without values."""
    given: dict[str, Any] = {
        "no_args_is_help": True,
        "add_completion": False,
        "rich_markup_mode": "markdown",
        # Pretty tracebacks print local variables, which include secrets.
        "pretty_exceptions_enable": False,
    }
    return typer.Typer(**(given | options))


def _cell(value: object) -> str:
    named = {None: "-", True: "yes", False: "no"}
    return named[value] if value is None or isinstance(value, bool) else printable(value, 400)


def meaning(reason: object) -> str:
    """Describe a refusal's reason in sentences that need none of the refusal's values; else return the reason."""
    name = str(reason)
    return (name in PROBLEMS and _described(name)[0]) or f"{printable(name, 60)}."


def remedy(reason: object) -> str:
    """Return the fix for a reason; empty if the fix depends on the refusal's own values."""
    name = str(reason)
    return _described(name)[1] if name in PROBLEMS else ""


def _described(reason: str) -> tuple[str, str]:
    """Return message and fix of a reason, without the sentences that depend on the refusal's own values."""
    problem = PROBLEMS[reason]
    names = {name for _, name, _, _ in Formatter().parse(problem.message + problem.fix) if name}
    message, fix = describe(GatewayError(reason_named(reason), **dict.fromkeys(names, _UNKNOWN) | _IN_GENERAL))
    message = _UNKNOWN_END.sub(".", message).replace(f"its {_UNKNOWN} ", "its ")
    caused = _UNKNOWN not in _SENTENCE_ENDS.split(message)[0]
    return _known(message) if caused else "", _known(fix)


_UNKNOWN = "\0"
_UNKNOWN_END = re.compile(rf"[:;] {_UNKNOWN}\.?(?= |$)")
_IN_GENERAL: dict[str, Any] = {"account": "the linked account", "edits": "", "target": "the post's ID"}
"""Values for placeholders that have a general meaning in any refusal."""


def _known(text: str) -> str:
    return " ".join(sentence for sentence in _SENTENCE_ENDS.split(text) if _UNKNOWN not in sentence)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console  # noqa: PLC0415 - 2 MiB, for colours that a gateway that serves does not need

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


def _document(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
