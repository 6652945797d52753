"""Connection limits, eviction, trusted proxies and the client's address.

Knows no key and no route beyond the bounds it is given.
"""

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
"""Maximum number of X-Forwarded-For entries that are read, from the end."""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Every bound of the edge: `*_s` are total seconds, never seconds for each read; `*_bytes` count bytes on the wire.

    `bodies` overrides `body_bytes` for exact paths; `files` gives the bytes and seconds of a multipart body there.
    `reserved` paths are served even when no connection is left: `connections_refused` more connections may have their
    head read, and get 503 or, on a reserved path, the real response.
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
    """A connection, as ConnectionLimits sees it."""

    inside: bool

    def eviction_rank(self) -> tuple[int, float] | None:
        """Return its rank for eviction, the smallest first; None if it must not be evicted."""

    def has_unread_data(self) -> bool:
        """Return whether bytes have arrived that it has not read yet."""

    def evict(self) -> None:
        """Close it in favour of another connection."""


Connection = TypeVar("Connection", bound=Evictable)


class ConnectionLimits:
    """Counts the connections of one server, decides which are admitted, and which proxies are trusted."""

    def __init__(self, limits: EdgeLimits, telemetry: Telemetry | None, draining: Callable[[], bool] = bool) -> None:
        self.limits = limits
        self.telemetry = telemetry
        self.draining = draining
        if telemetry is not None:
            telemetry.metrics.watch("birdwire_connections", lambda: self.inside)
        self.inside = 0
        self._each: Counter[object] = Counter()
        self._trusted = [ipaddress.ip_network(network) for network in limits.trusted_proxies]
        self._uncapped = [*self._trusted, *(ipaddress.ip_network(network) for network in limits.uncapped)]

    @property
    def full(self) -> bool:
        """Whether the server has all the connections that it may have."""
        return self.inside >= self.limits.connections

    def crowded(self, connections: Sized) -> bool:
        """Return whether more connections than `connections_refused` are open without being admitted."""
        return len(connections) - self.inside > self.limits.connections_refused

    def admit(
        self, new: Connection, address: Address | None, connections: AbstractSet[Connection]
    ) -> tuple[bool, bool]:
        """Decide whether a new connection is admitted, and whether its request may be read.

        When the server is full, the connection that has been waiting longest for its peer is evicted in favour of the
        new one. If all connections are serving requests, the request is read in case its path is reserved. An address
        over its own limit gets neither.
        """
        # Checked first: otherwise such an address could evict the connections of others.
        if self._at_address_limit(address):
            return False, False
        full = self.full
        if full and (found := self._eviction_candidate(connections - {new}, inside=True)) is not None:
            found.evict()
        if self.enter(address):
            return True, True
        if (
            full
            and self.crowded(connections)
            and (found := self._eviction_candidate(connections - {new}, inside=False))
        ):
            found.evict()
            return False, True
        return False, full and not self.crowded(connections)

    def acquire_after_head(self, address: Address | None, path: str) -> bool:
        """Acquire a place for a connection whose head was read without one; return whether one was free.

        Raises:
            GatewayError: overloaded: no place is free, and the path is not reserved.
        """
        if self.enter(address):
            return True
        if path not in self.limits.reserved:
            raise GatewayError("overloaded")
        return False

    def bounds(self, path: str, types: Sequence[str]) -> tuple[int, float]:
        """Return the maximum bytes and seconds of a request body sent to this path."""
        limits = self.limits
        if path in limits.files and is_multipart(types):
            return limits.files[path]
        return limits.bodies.get(path, limits.body_bytes), limits.body_s

    def _eviction_candidate(self, connections: Iterable[Connection], *, inside: bool) -> Connection | None:
        """Return the connection to evict in favour of a new one, if any is waiting for its peer."""
        ranked = [
            (rank, one) for one in connections if one.inside is inside and (rank := one.eviction_rank()) is not None
        ]
        _, found = min(ranked, key=itemgetter(0), default=(None, None))
        return None if found is None or found.has_unread_data() else found

    def enter(self, address: Address | None) -> bool:
        """Acquire a place for a connection; return whether one was free."""
        if self.full or self._at_address_limit(address):
            return False
        block = self._subscriber(address)
        self.inside += 1
        if block is not None:
            self._each[block] += 1
        return True

    def leave(self, address: Address | None) -> None:
        """Release a connection's place."""
        block = self._subscriber(address)
        self.inside -= 1
        if block is not None:
            self._each[block] -= 1
            if not self._each[block]:
                del self._each[block]

    def trusts(self, address: Address | None) -> bool:
        """Return whether an address is one of the trusted proxies."""
        return address is not None and any(address in network for network in self._trusted)

    def caller(self, forwarded: Iterable[str]) -> Address | None:
        """Return the client's address as the outermost trusted proxy saw it.

        Trusted proxies append the last entries of X-Forwarded-For; anybody can forge the entries before those.
        """
        caller = None
        for entry in reversed(",".join(forwarded).rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            address = address_of(entry)
            if address is None:
                break
            caller = address
            if not self.trusts(address):
                break
        return caller

    def _at_address_limit(self, address: Address | None) -> bool:
        """Return whether an address has all the connections that it may have."""
        return self._each[self._subscriber(address)] >= self.limits.connections_each

    def _subscriber(self, address: Address | None) -> object:
        """Return what counts as one address, or None if its connections are not counted."""
        if address is None or any(address in network for network in self._uncapped):
            return None
        return subscriber(address)


class TransportFacade:
    """The transport that uvicorn's request cycles get, so that the edge decides how a connection is closed."""

    __slots__ = ("abort", "close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.abort = transport.abort
        self.close = close


def unread(transport: asyncio.Transport) -> bool:
    """Return whether the socket has unread bytes: the kernel may have a request that the event loop has not read."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def disable_nagle(transport: asyncio.Transport) -> None:
    """Disable Nagle's algorithm: asyncio does so only for sockets that name their protocol, which listeners do not.

    With it, a response on a kept-alive connection waits up to 40 ms for the client's delayed acknowledgement.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
