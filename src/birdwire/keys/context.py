"""CallContext: what is known of one call of a key while it is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from birdwire.api.body import Parsed

if TYPE_CHECKING:
    from birdwire.api.messages import Call
    from birdwire.keys.registry import Key


@dataclass(slots=True)
class CallContext:
    """One call, the key that made it, and its parsed body."""

    call: Call
    key: Key
    parsed: Parsed = field(default_factory=lambda: Parsed("none"))
