"""A receiver of webhooks on loopback: it records each delivery, and answers as the test sets.

Within a test it runs on the test's event loop: `async with receiving() as receiver`. As a process of its own, by
`python -m harness.webhook_receiver --port 0 --log FILE`, it prints its port, and outlives what the test kills.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

Answer = TypeVar("Answer")

WAIT_S = 20.0
"""How long `wait_for` waits, unless the test sets another deadline."""

MAX_HEAD, MAX_BODY = 1 << 16, 1 << 20


@dataclass(frozen=True)
class Delivery:
    """A request as it arrived. The names of headers are in lowercase; `at` is in seconds since 1970."""

    at: float
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        """The `webhook-id`, by which repeated deliveries of one event are recognized."""
        return self.headers["webhook-id"]

    @property
    def document(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """How a delivery is answered, after `delay_s`; `hangs`: never; `cut`: by closing the connection.

    `then` is called as soon as the answer is written, or the connection is about to be closed.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay_s: float = 0.0
    hangs: bool = False
    cut: bool = False
    then: Callable[[], object] = bool


def in_turn(*replies: Answer) -> Callable[[object], Answer]:
    """Return a function that returns these, one after the other, and then always the last."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


ACCEPTED = Reply()
UNAVAILABLE = Reply(503)
GONE = Reply(410)
HANGS = Reply(hangs=True)
CUT = Reply(cut=True)


@dataclass
class WebhookReceiver:
    """A receiver that runs. `reply` decides how each delivery is answered, and `accepted` are those answered with 2xx.

    `connections` counts connections, and `open_now` those that are still open.
    """

    port: int = 0
    reply: Callable[[Delivery], Reply] = lambda _: ACCEPTED
    deliveries: list[Delivery] = field(default_factory=list)
    accepted: list[Delivery] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    on_accepted: Callable[[Delivery], None] | None = None
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        """The URL of the receiver, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, *replies: Reply) -> None:
        """Answer the next deliveries so, one after the other, and all later ones as the last."""
        self.reply = in_turn(*replies)

    async def wait_for(self, count: int, seconds: float = WAIT_S) -> list[Delivery]:
        """Wait until so many deliveries have arrived in all, and return all of them.

        Raises:
            TimeoutError: fewer have arrived in `seconds`.
        """
        await self.until(lambda: len(self.deliveries) >= count, seconds)
        return list(self.deliveries)

    async def until(self, holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
        """Wait until something holds, which only a delivery can change.

        Raises:
            TimeoutError: it does not hold after `seconds`.
        """
        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(holds)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until either end closes it."""
        self.connections += 1
        self.open_now += 1
        try:
            while (delivery := await _read(reader)) is not None:
                if not await self._answer(delivery, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def _answer(self, delivery: Delivery, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Record a delivery and answer it; return whether the connection stays open."""
        reply = self.reply(delivery)
        is_accepted = 200 <= reply.status < 300 and not reply.hangs and not reply.cut
        if is_accepted and self.on_accepted is not None:
            self.on_accepted(delivery)
        async with self._arrived:
            self.deliveries.append(delivery)
            if is_accepted:
                self.accepted.append(delivery)
            self._arrived.notify_all()
        if reply.hangs:
            # Until the client gives up.
            await reader.read(1)
            return False
        if reply.cut:
            reply.then()
            return False
        await asyncio.sleep(reply.delay_s)
        headers = [*reply.headers, ("content-length", str(len(reply.body)))]
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        writer.write(f"HTTP/1.1 {reply.status} So\r\n{head}\r\n".encode() + reply.body)
        await writer.drain()
        reply.then()
        return delivery.headers.get("connection", "").lower() != "close"


async def _read(reader: asyncio.StreamReader) -> Delivery | None:
    """Read one request, whose body has a length; return None if the client has closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    request, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = request.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    assert length <= MAX_BODY, length
    return Delivery(time.time(), method, target, headers, await reader.readexactly(length))


@contextlib.asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[WebhookReceiver]:
    """Start a receiver on this event loop, on any free port, and end it with all of its connections."""
    receiver = WebhookReceiver()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        # A cancelled task of the server would be reported as an error of the loop.
        with contextlib.suppress(asyncio.CancelledError):
            await receiver.serve(reader, writer)
        running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=MAX_HEAD)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def logged(log: Path) -> Iterator[Delivery]:
    """Yield what a receiver's process has accepted, from its log."""
    for line in log.read_text().splitlines():
        found = json.loads(line)
        yield Delivery(**found | {"body": found["body"].encode("latin-1")})


async def _run(port: int, log: Path) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(delivery: Delivery) -> None:
        row = vars(delivery) | {"body": delivery.body.decode("latin-1")}
        os.write(descriptor, json.dumps(row).encode() + b"\n")
        os.fsync(descriptor)

    async with receiving(port) as receiver:
        receiver.on_accepted = write
        sys.stdout.write(f"{receiver.port}\n")
        sys.stdout.flush()
        await ended.wait()


def main() -> None:
    """Receive until SIGTERM; every accepted delivery is on the disk as a line of JSON before it is answered."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(_run(given.port, given.log))


if __name__ == "__main__":
    main()
