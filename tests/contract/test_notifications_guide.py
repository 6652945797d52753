"""docs/notifications.md: its commands and its receivers are run, and its lists are those of the code."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from birdwire.cli import notify_view
from birdwire.gateway.notifications.schedule import DELAYS, FAILING_FOR
from birdwire.gateway.notifications.signatures import new_secret, signed
from birdwire.runtime.metrics import METRICS
from birdwire.store.tables.destinations import Kind
from birdwire.store.tables.outbox import MAX_PENDING, TEST, EventType
from harness.gateway import free_port
from harness.notifications import FACTS
from harness.pages import blocks, dev_gateway, fits, steps, text_of
from harness.webhook_receiver import logged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.webhook_receiver import Delivery

PAGE = "docs/notifications.md"
TESTS = Path(__file__).parents[1]
WAIT_S = 20.0


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of Python's until the end of the block."""
    environment = {**os.environ, **environment}
    with subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own programs
        try:
            yield process
        finally:
            process.terminate()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that a program prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def wait_until_open(port: int) -> None:
    """Wait until a program listens on a port."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError


def received(log: Path, title: str) -> Delivery:
    """Wait for a message of ntfy with this title."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for delivery in logged(log):
            if delivery.headers["title"] == title:
                return delivery
        time.sleep(0.1)
    raise TimeoutError(title)


@pytest.mark.timeout(180)
def test_the_page_s_commands_and_its_receiver_do_what_the_page_shows(tmp_path: Path) -> None:
    """From top to bottom: a phone gets a message that waits, and a program verifies a test."""
    log, port = tmp_path / "phone.jsonl", str(free_port())
    log.touch()
    receiver = tmp_path / "receiver.py"
    receiver.write_text(blocks(PAGE, "python")[0].replace("9000", port))
    phone_command = ("-m", "harness.webhook_receiver", "--log", str(log))
    with dev_gateway(tmp_path) as reader, running(*phone_command, PYTHONPATH=str(TESTS)) as phone:
        reader.replace("https://ntfy.sh", f"http://127.0.0.1:{line_of(phone).strip()}")
        reader.replace("ntfy.sh", "127.0.0.1")
        reader.replace(":9000", f":{port}")
        *before, last = [step for block in blocks(PAGE, "console") for step in steps(block)]
        for step in before[:-1]:
            reader.do(step)
        message = received(log, "@ada: a post waits for you")
        [shown] = blocks(PAGE, "text")
        assert fits(shown.strip(), f"{message.headers['title']}\n\n{message.body.decode()}")
        assert message.headers["click"].startswith("http://127.0.0.1:")
        secret = reader.birdwire(reader.real(before[-1].command).split())
        assert fits(before[-1].answer, secret)
        with running(str(receiver), WEBHOOK_SECRET=secret) as program:
            wait_until_open(int(port))
            reader.do(last)
            assert line_of(program).startswith(f"{TEST} 20")


def test_the_receiver_without_a_library_accepts_what_is_signed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through a rotation, and neither a changed body nor an old message."""
    page: dict[str, Any] = {}
    exec(blocks(PAGE, "python")[1], page)  # noqa: S102 - our own page
    verified, old, new = page["verified"], new_secret(), new_secret()
    now, body = int(time.time()), b'{"type": "paused"}'
    for secrets, known, at, is_good in (
        ((old,), old, now, True),
        ((new, old), old, now, True),
        ((new, old), new, now, True),
        ((new,), old, now, False),
        ((old,), old, now - 400, False),
    ):
        monkeypatch.setenv("WEBHOOK_SECRET", known)
        headers = dict(signed(secrets, "evt_1", at, body))
        if is_good:
            assert verified(headers, body) == {"type": "paused"}
            with pytest.raises(ValueError, match="not from this gateway"):
                verified(headers, body + b" ")
        else:
            with pytest.raises(ValueError, match=r"not from|too old"):
                verified(headers, body)


def test_the_table_of_events_is_the_code_s() -> None:
    """Each type, with the members of its data."""
    chapter = text_of(PAGE).split("## Events")[1].split("\n## ")[0]
    rows = {
        name: set(re.findall(r"`(\w+)`", members))
        for name, members in re.findall(r"^\| `([a-z_.]+)` \|.*\| ([^|]*) \|$", chapter, re.MULTILINE)
    }
    assert set(rows) == {*get_args(EventType), TEST}
    assert rows == {kind: set(data) for (kind, _), data in FACTS.items()}


def test_the_page_has_the_schedule_and_the_limits_of_the_code() -> None:
    """In words."""
    text = " ".join(text_of(PAGE).split())
    hours = [delay.total_seconds() / 3_600 for delay in DELAYS]
    names = [
        *(f"{delay.seconds} seconds" for delay in DELAYS[:1]),
        *(f"{round(hour * 60)} minutes" for hour in hours[1:3]),
        *(f"{hour:.0f} hours" for hour in hours[3:]),
    ]
    assert f"{', '.join(names[:-1])} and {names[-1]} after the previous try" in text
    assert FAILING_FOR.days == 5
    assert "no success for five days" in text
    assert f"{MAX_PENDING:,} events" in text
    assert all(f"`{name}`" in text for name in METRICS if name.startswith("birdwire_notifications"))
    assert all(f"`{kind}`" in text or f"--kind {kind}" in text for kind in get_args(Kind))
    assert set(get_args(Kind)) == set(notify_view.KINDS)
