"""The answers that are not X's own data, as models: for the documents, and checked against true answers by tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from birdwire.outcomes.report import STATES, State
from birdwire.x.client.requests import ID_PATTERN

Why = Literal[
    "refused",
    "refresh_lost_reply",
    "no_refresh_token",
    "scope_missing",
    "damaged",
    "restored",
    "restored_backup",
    "undone_by_owner",
]
"""Why a link is over, or may soon be."""


class Said(BaseModel):
    """An answer: these members, and no others."""

    model_config = ConfigDict(extra="forbid")


class Capability(Said):
    """What X last said of an action that it keeps from some apps."""

    allowed: bool = Field(description="whether X let this gateway do it")
    reason: str | None = Field(description="the reason of X's refusal")


class LinkStarted(Said):
    """A link that waits for the account's owner."""

    auth_url: str = Field(
        description="X's consent page; the account's owner opens it", json_schema_extra={"format": "uri"}
    )
    state: str = Field(description="the link's state, which auth/confirm takes")
    expires_at: str = Field(description="10 minutes from now: RFC 3339, UTC", json_schema_extra={"format": "date-time"})


class Window(Said):
    """One of X's rate windows."""

    limit: int | None = Field(description="how many calls X allows in it; null: not reported")
    remaining: int = Field(description="how many calls are left")
    reset_at: str = Field(description="when it resets", json_schema_extra={"format": "date-time"})


class Attempt(Said):
    """What became of the link that was started last."""

    outcome: Literal["open", "approved", "refused", "expired", "undone"] = Field(
        description="open: nobody has approved it yet; approved; refused: see reason; expired: nobody approved it "
        "within 10 minutes; undone: the account's owner took the approval back"
    )
    reason: str | None = Field(description="the reason of a refusal, such as consent_denied")
    expires_at: str = Field(
        description="the expires_at that auth_twitter returned with it", json_schema_extra={"format": "date-time"}
    )


class LinkStatus(Said):
    """What is linked to the key. The members that describe a link are null without one."""

    linked: bool = Field(description="whether an account is linked, in any of the states")
    usable: bool = Field(
        description="whether a call would be sent to X, as far as is known: the link is active, and its access is "
        "valid or can be renewed. What a single call needs besides (its scopes, X's limits, the key's rules) does not "
        "count"
    )
    user_id: str | None = Field(description="the X account's id")
    username: str | None = Field(description="the X account's name, without @")
    scopes: list[str] | None = Field(description="what the account's owner approved")
    state: Literal["active", "pending", "needs_relink"] | None = Field(
        description="active; pending: X has yet to name the account, or auth/confirm has yet to be called; "
        "needs_relink: no call can use it until the account's owner approves again"
    )
    access_expires_at: str | None = Field(
        description="when X's access token expires; Birdwire renews it", json_schema_extra={"format": "date-time"}
    )
    linked_at: str | None = Field(description="when the account was linked", json_schema_extra={"format": "date-time"})
    generation: int | None = Field(description="number of the pair of X tokens: 1 after linking; each renewal adds 1")
    refreshed_at: str | None = Field(
        description="when X's access was last renewed", json_schema_extra={"format": "date-time"}
    )
    next_refresh_at: str | None = Field(
        description="when it is due to be renewed, by the first call from then on; null if it cannot be",
        json_schema_extra={"format": "date-time"},
    )
    why: Why | None = Field(
        description="of needs_relink: X refused (refused); the owner did not grant users.read and tweet.read, so X "
        "does not name the account (scope_missing); X's answer to a renewal was lost, and with it the new "
        "tokens (refresh_lost_reply); there was nothing to renew with (no_refresh_token); the stored token was "
        "changed (damaged); it came from a backup that was too old (restored_backup). Of active: it came from a "
        "backup, and X has yet to say whether it still holds (restored); or the old tokens serve until they end "
        "(refresh_lost_reply). Without a link: the account's owner undid the last one in the last 24 hours "
        "(undone_by_owner)"
    )
    limits: dict[str, dict[str, Window]] | None = Field(
        description="what X last reported as left of its limits for the account, by operation or look-up and by "
        "window: 15m, 24h, and 24h_app for what all accounts of the X app share. A window that X has not "
        "reported is absent"
    )
    capabilities: dict[str, Capability] | None = Field(
        description="what X recently let this gateway do, by operation; the reason of a refusal only if this key's own "
        "calls met it, or if it is the access level of the gateway's X app"
    )
    last_attempt: Attempt | None = Field(
        description="what became of the link that was started last, by auth_twitter or the operator; null: none was "
        "started recently"
    )


class Unlinked(Said):
    """That nothing is linked any more."""

    linked: Literal[False] = Field(description="always false")


class Request(Said):
    """What became of a write. What is not known is null."""

    request_id: str = Field(description="the X-Request-Id of the call")
    operation: str = Field(description="the operation, such as post_twitter")
    state: Annotated[State, WithJsonSchema({"enum": [state.value for state in STATES], "type": "string"})] = Field(
        description="started; confirmed by X; refused; not_sent: nothing reached X; unknown: X may have done it; found "
        "or not_found: X's answer was lost, and Birdwire looked for the post"
    )
    status: int | None = Field(description="the status of the response")
    reason: str | None = Field(description="the reason of a refusal")
    data: dict[str, Any] | None = Field(description="the data of the response")
    created_at: str = Field(description="when the call arrived", json_schema_extra={"format": "date-time"})
    settled_at: str | None = Field(description="when its outcome was known", json_schema_extra={"format": "date-time"})
    why: str | None = Field(
        description="why the outcome is unknown: looking, no_read, several_match, too_many_posts, not_linked, "
        "not_in_timeline, upload"
    )
    cost_usd: float | None = Field(description="what X probably bills for it, in US dollars")


class UnlinkedData(Said):
    """The answer of an unlink or an undo."""

    data: Unlinked


class CallbackDone(Said):
    """How a link ended."""

    linked: Literal[True] = Field(description="always true")
    how: Literal["linked", "pending", "confirm", "already"] = Field(
        description="linked; pending: X has yet to name it; confirm: auth/confirm is next; already: opened before"
    )
    username: str | None = Field(description="the X account, if it is known")


class CallbackData(Said):
    """The callback's answer to those who ask for JSON."""

    data: CallbackDone


class UserShown(Said):
    """A user; what X does not say is left out."""

    id: str = Field(pattern=ID_PATTERN, description="the user's id")
    userName: str = Field(description="the name without @")  # noqa: N815 - the published name
    name: str = Field(description="the name that is shown")
    description: str = Field("", description="the user's description of themselves")
    profilePicture: str = Field("", description="the picture's URL")  # noqa: N815 - the same
    createdAt: str = Field("", description="when the account was created, such as Fri Sep 18 04:02:35 +0000 2026")  # noqa: N815 - the same
    protected: bool = Field(default=False, description="whether only approved followers see the posts")
    isVerified: bool = Field(default=False, description="whether X has verified the account")  # noqa: N815 - the same
    followers: int = Field(0, description="how many follow the user")
    following: int = Field(0, description="how many the user follows")
    statusesCount: int = Field(0, description="how many posts there are")  # noqa: N815 - the same


class UserInfo(Said):
    """The answer of user/info."""

    status: Literal["success"]
    data: UserShown


class Author(Said):
    """Whose post it is."""

    id: str = Field(pattern=ID_PATTERN, description="the user's id")
    userName: str = Field(description="the name without @")  # noqa: N815 - the published name
    name: str = Field(description="the name that is shown")


class PostShown(Said):
    """A post."""

    id: str = Field(pattern=ID_PATTERN, description="the post's id")
    text: str = Field(description="its text")
    createdAt: str = Field(description="when it was posted, such as Fri Sep 18 04:02:35 +0000 2026")  # noqa: N815 - the published name
    url: str = Field(description="the post's page on x.com")
    author: Author


class Posts(Said):
    """A page of posts."""

    tweets: list[PostShown] = Field(description="newest first")


class Timeline(Said):
    """The answer of user/last_tweets."""

    status: Literal["success"]
    data: Posts
    has_next_page: bool = Field(description="whether there are older posts")
    next_cursor: str = Field(description="the cursor of the next page; empty if there is none")


class UserFound(Said):
    """A user among those found."""

    id: str = Field(pattern=ID_PATTERN, description="the user's id")
    screen_name: str = Field(description="the name without @")
    userName: str = Field(description="the same")  # noqa: N815 - the published name
    name: str = Field(description="the name that is shown")


class Users(Said):
    """The answer of user/search."""

    status: Literal["success"]
    users: list[UserFound]


class Alive(Said):
    """That the process runs."""

    status: Literal["ok"]


class Ready(Said):
    """That calls can be served."""

    status: Literal["ready"]
