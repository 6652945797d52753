"""Faults on demand: which calls they affect, and how. The oldest matching fault applies."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FAULTS_AT_ONCE = 1000
DELAY_MAX_S = 3600
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}\z")]
HeaderValue = Annotated[str, Field(pattern=r"^[\x20-\x7e\t]{0,4000}\z")]


class ConnectionDropped(Exception):  # noqa: N818 - an event, reported to a client in the same process
    """The connection ended without an answer. Stands for a drop where no real connection exists."""


class Match(BaseModel):
    """The calls that a fault affects: a method or `*`, and a path with `*` and `?` as wildcards."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    method: Annotated[str, Field(max_length=20)] = "*"
    path: Annotated[str, Field(max_length=500)] = "*"


class Effect(BaseModel):
    """What the fault does: exactly one effect, optionally after a delay.

    `status` may have a body: JSON or plain text (`body`), or any bytes, such as gzip (`body_base64`).
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    status: Annotated[int | None, Field(ge=200, le=599)] = None
    body: Any = None
    body_base64: Annotated[str | None, Field(max_length=8 * 1024 * 1024)] = None
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=50)] = {}
    error: str | None = None
    drop: Literal["before_apply", "after_apply"] | None = None
    delay_s: Annotated[int | float | None, Field(ge=0, le=DELAY_MAX_S)] = None
    trickle_bps: Annotated[int | float | None, Field(gt=0, le=1_000_000_000)] = None
    truncate: Annotated[int | None, Field(ge=0, le=1_000_000_000)] = None

    @model_validator(mode="after")
    def _one_thing(self) -> Effect:
        things = [self.status, self.error, self.drop, self.trickle_bps, self.truncate]
        chosen = sum(thing is not None for thing in things)
        if chosen > 1 or (chosen == 0 and self.delay_s is None):
            names = "status, error, drop, delay_s, trickle_bps, truncate"
            raise ValueError(f"exactly one of {names} is required; delay_s can be combined with another")
        made_up = self.body is not None or self.body_base64 is not None or bool(self.headers)
        if self.status is None and made_up:
            raise ValueError("body, body_base64 and headers require status")
        if self.body is not None and self.body_base64 is not None:
            raise ValueError("body and body_base64 are mutually exclusive")
        self.made_up_body()
        return self

    def made_up_body(self) -> tuple[bytes, str]:
        """Return the fault's body and its content type; raise ValueError for invalid base64."""
        if self.body_base64 is not None:
            return b64decode(self.body_base64, validate=True), "application/octet-stream"
        if isinstance(self.body, str):
            return self.body.encode(), "text/html; charset=utf-8"
        return b"" if self.body is None else json.dumps(self.body).encode(), "application/json; charset=utf-8"


class Order(BaseModel):
    """A fault as requested over HTTP. If `times` is null, the fault applies until it is deleted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    match: Match = Match()
    times: Annotated[int | None, Field(ge=1, le=1_000_000)] = 1
    do: Effect


@dataclass
class _Fault:
    order: Order
    left: int | None


class Faults:
    """The pending faults."""

    def __init__(self) -> None:
        self._waiting: list[_Fault] = []

    def add(self, raw: Any) -> Order:
        """Add a fault; raise ValueError with the problem if it is invalid."""
        try:
            order = Order.model_validate(raw)
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ValueError(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])
            ) from None
        if len(self._waiting) >= FAULTS_AT_ONCE:
            raise ValueError(f"there are already {FAULTS_AT_ONCE} pending faults")
        self._waiting.append(_Fault(order, order.times))
        return order

    def take(self, method: str, path: str) -> Effect | None:
        """Return the effect on this call and count one of the fault's times; None if no fault matches."""
        for fault in self._waiting:
            wanted = fault.order.match
            if wanted.method.upper() not in {"*", method} or not fnmatchcase(path, wanted.path):
                continue
            if fault.left is not None:
                fault.left -= 1
                if fault.left == 0:
                    self._waiting.remove(fault)
            return fault.order.do
        return None

    def listed(self) -> list[dict[str, Any]]:
        """Return the pending faults in order; `times` is the remaining number."""
        return [fault.order.model_dump(exclude_defaults=True) | {"times": fault.left} for fault in self._waiting]

    def clear(self) -> int:
        """Delete all faults and return their number."""
        count = len(self._waiting)
        self._waiting.clear()
        return count
