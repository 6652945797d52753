"""Write: one operation on its way to X, as the steps of `writes` fill it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from birdwire.accounts.client import AccountClient
    from birdwire.accounts.sessions import XSession
    from birdwire.api.body import Body
    from birdwire.api.forms import Part
    from birdwire.keys.context import CallContext
    from birdwire.outcomes.journal import Entry, Record
    from birdwire.x.catalog.operations import Operation


@dataclass(slots=True)
class Write:
    """What is asked for, and what the steps have found out and made. `opened`: every end is recorded from here on."""

    context: CallContext
    operation: Operation
    fields: Mapping[str, Any]
    files: Sequence[Part]
    opened: bool = False
    body: Body = field(init=False)
    session: XSession = field(init=False)
    client: AccountClient = field(init=False)
    entry: Entry = field(init=False)
    record: Record = field(init=False)
    data: dict[str, Any] = field(init=False)
