"""The endpoints by which a key's holder manages its link: auth_twitter, auth/status, auth/confirm, unlink_twitter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from birdwire.accounts.bodies import AuthTwitter, Confirm
from birdwire.accounts.linking import holder_of
from birdwire.accounts.links import only_confirmation_helps, reported_state
from birdwire.accounts.refresh import renews_at
from birdwire.api.body import check
from birdwire.api.messages import Answer
from birdwire.api.models import Empty
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables.x_sessions import LinkState, RefreshState

if TYPE_CHECKING:
    from birdwire.accounts.linking import AuthorizationRequests, Linking
    from birdwire.accounts.links import Links
    from birdwire.keys.context import CallContext
    from birdwire.keys.registry import Key
    from birdwire.runtime.clock import Clock
    from birdwire.x.limits.capabilities import Capabilities
    from birdwire.x.limits.rate_windows import RateWindows

Describe = Callable[["Key"], Awaitable[Mapping[str, Any]]]

_LINK = (
    *("user_id", "username", "scopes", "state", "access_expires_at", "linked_at"),
    *("generation", "refreshed_at", "next_refresh_at", "why", "limits", "capabilities"),
)
"""Members of auth/status that describe a link, in its order."""


class LinkEndpoints:
    """What a key's holder asks over HTTP about the key's link. No answer contains a token.

    `describe` returns further members of auth/status, which speak of the key and not of its link.
    """

    def __init__(
        self,
        requests: AuthorizationRequests,
        linking: Linking,
        links: Links,
        capabilities: Capabilities,
        ledger: RateWindows,
        clock: Clock,
        describe: Describe,
    ) -> None:
        self._requests = requests
        self._linking = linking
        self._links = links
        self._capabilities = capabilities
        self._ledger = ledger
        self._clock = clock
        self._describe = describe

    async def auth_twitter(self, context: CallContext) -> Answer:
        """Start a link: return a new auth_url, which is valid once, for 10 minutes."""
        options = check(context.parsed.fields, AuthTwitter)
        return Answer.of(await self._requests.start(context.key, options, holder_of(context.key)))

    async def status(self, context: CallContext) -> Answer:
        """Return what is linked to the key."""
        check(context.parsed.fields, Empty)
        return await self._status(context.key)

    async def confirm(self, context: CallContext) -> Answer:
        """Confirm a link that awaits the key's holder (mode `confirm`); answer as `status`."""
        await self._linking.confirm(context.key, check(context.parsed.fields, Confirm))
        return await self._status(context.key)

    async def unlink(self, context: CallContext) -> Answer:
        """End the key's link: delete its tokens here immediately, and revoke them at X as soon as X answers."""
        check(context.parsed.fields, Empty)
        await self._links.unlink(context.key.key_id, holder_of(context.key))
        return Answer.of({"data": {"linked": False}})

    async def _status(self, key: Key) -> Answer:
        links = await self._links.of_key(key.key_id)
        last = {"last_attempt": await self._requests.last_attempt(key.key_id), **await self._describe(key)}
        at = self._clock.now()
        row = links.pending if only_confirmation_helps(links, at) else links.current or links.pending
        if row is None:
            why = "undone_by_owner" if await self._links.acts.undone(key.key_id) else None
            return Answer.of({"linked": False, "usable": False, **dict.fromkeys(_LINK), "why": why, **last})
        state, why = reported_state(row, at)
        renews = (
            state != LinkState.NEEDS_RELINK and row.refresh_ct is not None and row.refresh_state != RefreshState.OVER
        )
        described = {
            "user_id": row.user_id,
            "username": row.username,
            "scopes": row.scopes.split(),
            "state": state,
            "access_expires_at": rfc3339(row.expires_at),
            "linked_at": rfc3339(row.linked_at) if row.linked_at else None,
            "generation": row.gen,
            "refreshed_at": rfc3339(row.refreshed_at) if row.refreshed_at else None,
            "next_refresh_at": rfc3339(renews_at(row)) if renews else None,
            "why": why,
            "limits": self._ledger.report(row.user_id or ""),
            "capabilities": {
                known.operation: {"allowed": known.allowed, "reason": None if known.allowed else known.reason}
                for known in await self._capabilities.visible_to(key.key_id)
            },
        }
        usable = state == LinkState.ACTIVE
        return Answer.of({"linked": True, "usable": usable, **{name: described[name] for name in _LINK}, **last})
