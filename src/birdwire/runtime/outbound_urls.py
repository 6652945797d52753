"""Where notifications may be sent: the rules for addresses, and the reader of a URL that an attacker may have proposed.

A URL has one meaning, whatever software reads it: an unusual spelling is refused, not normalised. What a name resolves
to is checked when something is sent: see `outbound`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Literal, cast

from birdwire.runtime.addresses import is_public

if TYPE_CHECKING:
    from birdwire.runtime.addresses import Address, Network

MAX_URL_CHARACTERS: Final = 2_048
LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""The hosts that `OutboundRules.loopback` allows, in exactly these spellings."""

_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?P<fragment>#.*)?",
    re.ASCII | re.IGNORECASE,
).fullmatch
_AUTHORITY: Final = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>.*))?").fullmatch
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}").fullmatch
# The URL Standard's "ends in a number": other software may read such a host as an IPv4 address.
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?").fullmatch
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?").fullmatch


class ForbiddenURLError(ValueError):
    """A URL that nothing is sent to. The text states why, and what to do; it repeats nothing but an IP address."""


@dataclass(frozen=True, slots=True)
class OutboundRules:
    """The addresses that are allowed although they are not public: `allow`, and this machine's own if `loopback`.

    `loopback` is for a gateway whose X is the sandbox. It allows LOOPBACK_HOSTS, also by http.
    """

    allow: tuple[Network, ...] = ()
    loopback: bool = False

    def permits(self, host: str, address: Address) -> bool:
        """Return whether a connection for a host may go to an address, which is `plain`."""
        if self.loopback and host in LOOPBACK_HOSTS:
            # Plain http must not leave this machine, even if `localhost` resolves to an address in `allow`.
            return address.is_loopback
        return is_public(address) or any(address in network for network in self.allow)


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """A URL that may be sent to. `target` is its path and query, in origin form (RFC 9112 §3.2.1).

    `host` is in lower case, without brackets; `address` is the same if it is an IP address. The repr shows only the
    host, because path and query may be secret.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str
    address: Address | None

    @property
    def authority(self) -> str:
        """Return the value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Target({self.host})"


def read_url(url: str, rules: OutboundRules) -> Target:
    """Return where a URL leads, checked as far as that is possible without resolving its host.

    Raises:
        ForbiddenURLError: the URL is not valid, could be read in two ways, or is not allowed.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise ForbiddenURLError(f"The URL has more than {MAX_URL_CHARACTERS:,} characters. Use a shorter one.")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ForbiddenURLError("The URL contains a space, a control character or a backslash. Remove it.")
    parts = _URL(url)
    if parts is None or parts["scheme"].lower() not in _PORTS:
        raise ForbiddenURLError("The URL is not an https URL. Start it with https:// and a host.")
    authority = parts["authority"]
    if "@" in authority:
        raise ForbiddenURLError("The URL contains a user name or a password. Remove it, with the @ that follows it.")
    if parts["fragment"] is not None:
        raise ForbiddenURLError("The URL contains a fragment, which is never sent. Remove the # and what follows it.")
    if not authority.isascii():
        raise ForbiddenURLError("The host contains characters outside ASCII. Write it in punycode, as xn--….")
    if not parts["target"].isascii():
        raise ForbiddenURLError("The URL contains characters outside ASCII after its host. Percent-encode them.")
    scheme = cast("Literal['http', 'https']", parts["scheme"].lower())
    host, address, port = _read_authority(authority.lower())
    if scheme == "http" and not (rules.loopback and host in LOOPBACK_HOSTS):
        hosts = "127.0.0.1, ::1 and localhost, and only while X is the sandbox"
        raise ForbiddenURLError(f"Plain http is allowed only to {hosts}. Use https.")
    if address is not None and not rules.permits(host, address):
        raise ForbiddenURLError(
            f"{address} is not a public address. If you trust the receiver there, add {address} to outbound_allow."
        )
    target = parts["target"]
    origin_form = target if target.startswith("/") else f"/{target}"
    return Target(scheme, host, _PORTS[scheme] if port is None else port, origin_form, address)


def _read_authority(authority: str) -> tuple[str, Address | None, int | None]:
    """Return host, the address that it is, and port of an authority in lower case without userinfo."""
    if "%" in authority:
        # Also the zone of an IPv6 address, which would select a link of this machine.
        raise ForbiddenURLError("The host is percent-encoded or has a zone. Write a name or an address without a %.")
    parts = _AUTHORITY(authority)
    if parts is None:
        raise ForbiddenURLError("The host is not valid. Write a name, an IPv4 address, or an IPv6 address in brackets.")
    port = None
    if (text := parts["port"]) is not None:
        port = int(text) if _PORT(text) else 0
        if not 1 <= port <= 65_535:
            raise ForbiddenURLError("The port is not valid. Write a number from 1 to 65535, or omit it with its colon.")
    if parts["ipv6"] is not None:
        ipv6 = _read_ipv6(parts["ipv6"])
        return str(ipv6), ipv6, port
    host = parts["name"]
    if _NUMERIC(host):
        ipv4 = _read_ipv4(host)
        return host, ipv4, port
    if not host:
        raise ForbiddenURLError("The URL has no host. Write it as https://host/path.")
    if len(host) > 253 or not all(map(_LABEL, host.split("."))):
        raise ForbiddenURLError("The host is not a valid name. Use letters, digits, hyphens and single inner dots.")
    return host, None, port


def _read_ipv4(host: str) -> IPv4Address:
    try:
        return IPv4Address(host)
    except AddressValueError:
        example = "such as 192.0.2.1"
        raise ForbiddenURLError(
            f"The host is a number in an unusual spelling. Write an IPv4 address as four decimal numbers, {example}."
        ) from None


def _read_ipv6(host: str) -> IPv6Address:
    try:
        address = IPv6Address(host)
    except AddressValueError:
        raise ForbiddenURLError("The host in brackets is not an IPv6 address. Correct it.") from None
    if address.ipv4_mapped is not None:
        raise ForbiddenURLError(f"The host is an IPv4 address in IPv6 form. Write it as {address.ipv4_mapped}.")
    if str(address) != host:
        raise ForbiddenURLError(f"The host is an IPv6 address in an unusual spelling. Write it as [{address}].")
    return address
