"""Destinations: where notifications go, as the operator sets it; its URL and secrets are encrypted at rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from birdwire.gateway.notifications.signatures import new_secret
from birdwire.runtime.outbound import read_url
from birdwire.store.encryption.vault import Place
from birdwire.store.tables import acts, outbox
from birdwire.store.tables import destinations as store

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.runtime.outbound import OutboundRules
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.destinations import DestinationRow, Kind

SUBJECT: Final = "notifications"
"""The subject of an act on the destination."""

_TICK: Final = timedelta(microseconds=1)


class NoDestinationError(LookupError):
    """Raised when there is no destination."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The URL of a destination, and the secrets that sign what is sent to it now, the newest first."""

    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


class Destinations:
    """The destination of one database. `rules` state which URLs are allowed."""

    def __init__(self, database: Database, vault: Vault, clock: Clock, rules: OutboundRules) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._rules = rules
        self._last: DestinationRow | None = None

    @property
    def on(self) -> bool:
        """Whether there is a destination that is on, as of the last read."""
        return self._last is not None and self._last.off_at is None

    async def get(self) -> DestinationRow | None:
        """Return the destination, or None if there is none.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            return await self.read(connection)

    async def read(self, connection: AsyncConnection) -> DestinationRow | None:
        """Return the destination, or None if there is none, over a connection of the caller."""
        self._last = await store.get(connection)
        return self._last

    async def set(self, url: str, kind: Kind, by: acts.Actor, *, with_link: bool, with_text: bool) -> str:
        """Set the destination, in place of an earlier one, and return its new secret. What waits goes to the new one.

        Raises:
            ForbiddenURLError: the URL is not allowed.
            StorageDownError: the database does not answer.
        """
        host, secret = read_url(url, self._rules).host, new_secret()
        row: dict[str, Any] = {"kind": kind, "host": host, "with_link": with_link, "with_text": with_text}
        row |= {"url_ct": self._seal("url_ct", url), "secret_ct": self._seal("secret_ct", secret)}
        async with self._database.write() as connection:
            before, now = await store.get(connection, hold=True), self._clock.now()
            # A try that began before compares this time, and changes nothing of the new destination.
            now = now if before is None else max(now, before.set_at + _TICK)
            row |= {"set_at": now, "set_by": by.who, "secret_at": now}
            await store.put(connection, row | {"sender": None if before is None else before.sender})
            after = {"kind": kind, "host": host, "with_link": with_link, "with_text": with_text}
            await acts.append(connection, now, by, "notify.set", SUBJECT, before=shown(before), after=after)
        return secret

    async def rotate(self, by: acts.Actor, overlap: timedelta) -> str:
        """Return a new secret; what is sent is signed with the present one, too, until `overlap` is over.

        Raises:
            NoDestinationError: there is none.
            VaultError: the present secret cannot be decrypted. Setting the destination again replaces it.
            StorageDownError: the database does not answer.
        """
        secret = new_secret()
        async with self._database.write() as connection:
            row, now = await store.get(connection, hold=True), self._clock.now()
            if row is None:
                raise NoDestinationError
            old = self._vault.open(row.secret_ct, _place("secret_ct"))
            values: dict[str, Any] = {"secret_ct": self._seal("secret_ct", secret), "secret_at": now}
            values |= {"old_secret_ct": self._seal("old_secret_ct", old), "old_secret_until": now + overlap}
            await store.change(connection, values)
            after = {"host": row.host, "old_secret_until": now + overlap}
            await acts.append(connection, now, by, "notify.rotated", SUBJECT, after=after)
        return secret

    async def off(self, by: acts.Actor) -> bool:
        """Delete the destination, its secrets and what waits for it; return whether there was one.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.write() as connection:
            row = await store.get(connection, hold=True)
            if row is None:
                return False
            await store.remove(connection)
            await acts.append(connection, self._clock.now(), by, "notify.off", SUBJECT, before=shown(row))
        return True

    async def test(self) -> str:
        """Have a test delivered, also to a destination that is switched off; return its `event_id` in the outbox.

        It is tried once. A delivery switches the destination on again.

        Raises:
            NoDestinationError: there is none.
            StorageDownError: the database does not answer.
        """
        event_id = outbox.new_event_id()
        async with self._database.write() as connection:
            if await store.get(connection, hold=True) is None:
                raise NoDestinationError
            await outbox.add_test(connection, event_id, self._clock.now())
        return event_id

    def open(self, row: DestinationRow) -> Opened:
        """Decrypt the URL of a destination, and the secrets that sign now.

        Raises:
            VaultError: they cannot be decrypted.
        """
        secrets = [self._vault.open(row.secret_ct, _place("secret_ct"))]
        until = row.old_secret_until
        if row.old_secret_ct is not None and until is not None and self._clock.now() < until:
            secrets.append(self._vault.open(row.old_secret_ct, _place("old_secret_ct")))
        return Opened(self._vault.open(row.url_ct, _place("url_ct")), tuple(secrets))

    def _seal(self, column: str, value: str) -> bytes:
        return self._vault.seal(value, _place(column))


def shown(row: DestinationRow | None) -> dict[str, object] | None:
    """Return what an act states of a destination: never its URL."""
    if row is None:
        return None
    return {"kind": row.kind, "host": row.host, "with_link": row.with_link, "with_text": row.with_text}


def _place(column: str) -> Place:
    return Place("destinations", store.OPERATOR, column)
