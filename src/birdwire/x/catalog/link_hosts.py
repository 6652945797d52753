"""The host to which a link leads, as a browser resolves it: in Unicode for comparing, in punycode for showing."""

from __future__ import annotations

import re
from typing import Final

from birdwire.api.models import is_well_formed
from birdwire.x.catalog.unicode_nfc import compatible

UNKNOWN_HOST: Final = ""
"""Stands for a link whose host cannot be known, such as a card without a URL."""

_PROTOCOL = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
# Code points that no host has. Some letters, such as a full-width slash, have one of these as their compatible form.
_NO_HOST = re.compile(r"[\x00-\x20\x7F/?#@:\\%<>^|\[\]]")
_AUTHORITY_END = re.compile(r"[/?#\\]")


def host_of(link: str) -> str:
    """Return the host of a link as a browser would resolve it, in Unicode; UNKNOWN_HOST if the link has none."""
    protocol = _PROTOCOL.match(link)
    rest = link[protocol.end() :] if protocol else link
    # In this order, as a browser reads it: the host of https://a.org:x@b.org/ is b.org.
    host = _AUTHORITY_END.split(rest, maxsplit=1)[0].rpartition("@")[2].partition(":")[0]
    return comparable_host(host)


def comparable_host(host: str) -> str:
    """Return a host for comparing: decoded from punycode, in compatibility form and lower case, without a last dot.

    One that no browser accepts is UNKNOWN_HOST, since it is not sure where a link to it leads.
    """
    folded = compatible(host).lower().replace("\u3002", ".").rstrip(".")
    decoded = ".".join(map(_decoded, folded.split(".")))
    return UNKNOWN_HOST if _NO_HOST.search(decoded) else decoded


def ascii_host(host: str) -> str:
    """Return a host as the DNS knows it, in ASCII, so that look-alikes differ."""
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode", "replace").decode("ascii")
        for label in host.split(".")
    )


def _decoded(label: str) -> str:
    """Return a label of a host, decoded if it is in punycode. One that cannot be decoded is unchanged."""
    if not label.startswith("xn--"):
        return label
    try:
        decoded = label[4:].encode("ascii").decode("punycode")
    except UnicodeError:
        return label
    return compatible(decoded).lower() if is_well_formed(decoded) else label
