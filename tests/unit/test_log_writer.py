"""Log lines never block anything: their reader may stop, go away, or be a full disk."""

from __future__ import annotations

import asyncio
import io
import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from birdwire.api.messages import Call
from birdwire.keys.secrets import mint
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.runtime.log_writer import MAX_BUFFER_BYTES, LogWriter
from birdwire.runtime.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: the end to read, and the end to write."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        yield read_end, stream
    os.close(read_end)


def drained(read_end: int) -> bytes:
    """What is in the pipe now."""
    os.set_blocking(read_end, False)
    found = b""
    while True:
        try:
            found += os.read(read_end, 1 << 20)
        except BlockingIOError:
            return found


@pytest.mark.trust("F50")
def test_a_reader_that_stopped_costs_lines_and_nothing_else(pipe: tuple[int, TextIO]) -> None:
    """What fits into the pipe and the buffer is kept, in order and whole; the rest is counted; then lines go on."""
    read_end, stream = pipe
    log, sent = LogWriter(stream), 3 * MAX_BUFFER_BYTES // len(LINE)
    for number in range(sent):
        log.add(f"{number:<{len(LINE) - 1}}\n")
    assert 0 < log.dropped < sent
    found = b""
    while piece := drained(read_end):
        found += piece
        log.flush()
    log.add("last\n")
    found += drained(read_end)
    lines = found.decode().splitlines()
    assert [int(line) for line in lines[:-1]] == list(range(sent - log.dropped))
    assert lines[-1] == "last"


def test_a_reader_that_closed_costs_lines_and_nothing_else() -> None:
    """Every line is dropped and counted."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        log = LogWriter(stream)
        for _ in range(3):
            log.add(LINE)
    assert log.dropped == 3


def test_a_disk_that_is_full_costs_lines_and_nothing_else() -> None:
    """/dev/full takes nothing."""
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123 - a device, for its descriptor
        log = LogWriter(stream)
        log.add(LINE)
    assert log.dropped == 1


def test_a_stream_without_a_descriptor_will_do() -> None:
    """As tests have it; once it is closed, lines are dropped."""
    stream = io.StringIO()
    log = LogWriter(stream)
    log.add(LINE)
    assert stream.getvalue() == LINE
    stream.close()
    log.add(LINE)
    assert log.dropped == 1


async def test_the_lines_of_one_turn_of_the_loop_are_written_together(pipe: tuple[int, TextIO]) -> None:
    """Nothing is written before the turn is over, and all of it then."""
    read_end, stream = pipe
    log = LogWriter(stream)
    for _ in range(3):
        log.add(LINE)
    assert drained(read_end) == b""
    await asyncio.sleep(0)
    assert drained(read_end) == 3 * LINE.encode()


async def test_unwritten_log_lines_are_retried(pipe: tuple[int, TextIO]) -> None:
    """When the reader goes on, the rest follows without another line."""
    read_end, stream = pipe
    log, sent = LogWriter(stream), 2_000
    for _ in range(sent):
        log.add(LINE)
    found = b""
    async with asyncio.timeout(10):
        while len(found) < sent * len(LINE):
            await asyncio.sleep(0)
            found += drained(read_end)
    assert found == sent * LINE.encode()


def test_a_requests_line_is_json_whatever_it_holds() -> None:
    """It is put together by hand, so every kind of value is tried."""
    stream = io.StringIO()
    note = {
        "reason": 'a "quote"\n\\',
        "upstream_status": 429,
        "unexpected": True,
        "text": "\u2028é\ud800",
        "none": None,
    }
    call = Call("GET\n", '/a"b', headers={"x-request-id": ["theirs-1"]}, note=note)
    Telemetry(stream, Clock()).request(call, 200, 0.0123)
    Telemetry(stream, Clock()).request(Call("GET", "/", headers={"x-request-id": ['"']}), 200, 0.0)
    first, second = (json.loads(line) for line in stream.getvalue().split("\n")[:2])
    assert first | {"time": "", "request_id": ""} == {
        "time": "",
        "level": "info",
        "event": "request",
        "request_id": "",
        "caller_request_id": "theirs-1",
        "method": "GET?",
        "path": "/a?b",
        "status": 200,
        "ms": 12.3,
        **note,
        "text": "\u2028é?",
    }
    assert "caller_request_id" not in second


def test_a_line_has_the_time_of_its_own_second() -> None:
    """The text of a second is kept for the lines of that second alone, whichever way the clock moves."""

    class Set(Clock):
        at = datetime(2026, 11, 28, 0, 59, 59, 999_999, UTC)

        def unix_s(self) -> float:
            return self.at.timestamp()

    stream, clock = io.StringIO(), Set()
    telemetry = Telemetry(stream, clock)
    moved = [timedelta(), timedelta(microseconds=1), timedelta(microseconds=999_999), timedelta(hours=1)]
    moved += [timedelta(hours=-1, microseconds=-1), timedelta(days=-1)]
    expected = []
    for step in moved:
        clock.at += step
        expected.append(rfc3339(clock.at))
        telemetry.request(Call("GET", "/"), 200, 0.0)
    assert [json.loads(line)["time"] for line in stream.getvalue().splitlines()] == expected
    assert len(set(expected)) == 4


@pytest.mark.trust("G7")
@pytest.mark.parametrize("before", ["/apis/", "/" + "a" * 60 + "/"])
def test_a_key_in_a_path_or_a_request_id_is_masked(before: str) -> None:
    """Whole or cut short by the bound of a path; the start tells what it was."""
    stream, key = io.StringIO(), mint("live")
    telemetry = Telemetry(stream, Clock())
    telemetry.request(Call("GET", f"{before}{key}/x", headers={"x-request-id": [f"run-{key}"]}), 404, 0.0)
    telemetry.event("warning", "odd", sent=f"was {key}, so")
    telemetry.flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["path"].startswith(f"{before}bw_live_***")
    assert (lines[0]["caller_request_id"], lines[1]["sent"]) == ("run-bw_live_***", "was bw_live_***, so")
    assert key[8:16] not in stream.getvalue()
