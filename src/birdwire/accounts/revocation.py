"""Revokes tokens at X (RFC 7009): queued when a session ends, retried until X answers, for a week at most."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from ulid import ULID

from birdwire.runtime.backoff import Backoff
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import x_sessions as store
from birdwire.x.client.auth_server import Meaning, TokenError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.tokens import Kind, SealedTokens
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.x_sessions import RevocationRow, SessionRow
    from birdwire.x.client.auth_server import AuthServer, Tokens

RETRY_FOR = timedelta(days=7)
MAX_CONCURRENT = 20
EXPEDITE_WAIT_S = 2.0
BACKOFF = Backoff(initial_s=5, max_s=3_600)
_KINDS: tuple[Kind, ...] = ("refresh", "access")


class RevocationQueue:
    """The queue of one database, for one issuer."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        tokens: SealedTokens,
        authserver: AuthServer,
        clock: Clock,
        telemetry: Telemetry,
        issuer: str,
    ) -> None:
        self._database = database
        self._vault = vault
        self._tokens = tokens
        self._telemetry = telemetry
        self._authserver = authserver
        self._clock = clock
        self._issuer = issuer
        self._draining: SingleFlight[None] = SingleFlight()

    async def remove(self, connection: AsyncConnection, session: SessionRow) -> None:
        """Delete a session, if it still exists, and queue its tokens, in the caller's transaction."""
        removed = await store.remove(connection, session.session_id)
        if removed is None:
            return
        for kind in _KINDS:
            if kind == "refresh" and removed.refresh_ct is None:
                continue
            try:
                token = self._tokens.open(removed, kind)
            except VaultError:
                # A token that was changed at rest cannot be presented, so there is nothing to revoke.
                self._telemetry.event("error", "session_unreadable", session_id=removed.session_id)
            else:
                await self._add(connection, removed.issuer, token, kind)

    async def add_pair(self, connection: AsyncConnection, issuer: str, tokens: Tokens) -> None:
        """Queue a pair that belongs to no session, in the caller's transaction."""
        if tokens.refresh_token:
            await self._add(connection, issuer, tokens.refresh_token, "refresh")
        await self._add(connection, issuer, tokens.access_token, "access")

    async def _add(self, connection: AsyncConnection, issuer: str, token: str, kind: Kind) -> None:
        revocation_id, now = f"rv_{ULID()}", self._clock.now()
        row = {
            "revocation_id": revocation_id,
            "issuer": issuer,
            "token_ct": self._vault.seal(token, _place(revocation_id)),
            # RFC 7009 leaves token_type_hint optional; X requires it.
            "hint": f"{kind}_token",
            "created_at": now,
            "due_at": now,
        }
        await store.queue_revocation(connection, row)

    async def expedite(self) -> None:
        """Start to revoke what is due, and wait for it briefly; what takes longer continues in the background."""
        await asyncio.wait([self._draining.start("all", self.drain)], timeout=EXPEDITE_WAIT_S)

    async def drain(self) -> None:
        """Revoke what is due. A definite answer of X completes a revocation; anything else is retried."""
        async with self._database.read() as connection:
            rows = await store.due_revocations(connection, self._issuer, self._clock.now(), MAX_CONCURRENT)
        await asyncio.gather(*(self._process(row) for row in rows))

    async def close(self) -> None:
        """Wait briefly for running revocations; the next start continues with the rest."""
        await self._draining.close(EXPEDITE_WAIT_S)

    async def _process(self, row: RevocationRow) -> None:
        now = self._clock.now()
        # The deadline is checked only after a try: the gateway may have been stopped for a long time.
        done = await self._revoke(row) or row.created_at + RETRY_FOR <= now
        async with self._database.write() as connection:
            if done:
                await store.drop_revocation(connection, row.revocation_id)
            else:
                due_at = now + timedelta(seconds=BACKOFF.pause_s(row.tries))
                await store.postpone_revocation(connection, row.revocation_id, due_at, row.tries + 1)

    async def _revoke(self, row: RevocationRow) -> bool:
        """Return whether the revocation is complete."""
        try:
            token = self._vault.open(row.token_ct, _place(row.revocation_id))
            await self._authserver.revoke(token, row.hint)
        except TokenError as error:
            return error.meaning is Meaning.REFUSED
        except VaultError:
            # A token that was changed at rest cannot be presented by anybody.
            return True
        return True


def _place(revocation_id: str) -> Place:
    return Place("revocations", revocation_id, "token_ct")
