"""Confirms and ends a key's link directly on the database, as the operator: needs no running gateway and no key."""

from __future__ import annotations

import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from birdwire.accounts.links import Links
from birdwire.api.errors import GatewayError, describe
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.linking import check_client, described
from birdwire.cli.stop import ExitCode, Stop
from birdwire.keys.cache import KeyCache
from birdwire.keys.guess_limit import GuessLimiter
from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.startup import open_vault
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.x.client.auth_server import AuthServer
from birdwire.x.client.pool_to_x import pool_to_x

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.settings import Settings

CONNECTIONS = 2
"""Maximum number of connections to X's token endpoint, to revoke a link's two tokens."""


async def confirm(settings: Settings, key_id: str, username: str | None) -> dict[str, Any]:
    """Activate a key's link that is waiting for confirmation; return it as auth/status describes it.

    Raises:
        Stop: no link is waiting, `username` is missing, or a different account approved.
    """
    async with _links(settings, key_id) as links:
        row = (await links.of_key(key_id)).pending
        over = row is not None and row.over_at is not None and row.over_at <= Clock().now()
        if row is None or row.username is None or over:
            raise Stop(
                ExitCode.REFUSED,
                f"No link of {key_id} is waiting for confirmation.",
                "In link mode confirm, a link waits for 10 minutes after the approval. Check its state with `birdwire "
                "accounts list`.",
            )
        approved = f"@{row.username}"
        again = f"To activate the link of {approved}, run: birdwire accounts confirm {key_id} --expect {approved}"
        if username is None:
            raise Stop(ExitCode.USAGE, f"{approved} approved. Confirm the account with --expect.", again)
        if row.username.lower() != username.lower():
            why = f"{approved} approved, not @{username}. The link keeps waiting until 10 minutes after the approval."
            raise Stop(ExitCode.REFUSED, why, again)
        try:
            row = await links.activate(row.session_id, operator())
        except GatewayError as error:
            raise Stop(ExitCode.REFUSED, *describe(error)) from None
        return described(row)


async def unlink(settings: Settings, key_id: str) -> bool:
    """End a key's link and return whether there was one. If X cannot revoke the tokens now, the gateway will later.

    Raises:
        Stop: the database is unusable.
    """
    async with _links(settings, key_id) as links:
        return await links.unlink(key_id, operator())


@asynccontextmanager
async def _links(settings: Settings, key_id: str) -> AsyncIterator[Links]:
    """Open the links of a database that has the key.

    Raises:
        Stop: settings are missing, the key does not exist, or the database is unusable.
    """
    check_client(settings)
    clock = Clock()
    with refusals():
        async with opened(settings) as database:
            vault, upstream, guesses = open_vault(settings), pool_to_x(settings, CONNECTIONS), GuessLimiter(clock)
            await KeyRotation(database, vault, clock, by=operator()).enlist(starting=False)
            await Keys(database, clock).get(key_id)
            links = Links(
                database,
                vault,
                AuthServer(settings, upstream),
                KeyCache(database, clock),
                guesses,
                clock,
                Telemetry(io.StringIO(), clock, "error"),
                settings.issuer,
            )
            try:
                yield links
            finally:
                await guesses.close()
                await links.close()
                await upstream.close()
