"""IP addresses: how a text names one, which are this machine's own, and which count as one subscriber."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def subscriber(address: Address) -> int | Address:
    """Return what counts as one address: an IPv4 address, or the /64 of IPv6 that one subscriber has."""
    return address if address.version == 4 else int(address) >> 64


def subscriber_of(peer: str) -> str:
    """Return the name of the subscriber that a peer counts for: for text that is not an IP address, the text itself."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    return str(address) if address.version == 4 else str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_any(host: str) -> bool:
    """Whether it is the address that stands for all of a machine's own."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def address_of(text: str) -> Address | None:
    """An IP address, also with a port as proxies write it; an IPv4 address in IPv6 form is the IPv4 address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
