"""One exchange with a caller as plain data: a Call and its Answer. Knows no socket and no framework."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

Headers = tuple[tuple[str, str], ...]

JSON_TYPE = "application/json"

REQUEST_ID_PATTERN = "^req_[0-9A-HJKMNP-TV-Z]{26}$"
"""The form of a request id, as `new_request_id` returns one."""

ACCEPTED = 202
"""The status of a call that waits for a person; no other call has it."""


async def no_body() -> AsyncIterator[bytes]:
    """Yield nothing: the stream of a call without a body."""
    for chunk in list[bytes]():
        yield chunk


def new_request_id() -> str:
    """Return `req_` and a ULID: 48 bits of UNIX milliseconds and 80 random bits, sortable by time; the journal's key.

    It is not a secret: without the API key that made the call, it gives access to nothing. Implemented here, since
    every call needs one and a library's takes as long as reading the whole body.
    """
    ms = time.time_ns() // 1_000_000
    digits = random.randbytes(16).translate(_DIGITS).decode()  # noqa: S311 - not used for security
    return f"req_{_leading_digits(ms >> 10)}{_PAIRS[ms & 1_023]}{digits}"


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
"""The two digits of each number below 1,024 in Crockford's base 32."""
_DIGITS = _CROCKFORD.encode() * 8
"""A digit for each byte: that of its five lower bits."""


# Its number changes once a second.
@lru_cache(1)
def _leading_digits(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1_023] for shift in (30, 20, 10, 0)])


def encode(value: object) -> bytes:
    """Return compact UTF-8 JSON. A lone surrogate, which only X could send, becomes `?`: encoding never fails."""
    try:
        return to_json(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


# Not frozen, like most objects that are created for each call: that would cost a microsecond each.
@dataclass(slots=True)
class Call:
    """A caller's request.

    `headers` holds every value of a header in order, by its name in lower case. `stream` yields the body's chunks,
    once, so that the body of a refused caller need not be read; `whole` is the body if it has arrived completely.
    `note` collects the fields of the call's one log line. `admitted_at` is when its key was admitted, in
    UNIX seconds.
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
    admitted_at: float | None = None

    def header(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        values = self.headers.get(name)
        return values[0] if values else None

    def header_values(self, name: str) -> Sequence[str]:
        """Return every value of a header, in order."""
        return self.headers.get(name, ())


@dataclass(slots=True)
class Answer:
    """The response. The adaptor adds Content-Length and X-Request-Id. `value` is what a JSON body encodes."""

    status: int
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)
    value: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, value: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """Return a JSON answer."""
        return cls(status, (("content-type", JSON_TYPE), *headers), encode(value), value)

    def adding(self, headers: Iterable[tuple[str, str]]) -> Answer:
        """Return the same answer with more headers."""
        return Answer(self.status, (*self.headers, *headers), self.body, self.value)
