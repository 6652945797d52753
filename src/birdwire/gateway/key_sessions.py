"""KeySessions: the X session of a key, from memory or from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from birdwire.accounts.endpoints import LinkEndpoints
    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.keys.registry import Key


class KeySessions:
    """Opens the sessions of keys."""

    def __init__(self, sessions: Sessions, endpoints: LinkEndpoints) -> None:
        self._sessions = sessions
        self._endpoints = endpoints

    async def session_for(self, key: Key, scopes: Sequence[str]) -> XSession:
        """Return a session of the key's link that has these scopes, and whose token is good now.

        Raises:
            GatewayError: x_not_linked, x_link_pending, x_session_expired, x_scope_missing, or why X could not be asked.
        """
        session = self._sessions.ready(key.key_id) or await self._open(key)
        missing = [scope for scope in scopes if scope not in session.scopes]
        if missing:
            raise GatewayError("x_scope_missing", scope=" ".join(missing))
        return session

    async def _open(self, key: Key) -> XSession:
        links = await self._endpoints.settle(await self._sessions.links(key.key_id))
        if links.current is None:
            raise GatewayError("x_not_linked")
        session = await self._sessions.open(links.current)
        self._sessions.remember(links, session)
        return session
