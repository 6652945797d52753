"""Linking a key on the database, for the operator: needs no running gateway, and no action of the key."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from birdwire.accounts.callbacks import attempt
from birdwire.accounts.linking import AuthTwitter, LinkStarts, hash_of
from birdwire.api.body import check
from birdwire.api.errors import GatewayError, describe
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.output import ExitCode, Stop
from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.startup import open_vault
from birdwire.store.database import now
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.tables import link_states, x_sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import RowMapping

    from birdwire.settings import Settings
    from birdwire.store.database import Database


class Linking:
    """One key's link on an open database."""

    def __init__(self, settings: Settings, database: Database, key_id: str) -> None:
        self._settings = settings
        self._database = database
        self._key_id = key_id
        self._state_hash = b""
        self.confirm = f"birdwire accounts confirm {key_id} --expect @USERNAME"

    async def start(self, body: dict[str, Any]) -> dict[str, str]:
        """Return `auth_url`, `state` and `expires_at` of a new link.

        Raises:
            Stop: the key may not be linked so.
            VaultError: another vault key sealed this database.
        """
        clock, vault = Clock(), open_vault(self._settings)
        await KeyRotation(self._database, vault, clock, by=operator()).enlist(starting=False)
        key = await Keys(self._database, clock).get(self._key_id)
        try:
            key.check(clock.now(), self._settings.mode)
            authorizations = LinkStarts(self._settings, self._database, vault, clock)
            begun = await authorizations.start(key, check(body, AuthTwitter), operator())
        except GatewayError as error:
            raise Stop(ExitCode.REFUSED, *describe(error)) from None
        self._state_hash = hash_of(begun["state"])
        return begun

    async def poll(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what became of the link, and the link: both as auth/status describes them.

        Raises:
            Stop: it was dropped.
        """
        async with self._database.read() as connection:
            state = await link_states.find(connection, self._state_hash)
            if state is None:
                raise Stop(ExitCode.REFUSED, "The key lost this link: it started newer ones, or may no longer link.")
            row = state["session_id"] and await x_sessions.get(connection, state["session_id"])
            found = attempt(state, await now(connection, Clock()))
        return found, described(row) if row else {"linked": False}


def described(row: RowMapping) -> dict[str, Any]:
    """Return a session as auth/status describes it, in part."""
    account = {name: row[name] for name in ("user_id", "username", "state")}
    return {"linked": True, **account, "linked_at": rfc3339(row["linked_at"]) if row["linked_at"] else None}


def check_client(settings: Settings) -> None:
    """Check that the settings are a gateway's, with the id of its X app.

    Raises:
        Stop: they are not.
    """
    if not settings.x_client_id:
        raise Stop(
            ExitCode.USAGE,
            "BIRDWIRE_X_CLIENT_ID is not set.",
            "Use the settings of the gateway: --config FILE. `birdwire dev` keeps none in its folder: leave KEY_ID "
            "out, and set BIRDWIRE_API_KEY to the key that it printed.",
        )


@asynccontextmanager
async def linking(settings: Settings, key_id: str) -> AsyncIterator[Linking]:
    """Open the database of a key that is to be linked.

    Raises:
        Stop: settings are missing, or the database cannot be used.
    """
    check_client(settings)
    if not settings.public_url and not settings.port:
        raise Stop(
            ExitCode.USAGE,
            "BIRDWIRE_PUBLIC_URL is not set and the port is 0, so the gateway's callback URL is unknown.",
            "Set BIRDWIRE_PUBLIC_URL for the gateway and for this command.",
        )
    with refusals():
        async with opened(settings) as database:
            yield Linking(settings, database, key_id)
