"""CallContext: one call with a key, from admission to its answer; and RouteRules: what a route takes and requires."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from birdwire.api.models import Body, Empty

if TYPE_CHECKING:
    from birdwire.api.body import Parsed
    from birdwire.api.messages import Answer, Call, Headers
    from birdwire.keys.registry import Key


@dataclass(frozen=True, slots=True)
class RouteRules:
    """What the route `name` takes and requires: a body of a model up to `max_bytes`, or a query.

    `max_file_bytes` above 0: a multipart body with files may be that long. `file_scopes` are the scopes that the link
    needs before a file is read; one of `file_names` is the part that holds the file.
    A call that is not `repeatable` runs once: it gets an Idempotency-Key if it brings none. `reserved`: it has slots of
    its own, so that it is served under any load. `action` is the action that the key must be allowed; empty: every key
    may call the route. `pausable`: a pause of the key, its account or the gateway refuses the call on entry; a write
    checks that among its own steps. `unnamed`: an Idempotency-Key header means nothing to the call, since it has no
    effect, or since its body names what must be done once. `relay`: the body may be in the relay dialect.
    `about_request`: the path names a request in its second to last part, which is part of what the call asks for.
    """

    name: str
    model: type[Body] = Empty
    query: bool = False
    max_bytes: int = 16_384
    max_file_bytes: int = 0
    file_scopes: tuple[str, ...] = ()
    file_names: tuple[str, ...] = ()
    repeatable: bool = True
    reserved: bool = False
    action: str = ""
    pausable: bool = False
    unnamed: bool = False
    relay: bool = False
    about_request: bool = False


class Upload(Protocol):
    """The slot and the space that the files of a call take up."""

    def close(self) -> None:
        """Release both."""


class Pending(NamedTuple):
    """A request that waits for a person, and how to answer the call that asks for it once it has ended.

    The caller wants to wait for `wait_s` seconds; None: as its Prefer header states.
    """

    request_id: str
    answer: Callable[[], Awaitable[Answer]]
    wait_s: int | None = None


@dataclass(slots=True)
class CallContext:
    """One call and what is known of it so far. The fields of its log line are in `call.note`.

    `key` is set once the call is `admitted`. `headers` are added to whichever answer the call gets. `relayed`: the call
    came in the relay dialect. `holds_slot`: it counts among the running calls. `upload` is the slot and the space that
    its files take up. `recorded`: the journal has a row of its refusal. `pending`: a person must decide first, and the
    caller may want to wait for that. `approved`: it is sent for a call that ended earlier, whose address was checked.
    `uncertain`: it was refused, and X may have carried it out all the same. `earlier` is the request id of the call to
    which its Idempotency-Key already belongs.
    """

    call: Call
    route: RouteRules
    parsed: Parsed
    key: Key = field(init=False)
    admitted: bool = False
    headers: Headers = ()
    relayed: bool = False
    holds_slot: bool = False
    upload: Upload | None = None
    recorded: bool = False
    pending: Pending | None = None
    approved: bool = False
    uncertain: bool = False
    earlier: str | None = None

    def close(self) -> None:
        """Release the files and what they take up."""
        self.parsed.close()
        if self.upload is not None:
            self.upload.close()


Work = Callable[[CallContext], Awaitable["Answer"]]
"""What a route does for a call that has been admitted."""


class KeyedRoute(NamedTuple):
    """A call that needs a key: its method, its path below the prefix of the API, its rules, and its work."""

    method: str
    path: str
    rules: RouteRules
    work: Work
