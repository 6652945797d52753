"""Describes each path and method as an Endpoint, with every reason for which it may refuse. Serves none of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from birdwire.accounts.bodies import AuthTwitter, Confirm, Undo
from birdwire.api.forms import FILE_FIELDS
from birdwire.api.models import Body, Empty
from birdwire.api.paths import API, APPROVE, APPROVE_MEDIA, AUTH_UNDO, DRY_RUN, OAUTH_CALLBACK
from birdwire.surfaces.openapi import responses
from birdwire.surfaces.openapi.reasons import (
    BODY,
    CALLBACK,
    CONFIRMING,
    DECIDING,
    EDGE,
    FILES,
    GUARDED,
    IDEMPOTENCY,
    KEYED,
    LINKED,
    POSTING,
    STARTING,
    WAITED,
    camel,
)
from birdwire.surfaces.openapi.responses import Response
from birdwire.surfaces.openapi.schemas import EXAMPLES
from birdwire.surfaces.site.documents import DOCUMENTS
from birdwire.x.catalog.lookups import LOOKUPS, Lookup
from birdwire.x.catalog.operations import OPERATIONS, Operation
from birdwire.x.catalog.post import PostTwitter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from birdwire.settings import Settings
    from birdwire.x.client.requests import XData

Tag = Literal["Link", "Act", "Preview", "Read", "Approve", "About"]


class AnyBody(Body):
    """The body of the call to preview. A body that the call would refuse gets 200 with that refusal."""

    model_config = ConfigDict(extra="allow")


class Decide(Body):
    """The decision of the person who holds a signed link."""

    verdict: Literal["approve", "deny", "edit"] = Field(description="approve, deny, or edit the text and go on waiting")
    payload_sha256: str = Field(description="identifies what the page showed", pattern="^[0-9a-f]{64}$")
    note: str = Field("", description="with deny: a note for the caller", max_length=500)
    text: str = Field("", description="with edit: the new text of the post")


_ENTERPRISE = {
    "always": " Since 2026-04-20, X requires Enterprise access for this: expect 403 x_tier_lacks_action without it.",
    "quote": " Since 2026-04-20, X requires Enterprise access for quote posts: expect 403 without it.",
    "": "",
}


_POST_RULES = (
    " Send at most one of media, poll, quote_tweet_id and card_uri; text is required unless one of them is sent. The "
    "weighted length of the text is limited to 280 or to the operator's limit for the key; a link counts as 23, a CJK "
    "character or emoji as 2. geo requires place_id."
)


_NEEDS = " If the key's actions are restricted, they must include `{}`."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path and method: what it takes, what it answers with, and every reason for which it may refuse.

    `takes` is a body's model (or a query's, if `query`); `form`: the body may also be a form, or must be one if `form`
    is "only"; `page`: people get HTML unless they ask for JSON, and are sent back to the page if `redirects`; `text` is
    the type of an answer that is a document, and `images`: the answer is an image. `examples` are bodies by name;
    `files`: names of the multipart part that holds a file. `dry`: it has no effect. `waits`: a policy may require a
    person's approval, and the call is then answered with 202; `prefers`: the caller may prefer to wait for the end of
    such a write.
    """

    method: Literal["GET", "POST"]
    path: str
    tag: Tag
    operation_id: str
    summary: str
    description: str
    reasons: tuple[str, ...]
    takes: type[Body] = Empty
    answer: type[BaseModel] | None = None
    status: int = 200
    keyed: bool = False
    dry: bool = False
    waits: bool = False
    prefers: bool = False
    query: bool = False
    page: bool = False
    redirects: bool = False
    form: Literal["", "also", "only"] = ""
    text: str = ""
    images: bool = False
    files: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    examples: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)


POST_EXAMPLES: dict[str, dict[str, Any]] = {
    "Plain text": {"text": "Hello, world!"},
    "Reply": {"text": "Well said.", "reply": {"in_reply_to_tweet_id": "1346889436626259968"}},
    "Poll": {"text": "Tea or coffee?", "poll": {"options": ["Tea", "Coffee"], "duration_minutes": 60}},
    "Media": {"text": "Look!", "media": {"media_ids": ["1146654567674912769"], "tagged_user_ids": ["2244994945"]}},
    "Quote": {"text": "Worth reading:", "quote_tweet_id": "1346889436626259968"},
    "Edit": {"text": "Hello, world.", "edit_options": {"previous_post_id": "1346889436626259968"}},
}


def is_guarded(endpoint: Endpoint) -> bool:
    """Return whether policies judge the call, which then has a cost."""
    return endpoint.keyed and set(GUARDED) <= set(endpoint.reasons)


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """Return every endpoint of a gateway with these settings, without the aliases for older clients."""
    relay = settings.relay_dialect
    acting = [_acting(row, relay=relay) for row in OPERATIONS]
    reading = [_reading(row) for row in LOOKUPS if row.name in settings.offered_reads]
    return (
        *_linking(relay=relay),
        *_linking_in_browser(),
        *acting,
        _outcome(),
        _cancelling(relay=relay),
        *(_previewing(row, relay=relay) for row in OPERATIONS),
        *reading,
        *_approving(),
        *_about(),
        *_measured(settings),
    )


def fields(model: type[BaseModel]) -> Iterator[tuple[str, bool]]:
    """Yield the fields of a model at any depth, and whether each is required."""
    for name, info in model.model_fields.items():
        yield name, info.is_required()
        for option in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from fields(option)


def _field_reasons(model: type[Body]) -> tuple[str, ...]:
    return tuple(
        f"{name}_{what}" for name, required in fields(model) for what in ("malformed", *("missing",) * required)
    )


def _body_reasons(model: type[Body], *, relay: bool) -> tuple[str, ...]:
    return (*KEYED, *BODY, *IDEMPOTENCY, "unexpected_query", *_field_reasons(model), *("key_mismatch",) * relay)


def _acting(row: Operation, *, relay: bool) -> Endpoint:
    reasons = (*EDGE, *_body_reasons(row.body, relay=relay), *LINKED, "daily_cap", *GUARDED)
    reasons += ("outcome_unknown",) * (not row.repeatable) + ("tweet_not_found",) * (row.about == "tweet")
    if row.body is PostTwitter:
        reasons += ("not_applied", "duplicate_text", *POSTING, *(FILES if relay else ()))
    if row.opposite:
        reasons += ("superseded",)
    reasons += FILES if row.takes_file else WAITED
    repeat = (
        "Safe to repeat."
        if row.repeatable
        else "Carried out at most once per Idempotency-Key: after 502 outcome_unknown, a call with the same "
        "Idempotency-Key is not sent to X again."
    )
    rules = _POST_RULES if row.body is PostTwitter else ""
    target = {name: info.examples[0] for name, info in row.body.model_fields.items() if info.examples}
    return Endpoint(
        "POST",
        f"{API}/{row.name}",
        "Act",
        camel(row.name) + "User" * (row.about == "user"),
        row.summary,
        f"Calls {row.method} {row.path} at X as the linked account.{rules} {repeat}{_ENTERPRISE[row.enterprise]}",
        reasons,
        takes=row.body,
        answer=_wrapped(row.answer),
        status=row.status,
        keyed=True,
        files=FILE_FIELDS if row.takes_file else (),
        waits=not row.takes_file,
        prefers=not row.takes_file,
        scopes=row.scopes,
        examples=POST_EXAMPLES if row.body is PostTwitter else {row.summary: target},
        expect=row.expect,
    )


def _previewing(row: Operation, *, relay: bool) -> Endpoint:
    reasons = (*EDGE, *KEYED, *BODY, "unexpected_query", *("key_mismatch",) * relay)
    target = {name: info.examples[0] for name, info in row.body.model_fields.items() if info.examples}
    return Endpoint(
        "POST",
        f"{API}/{DRY_RUN}/{row.name}",
        "Preview",
        camel(f"{DRY_RUN}_{row.name}"),
        f"Preview {row.name}",
        f"Returns what POST {API}/{row.name} with this body would do. Every key may ask, also while it is paused.",
        reasons,
        takes=AnyBody,
        answer=responses.DryRun,
        keyed=True,
        dry=True,
        files=FILE_FIELDS if row.takes_file else (),
        examples={"Plain text": POST_EXAMPLES["Plain text"]} if row.body is PostTwitter else {row.summary: target},
    )


def _wrapped(model: type[XData]) -> type[BaseModel]:
    """Return the model under `data`, as every operation answers. Fields that X may omit are always present."""
    members: dict[str, Any] = {
        name: (info.annotation, Field(description=info.description, pattern=_pattern(info.metadata)))
        for name, info in model.model_fields.items()
    }
    inner = create_model(model.__name__, __base__=Response, __doc__=model.__doc__, **members)
    return create_model(f"{model.__name__}Data", __base__=Response, __doc__=model.__doc__, data=(inner, ...))


def _pattern(metadata: list[Any]) -> str | None:
    return next((item.pattern for item in metadata if hasattr(item, "pattern")), None)


_READ_ANSWERS: dict[str, type[Response]] = {
    "user/info": responses.UserInfo,
    "user/last_tweets": responses.Timeline,
    "user/search": responses.Users,
}


def _reading(row: Lookup) -> Endpoint:
    reasons = (*EDGE, *KEYED, *_field_reasons(row.query), "unknown_field", "duplicate_field", *LINKED, *GUARDED)
    if row.name == "user/last_tweets":
        reasons += ("mutually_exclusive", "tweet_not_found")
    return Endpoint(
        "GET",
        f"{API}/{row.name}",
        "Read",
        camel(row.name),
        row.summary,
        "Calls X as the linked account. X bills each call.",
        reasons,
        takes=row.query,
        answer=_READ_ANSWERS[row.name],
        keyed=True,
        query=True,
        scopes=row.scopes,
    )


def _outcome() -> Endpoint:
    return Endpoint(
        "GET",
        f"{API}/requests/{{request_id}}",
        "Act",
        "requestOutcome",
        "Get the outcome of a write",
        "Returns the outcome of a write by its X-Request-Id, for use when the response was lost, or while the write "
        "waits for a person's approval. The write must have been made with this key. A call that Birdwire itself "
        "refused is reported as not_sent while the process that refused it keeps it in memory. Any other id returns "
        "404 request_not_found.",
        (*EDGE, *KEYED, "unexpected_query", "request_not_found", "route_unknown"),
        answer=responses.Request,
        keyed=True,
        prefers=True,
    )


def _cancelling(*, relay: bool) -> Endpoint:
    return Endpoint(
        "POST",
        f"{API}/requests/{{request_id}}/cancel",
        "Act",
        "cancelRequest",
        "Cancel a write that waits",
        "Cancels a write that waits for a person's approval, or that was approved and has not been started. The write "
        "must have been made with this key. Returns its outcome, as GET requests/{request_id} does.",
        (
            *(*EDGE, *_body_reasons(Empty, relay=relay)),
            *("request_not_found", "route_unknown", "approval_not_waiting", "approval_expired"),
        ),
        answer=responses.Request,
        keyed=True,
        examples={"Cancel": {}},
    )


def _linking(*, relay: bool) -> tuple[Endpoint, ...]:
    post = partial(_body_reasons, relay=relay)
    return (
        Endpoint(
            "POST",
            f"{API}/auth_twitter",
            "Link",
            "authTwitterUser",
            "Start linking an X account to the key",
            "Returns the auth_url, X's consent page for the account's owner. It works once and expires after 10 "
            "minutes. X then redirects the owner to the callback; from then on, calls with this key act "
            "as that account." + _NEEDS.format("link"),
            (*EDGE, *post(AuthTwitter), *STARTING),
            takes=AuthTwitter,
            answer=responses.LinkStarted,
            keyed=True,
            examples={"Everything": {}, "Narrowed": {"scopes": ["like.write"], "expected_username": "ada"}},
        ),
        Endpoint(
            "GET",
            f"{API}/auth/status",
            "Link",
            "authStatus",
            "Get the link status of the key",
            "Never returns a token. Returns 200 even if no account is linked.",
            (*EDGE, *KEYED, "unexpected_query"),
            answer=responses.LinkStatus,
            keyed=True,
        ),
        Endpoint(
            "POST",
            f"{API}/auth/confirm",
            "Link",
            "authConfirm",
            "Confirm a pending link",
            "In link mode `confirm`, a link becomes active once the key's holder has named the expected account."
            + _NEEDS.format("link"),
            (*EDGE, *post(Confirm), *CONFIRMING),
            takes=Confirm,
            answer=responses.LinkStatus,
            keyed=True,
            examples={"Confirm": {"state": "kZ3vJ0pXc1yq", "username": "ada"}},
        ),
        Endpoint(
            "POST",
            f"{API}/unlink_twitter",
            "Link",
            "unlinkTwitterUser",
            "Unlink the key's X account",
            "Birdwire deletes the session immediately and revokes it at X. Returns 200 even if no account was linked."
            + _NEEDS.format("unlink"),
            (*EDGE, *post(Empty), "key_not_allowed"),
            answer=responses.UnlinkedData,
            keyed=True,
            examples={"Unlink": {}},
        ),
    )


def _linking_in_browser() -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            OAUTH_CALLBACK,
            "Link",
            "oauthCallback",
            "Receive X's redirect from the consent page",
            "X redirects the account's owner here with `code` and `state`, or with `error` (RFC 6749 §4.1.2). Apps "
            "do not call it. Browsers get a page; clients that accept only application/json get JSON.",
            (*EDGE, *CALLBACK),
            answer=responses.CallbackData,
            page=True,
        ),
        Endpoint(
            "POST",
            AUTH_UNDO,
            "Link",
            "authUndo",
            "Undo a link that was made by mistake",
            "Ends a link with the one-time token from the page after the link, within 10 minutes: Birdwire deletes the "
            "session and revokes it at X. No API key is required.",
            (
                *(*EDGE, *BODY, *_field_reasons(Undo)),
                *("undo_unknown", "origin_not_allowed", "auth_failures", "storage_unavailable"),
            ),
            takes=Undo,
            answer=responses.UnlinkedData,
            page=True,
            form="also",
            examples={"Undo": {"undo_token": "b0x9mJ3rT5"}},
        ),
    )


def _approving() -> tuple[Endpoint, ...]:
    opening = (*EDGE, "route_unknown", "auth_failures", "storage_unavailable")
    return (
        Endpoint(
            "GET",
            APPROVE,
            "Approve",
            "approveShow",
            "Show a write that waits",
            "Opens a signed link, which the operator makes for the person who decides. Shows exactly what would be "
            "published, or what became of it. Decides nothing, however often it is opened. Browsers get a page; "
            "clients that accept only application/json get JSON.",
            opening,
            answer=responses.LinkedData,
            page=True,
        ),
        Endpoint(
            "POST",
            APPROVE,
            "Approve",
            "approveDecide",
            "Decide on a write that waits",
            "Approves, denies or edits what the page showed. A link decides once; an edit leaves the write waiting, "
            "with a new payload_sha256. Browsers are sent back to the page; clients that accept only application/json "
            "get JSON.",
            (*opening, *DECIDING, *GUARDED),
            takes=Decide,
            answer=responses.LinkedData,
            page=True,
            redirects=True,
            form="only",
            examples={"Approve": {"verdict": "approve", "payload_sha256": EXAMPLES["payload_sha256"]}},
        ),
        Endpoint(
            "GET",
            APPROVE_MEDIA,
            "Approve",
            "approveMedia",
            "Get an image of a write that waits",
            "Returns an image that the page of a signed link shows, as it was uploaded.",
            opening,
            images=True,
        ),
    )


def _about() -> tuple[Endpoint, ...]:
    documents = (
        Endpoint("GET", path, "About", camel(re.sub(r"\W+", "_", path).strip("_")), summary, "", EDGE, text=text)
        for path, (text, summary) in DOCUMENTS.items()
    )
    return (
        *documents,
        Endpoint(
            "GET", "/livez", "About", "livez", "Check whether the process is running", "", EDGE, answer=responses.Alive
        ),
        Endpoint(
            "GET",
            "/readyz",
            "About",
            "readyz",
            "Check whether the gateway can serve calls",
            "Does not check X: an outage at X is not a reason to stop routing traffic to this gateway.",
            (*EDGE, "draining", "storage_unavailable"),
            answer=responses.Ready,
        ),
    )


def _measured(settings: Settings) -> tuple[Endpoint, ...]:
    """Return the metrics, if they are answered on the main port."""
    if not settings.metrics_inside:
        return ()
    words = "For the operator's Prometheus. Requires the metrics token as a Bearer token."
    reasons = (*EDGE, "metrics_token_wrong")
    return (
        Endpoint(
            "GET", "/metrics", "About", "metrics", "Get the metrics of this gateway", words, reasons, text="text/plain"
        ),
    )
