"""What a command says and how it exits: one JSON document for programs, or text for people. Decides nothing else."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from enum import IntEnum
from functools import cached_property
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdwire.api.errors import PROBLEMS, GatewayError, describe, reason_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.text import Text

_WORD_BEGINS = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?]) +")

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; text for people goes to stderr.")
]


class ExitCode(IntEnum):
    """How a command ends."""

    OK = 0
    USAGE = 2
    REFUSED = 3
    AUTH = 4
    LIMIT = 5
    UPSTREAM = 6
    UNKNOWN = 7


class Stop(Exception):  # noqa: N818 - it ends a command, for whatever reason
    """The end of a command that could not do what it was asked: how it exits, why, and what to do about it.

    `document` is the JSON document of a gateway's refusal, and `reason` its reason; without one, a document is made of
    the rest.
    """

    def __init__(
        self,
        code: ExitCode,
        message: str,
        fix: str = "",
        *,
        request_id: str = "",
        document: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix
        self.request_id = request_id
        error = (document or {}).get("error")
        self.reason = str(error.get("reason", "")) if isinstance(error, dict) else ""
        self.document = document or {"error": {"code": code.name.lower(), "message": message, "fix": fix}}


class Output:
    """Where a command's words go. Terminal colours follow NO_COLOR; the text itself is never read as markup."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def _people(self) -> Console:
        return _console(stderr=self.as_json)

    @cached_property
    def _errors(self) -> Console:
        return _console(stderr=True)

    def result(self, document: dict[str, Any], *lines: str | Text) -> None:
        """What the command was for, as a program or a person reads it."""
        if self.as_json:
            _document(document)
        else:
            self.lines(*lines)

    def table(
        self, document: dict[str, Any], rows: Sequence[dict[str, Any]], columns: Sequence[str], none: str
    ) -> None:
        """The document for programs; its rows as lines in columns for people, `none` without any."""
        cells = [[_WORD_BEGINS.sub("_", name).upper() for name in columns]]
        cells += [[_cell(row.get(name)) for name in columns] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        self.result(document, *(lines if rows else [none]))

    def lines(self, *lines: str | Text) -> None:
        """Text for people only."""
        stream = sys.stderr if self.as_json else sys.stdout
        for line in lines:
            if isinstance(line, str):
                stream.write(f"{line}\n")
            else:
                self._people.print(line)
        stream.flush()

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something is waited for."""
        with self._errors.status(text):
            yield

    def aside(self, text: str) -> None:
        """A remark beside the result."""
        self._errors.print(text, style="dim")

    def stop(self, stop: Stop) -> None:
        """Why the command ends."""
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
    """A command's words; a Stop inside is said and becomes the exit code."""
    say = Output(as_json=as_json)
    try:
        yield say
    except Stop as stop:
        say.stop(stop)
        raise typer.Exit(int(stop.code)) from None


def family(**options: Any) -> typer.Typer:
    """Commands that belong together, with help in Markdown and tracebacks without values."""
    given: dict[str, Any] = {
        "no_args_is_help": True,
        "add_completion": False,
        "rich_markup_mode": "markdown",
        "pretty_exceptions_enable": False,  # they print local variables, and so secrets
    }
    return typer.Typer(**(given | options))


def printable(text: object, length: int = 500) -> str:
    """Text of another machine as one line that moves no cursor and colours nothing."""
    line = "".join(char if char.isprintable() else " " for char in str(text)[: length + 1])
    return line if len(line) <= length else f"{line[:length]}..."


def _cell(value: object) -> str:
    named = {None: "-", True: "yes", False: "no"}
    return named[value] if value is None or isinstance(value, bool) else printable(value, 400)


def meaning(reason: object) -> str:
    """A refusal's reason as sentences that need no values of the refusal; if there are none, the reason itself."""
    name = str(reason)
    return (name in PROBLEMS and _described(name)[0]) or f"{printable(name, 60)}."


def remedy(reason: object) -> str:
    """Return what to do about a refusal, by its reason; empty if only the refusal itself could say it."""
    name = str(reason)
    return _described(name)[1] if name in PROBLEMS else ""


def _described(reason: str) -> tuple[str, str]:
    """Message and fix of a reason, without the sentences that hold what only the refusal itself had."""
    problem = PROBLEMS[reason]
    names = {name for _, name, _, _ in Formatter().parse(problem.message + problem.fix) if name}
    message, fix = describe(GatewayError(reason_named(reason), **dict.fromkeys(names, _UNKNOWN) | _IN_GENERAL))
    message = _UNKNOWN_END.sub(".", message).replace(f"its {_UNKNOWN} ", "its ")
    caused = _UNKNOWN not in _SENTENCE_ENDS.split(message)[0]
    return _known(message) if caused else "", _known(fix)


_UNKNOWN = "\0"
_UNKNOWN_END = re.compile(rf"[:;] {_UNKNOWN}\.?(?= |$)")
_IN_GENERAL: dict[str, Any] = {"account": "the linked account", "edits": "", "target": "the post's id"}
"""What placeholders stand for in any refusal."""


def _known(text: str) -> str:
    return " ".join(sentence for sentence in _SENTENCE_ENDS.split(text) if _UNKNOWN not in sentence)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console  # noqa: PLC0415 - 2 MiB, for colours that a gateway that serves does not need

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


def _document(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
