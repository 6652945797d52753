"""Watches the writes that wait for a person: as lines of JSON, or at a terminal with a key for each decision."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from birdwire.cli import approval_view, terminal
from birdwire.cli.inputs import editor
from birdwire.cli.stop import Stop
from birdwire.store.tables.journal import STATES

if TYPE_CHECKING:
    from birdwire.cli.approval_desk import Desk
    from birdwire.cli.approval_view import Asked
    from birdwire.cli.output import Output

EVERY_S: Final = 1.0
"""How often the database is read."""

SETTLE_S: Final = 0.5
"""For how long keys are dropped after a write was shown: they were pressed before a person could read it."""

KEYS: Final = "[a] approve   [e] edit   [d] deny   [s] skip   [q] quit"


def watch_lines(desk: Desk, key_id: str | None) -> None:
    """Print a JSON object for each write that waits, and again whenever its state or its payload changes.

    It ends with Ctrl-C, or when nobody reads its output any more.
    """
    known: dict[str, tuple[str, str]] = {}
    try:
        while True:
            started = time.monotonic()
            for one in _changed(desk, key_id, known):
                sys.stdout.write(json.dumps(approval_view.document(one)) + "\n")
            sys.stdout.flush()
            # Thousands of writes take longer to read, and must not keep the database busy.
            time.sleep(max(EVERY_S, 5 * (time.monotonic() - started)))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # The interpreter would try again to write what is left, and report that it cannot.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def watch_terminal(say: Output, desk: Desk, key_id: str | None) -> None:
    """Show the writes that wait, one after another, and let single keys decide, until q or Ctrl-C."""
    Watch(say, desk, key_id).run()


class Watch:
    """A person at a terminal. `_shown` is the write on which the next key decides."""

    def __init__(self, say: Output, desk: Desk, key_id: str | None) -> None:
        self._say = say
        self._desk = desk
        self._key_id = key_id
        self._keys = terminal.Keys()
        self._shown: Asked | None = None
        self._shown_at = 0.0
        self._waiting = 0
        self._passed: set[tuple[str, str]] = set()
        self._is_idle = False

    def run(self) -> None:
        """Show and decide, until a person quits."""
        try:
            with self._keys.reading():
                while True:
                    self._refresh()
                    key = self._keys.next(EVERY_S)
                    if key == "q":
                        return
                    if self._shown is not None and time.monotonic() - self._shown_at > SETTLE_S:
                        self._decide(key, self._shown)
        except (KeyboardInterrupt, EOFError):
            self._say.lines("")

    def _refresh(self) -> None:
        """Read what waits; announce what happened to the write that is shown, and show the next one."""
        waiting = {one.request_id: one for one in self._desk.waiting(key_id=self._key_id) if one.is_open}
        if self._shown is not None:
            found = waiting.get(self._shown.request_id)
            if found is None or found.payload_sha256 != self._shown.payload_sha256:
                self._announce(self._desk.find(self._shown.request_id))
                self._shown = None
        open_ones = [one for one in waiting.values() if (one.request_id, one.payload_sha256) not in self._passed]
        if self._shown is None:
            self._show(open_ones)
        elif len(open_ones) > self._waiting:
            self._say.lines(f"({len(open_ones)} waiting now)")
        self._waiting = len(open_ones)

    def _announce(self, now: Asked) -> None:
        """State what another person, or the time, did to the write that is shown."""
        by = f" by {now.waiting.row.decided_by}" if now.waiting.row.decided_by else ""
        what = "was edited" if now.is_open else f"is {now.state.replace('_', ' ')} now{by}"
        self._say.lines("", f"*** {now.request_id} {approval_view.one_line(what)}. ***")

    def _show(self, open_ones: list[Asked]) -> None:
        if not open_ones:
            if not self._is_idle:
                skipped = f" {len(self._passed)} skipped." if self._passed else ""
                self._say.lines("", f"Nothing waits for a decision.{skipped} Waiting for requests; q quits.")
            self._is_idle = True
            return
        self._is_idle = False
        self._shown = open_ones[0]
        lines = approval_view.lines(self._shown, self._desk.now())
        self._say.lines("", *lines, "", f"1 of {len(open_ones)} waiting   {KEYS}")
        self._keys.forget()
        self._shown_at = time.monotonic()

    def _decide(self, key: str, shown: Asked) -> None:
        """Do what a key asks for. What is refused is printed, and the write is read again."""
        actions = {"a": self._approve, "e": self._edit, "d": self._deny, "s": self._skip}
        if key not in actions:
            return
        try:
            actions[key](shown)
        except Stop as stop:
            self._say.stop(stop)
            # Otherwise a write that can no longer be decided would be shown again and again.
            self._passed.add((shown.request_id, shown.payload_sha256))
        self._shown = None

    def _approve(self, shown: Asked) -> None:
        approval_view.check_readable(shown)
        row = self._desk.approve(shown.request_id, shown.payload_sha256)
        gateway = "" if self._desk.is_served() else " No gateway is running: it is sent once one starts."
        self._say.lines(
            f"{row.request_id} is approved. It may be sent until "
            f"{approval_view.when(row.expires_at, self._desk.now())}.{gateway}"
        )

    def _deny(self, shown: Asked) -> None:
        with self._keys.line_mode():
            note = terminal.ask_line("Note for the caller (optional): ").strip()
        row = self._desk.deny(shown.request_id, note or None, shown.payload_sha256)
        self._say.lines(f"{row.request_id} is denied. Nothing was sent.")

    def _edit(self, shown: Asked) -> None:
        if shown.text is None:
            self._say.lines("Only the text of a post can be edited.")
            return
        with self._keys.line_mode():
            if editor():
                text = terminal.edit_text(shown.text)
            else:
                text = terminal.ask_line("New text, on one line (empty: no change): ") or shown.text
        if text == shown.text:
            self._say.lines("The text was not changed.")
            return
        try:
            self._desk.edit(shown.request_id, text, shown.payload_sha256)
        except Stop as stop:
            # The write goes on waiting with its old text, and is shown again.
            self._say.stop(stop)
            return
        self._say.lines("Changed. The new text still has to be approved:")

    def _skip(self, shown: Asked) -> None:
        self._passed.add((shown.request_id, shown.payload_sha256))


def _changed(desk: Desk, key_id: str | None, known: dict[str, tuple[str, str]]) -> list[Asked]:
    """Return the writes that are not as they are `known`, which is brought up to date: state and payload by id."""
    waiting = desk.waiting(key_id=key_id)
    ended = desk.found(sorted(known.keys() - {one.request_id for one in waiting}))
    changed = []
    for one in (*ended, *waiting):
        seen = (one.state.value, one.payload_sha256)
        if known.get(one.request_id) != seen:
            changed.append(one)
            known[one.request_id] = seen
    # One that is being sent is read until its outcome is known.
    over = {one.request_id for one in ended if one.state not in STATES or STATES[one.state].final}
    for request_id in over:
        del known[request_id]
    return changed
