"""Who is let in at the edge: every bound it keeps, how many connections are inside, whose X-Forwarded-For counts."""

from __future__ import annotations

import ipaddress
import select
import socket
from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol, TypeVar

from birdwire.api.errors import GatewayError
from birdwire.edge.request_head import is_multipart
from birdwire.runtime.addresses import Address, address_of, subscriber

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
    from collections.abc import Set as AbstractSet

    from birdwire.runtime.telemetry import Telemetry

MAX_HOPS = 20
"""Entries of X-Forwarded-For that are read, from its end."""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Every bound of the edge: `*_s` are seconds in all, never for each read; `*_bytes` what they name, on the wire.

    `bodies` (bytes) holds by exact path what differs from `body_bytes`; `files` (bytes, seconds) what holds there for a
    multipart body. `reserved` paths are answered even when no connection is left: `connections_refused` are there to
    read a head, and to answer it with 503 or, on such a path, in earnest.
    """

    head_s: float = 10.0
    body_s: float = 10.0
    idle_s: float = 5.0
    write_s: float = 30.0
    linger_s: float = 2.0
    linger_bytes: int = 1 << 20
    headers: int = 100
    head_bytes: int = 16_384
    target_bytes: int = 8_192
    body_bytes: int = 16_384
    bodies: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    framing_bytes: int = 8_192
    connections: int = 1_000
    connections_each: int = 200
    connections_refused: int = 100
    reserved: frozenset[str] = frozenset()
    uncapped: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    trusted_proxies: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()


class Evictable(Protocol):
    """A connection as the door sees it."""

    inside: bool

    def waits(self) -> tuple[int, float] | None:
        """Its rank among those that may be evicted, the smallest first; None: it may not."""

    def speaks(self) -> bool:
        """Whether something has come that it has not read yet."""

    def evict(self) -> None:
        """End it."""


Connection = TypeVar("Connection", bound=Evictable)


class ConnectionLimits:
    """What all connections share: the limits, how many are inside, and whose X-Forwarded-For counts."""

    def __init__(self, limits: EdgeLimits, telemetry: Telemetry | None, draining: Callable[[], bool] = bool) -> None:
        self.limits = limits
        self.telemetry = telemetry
        self.draining = draining
        if telemetry is not None:
            telemetry.metrics.watch("birdwire_connections", lambda: self.inside)
        self._bodies = {path.encode(): size for path, size in limits.bodies.items()}
        self._files = {path.encode(): bounds for path, bounds in limits.files.items()}
        self._reserved = {path.encode() for path in limits.reserved}
        self.inside = 0
        self._each: Counter[object] = Counter()
        self._trusted = [ipaddress.ip_network(network) for network in limits.trusted_proxies]
        self._uncapped = [*self._trusted, *(ipaddress.ip_network(network) for network in limits.uncapped)]

    @property
    def full(self) -> bool:
        """Whether every place inside is taken."""
        return self.inside >= self.limits.connections

    def crowded(self, connections: Sized) -> bool:
        """Whether more connections are open that are not inside than there may be."""
        return len(connections) - self.inside > self.limits.connections_refused

    def admit(
        self, new: Connection, address: Address | None, connections: AbstractSet[Connection]
    ) -> tuple[bool, bool]:
        """Decide on a new connection: whether it is inside, and whether its request may be read.

        When the door is full, the connection that has kept us waiting longest is evicted for it. If all are at work,
        the request is read in case its path is reserved. An address over its own cap gets neither.
        """
        if self._capped(address):  # first, or such an address could have the connections of others evicted
            return False, False
        full = self.full
        if full and (found := self._next_out(connections - {new}, inside=True)) is not None:
            found.evict()
        if self.enter(address):
            return True, True
        if full and self.crowded(connections) and (found := self._next_out(connections - {new}, inside=False)):
            found.evict()
            return False, True
        return False, full and not self.crowded(connections)

    def enter_late(self, address: Address | None, target: bytes) -> bool:
        """Count in a connection whose head was read although there was no place; whether there is one now.

        Raises:
            GatewayError: overloaded: there is none, and the path is not reserved.
        """
        if self.enter(address):
            return True
        if target.partition(b"?")[0] not in self._reserved:
            raise GatewayError("overloaded")
        return False

    def bounds(self, target: bytes, types: Sequence[bytes]) -> tuple[int, float]:
        """How many bytes a body to this target may have, and how many seconds it may take."""
        path = target.partition(b"?")[0]
        if path in self._files and is_multipart(types):
            return self._files[path]
        return self._bodies.get(path, self.limits.body_bytes), self.limits.body_s

    def _next_out(self, connections: Iterable[Connection], *, inside: bool) -> Connection | None:
        """Return the connection to evict in favour of a new one, if any is waiting for its peer."""
        ranked = [(rank, one) for one in connections if one.inside is inside and (rank := one.waits()) is not None]
        _, found = min(ranked, key=itemgetter(0), default=(None, None))
        return None if found is None or found.speaks() else found

    def enter(self, address: Address | None) -> bool:
        """Count a connection in, if there is room."""
        if self.full or self._capped(address):
            return False
        block = self._block(address)
        self.inside += 1
        if block is not None:
            self._each[block] += 1
        return True

    def leave(self, address: Address | None) -> None:
        """Count out a connection that was counted in."""
        block = self._block(address)
        self.inside -= 1
        if block is not None:
            self._each[block] -= 1
            if not self._each[block]:
                del self._each[block]

    def trusts(self, address: Address | None) -> bool:
        """Whether an address is one of the configured proxies."""
        return address is not None and any(address in network for network in self._trusted)

    def caller(self, forwarded: Iterable[bytes]) -> Address | None:
        """Whom our outermost proxy saw: the last entries are our proxies' own, what stands before is anybody's."""
        caller = None
        for entry in reversed(b",".join(forwarded).rsplit(b",", MAX_HOPS)[-MAX_HOPS:]):
            address = address_of(entry.decode("latin-1"))
            if address is None:
                break
            caller = address
            if not self.trusts(address):
                break
        return caller

    def _capped(self, address: Address | None) -> bool:
        """Whether an address has all the connections that it may have."""
        return self._each[self._block(address)] >= self.limits.connections_each

    def _block(self, address: Address | None) -> object:
        """What counts as one address: of IPv6 the /64 that one subscriber has. None: not counted."""
        if address is None or any(address in network for network in self._uncapped):
            return None
        return subscriber(address)


class Outlet:
    """The transport as uvicorn's cycles see it: the edge decides how a connection ends."""

    __slots__ = ("abort", "close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.abort = transport.abort
        self.close = close


def unread(transport: asyncio.Transport) -> bool:
    """Whether bytes lie unread: the kernel may know of a request before the loop does."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def send_at_once(transport: asyncio.Transport) -> None:
    """Turn Nagle's algorithm off: asyncio does so only for sockets that name their protocol, which listeners do not.

    With it on, an answer on a kept connection waits up to 40 ms for the caller's delayed acknowledgement.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
