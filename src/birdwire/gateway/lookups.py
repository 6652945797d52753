"""Lookups: one lookup of the linked account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.api.body import check
from birdwire.api.messages import Answer

if TYPE_CHECKING:
    from birdwire.accounts.retrying_client import AccountClients
    from birdwire.accounts.sessions import Sessions
    from birdwire.keys.context import CallContext
    from birdwire.x.catalog.lookups import Lookup, LookupRunner


class Lookups:
    """Runs lookups. They are not recorded in the journal."""

    def __init__(self, sessions: Sessions, clients: AccountClients, runner: LookupRunner) -> None:
        self._sessions = sessions
        self._clients = clients
        self._runner = runner

    async def perform(self, lookup: Lookup, context: CallContext) -> Answer:
        """Ask X as the linked account, and return the answer in the shape that published clients read.

        Raises:
            GatewayError: the query is malformed, there is no usable link, or X refused.
        """
        query = check(context.parsed.fields, lookup.query)
        session = await self._sessions.session_for(context.key, lookup.scopes)
        client = self._clients.open(session)
        return Answer.of(await lookup.run(self._runner, session.user_id, query, client.ask))
