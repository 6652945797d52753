"""IP addresses: how a text names one, which are this machine's own or public, and which count as one subscriber."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SPECIAL_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        # This network, private networks, carrier-grade NAT, loopback and link-local.
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        # IETF protocols, the documentation, the relays of 6to4, private networks and benchmarks.
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        # The documentation, multicast, and what is reserved up to the broadcast address.
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The only IPv6 addresses that are assigned to the public Internet. Loopback, fc00::/7 and others are outside it."""
_SPECIAL_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        # IETF protocols, with Teredo, ORCHID and benchmarks; the documentation; 6to4, which embeds an IPv4 address.
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The well-known prefix of NAT64 (RFC 6052): its last 32 bits are the IPv4 address that a packet reaches."""


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
    return plain(address)


def plain(address: Address) -> Address:
    """Return the address that a connection reaches: an IPv4 address in IPv6 form is the IPv4 address."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public Internet, by the registries of the IANA as of 2025.

    Python's own `is_global` changes with its version. An IPv6 address that embeds an IPv4 address is judged by that
    address (IPv4-mapped, NAT64) or is not public (6to4, Teredo, ISATAP, IPv4-compatible).
    """
    address = plain(address)
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    # An ISATAP address (RFC 5214 §6.1) has 0000:5efe before its IPv4 address. Two bits may be set in any way.
    isatap = int(address) >> 32 & 0xFCFF_FFFF == 0x0000_5EFE
    # A zone names a link of this machine.
    special = isatap or address.scope_id is not None or any(address in network for network in _SPECIAL_IPV6)
    return address in _GLOBAL_UNICAST and not special
