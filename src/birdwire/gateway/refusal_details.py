"""RefusalDetails: adds to X's refusal of a write which fields named the post, or why an edit failed.

It only explains what X has refused: how long a post can be edited is for X to decide, and may change.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError
from birdwire.store.database import StorageDownError
from birdwire.x.catalog.post import PostTwitter, made_at
from birdwire.x.limits.write_order import canonical

if TYPE_CHECKING:
    from birdwire.api.models import Body
    from birdwire.outcomes.journal import Journal
    from birdwire.runtime.clock import Clock
    from birdwire.x.client.api import X

EDIT_WINDOW = timedelta(hours=1)
"""The longer of the two windows that X documents for edits: an older post is past both of them."""

_EDITED = "edit_options.previous_post_id"
_POSTS = ("tweet_id", "quote_tweet_id", "reply.in_reply_to_tweet_id", _EDITED)
"""Every field of a call that names a post."""

_PREMIUM = (
    "X lets X Premium accounts edit a post at most five times, within one hour of its first version (30 minutes "
    "according to one of X's pages). Polls, reposts, replies to others and community posts cannot be edited. "
)
_VAGUE = frozenset({"x_refused", "x_invalid_request", "x_conflict", "tweet_not_found"})
"""Refusals that an edit may get for any cause: X has not published how it words them."""


class RefusalDetails:
    """Explains X's refusals of writes by the journal and X's clock."""

    def __init__(self, journal: Journal, x: X, clock: Clock) -> None:
        self._journal = journal
        self._x = x
        self._clock = clock

    async def explain(self, error: GatewayError, body: Body, user_id: str) -> GatewayError:
        """Return the refusal that the caller gets for an account's write that X refused with `error`."""
        error.values["target"] = _posts_named(body)
        if isinstance(body, PostTwitter) and body.edit_options is not None and error.reason in _VAGUE:
            return await self._edit(error, canonical(body.edit_options.previous_post_id), user_id)
        return error

    async def _edit(self, error: GatewayError, post_id: str, user_id: str) -> GatewayError:
        made = deleted = False
        # Without the database, X's own refusal has to do.
        with contextlib.suppress(StorageDownError):
            made, deleted = await self._journal.knows_of_post(user_id, post_id)
        if deleted:
            return GatewayError("tweet_not_found", outcome="refused", upstream=error.upstream, target=_EDITED)
        if made and self._x.now() - made_at(post_id) > EDIT_WINDOW:
            return GatewayError("edit_window_closed", outcome="refused", upstream=error.upstream)
        error.values["edits"] = _PREMIUM
        return error


def _posts_named(body: Body) -> str:
    """Return the fields of a body that name a post, for people."""
    named = [name for name in _POSTS if name.partition(".")[0] in body.model_fields_set]
    return " and ".join(named) or "the ids in the request"
