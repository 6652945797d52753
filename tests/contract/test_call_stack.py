"""How many frames of ours stand between a caller and X."""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import selector_events
from pathlib import Path
from typing import TYPE_CHECKING, Any

import birdwire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

    import pytest

    from harness.gateway import RunningGateway

SOURCE = Path(birdwire.__file__).parent
MAX_FRAMES = 9
MAX_PACKAGES = 6
TRANSPORT: Any = vars(selector_events)["_SelectorSocketTransport"]
"""What asyncio writes to a plain TCP connection with."""


def _running(frame: FrameType | None) -> Iterator[CodeType]:
    """Yield the code of the frames that run, the innermost first."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _awaiting() -> Iterator[CodeType]:
    """Yield the code of the coroutines that the running task awaits, the outermost first."""
    task = asyncio.current_task()
    one = None if task is None else task.get_coro()
    while inspect.iscoroutine(one):
        yield one.cr_code
        one = one.cr_await


def _own(stack: list[CodeType]) -> list[str]:
    """Return the frames of the gateway as `package/module.py:function`."""
    paths = [(Path(code.co_filename), code.co_qualname) for code in stack]
    return [f"{path.relative_to(SOURCE)}:{name}" for path, name in paths if path.is_relative_to(SOURCE)]


async def test_a_like_is_at_most_nine_frames_deep(linked: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the edge to the first byte that leaves for X, on a connection that is open already."""
    assert (await linked.like()).status_code == 200
    stacks: list[list[str]] = []
    write = TRANSPORT.write

    def recording(transport: object, data: bytes) -> None:
        if b"/likes HTTP/1.1" in data[:200]:
            stacks.append(_own([*dict.fromkeys((*_awaiting(), *_running(sys._getframe(1))))]))  # noqa: SLF001 - public
        write(transport, data)

    monkeypatch.setattr(TRANSPORT, "write", recording)
    assert (await linked.like()).status_code == 200
    (stack,) = stacks
    assert len(stack) <= MAX_FRAMES, stack
    packages = {"/".join(frame.split("/")[: 2 if frame.startswith("x/") else 1]) for frame in stack}
    assert len(packages) <= MAX_PACKAGES, packages
