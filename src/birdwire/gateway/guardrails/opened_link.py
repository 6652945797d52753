"""What the holder of a signed link sees and decides, as plain data, and what the page asks of `signed_links`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.outcomes.approval_records import Waiting
    from birdwire.store.tables.approvals import LinkRow

MAX_NOTE_CHARS: Final = 500
"""Maximum length of a note in characters."""


@dataclass(frozen=True, slots=True)
class LinkDecision:
    """What a person decides about the payload with this hash. `text` is that of an edit, `note` that of a denial."""

    verdict: Literal["approve", "deny", "edit"]
    payload_sha256: str
    note: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A signed link, its request, the label of the key that asks, and the numbers of the images that can be shown."""

    link: LinkRow
    waiting: Waiting
    label: str
    images: frozenset[int]


class Links(Protocol):
    """Opens signed links, and decides for their holders. Every method raises storage_unavailable if it has to."""

    async def open(self, token: str, peer: str) -> Opened:
        """Return the request of a link, also after it has ended. Changes nothing.

        Raises:
            GatewayError: request_not_found; auth_failures: so, and the address sent too many such tokens.
        """

    async def decide(self, opened: Opened, decision: LinkDecision) -> None:
        """Carry out a decision.

        Raises:
            GatewayError: why it was not carried out.
        """

    async def image(self, opened: Opened, number: int) -> bytes | None:
        """Return an image of a request; None if it is not kept."""

    async def refusal(self, opened: Opened) -> Mapping[str, object] | None:
        """Return the error with which an ended request answers its caller; None if it did what was asked."""
