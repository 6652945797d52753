"""One connection to a Redis or Valkey server, kept open. Speaks RESP2, and does not know what its scripts mean.

The commands of one iteration of the event loop are sent in one write, and replies are matched in order. A caller gets a
reply within the budget, or an error: it never waits longer for the server, and no command is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
import ssl
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

import hiredis

from birdwire.runtime.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Word = str | int | bytes

BUDGET_S: Final = 0.05
CONNECT_TIMEOUT_S: Final = 1.0
"""For the name's resolution, TCP, TLS and authentication together."""

PROBE_INTERVAL_S: Final = 0.25
"""Between probes of a server that is late."""

IDLE_PROBE_INTERVAL_S: Final = 2.0
"""Between probes of a server that answers."""

MAX_SILENCE_S: Final = 2.0
"""A connection with a command that has had no reply for this long is closed."""

BACKOFF = Backoff(initial_s=0.1, max_s=1.6)
"""Between attempts to connect; each pause is twice the one before."""

MIN_GOOD_CONNECTION_S: Final = 10.0
"""A connection that lasted this long resets the backoff."""

MAX_WAITING: Final = 10_000
MAX_REPLY_BYTES: Final = 65_536

_SECOND_CHECK_S = 0.005
_INCOMPLETE: Final = object()
_CODE = re.compile(r"[A-Z]{1,20}")


class RedisUnavailableError(Exception):
    """The server did not reply in time, or cannot be reached; whether it executed the command is unknown."""


class RedisRefusedError(RedisUnavailableError):
    """The server refused a command. `code` is its error's first word, such as NOSCRIPT; others may quote arguments."""

    def __init__(self, text: str) -> None:
        found = _CODE.match(text)
        self.code = found[0] if found else "ERR"
        super().__init__(self.code)


@dataclass(frozen=True)
class Script:
    """A Lua script. Redis identifies it by the SHA-1 of its text once it has run it."""

    text: str
    sha: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class RedisConnection:
    """A server at redis[s]://[[user]:password@]host[:port][/database], reached over one connection at a time.

    `up` is whether the server replied recently within the budget; `changed(up, why)` is called when that or the reason
    changes. `probe` runs every few seconds to find out, so it may do useful work. The certificate of a rediss server is
    verified against the system's authorities, or those of SSL_CERT_FILE.
    """

    def __init__(
        self,
        url: str,
        probe: Callable[[], Awaitable[object]],
        changed: Callable[[bool, str], None],
        *,
        budget_s: float = BUDGET_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
            raise ValueError("a Redis URL begins with redis:// or rediss:// and names a host")
        self._host, self._port = parts.hostname, parts.port or 6379
        self._tls = ssl.create_default_context() if parts.scheme == "rediss" else None
        self._greeting: list[tuple[Word, ...]] = []
        if parts.password is not None:
            user = (unquote(parts.username),) if parts.username else ()
            self._greeting.append(("AUTH", *user, unquote(parts.password)))
        if parts.path.strip("/"):
            self._greeting.append(("SELECT", int(parts.path.strip("/"))))
        self._probe, self._changed, self._budget_s = probe, changed, budget_s
        self._protocol: _Protocol | None = None
        self._task: asyncio.Task[None] | None = None
        self._reported: tuple[bool, str] | None = None
        self._known = asyncio.Event()
        self.up = False

    def __repr__(self) -> str:
        return f"Redis({self._host}:{self._port})"

    async def start(self, wait_s: float = CONNECT_TIMEOUT_S) -> None:
        """Start to connect; return when the first attempt has succeeded or failed, or after `wait_s`."""
        self._task = asyncio.create_task(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._known.wait()

    async def close(self) -> None:
        """Close the connection; commands that are waiting fail."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def run(self, script: Script, key: str, *arguments: Word) -> Any:
        """Run a script with one key and return its result: bytes, an int, None, or a list of them.

        Raises:
            RedisUnavailableError: there was no reply within the budget.
        """
        try:
            return await self._ask("EVALSHA", script.sha, 1, key, *arguments)
        except RedisRefusedError as error:
            if error.code != "NOSCRIPT":
                raise
        return await self._ask("EVAL", script.text, 1, key, *arguments)

    def distrust(self, why: str) -> None:
        """Close the connection: what it delivered cannot have been a reply to the command."""
        if self._protocol is not None:
            self._protocol.end(why)

    def _ask(self, *words: Word) -> asyncio.Future[Any]:
        if self._protocol is None:
            raise RedisUnavailableError("not connected")
        return self._protocol.send(words)

    # The one task: connect, watch the connection, reconnect.

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pauses = iter(BACKOFF)
        while True:
            started_at = loop.time()
            try:
                protocol = await self._connect()
            except (OSError, UnicodeError, RedisUnavailableError) as error:
                self._report(
                    up=False, why=str(error) if isinstance(error, RedisUnavailableError) else type(error).__name__
                )
            else:
                await self._watch(protocol)
                if loop.time() - started_at > MIN_GOOD_CONNECTION_S:
                    pauses = iter(BACKOFF)
            pause_s = next(pauses)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - spread, not secrecy

    async def _connect(self) -> _Protocol:
        loop = asyncio.get_running_loop()
        protocol = _Protocol(lambda: self._report(up=False, why="late"))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: protocol, self._host, self._port, ssl=self._tls)
                for words in self._greeting:
                    await protocol.send(words)
        except BaseException:
            protocol.end("not greeted")
            raise
        protocol.greeted(self._budget_s)
        return protocol

    async def _watch(self, protocol: _Protocol) -> None:
        """Probe a connection until it ends, and close it if it is silent."""
        self._protocol = protocol
        try:
            while protocol.why is None:
                try:
                    await self._probe()
                except RedisUnavailableError as error:
                    self._report(up=False, why=str(error))
                else:
                    self._report(up=protocol.why is None, why=protocol.why or "")
                if protocol.silence_s() > MAX_SILENCE_S:
                    protocol.end("silent")
                elif self.up:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(IDLE_PROBE_INTERVAL_S):
                            await protocol.troubled.wait()
                if not self.up and protocol.why is None:
                    protocol.troubled.clear()
                    await asyncio.sleep(PROBE_INTERVAL_S)
        finally:
            self._protocol = None
            protocol.end("closed")
            self._report(up=False, why=protocol.why or "closed")

    def _report(self, *, up: bool, why: str = "") -> None:
        self.up = up
        self._known.set()
        if self._reported != (up, why):
            self._changed(up, why)
        self._reported = up, why


class _Protocol(asyncio.Protocol):
    """One connection: it sends commands and matches replies, each of which is due within `budget_s` of its command."""

    def __init__(self, late: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._late = late
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._unread = 0
        self._out: list[bytes] = []
        # A command whose caller was given an error stays here until its reply arrives.
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._check_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._budget_s = CONNECT_TIMEOUT_S
        self.troubled = asyncio.Event()
        # Why it ended, once it has.
        self.why: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        # uvloop's transport has the methods of asyncio's, but is not a subclass.
        self._transport = cast("asyncio.Transport", transport)
        if self.why is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the commands that are waiting: the server closed the connection, or the network did."""
        self.end("lost" if error is None else type(error).__name__)

    def send(self, words: tuple[Word, ...]) -> asyncio.Future[Any]:
        """Send a command; the commands of one iteration of the loop are sent in one write."""
        if self.why is not None or len(self._waiting) >= MAX_WAITING:
            raise RedisUnavailableError(self.why or "too many wait")
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(words))  # type: ignore[arg-type]  # the stub declares a tuple of one
        reply = self._loop.create_future()
        self._waiting.append((self._loop.time(), reply))
        if self._check_timer is None:
            self._check_timer = self._loop.call_later(self._budget_s - _SECOND_CHECK_S, self._check)
        return reply

    def greeted(self, budget_s: float) -> None:
        """Apply the budget of a call from now on: the greeting is complete."""
        self._budget_s = budget_s
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None

    def silence_s(self) -> float:
        """Return for how long the oldest command has had no reply."""
        return self._loop.time() - self._waiting[0][0] if self._waiting else 0.0

    def end(self, why: str) -> None:
        """Close immediately and fail every command that is waiting. The first reason is kept."""
        if self.why is not None:
            return
        self.why = why
        if self._check_timer is not None:
            self._check_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._give_up(why)

    def data_received(self, data: bytes) -> None:
        """Parse replies, whole or in part."""
        self._unread += len(data)
        try:
            self._reader.feed(data)
            while self.why is None and (reply := self._reader.gets()) is not _INCOMPLETE:
                self._unread = 0
                self._take(reply)
        except hiredis.HiredisError:
            self.end("garbage")
        if self._unread > MAX_REPLY_BYTES:
            self.end("too much")

    def _take(self, reply: object) -> None:
        if not self._waiting:
            # No command is waiting for it.
            self.end("garbage")
            return
        waiter = self._waiting.popleft()[1]
        refused = RedisRefusedError(str(reply)) if isinstance(reply, hiredis.ReplyError) else None
        if not waiter.done():
            if refused is None:
                waiter.set_result(reply)
            else:
                waiter.set_exception(refused)
        # The server is loading, read-only or out of memory: the next command would be refused as well.
        if refused is not None and refused.code != "NOSCRIPT":
            self.end(refused.code)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and self.why is None:
            self._transport.write(b"".join(out))

    def _check(self, *, last: bool = False) -> None:
        """Check whether the oldest command is late; twice, since this loop may be late itself, with replies unread."""
        self._check_timer = None
        oldest = next((asked_at for asked_at, reply in self._waiting if not reply.done()), None)
        if oldest is None:
            return
        left_s = oldest + self._budget_s - _SECOND_CHECK_S - self._loop.time()
        if left_s > 0:
            self._check_timer = self._loop.call_later(left_s, self._check)
        elif not last:
            self._check_timer = self._loop.call_later(_SECOND_CHECK_S, lambda: self._check(last=True))
        else:
            self._late()
            self._give_up("late")

    def _give_up(self, why: str) -> None:
        for _, reply in self._waiting:
            if not reply.done():
                reply.set_exception(RedisUnavailableError(why))
        self.troubled.set()
