"""Signed links: what the holder of one sees and decides, with the guesses of an address limited.

The holder decides as the operator who made the link. A link shows one request, decides it once, and ends with it.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError
from birdwire.gateway.guardrails.approvals import hash_token
from birdwire.gateway.guardrails.opened_link import Opened
from birdwire.store.database import StorageDownError
from birdwire.store.tables import api_keys
from birdwire.store.tables import approvals as store
from birdwire.store.tables.acts import Actor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from birdwire.gateway.guardrails.approvals import Approvals
    from birdwire.gateway.guardrails.opened_link import LinkDecision
    from birdwire.keys.guess_limit import GuessLimiter
    from birdwire.outcomes.approval_records import ApprovalRecords
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.store.database import Database
    from birdwire.store.tables.approvals import LinkRow

_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,64}")
"""No other text is looked up."""


class SignedLinks:
    """Opens signed links, and decides for their holders."""

    def __init__(
        self,
        database: Database,
        approvals: Approvals,
        records: ApprovalRecords,
        guesses: GuessLimiter,
        failpoints: Failpoints,
    ) -> None:
        self._database = database
        self._approvals = approvals
        self._records = records
        self._guesses = guesses
        self._failpoints = failpoints

    async def open(self, token: str, peer: str) -> Opened:
        """Return the request of a link, also after it has ended. Changes nothing.

        Raises:
            GatewayError: request_not_found; auth_failures: so, and the address sent too many such tokens;
                storage_unavailable.
        """
        if not _TOKEN.fullmatch(token):
            raise GatewayError("request_not_found")
        with _storage():
            link = await self._guesses.run(peer, self._links, hash_token(token))
            waiting = None if link is None else await self._records.find(link.request_id)
            if link is None or waiting is None:
                raise GatewayError("request_not_found")
            async with self._database.read() as connection:
                key = await api_keys.get(connection, waiting.row.key_id)
                images = await store.files_kept(connection, link.request_id)
        return Opened(link, waiting, "" if key is None else key.label, images)

    async def decide(self, opened: Opened, decision: LinkDecision) -> None:
        """Carry out a decision.

        Raises:
            GatewayError: why it was not carried out.
        """
        request_id, by = opened.link.request_id, Actor(opened.link.made_by, "page")
        token_hash, sha256 = opened.link.token_hash, decision.payload_sha256
        with _storage("the decision may have been stored or not"):
            match decision.verdict:
                case "approve":
                    await self._approvals.approve(request_id, sha256, by, token_hash=token_hash)
                case "deny":
                    note = decision.note
                    await self._approvals.deny(request_id, by, payload_sha256=sha256, note=note, token_hash=token_hash)
                case "edit":
                    await self._approvals.edit(request_id, decision.text or "", sha256, by)
        await self._failpoints.reach("decided_after_store")

    async def image(self, opened: Opened, number: int) -> bytes | None:
        """Return an image of a request; None if it is not kept.

        Raises:
            GatewayError: storage_unavailable.
        """
        if number not in opened.images:
            return None
        with _storage():
            return await self._records.file(opened.link.request_id, number)

    async def refusal(self, opened: Opened) -> Mapping[str, object] | None:
        """Return the error with which an ended request answers its caller; None if it did what was asked.

        Raises:
            GatewayError: storage_unavailable.
        """
        with _storage():
            answer = await self._records.answer(opened.link.request_id)
        error = answer.value.get("error") if isinstance(answer.value, dict) else None
        return error if isinstance(error, dict) else None

    async def _links(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, LinkRow]:
        async with self._database.read() as connection:
            return await store.links(connection, token_hashes)


@contextlib.contextmanager
def _storage(half: str = "nothing was decided") -> Iterator[None]:
    """Refuse while the store is unavailable; `half` states what came of it.

    Raises:
        GatewayError: storage_unavailable.
    """
    try:
        yield
    except StorageDownError:
        raise GatewayError("storage_unavailable", half=half) from None
