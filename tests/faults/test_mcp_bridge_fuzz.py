"""The bridge of stdio under mutated lines: each that wants an answer gets one, and none ends the bridge.

FAULTS_BRIDGED sets how many lines are sent.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.bridging import bridging
from harness.fault_scale import record, scaled
from harness.mcp_fuzz import INTERNAL_ERROR, Fuzzer
from harness.processes import deploy

if TYPE_CHECKING:
    from harness.bridging import BridgeProcess

LINES = scaled("BRIDGED", 400, 100_000)
BATCH = 200
ANSWERED_S = 120
ROOM = {"max_calls": "1000", "max_calls_each": "1000"}

pytestmark = pytest.mark.timeout(300 + LINES // 20)


def wants_answer(line: bytes) -> bool:
    """Return whether a line is anything but a notification or white space."""
    if not line.strip():
        return False
    try:
        message: Any = json.loads(line.strip().decode())
    except (ValueError, RecursionError):
        return True
    return not isinstance(message, dict) or "id" in message or "method" not in message


def resident_kib(bridge: BridgeProcess) -> int:
    """Return how much memory a bridge has."""
    lines = Path(f"/proc/{bridge.process.pid}/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


async def answers_to(bridge: BridgeProcess, lines: list[bytes]) -> Counter[str]:
    """Send lines while their answers are read; return the kinds of the answers."""
    kinds: Counter[str] = Counter()
    sending = asyncio.create_task(bridge.send(*[line + b"\n" for line in lines]))
    for _ in range(sum(map(wants_answer, lines))):
        document = await bridge.receive()
        assert set(document) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"}), document
        kinds["error" if "error" in document else "result"] += 1
        assert document.get("error", {}).get("code") != INTERNAL_ERROR, document
    await sending
    return kinds


async def test_no_line_ends_the_bridge(tmp_path: Path) -> None:
    """As many answers as are wanted, all of them JSON-RPC; no traceback; bounded memory; exit code 0 at the end."""
    fuzzer, kinds = Fuzzer(LINES), Counter[str]()
    async with deploy(tmp_path) as place:
        served = await place.serve(**ROOM)
        await place.link(served)
        async with bridging(served.url, place.raw_keys[0]) as bridge, asyncio.timeout(ANSWERED_S + LINES // 20):
            reading = asyncio.create_task(_read(bridge))
            kinds += await answers_to(bridge, [_line(fuzzer) for _ in range(BATCH)])
            before_kib = resident_kib(bridge)
            for _ in range(LINES // BATCH - 1):
                kinds += await answers_to(bridge, [_line(fuzzer) for _ in range(BATCH)])
            after_kib = resident_kib(bridge)
            assert bridge.process.stdin is not None
            bridge.process.stdin.close()
            assert await bridge.process.wait() == 0
            notes = await reading
        assert '"crash"' not in served.log.read_text()
    record("fuzzed lines of the bridge", runs=LINES, before_kib=before_kib, after_kib=after_kib, **kinds)
    assert "Traceback" not in notes
    assert "A message failed" not in notes
    assert kinds["result"]
    assert after_kib <= 1.25 * before_kib, (before_kib, after_kib)


def _line(fuzzer: Fuzzer) -> bytes:
    return fuzzer.next().body.replace(b"\n", b" ")


async def _read(bridge: BridgeProcess) -> str:
    """Return what the bridge writes to stderr, all of which must be read while it runs."""
    assert bridge.process.stderr is not None
    return (await bridge.process.stderr.read()).decode()
