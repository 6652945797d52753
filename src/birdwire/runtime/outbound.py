"""The guarded way out: one POST to a URL that an operator set, and that an attacker may have proposed.

A URL is https, and its host's addresses are public or allowed by the operator. The host is resolved once, all of its
addresses are checked, and the connection goes to an address that was checked: a second answer of the DNS has no effect.
Nothing of a response is kept but its status and its Retry-After. It follows no redirect, keeps no cookie and no
connection, and reads no proxy from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, Literal

from birdwire import __version__
from birdwire.runtime.addresses import Address, Network, is_public, plain
from birdwire.runtime.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Failure", "ForbiddenURLError", "Outbound", "OutboundLimits", "OutboundRules", "Sent", "Target", "read_url"]

MAX_URL_CHARACTERS: Final = 2_048
MAX_BODY_BYTES: Final = 256 << 10
MAX_RETRY_AFTER_S: Final = 86_400.0
"""A receiver cannot ask for more: a longer delay counts as a day."""
MAX_ADDRESSES: Final = 4
"""The number of the host's addresses that are tried. All of them are checked."""
MAX_RESOLUTIONS: Final = 2
"""The number of names that are resolved concurrently, each in a thread of its own."""

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""The hosts of http, and the only spellings of this machine, where `OutboundRules.loopback` allows it."""

Failure = Literal[
    "forbidden_address", "not_resolved", "unreachable", "tls", "timeout", "cut", "malformed", "status"
]
"""Why a POST did not succeed.

  forbidden_address  the URL, or an address of its host, is not allowed; nothing was connected
  not_resolved       the host has no address
  unreachable        no address accepted a connection, or this sender is closed
  tls                the handshake failed, or the certificate does not match the host
  timeout            a deadline passed before the status was known
  cut                the connection closed before the status was known
  malformed          the response is not HTTP/1.1
  status             the status is not 2xx
"""

Resolve = Callable[[str], Iterable[str]]
"""Returns the addresses of a host, and raises OSError if it has none. Runs in a thread, and may block."""


@dataclass(frozen=True, slots=True)
class OutboundRules:
    """The addresses that are allowed although they are not public: `allow`, and this machine's own if `loopback`.

    `loopback` is for a gateway whose X is the sandbox: it allows http, too, but only to LOOPBACK_HOSTS.
    """

    allow: tuple[Network, ...] = ()
    loopback: bool = False

    def permits(self, host: str, address: Address) -> bool:
        """Return whether a connection for a host may go to an address."""
        if self.loopback and host in LOOPBACK_HOSTS:
            # Plain http must not leave this machine, even if `localhost` resolves to an address in `allow`.
            return address.is_loopback
        return is_public(address) or any(address in network for network in self.allow)


class ForbiddenURLError(ValueError):
    """A URL that Birdwire does not send to. The text states why, and what to do; it never repeats path or query."""


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """A URL that may be sent to. `host` is in lower case, without brackets; `target` is the origin form: path and query.

    `address` is the host if it is an IP address. The repr shows the host only: the rest may be a secret.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str
    address: Address | None

    @property
    def authority(self) -> str:
        """Return the value of the Host header: the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Target({self.host})"


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of a POST: `status` if the peer answered, `error` unless it is 2xx, and its Retry-After in seconds."""

    status: int | None
    error: Failure | None
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class OutboundLimits:
    """The bounds of one POST: seconds to resolve, connect and finish TLS, seconds in all, and bytes of the response."""

    connect_s: float = 5.0
    total_s: float = 15.0
    max_reply_bytes: int = 4_096


def read_url(url: str, rules: OutboundRules) -> Target:
    """Return where a URL leads, checked as far as possible without resolving its host.

    Raises:
        ForbiddenURLError: the URL is not valid, ambiguous, or not allowed.
    """
    raise NotImplementedError


class Outbound:
    """Sends POSTs to URLs that pass the rules, each on a connection of its own.

    `resolve` returns the addresses of a host; it runs in a thread. `ssl_context` is for a private CA: a ValueError is
    raised if it does not verify, or allows less than TLS 1.2.
    """

    def __init__(
        self,
        rules: OutboundRules,
        *,
        resolve: Resolve | None = None,
        limits: OutboundLimits = OutboundLimits(),
        ssl_context: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        raise NotImplementedError

    async def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> Sent:
        """Send one POST, and return what became of it. Never raises because of the network or the URL.

        Raises:
            ValueError: a header could break the framing of the request, or the body is larger than MAX_BODY_BYTES.
                Nothing was sent.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Refuse further POSTs. Does not wait for a resolver that hangs, nor end POSTs in progress: cancel them first."""
