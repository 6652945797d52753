"""IP addresses: how a text names one, which are this machine's own or public, and which count as one subscriber."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The IPv6 addresses of the public Internet. Loopback, private, link-local and multicast addresses are outside it."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The well-known prefix of NAT64 (RFC 6052): its last 32 bits are the IPv4 address that a packet reaches."""

_NOT_PUBLIC = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local, such as the metadata of a cloud",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "IETF protocols",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "relays of 6to4",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarks",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved, and the broadcast address",
    "2001::/23": "IETF protocols, such as Teredo, ORCHID and benchmarks",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4, which embeds an IPv4 address",
    "3fff::/20": "documentation",
}
"""Networks that are not public, of IPv4 and within _GLOBAL_UNICAST, by the special-purpose registries of the IANA."""
_NETWORKS_NOT_PUBLIC = tuple(map(ipaddress.ip_network, _NOT_PUBLIC))


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


def network_of(text: str) -> Network | None:
    """Return the network, or the network of one address, that a text names; None if it names none or has host bits."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def plain(address: Address) -> Address:
    """Return the address that a connection reaches: an IPv4 address in IPv6 form is the IPv4 address."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public Internet, by a table that no version of Python changes.

    An IPv6 address that embeds an IPv4 address is judged by it (IPv4-mapped, NAT64) or is not public (6to4, Teredo,
    ISATAP, IPv4-compatible).
    """
    address = plain(address)
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        # An ISATAP address (RFC 5214 §6.1) has 0000:5efe before its IPv4 address; two of these bits vary.
        isatap = int(address) >> 32 & 0xFCFF_FFFF == 0x0000_5EFE
        # A zone selects a link of this machine.
        if address not in _GLOBAL_UNICAST or isatap or address.scope_id is not None:
            return False
    return not any(address in network for network in _NETWORKS_NOT_PUBLIC)
