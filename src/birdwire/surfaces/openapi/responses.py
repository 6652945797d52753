"""Models of the answers that are not X's own data: for the documents, and checked against real answers by tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from birdwire.api.errors import Whose
from birdwire.api.messages import REQUEST_ID_PATTERN
from birdwire.outcomes.states import STATES
from birdwire.surfaces.openapi.schemas import Finding
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
"""Why a link has ended, or may end soon."""

ApproveBy = Literal["operator", "owner", "either"]
"""Who may approve a write."""


class Response(BaseModel):
    """A response with exactly these members."""

    model_config = ConfigDict(extra="forbid")


class Capability(Response):
    """Whether X last allowed an action that it denies to some apps."""

    allowed: bool = Field(description="whether X allowed it for this gateway")
    reason: str | None = Field(description="the reason of X's refusal")


class LinkStarted(Response):
    """A link that waits for the account owner's approval."""

    auth_url: str = Field(
        description="X's consent page, for the account's owner to open", json_schema_extra={"format": "uri"}
    )
    state: str = Field(description="the link's state, which auth/confirm accepts")
    expires_at: str = Field(
        description="when the auth_url expires, 10 minutes after this call: RFC 3339, UTC",
        json_schema_extra={"format": "date-time"},
    )


class Window(Response):
    """One of X's rate windows."""

    limit: int | None = Field(description="number of calls that X allows in the window; null: not reported")
    remaining: int = Field(description="number of calls left")
    reset_at: str = Field(description="when the window resets", json_schema_extra={"format": "date-time"})


class Attempt(Response):
    """The outcome of the most recently started link."""

    outcome: Literal["open", "approved", "refused", "expired", "undone"] = Field(
        description="open: not approved yet; approved; refused: see reason; expired: not approved within 10 minutes; "
        "undone: the account's owner took the approval back"
    )
    reason: str | None = Field(description="the reason of a refusal, such as consent_denied")
    expires_at: str = Field(
        description="the expires_at that auth_twitter returned for this link", json_schema_extra={"format": "date-time"}
    )


class Rules(Response):
    """What the policies of the key, of its account and of the gateway allow."""

    enforcement: Literal["enforce", "shadow"] = Field(
        description="enforce; shadow: the key's own policy is only recorded, and the others are obeyed"
    )
    preset: str | None = Field(description="the preset from which the key's policy was made")
    sentences: list[str] = Field(description="the rules in words")
    allowed: list[str] = Field(description="the actions that the key may use")
    approve_by: ApproveBy = Field(description="who may approve what needs approval")
    waiting: int = Field(description="number of calls that await approval")


class BudgetWindow(Response):
    """A budget of a day or a month."""

    limit_usd: float = Field(description="what may be spent in the window, in US dollars")
    used_usd: float = Field(description="estimate of what was spent or is reserved, in US dollars")
    resets_at: str = Field(description="when the window ends", json_schema_extra={"format": "date-time"})


class Budget(Response):
    """The tightest budgets that hold for the key."""

    currency: Literal["USD"]
    day: BudgetWindow | None = Field(description="the budget of the UTC day")
    month: BudgetWindow | None = Field(description="the budget of the UTC month")


class Paused(Response):
    """A pause that holds for the key."""

    scope: str = Field(description="what is paused: a key's id, account:USER_ID, or gateway")
    by: Literal["operator", "owner"] = Field(description="who paused it, and can resume it")
    since: str = Field(description="when the pause started", json_schema_extra={"format": "date-time"})
    until: str | None = Field(
        description="when the pause ends; null: when it is resumed", json_schema_extra={"format": "date-time"}
    )
    why: str = Field(description="the reason, as the operator or the account's owner stated it")


class LinkStatus(Response):
    """The account linked to the key. Without a link, the members that describe one are null."""

    linked: bool = Field(description="whether an account is linked, in any state")
    usable: bool = Field(
        description="whether Birdwire would send a call to X: the link is active, and its access is valid or can be "
        "renewed. The requirements of individual calls (scopes, X's limits, the key's rules) are not considered"
    )
    user_id: str | None = Field(description="the X account's id")
    username: str | None = Field(description="the X account's username, without @")
    scopes: list[str] | None = Field(description="what the account's owner approved")
    state: Literal["active", "pending", "needs_relink"] | None = Field(
        description="active; pending: X has not reported the account yet, or auth/confirm has not been called yet; "
        "needs_relink: calls fail until the account's owner approves again"
    )
    access_expires_at: str | None = Field(
        description="when X's access token expires; Birdwire renews it", json_schema_extra={"format": "date-time"}
    )
    linked_at: str | None = Field(description="when the account was linked", json_schema_extra={"format": "date-time"})
    generation: int | None = Field(
        description="number of the X token pair: 1 after linking, and 1 more after each renewal"
    )
    refreshed_at: str | None = Field(
        description="when X's access was last renewed", json_schema_extra={"format": "date-time"}
    )
    next_refresh_at: str | None = Field(
        description="the time from which the next call renews X's access; null if it cannot be renewed",
        json_schema_extra={"format": "date-time"},
    )
    why: Why | None = Field(
        description="the cause of the state. needs_relink: refused (X refused the renewal), scope_missing (the owner "
        "did not grant users.read and tweet.read, so X does not report the account), refresh_lost_reply (X's response "
        "to a renewal was lost, and the new tokens with it), no_refresh_token, damaged (the stored token was changed), "
        "restored_backup (the link comes from a backup that is too old). active: restored (the link comes from a "
        "backup, and X has not confirmed yet that it is still valid), refresh_lost_reply (the old tokens work until "
        "they expire). Without a link: undone_by_owner (the account's owner undid the last link within the last 24 "
        "hours)"
    )
    limits: dict[str, dict[str, Window]] | None = Field(
        description="X's limits for the account, as last reported by X, by operation or lookup and by window: 15m, "
        "24h, and 24h_app for the limit that all accounts of the X app share. Windows that X has not reported are "
        "absent"
    )
    capabilities: dict[str, Capability] | None = Field(
        description="whether X recently allowed this gateway an operation, by operation. The reason of a refusal is "
        "included only if this key's own calls were refused, or if it is the access level of the gateway's X app"
    )
    last_attempt: Attempt | None = Field(
        description="outcome of the link that auth_twitter or the operator started most recently; null: none was "
        "started recently"
    )
    rules: Rules | None = Field(description="what policies allow the key; null: no policy holds for it")
    budget: Budget | None = Field(description="what the key may spend; null: no budget applies to it")
    paused: Paused | None = Field(description="the pause that holds for the key; null: none does")


class Unlinked(Response):
    """No account is linked any more."""

    linked: Literal[False] = Field(description="always false")


class Approval(Response):
    """A write's approval by a person."""

    state: Literal["waiting", "approved", "denied", "expired", "cancelled", "stale"] = Field(
        description="waiting; approved; denied; expired: nobody decided in time, or it could not be sent in time; "
        "cancelled; stale: something had changed, so it was not sent"
    )
    payload_sha256: str = Field(description="identifies what is to be published; an edit changes it")
    approve_by: ApproveBy = Field(description="who may approve it")
    expires_at: str = Field(
        description="when the write ends if it is neither decided nor sent", json_schema_extra={"format": "date-time"}
    )
    decided_at: str | None = Field(description="when a person decided", json_schema_extra={"format": "date-time"})
    decided_by: str | None = Field(description="who decided")
    note: str | None = Field(description="what that person noted")
    edited_from: str | None = Field(
        description="the payload_sha256 of what the caller asked for, if a person has edited it"
    )


class Request(Response):
    """The outcome of a write. Unknown members are null."""

    request_id: str = Field(description="the X-Request-Id of the call")
    operation: str = Field(description="the operation, such as post_twitter")
    state: Annotated[str, WithJsonSchema({"enum": [state.value for state in STATES], "type": "string"})] = Field(
        description="awaiting_approval: a person must approve it; approved: Birdwire sends it next; started: in "
        "progress; confirmed: X carried it out; refused: see reason; not_sent: nothing reached X; unknown: X may have "
        "carried it out; found, not_found: X's response was lost, and Birdwire searched for the post; denied, expired, "
        "cancelled: it was not sent, see reason"
    )
    status: int | None = Field(description="the status of the response")
    reason: str | None = Field(description="the reason of a refusal")
    data: dict[str, Any] | None = Field(description="the data of the response")
    created_at: str = Field(description="when the call arrived", json_schema_extra={"format": "date-time"})
    started_at: str | None = Field(
        description="when Birdwire started the write, if the call waited before; otherwise null",
        json_schema_extra={"format": "date-time"},
    )
    settled_at: str | None = Field(
        description="when the outcome became known", json_schema_extra={"format": "date-time"}
    )
    why: str | None = Field(
        description="why the outcome is unknown: looking, no_read, several_match, too_many_posts, not_linked, "
        "not_in_timeline, upload"
    )
    cost_usd: float | None = Field(description="estimate of what X bills for the write, in US dollars")
    approval: Approval | None = Field(description="its approval; null: nobody had to be asked")


class RefusalSeen(Response):
    """A refusal that the call would get."""

    reason: str = Field(description="the exact reason, one of a closed set")
    status: int = Field(description="the status that the call would get")
    message: str = Field(description="what is wrong, for people")
    fix: str = Field(description="what to do about it, for people")
    whose: Whose = Field(description="the party that can fix it or that made the rule")
    retryable: bool = Field(description="whether the same call may succeed later")


class AccountSeen(Response):
    """The X account as which a call acts."""

    user_id: str = Field(description="the X account's id")
    username: str = Field(description="the X account's username, without @")


class TextSeen(Response):
    """The text of a post as X counts it."""

    weight: int = Field(description="the weighted length")
    limit: int = Field(description="the maximum for this key")
    links: list[str] = Field(description="the hosts of the links that X would show")
    mentions: list[str] = Field(description="the users that the post would mention")


class XSeen(Response):
    """What X allows, as far as X reported it."""

    windows: dict[str, Window] | None = Field(description="X's rate windows for this operation, as in auth/status")
    capability: Capability | None = Field(description="whether X last allowed this operation to the gateway's X app")


class RequestSeen(Response):
    """The request that X would get."""

    method: str = Field(description="the method")
    path: str = Field(description="the path below X's API")
    body: dict[str, Any] | None = Field(alias="json", description="the JSON body; null: none, or it depends on files")


class Would(Response):
    """What the call would do. What cannot be known without doing it is null."""

    outcome: Literal["allow", "require_approval", "deny"] = Field(
        description="allow; require_approval: a person would have to approve it; deny: see refusals"
    )
    operation: str = Field(description="the operation, such as post_twitter")
    account: AccountSeen | None = Field(description="the account as which the call would act")
    refusals: list[RefusalSeen] = Field(description="the refusals that the call would get, at most one for each step")
    findings: list[Finding] = Field(description="what the rules object to, denials first")
    payload_sha256: str | None = Field(description="identifies what the call asks for, with the account and the files")
    approve_by: ApproveBy | None = Field(description="who may approve it; null: no policy applies to the key")
    text: TextSeen | None = Field(description="the text of a post")
    cost_usd: float | None = Field(description="estimate of what X would bill, in US dollars")
    listed_on: str = Field(description="the date of the price list", json_schema_extra={"format": "date"})
    budget: Budget | None = Field(description="what the key may spend; null: no budget applies to it")
    x: XSeen
    request: RequestSeen | None = Field(description="the request that X would get")
    warnings: list[str] = Field(description="notes for people, such as what X's price list lacks")


class DryRun(Response):
    """The response of a dry run. Nothing was sent to X, and nothing was counted but one call of the key's limit."""

    would: Would


class Awaiting(Response):
    """A write that waits for a person's approval, or that is being sent after it."""

    request_id: str = Field(
        description="the request that waits. If the key has asked for the same thing before, it is that request",
        pattern=REQUEST_ID_PATTERN,
    )
    state: Literal["awaiting_approval", "approved", "started"] = Field(
        description="awaiting_approval; approved: Birdwire sends it next; started: in progress"
    )
    operation: str = Field(description="the operation, such as post_twitter")
    account: AccountSeen = Field(description="the account as which Birdwire will act")
    payload_sha256: str = Field(description="identifies what would be published; an edit changes it")
    approve_by: ApproveBy = Field(description="who may approve it")
    cost_usd: float | None = Field(description="estimate of what X will bill, in US dollars; null: not listed")
    findings: list[Finding] = Field(description="what the rules require a person for")
    expires_at: str = Field(
        description="when the write ends if it is neither decided nor sent", json_schema_extra={"format": "date-time"}
    )
    edited_from: str | None = Field(
        description="the payload_sha256 of what the caller asked for, if a person has edited it"
    )
    review_url: str | None = Field(
        description="a page for the person who decides, which requires a sign-in; null: none"
    )
    next: str = Field(description="what to do now, for people and agents")


class Asked(Response):
    """The response of a write that waits for a person's approval. Nothing was published."""

    approval: Awaiting


class UnlinkedData(Response):
    """The response to an unlink or an undo."""

    data: Unlinked


class Linked(Response):
    """A write that a signed link shows."""

    request_id: str = Field(description="the request that waits, or that waited")
    state: Annotated[str, WithJsonSchema({"enum": [state.value for state in STATES], "type": "string"})] = Field(
        description="the state of the write"
    )
    payload_sha256: str = Field(description="identifies what would be published; a decision names it")
    expires_at: str = Field(
        description="when the write ends if it is neither decided nor sent", json_schema_extra={"format": "date-time"}
    )


class LinkedData(Response):
    """The response of a signed link to clients that ask for JSON."""

    approval: Linked


class CallbackDone(Response):
    """The result of the callback."""

    linked: Literal[True] = Field(description="always true")
    how: Literal["linked", "pending", "confirm", "already"] = Field(
        description="linked; pending: X has not reported the account yet; confirm: auth/confirm must be called next; "
        "already: the callback was opened before"
    )
    username: str | None = Field(description="the username of the X account, if known")


class CallbackData(Response):
    """The callback's response to clients that ask for JSON."""

    data: CallbackDone


class UserShown(Response):
    """A user. Members that X does not report are omitted."""

    id: str = Field(pattern=ID_PATTERN, description="the user's id")
    userName: str = Field(description="the username, without @")  # noqa: N815 - the published name
    name: str = Field(description="the display name")
    description: str = Field("", description="the user's profile description")
    profilePicture: str = Field("", description="the URL of the profile picture")  # noqa: N815 - the same
    createdAt: str = Field("", description="when the account was created, such as Fri Sep 18 04:02:35 +0000 2026")  # noqa: N815 - the same
    protected: bool = Field(default=False, description="whether only approved followers can see the posts")
    isVerified: bool = Field(default=False, description="whether X has verified the account")  # noqa: N815 - the same
    followers: int = Field(0, description="number of followers")
    following: int = Field(0, description="number of users that this user follows")
    statusesCount: int = Field(0, description="number of posts")  # noqa: N815 - the same


class UserInfo(Response):
    """The response of user/info."""

    status: Literal["success"]
    data: UserShown


class Author(Response):
    """The author of a post."""

    id: str = Field(pattern=ID_PATTERN, description="the user's id")
    userName: str = Field(description="the username, without @")  # noqa: N815 - the published name
    name: str = Field(description="the display name")


class PostShown(Response):
    """A post."""

    id: str = Field(pattern=ID_PATTERN, description="the post's id")
    text: str = Field(description="the post's text")
    createdAt: str = Field(description="when it was posted, such as Fri Sep 18 04:02:35 +0000 2026")  # noqa: N815 - the published name
    url: str = Field(description="the post's page on x.com")
    author: Author


class Posts(Response):
    """A page of posts."""

    tweets: list[PostShown] = Field(description="newest first")


class Timeline(Response):
    """The response of user/last_tweets."""

    status: Literal["success"]
    data: Posts
    has_next_page: bool = Field(description="whether there are older posts")
    next_cursor: str = Field(description="the cursor of the next page; empty on the last page")


class UserFound(Response):
    """A user that matches the search."""

    id: str = Field(pattern=ID_PATTERN, description="the user's id")
    screen_name: str = Field(description="the username, without @")
    userName: str = Field(description="same as screen_name")  # noqa: N815 - the published name
    name: str = Field(description="the display name")


class Users(Response):
    """The response of user/search."""

    status: Literal["success"]
    users: list[UserFound]


class Alive(Response):
    """The process is running."""

    status: Literal["ok"]


class Ready(Response):
    """The gateway can serve calls."""

    status: Literal["ready"]


ASKED_EXAMPLE: dict[str, Any] = {
    "request_id": "req_01JD3K8W6ZQ4T5V7X9YABCDEFG",
    "state": "awaiting_approval",
    "operation": "post_twitter",
    "account": {"user_id": "2244994945", "username": "ada"},
    "payload_sha256": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c",
    "approve_by": "operator",
    "cost_usd": 0.2,
    "findings": [
        {
            "rule": "links",
            "outcome": "require_approval",
            "reason": "policy_denied",
            "message": "the post has a link",
            "scope": "key_01JD3K8W6ZQ4T5V7X9YABCDEFG",
            "version": 3,
        }
    ],
    "expires_at": "2026-09-18T01:00:00Z",
    "edited_from": None,
    "review_url": None,
    "next": "Nothing was published. A person must approve this call.",
}
"""A write that waits, as an example."""
