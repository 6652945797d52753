"""Links a key directly on the database, as the operator: needs no running gateway and no permission of the key."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from birdwire.accounts.attempts import attempt
from birdwire.accounts.bodies import AuthTwitter
from birdwire.accounts.linking import AuthorizationRequests, hash_of
from birdwire.api.body import check
from birdwire.api.errors import GatewayError, describe
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.stop import ExitCode, Stop
from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.startup import open_vault
from birdwire.store.database import now
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.tables import link_states, x_sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.tables.x_sessions import SessionRow


class Linking:
    """Links one key on an open database."""

    def __init__(self, settings: Settings, database: Database, key_id: str) -> None:
        self._settings = settings
        self._database = database
        self._key_id = key_id
        self._state_hash = b""
        self.confirm = f"birdwire accounts confirm {key_id} --expect @USERNAME"

    async def start(self, body: dict[str, Any]) -> dict[str, str]:
        """Start a link and return its `auth_url`, `state` and `expires_at`.

        Raises:
            Stop: the key's rules do not allow this link.
            VaultError: the database was encrypted with another vault key.
        """
        clock, vault = Clock(), open_vault(self._settings)
        await KeyRotation(self._database, vault, clock, by=operator()).enlist(starting=False)
        key = await Keys(self._database, clock).get(self._key_id)
        try:
            key.check(clock, self._settings.mode)
            requests = AuthorizationRequests(self._settings, self._database, vault, clock)
            started = await requests.start(key, check(body, AuthTwitter), operator())
        except GatewayError as error:
            raise Stop(ExitCode.REFUSED, *describe(error)) from None
        self._state_hash = hash_of(started["state"])
        return started

    async def poll(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the attempt and the link, both as auth/status describes them.

        Raises:
            Stop: the attempt was discarded.
        """
        async with self._database.read() as connection:
            state = await link_states.find(connection, self._state_hash)
            if state is None:
                raise Stop(
                    ExitCode.REFUSED,
                    "This link is no longer valid: the key has started newer links, or is no longer allowed to link.",
                )
            row = await x_sessions.get(connection, state.session_id) if state.session_id else None
            found = attempt(state, await now(connection, Clock()))
        return found, described(row) if row else {"linked": False}


def described(row: SessionRow) -> dict[str, Any]:
    """Return part of a session's description in auth/status."""
    linked_at = rfc3339(row.linked_at) if row.linked_at else None
    return {"linked": True, **(x_sessions.described(row) or {}), "linked_at": linked_at}


def check_client(settings: Settings) -> None:
    """Check that the settings contain the client ID of the X app.

    Raises:
        Stop: the client ID is missing.
    """
    if not settings.x_client_id:
        raise Stop(
            ExitCode.USAGE,
            "BIRDWIRE_X_CLIENT_ID is not set.",
            "Use the gateway's settings with --config FILE. A `birdwire dev` gateway has no settings: leave KEY_ID "
            "out, and set BIRDWIRE_API_KEY to the key that it printed.",
        )


@asynccontextmanager
async def linking(settings: Settings, key_id: str) -> AsyncIterator[Linking]:
    """Open the database to link a key.

    Raises:
        Stop: settings are missing, or the database is unusable.
    """
    check_client(settings)
    if not settings.public_url and not settings.port:
        raise Stop(
            ExitCode.USAGE,
            "The gateway's callback URL is unknown, because BIRDWIRE_PUBLIC_URL is not set and the port is 0.",
            "Set BIRDWIRE_PUBLIC_URL both for the gateway and for this command.",
        )
    with refusals():
        async with opened(settings) as database:
            yield Linking(settings, database, key_id)
