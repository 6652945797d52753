"""Tokens still to be revoked at X (RFC 7009): queued as a session ends, tried until X answers, for a week at most."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from ulid import ULID

from birdwire.runtime.single_flight import SingleFlight
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import x_sessions as store
from birdwire.x.client.auth_server import Meaning, TokenError

if TYPE_CHECKING:
    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.tokens import Kind, SealedTokens
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.x.client.auth_server import AuthServer, Tokens

TRY_FOR = timedelta(days=7)
AT_ONCE = 20
HURRY_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5, 3_600
_KINDS: tuple[Kind, ...] = ("refresh", "access")


class RevocationQueue:
    """The queue of one database for one issuer."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        pairs: SealedTokens,
        authserver: AuthServer,
        clock: Clock,
        telemetry: Telemetry,
        issuer: str,
    ) -> None:
        self._database = database
        self._vault = vault
        self._pairs = pairs
        self._telemetry = telemetry
        self._authserver = authserver
        self._clock = clock
        self._issuer = issuer
        self._draining: SingleFlight[None] = SingleFlight()

    async def end(self, connection: AsyncConnection, row: RowMapping) -> bool:
        """Remove a session, and queue its tokens, in the caller's transaction; whether it was still there."""
        gone = await store.remove(connection, row["session_id"])
        if gone is None:
            return False
        for kind in _KINDS:
            if gone[f"{kind}_ct"] is None:
                continue
            try:
                token = self._pairs.open(gone, kind)
            except VaultError:  # changed at rest: there is nothing left to present or to revoke
                self._telemetry.event("error", "session_unreadable", session_id=gone["session_id"])
            else:
                await self._add(connection, gone["issuer"], token, kind)
        return True

    async def add_pair(self, connection: AsyncConnection, issuer: str, tokens: Tokens) -> None:
        """Queue a pair that belongs to no session any more, in the caller's transaction."""
        if tokens.refresh_token:
            await self._add(connection, issuer, tokens.refresh_token, "refresh")
        await self._add(connection, issuer, tokens.access_token, "access")

    async def _add(self, connection: AsyncConnection, issuer: str, token: str, kind: Kind) -> None:
        revocation_id, now = f"rv_{ULID()}", self._clock.now()
        row = {
            "revocation_id": revocation_id,
            "issuer": issuer,
            "token_ct": self._vault.seal(token, _place(revocation_id)),
            "hint": f"{kind}_token",  # RFC 7009's token_type_hint, which X demands
            "created_at": now,
            "due_at": now,
        }
        await store.queue_revocation(connection, row)

    async def hurry(self) -> None:
        """Begin to revoke what is due, and wait a moment for it; what takes longer goes on by itself."""
        await asyncio.wait([self._draining.start("all", self.drain)], timeout=HURRY_S)

    async def drain(self) -> None:
        """Revoke what is due. A definite answer ends the matter; anything else is tried again."""
        async with self._database.read() as connection:
            rows = await store.due_revocations(connection, self._issuer, self._clock.now(), AT_ONCE)
        await asyncio.gather(*(self._settle(row) for row in rows))

    async def close(self) -> None:
        """Let what is under way end, for a moment; the rest is for the next start."""
        await self._draining.close(HURRY_S)

    async def _settle(self, row: RowMapping) -> None:
        now = self._clock.now()
        done = await self._revoke(row)
        done = done or row["created_at"] + TRY_FOR <= now  # only after a try: there may have been a long stop
        async with self._database.write() as connection:
            if done:
                await store.drop_revocation(connection, row["revocation_id"])
            else:
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** row["tries"])
                due_at = now + timedelta(seconds=pause_s)
                await store.postpone_revocation(connection, row["revocation_id"], due_at, row["tries"] + 1)

    async def _revoke(self, row: RowMapping) -> bool:
        try:
            token = self._vault.open(row["token_ct"], _place(row["revocation_id"]))
            await self._authserver.revoke(token, row["hint"])
        except TokenError as error:
            return error.meaning is Meaning.REFUSED
        except VaultError:
            pass  # changed at rest: nobody can present it any more
        return True


def _place(revocation_id: str) -> Place:
    return Place("revocations", revocation_id, "token_ct")
