"""A write that waits for a person, as the command line shows it: a JSON document, lines for people, a row of a table.

Nothing that a caller wrote reaches a terminal as it is: what cannot be seen is a marker such as U+202E between angle
quotes, and every line is wrapped and indented, so that no text can look like a line of Birdwire's own.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from birdwire.cli.explained import outcome_of
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables.journal import STATES, WAITING, State
from birdwire.surfaces.approve import payload_view
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.prices import usd
from birdwire.x.catalog.visible_text import marked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from birdwire.outcomes.approval_payload import Payload
    from birdwire.outcomes.approval_records import Waiting

COLUMNS: Final = ("request_id", "expires", "label", "account", "operation", "cost", "text")
WIDTH_WITHOUT_TERMINAL: Final = 100
MIN_WIDTH: Final = 40
EXCERPT: Final = 40

_NAME_WIDTH: Final = 11
_SUMMARIES: Final = {operation.name: operation.summary for operation in OPERATIONS}


@dataclass(frozen=True, slots=True)
class Asked:
    """A write that a person is or was asked about, and the label of the key that asks."""

    waiting: Waiting = field(repr=False)
    label: str

    @property
    def request_id(self) -> str:
        """Return the id of the request."""
        return self.waiting.row.request_id

    @property
    def state(self) -> State:
        """Return the state of the write."""
        return self.waiting.entry.state

    @property
    def is_open(self) -> bool:
        """Return whether nobody has decided yet."""
        return self.state is State.AWAITING_APPROVAL

    @property
    def payload_sha256(self) -> str:
        """Return the hash of what is asked for."""
        return self.waiting.row.payload_sha256

    @property
    def text(self) -> str | None:
        """Return the text of the post; None without one, or once the write has ended."""
        return None if self.waiting.payload is None else payload_view.text_of(self.waiting.payload)


def document(asked: Asked) -> dict[str, Any]:
    """Return a write as programs read it. `fields` are all that the caller sent but the text."""
    row, payload = asked.waiting.row, asked.waiting.payload
    fields = None if payload is None else {name: value for name, value in payload.fields.items() if name != "text"}
    return {
        "request_id": row.request_id,
        "state": asked.state,
        "key_id": row.key_id,
        "label": asked.label,
        "account": {"user_id": row.user_id, "username": row.username},
        "operation": row.operation,
        "text": asked.text,
        "fields": fields,
        "media": [] if payload is None else [dict(file) for file in payload.media],
        "payload_sha256": row.payload_sha256,
        "edited_from": row.edited_from,
        "cost_usd": usd(row.cost_microusd),
        "findings": [] if payload is None else [dict(finding) for finding in payload.findings],
        "approve_by": row.approve_by,
        "created_at": rfc3339(asked.waiting.entry.created_at),
        "expires_at": rfc3339(row.expires_at),
        "decided_at": None if row.decided_at is None else rfc3339(row.decided_at),
        "decided_by": row.decided_by,
        "note": row.note,
        "reason": asked.waiting.entry.reason,
    }


def table_row(asked: Asked, now: datetime) -> dict[str, Any]:
    """Return the cells of a write in the table of `birdwire approvals list`."""
    row, payload = asked.waiting.row, asked.waiting.payload
    if asked.text is None and payload is not None:
        shown = "; ".join(value.text for member in payload_view.members(payload) for value in member.values)
    else:
        shown = asked.text or ""
    shown = marked(shown.replace("\n", " "))
    return {
        "request_id": row.request_id,
        "expires": when(row.expires_at, now) if asked.is_open else asked.state.replace("_", " "),
        "label": one_line(asked.label)[:EXCERPT],
        "account": f"@{one_line(row.username)}",
        "operation": row.operation,
        "cost": _cost(row.cost_microusd),
        "text": shown if len(shown) <= EXCERPT else f"{shown[:EXCERPT]}...",
    }


def lines(asked: Asked, now: datetime) -> list[str]:
    """Describe a write for the person who decides."""
    row, payload = asked.waiting.row, asked.waiting.payload
    width = max(MIN_WIDTH, shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns) - _NAME_WIDTH - 3
    found = [f"{row.request_id}  {asked.state.replace('_', ' ')}"]
    pairs = [
        ("Key", f'"{one_line(asked.label)}" ({row.key_id})'),
        ("Account", f"@{one_line(row.username)} ({one_line(row.user_id)})"),
        ("Operation", f"{row.operation}: {_SUMMARIES.get(row.operation, 'unknown to this version')}"),
    ]
    found += [line for name, value in pairs for line in _pair(name, [value], width)]
    if payload is not None:
        found += _payload(payload, width)
    elif asked.state in WAITING:
        found += _pair("Text", ["cannot be decrypted, so nobody can approve it"], width)
    pairs = [("Cost", _cost(row.cost_microusd, long=True))]
    pairs += [("Asked", "by order of the operator" if row.ordered else _because(one)) for one in _findings(asked)]
    pairs += list(_standing(asked, now))
    return found + [line for name, value in pairs for line in _pair(name, _sentences(value, width), width)]


def when(moment: datetime, now: datetime) -> str:
    """Return a time on this machine's clock, and how far away it is, such as `14:32 (in 42 min)`."""
    local, today = moment.astimezone(), now.astimezone()
    clock = f"{local:%H:%M}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M}"
    seconds = (moment - now).total_seconds()
    if seconds <= 0:
        return f"{clock} (over)"
    if seconds < 120:
        return f"{clock} (in {int(seconds)} s)"
    minutes = int(seconds // 60)
    return f"{clock} (in {minutes} min)" if minutes < 120 else f"{clock} (in {minutes // 60} h)"


def one_line(text: str) -> str:
    """Return a text on one line, as a terminal may show it: its line feeds are markers, too."""
    return "\u2039U+000A\u203a".join(map(marked, text.split("\n")))


def check_readable(asked: Asked) -> None:
    """Check that the payload of a write that waits can be shown to the person who approves it.

    Raises:
        Stop: it cannot be decrypted.
    """
    if asked.is_open and asked.waiting.payload is None:
        raise Stop(
            ExitCode.REFUSED,
            "The payload of this request cannot be decrypted, so nobody can see what would be published.",
            "Deny or cancel it, and run `birdwire check`.",
        )


def _payload(payload: Payload, width: int) -> Iterator[str]:
    """Yield the lines of all that is asked for."""
    text = payload_view.text_of(payload)
    if text is not None:
        yield from _pair("Text", [f"{start}{part}" for start, part in _quoted(text, width - 2)], width)
    for member in payload_view.members(payload):
        values = (f"{one.text}  {one.href}" if one.href else one.text for one in member.values)
        yield from _pair(member.label, [one_line(one) for one in values], width)
    for link in payload_view.links(payload):
        leads = f" leads to {link.host or 'an unknown host'}" if link.differs else ""
        yield from _pair("Link", [f"{one_line(link.link)}{leads}"], width)
    for file in payload_view.media_not_shown(payload, frozenset()):
        yield from _pair("Media", [one_line(file)], width)


def _quoted(text: str, width: int) -> Iterator[tuple[str, str]]:
    """Yield each line of a text behind a bar, and behind a colon what continues a line that is too long."""
    for line in marked(text).split("\n"):
        first, *rest = _chopped(line, width)
        yield "| ", first
        yield from ((": ", part) for part in rest)


def _pair(name: str, values: Iterable[str], width: int) -> Iterator[str]:
    """Yield a name and its values, each on lines of its own, behind the name."""
    label = name
    if len(name) >= _NAME_WIDTH:
        yield f"  {name}"
        label = ""
    for value in values:
        for part in _chopped(value, width):
            yield f"  {label:<{_NAME_WIDTH}}{part}".rstrip()
            label = ""


def _chopped(line: str, width: int) -> list[str]:
    """Return a line in parts that fit into a terminal, whatever it consists of."""
    from rich.cells import chop_cells  # noqa: PLC0415 - 2 MiB, for people only

    return chop_cells(line, width) or [""]


def _sentences(text: str, width: int) -> list[str]:
    """Return a text of Birdwire's own in lines that end between words."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _findings(asked: Asked) -> list[Any]:
    """Return what asked for a person; one empty finding for an order of the operator."""
    if asked.waiting.row.ordered:
        return [None]
    return [] if asked.waiting.payload is None else list(asked.waiting.payload.findings)


def _because(finding: dict[str, Any]) -> str:
    rule, scope, version, message = (printable(finding.get(name)) for name in ("rule", "scope", "version", "message"))
    return f"because of `{rule}` of {scope}, version {version}: {message}"


def _standing(asked: Asked, now: datetime) -> Iterator[tuple[str, str]]:
    """Yield how it stands: until when it waits, or what became of it."""
    row, entry = asked.waiting.row, asked.waiting.entry
    if row.edited_from is not None:
        yield "Edited", f"the caller asked for another text, with the payload {row.edited_from}"
    if row.decided_at is not None:
        yield "Decided", f"{when(row.decided_at, now).partition(' (')[0]} by {one_line(row.decided_by or 'unknown')}"
    if row.note:
        yield "Note", one_line(row.note)
    if entry.state in WAITING:
        yield "Expires", when(row.expires_at, now)
    elif entry.state in STATES:
        happened, _ = outcome_of({"state": entry.state, "why": entry.why, "reason": entry.reason})
        yield "Outcome", " ".join(happened)
    yield "Payload", row.payload_sha256


def _cost(microusd: int | None, *, long: bool = False) -> str:
    if microusd is None:
        return "unknown: X's price list has no price for it" if long else "-"
    return f"${microusd / 1_000_000:.3f}{', by the price list of X' if long else ''}"
