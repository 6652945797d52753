"""One connection to a Redis or Valkey server, kept up. Speaks RESP2, and knows nothing of what its scripts mean.

The commands of one turn of the event loop leave in one write, and replies are matched in order. A caller gets
an answer within the budget or an error: it never waits for a server, and never sends twice.
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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Word = str | int | bytes

BUDGET_S: Final = 0.05
CONNECT_S: Final = 1.0  # name, TCP, TLS, log-in, in all
PROBE_S: Final = 0.25  # between looks whether a late server is back
BEAT_S: Final = 2.0  # between looks whether a quiet server is there
SILENT_S: Final = 2.0  # a command unanswered for so long: the connection is given up
PAUSES_S: Final = (0.1, 1.6)  # between tries to connect: the first, and what doubling it ends at
SETTLED_S: Final = 10.0  # a connection that lived so long was a good one
MAX_WAITING: Final = 10_000
MAX_REPLY: Final = 65_536

_LAST_LOOK_S = 0.005
_NOT_YET: Final = object()
_CODE = re.compile(r"[A-Z]{1,20}")


class RedisUnavailableError(Exception):
    """No answer in time, or none to be expected; whether the command was carried out is unknown."""


class RedisRefusedError(RedisUnavailableError):
    """The server said no: `code` is the first word of it, such as NOSCRIPT; the rest may quote what was sent."""

    def __init__(self, text: str) -> None:
        found = _CODE.match(text)
        self.code = found[0] if found else "ERR"
        super().__init__(self.code)


@dataclass(frozen=True)
class Script:
    """A Lua script; Redis knows it by the SHA-1 of its text once it has run it."""

    text: str
    sha: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class RedisConnection:
    """A server at redis[s]://[[user]:password@]host[:port][/database], reached over one connection at a time.

    `up` says whether it answered recently, and within the budget; `changed(up, why)` is called when that turns, and
    when there is another reason for it. `probe` is run every few seconds to find out, so it may as well be of use. The
    certificate of a rediss server is verified against the system's authorities, or those of SSL_CERT_FILE.
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
        self._line: _Line | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: tuple[bool, str] | None = None
        self._known = asyncio.Event()
        self.up = False

    def __repr__(self) -> str:
        return f"Redis({self._host}:{self._port})"

    async def start(self, wait_s: float = CONNECT_S) -> None:
        """Begin to connect; returns when that is known to have worked or not, or after `wait_s`."""
        self._task = asyncio.create_task(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._known.wait()

    async def close(self) -> None:
        """End the connection; nobody is answered any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def run(self, script: Script, key: str, *arguments: Word) -> Any:
        """What a script with one key returns: bytes, an int, None, or a list of them.

        Raises:
            RedisAwayError: within the budget, no answer.
        """
        try:
            return await self._ask("EVALSHA", script.sha, 1, key, *arguments)
        except RedisRefusedError as error:
            if error.code != "NOSCRIPT":
                raise
        return await self._ask("EVAL", script.text, 1, key, *arguments)

    def distrust(self, why: str) -> None:
        """Give up the connection: what came over it cannot have been an answer."""
        if self._line is not None:
            self._line.end(why)

    def _ask(self, *words: Word) -> asyncio.Future[Any]:
        if self._line is None:
            raise RedisUnavailableError("not connected")
        return self._line.send(words)

    # The one task: connects, watches, connects again.

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s, most_s = PAUSES_S
        while True:
            began = loop.time()
            try:
                line = await self._connect()
            except (OSError, UnicodeError, RedisUnavailableError) as error:
                self._turn(
                    up=False, why=str(error) if isinstance(error, RedisUnavailableError) else type(error).__name__
                )
            else:
                await self._attend(line)
                if loop.time() - began > SETTLED_S:
                    pause_s = PAUSES_S[0]
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - spread, not secrecy
            pause_s = min(2 * pause_s, most_s)

    async def _connect(self) -> _Line:
        loop = asyncio.get_running_loop()
        line = _Line(lambda: self._turn(up=False, why="late"))
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: line, self._host, self._port, ssl=self._tls)
                for words in self._greeting:
                    await line.send(words)
        except BaseException:
            line.end("not greeted")
            raise
        line.hurry(self._budget_s)
        return line

    async def _attend(self, line: _Line) -> None:
        """Stay with a connection until it ends, and end it if it is silent."""
        self._line = line
        try:
            while line.why is None:
                try:
                    await self._probe()
                except RedisUnavailableError as error:
                    self._turn(up=False, why=str(error))
                else:
                    self._turn(up=line.why is None, why=line.why or "")
                if line.silent_s() > SILENT_S:
                    line.end("silent")
                elif self.up:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(BEAT_S):
                            await line.troubled.wait()
                if not self.up and line.why is None:
                    line.troubled.clear()
                    await asyncio.sleep(PROBE_S)
        finally:
            self._line = None
            line.end("closed")
            self._turn(up=False, why=line.why or "closed")

    def _turn(self, *, up: bool, why: str = "") -> None:
        self.up = up
        self._known.set()
        if self._told != (up, why):
            self._changed(up, why)
        self._told = up, why


class _Line(asyncio.Protocol):
    """One connection: commands out, replies in, each within `budget_s` of its command."""

    def __init__(self, late: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._late = late
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._unread = 0
        self._out: list[bytes] = []
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()  # the given up too, until their reply comes
        self._look_at: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._budget_s = CONNECT_S
        self.troubled = asyncio.Event()
        self.why: str | None = None  # why it ended, once it has

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape only
        if self.why is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The server, or the way to it, is gone."""
        self.end("lost" if error is None else type(error).__name__)

    def send(self, words: tuple[Word, ...]) -> asyncio.Future[Any]:
        """Ask; what is sent in one turn of the loop leaves in one write."""
        if self.why is not None or len(self._waiting) >= MAX_WAITING:
            raise RedisUnavailableError(self.why or "too many wait")
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub names a tuple of one
        reply = self._loop.create_future()
        self._waiting.append((self._loop.time(), reply))
        if self._look_at is None:
            self._look_at = self._loop.call_later(self._budget_s - _LAST_LOOK_S, self._look)
        return reply

    def hurry(self, budget_s: float) -> None:
        """The greeting is over: from now on the budget is that of a call."""
        self._budget_s = budget_s
        if self._look_at is not None:
            self._look_at.cancel()
            self._look_at = None

    def silent_s(self) -> float:
        """For how long the oldest command has had no reply."""
        return self._loop.time() - self._waiting[0][0] if self._waiting else 0.0

    def end(self, why: str) -> None:
        """Close at once and tell everyone who waits. The first reason stays."""
        if self.why is not None:
            return
        self.why = why
        if self._look_at is not None:
            self._look_at.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._give_up(why)

    def data_received(self, data: bytes) -> None:
        """Replies, whole or in part."""
        self._unread += len(data)
        try:
            self._reader.feed(data)
            while self.why is None and (reply := self._reader.gets()) is not _NOT_YET:
                self._unread = 0
                self._take(reply)
        except hiredis.HiredisError:
            self.end("garbage")
        if self._unread > MAX_REPLY:
            self.end("too much")

    def _take(self, reply: object) -> None:
        if not self._waiting:
            self.end("garbage")  # nobody asked
            return
        waiter = self._waiting.popleft()[1]
        refused = RedisRefusedError(str(reply)) if isinstance(reply, hiredis.ReplyError) else None
        if not waiter.done():
            if refused is None:
                waiter.set_result(reply)
            else:
                waiter.set_exception(refused)
        if refused is not None and refused.code != "NOSCRIPT":
            self.end(refused.code)  # loading, read-only, out of memory: nothing that the next call would not meet

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and self.why is None:
            self._transport.write(b"".join(out))

    def _look(self, *, last: bool = False) -> None:
        """See whether the oldest command is late. Twice, since this loop may be the late one, its replies unread."""
        self._look_at = None
        oldest = next((asked_at for asked_at, reply in self._waiting if not reply.done()), None)
        if oldest is None:
            return
        left_s = oldest + self._budget_s - _LAST_LOOK_S - self._loop.time()
        if left_s > 0:
            self._look_at = self._loop.call_later(left_s, self._look)
        elif not last:
            self._look_at = self._loop.call_later(_LAST_LOOK_S, lambda: self._look(last=True))
        else:
            self._late()
            self._give_up("late")

    def _give_up(self, why: str) -> None:
        for _, reply in self._waiting:
            if not reply.done():
                reply.set_exception(RedisUnavailableError(why))
        self.troubled.set()
