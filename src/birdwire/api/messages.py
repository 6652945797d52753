"""One exchange with a caller as plain data: a Call comes in, an Answer goes out. Knows no socket and no framework."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from datetime import datetime

Headers = tuple[tuple[str, str], ...]

JSON_TYPE = "application/json"


async def no_body() -> AsyncIterator[bytes]:
    """The stream of a call without a body."""
    for chunk in list[bytes]():
        yield chunk


def new_request_id() -> str:
    """`req_` + ULID: 48 bits of UNIX milliseconds and 80 random ones, sortable by time; the journal's key.

    A name and no secret: who knows one learns nothing by it without the API key that made it.
    Written out here, since every call needs one and the library's takes as long as reading the whole body.
    """
    number = (time.time_ns() // 1_000_000) << 80 | random.getrandbits(80)
    return "req_" + "".join([_PAIRS[number >> shift & 1_023] for shift in range(120, -1, -10)])


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
"""The two digits of each number below 1,024 in Crockford's base 32."""


def encode(value: object) -> bytes:
    """Compact UTF-8 JSON. A lone surrogate (only X could send one) becomes `?`, so that encoding never fails."""
    try:
        return to_json(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@dataclass(slots=True)  # not frozen, like most objects that are made for each call: that would cost a microsecond each
class Call:
    """What a caller sent.

    `headers` holds every value of a header in order, by its name in lower case. `stream` gives the body's chunks, once,
    so that who may not speak is not listened to; `whole` is the body if all of it is here already.
    `note` gathers what the call's one log line will say. `admitted_at` is when its key was admitted.
    """

    method: str
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    stream: Callable[[], AsyncIterator[bytes]] = field(default=no_body, repr=False)
    peer: str = ""
    whole: bytes | None = field(default=None, repr=False)
    request_id: str = field(default_factory=new_request_id)
    note: dict[str, Any] = field(default_factory=dict, repr=False)
    admitted_at: datetime | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        values = self.headers.get(name)
        return values[0] if values else None

    def header_values(self, name: str) -> Sequence[str]:
        """Every value of a header, in order."""
        return self.headers.get(name, ())


@dataclass(slots=True)
class Answer:
    """What goes back; Content-Length and X-Request-Id are the adaptor's. `value` is what a JSON body says."""

    status: int
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)
    value: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, value: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """A JSON answer."""
        return cls(status, (("content-type", JSON_TYPE), *headers), encode(value), value)

    def adding(self, headers: Iterable[tuple[str, str]]) -> Answer:
        """The same answer with more headers."""
        return Answer(self.status, (*self.headers, *headers), self.body, self.value)
