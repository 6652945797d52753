"""Hostile clients of POST /mcp against a real process: mutated messages, and keys that are not good.

FAULTS_FUZZED sets how many messages are sent, FAULTS_BAD_KEYS how many calls without a good key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from harness.fault_scale import record, scaled
from harness.mcp import call_tool, headers, message
from harness.mcp_fuzz import Fuzzer, Message, check_answer
from harness.processes import deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from harness.processes import Deployment, GatewayProcess

FUZZED = scaled("FUZZED", 2_000, 100_000)
BAD_KEYS = scaled("BAD_KEYS", 1_000, 10_000)
CALLERS = 8
ROOM = {"max_calls": "1000", "max_calls_each": "1000"}
GROWTH_KIB = 1_024
WARM = 200
"""Calls after which a process has everything that it makes once."""

pytestmark = pytest.mark.timeout(300 + FUZZED // 50 + BAD_KEYS // 50)


def resident_kib(served: GatewayProcess) -> int:
    """Return how much memory a process has."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


class Connection:
    """A connection that is kept open as long as the gateway keeps it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes, given: Sequence[tuple[str, str]]) -> tuple[int, bytes]:
        """POST a body to /mcp; return the status and the body of the answer."""
        lines = [f"{name}: {value}\r\n" for name, value in given]
        head = f"POST /mcp HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n{''.join(lines)}\r\n"
        reader, writer = self._streams or await asyncio.open_connection(self._host, self._port)
        self._streams = reader, writer
        writer.write(head.encode("latin-1") + body)
        answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode("latin-1").lower()
        length = next((line[15:] for line in answer.split("\r\n") if line.startswith("content-length:")), "0")
        received = await asyncio.wait_for(reader.readexactly(int(length)), 60)
        if "connection: close" in answer:
            self.close()
        return int(answer.split()[1]), received

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[Deployment, GatewayProcess]]:
    """A linked gateway process."""
    async with deploy(folder) as place:
        served = await place.serve(**ROOM)
        await place.link(served)
        yield place, served


async def post_all(served: GatewayProcess, messages: Sequence[Message] | Fuzzer, count: int, key: str) -> Counter[str]:
    """Send so many messages by some callers; return the kinds of the answers."""
    kinds: Counter[str] = Counter()
    numbers = iter(range(count))

    async def caller() -> None:
        connection = Connection(served.url)
        for number in numbers:
            sent = messages.next() if isinstance(messages, Fuzzer) else messages[number % len(messages)]
            given = sent.headers if not key else [("authorization", f"Bearer {key}"), *sent.headers]
            kinds[check_answer(*await connection.post(sent.body, given))] += 1
        connection.close()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return kinds


@pytest.mark.trust("#338")
async def test_no_mutated_message_is_a_bug(tmp_path: Path) -> None:
    """No 5xx, no internal error, no crash in the log; each answer is JSON-RPC or our envelope; memory is bounded."""
    async with gateway(tmp_path) as (place, served):
        key, fuzzer = place.raw_keys[0], Fuzzer(FUZZED)
        kinds = await post_all(served, fuzzer, FUZZED // 10, key)
        before_kib = resident_kib(served)
        kinds += await post_all(served, fuzzer, FUZZED - FUZZED // 10, key)
        after_kib = resident_kib(served)
        assert (await call_tool(served.url, key, "get_account"))["isError"] is False
        assert '"crash"' not in served.log.read_text()
    record("fuzzed messages at /mcp", runs=FUZZED, before_kib=before_kib, after_kib=after_kib, **kinds)
    assert {"accepted", "refused", "error", "result", "tool done", "tool refused"} <= set(kinds)
    assert after_kib <= 1.1 * before_kib, (before_kib, after_kib)


@pytest.mark.trust("#342")
async def test_calls_without_a_good_key_cost_nothing(tmp_path: Path) -> None:
    """The process stays as large as it was: neither a key is kept, nor is the SDK loaded."""
    body = json.dumps(message("tools/list")).encode()
    given = [pair for pair in headers("", message("tools/list")).items() if pair[0] != "authorization"]
    given.append(("content-type", "application/json"))
    bad = ["bw_test_" + "A" * 43, "bw_live_x", "", "x" * 300]
    async with gateway(tmp_path) as (place, served):
        bad += [f"{place.raw_keys[0][:-4]}{number:04}" for number in range(BAD_KEYS)]
        messages = [Message(body, [("authorization", f"Bearer {key}"), *given]) for key in bad]
        kinds = await post_all(served, messages, WARM, "")
        before_kib = resident_kib(served)
        kinds += await post_all(served, messages, BAD_KEYS, "")
        after_kib = resident_kib(served)
        asked_kib = await _ask(place, served)
    record(
        "calls of /mcp without a good key",
        runs=BAD_KEYS,
        growth_kib=after_kib - before_kib,
        first_good_call_kib=asked_kib - after_kib,
    )
    assert kinds == {"refused": WARM + BAD_KEYS}
    assert after_kib - before_kib <= GROWTH_KIB
    # The measure sees the SDK when it is loaded.
    assert asked_kib - after_kib > 10 * GROWTH_KIB


async def _ask(place: Deployment, served: GatewayProcess) -> int:
    """Make the first call with a good key; return the memory that the process has then."""
    await call_tool(served.url, place.raw_keys[0], "get_account")
    return resident_kib(served)
