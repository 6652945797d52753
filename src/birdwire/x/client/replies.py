"""Reads X's replies: the answer in a success, and the gateway's own reason for any other reply.

X breaks its own schema, so replies are read leniently. This module keeps nothing and sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import ValidationError
from pydantic_core import from_json

from birdwire.api.errors import GatewayError, excerpt
from birdwire.runtime.clock import rfc3339
from birdwire.x.client.rate_headers import exhausted, wait_s
from birdwire.x.client.requests import Reading

if TYPE_CHECKING:
    from birdwire.api.reason_type import Reason
    from birdwire.x.client.pool import Reply

_PLAIN = {"data"}


class Unauthorized(GatewayError):  # noqa: N818 - named after the status
    """X answered 401: the token has expired or was revoked, or X is failing. One 401 alone proves nothing."""

    def __init__(self, upstream: dict[str, object]) -> None:
        super().__init__("x_session_expired", account="the linked account", outcome="refused", upstream=upstream)


def read(reply: Reply, reading: Reading, now: Callable[[], datetime]) -> dict[str, Any]:
    """Return X's `data`, reduced to the members of `reading.answer`. The order of these checks is part of the contract.

    `now` returns the time of day, which only a refusal needs.

    Raises:
        Unauthorized: X answered 401.
        GatewayError: any other refusal, or an unreadable reply, with X's own words under `upstream`.
    """
    # Parsing and validating the usual reply takes longer than sending the request.
    if reading.usual and reply.body == reading.usual and 200 <= reply.status < 300:
        return dict(reading.expect)
    value = _decode_object(reply.body)
    if 200 <= reply.status < 300 and value is not None and (plain := _plain(value, reading)) is not None:
        return plain
    facts = _ReplyFacts.of(reply, value or {})
    if reply.status == 404 and value is None:
        raise GatewayError("x_endpoint_gone", outcome="refused", upstream=facts.upstream())
    if facts.unauthorized:
        raise Unauthorized(facts.upstream())
    done = next((answer for code, answer in reading.already.items() if code in facts.codes), None)
    if done is not None:
        return dict(done)
    if facts.ok and reading.bare:
        return {}
    whole = reading.whole and ("data" in facts.value or ("meta" in facts.value and "errors" not in facts.value))
    payload = facts.value if whole else facts.value.get("data")
    if facts.ok and isinstance(payload, dict):
        return _select(facts, reading, payload)
    reason = _reason_of(facts, reading)
    if reason is None and facts.ok and reading.whole and "meta" in facts.value:
        # An empty page, whatever the errors alongside it are about.
        return _select(facts, reading, facts.value)
    if reason is None:
        raise GatewayError("x_reply_malformed", outcome="unknown", upstream=facts.upstream())
    raise _refusal(reason, facts, now())


def _plain(value: dict[str, Any], reading: Reading) -> dict[str, Any] | None:
    """Return the answer in a plain success, which needs no other check; None if it is not one."""
    if value.keys() != _PLAIN or reading.bare or reading.whole:
        return None
    try:
        return reading.answer.model_validate(value["data"]).model_dump()
    except ValidationError:
        return None


def _select(facts: _ReplyFacts, reading: Reading, value: object) -> dict[str, Any]:
    try:
        return reading.answer.model_validate(value).model_dump()
    except ValidationError:
        raise GatewayError("x_reply_malformed", outcome="unknown", upstream=facts.upstream()) from None


def _refuse_constant(constant: str) -> NoReturn:
    # NaN and Infinity are not valid JSON, and would make the gateway's own answer invalid.
    raise ValueError(constant)


def _decode_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a body holds; None if it holds anything else."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        # X may send unpaired surrogates, which only the slower decoder accepts.
        try:
            value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class _ReplyFacts:
    """What a reply of X states about its errors, gathered from the top level and from `errors`."""

    reply: Reply
    value: dict[str, Any]
    types: frozenset[str]
    titles: frozenset[str]
    codes: frozenset[int]
    about: frozenset[str]
    reasons: frozenset[str]
    text: str

    @classmethod
    def of(cls, reply: Reply, value: dict[str, Any]) -> _ReplyFacts:
        errors = value.get("errors")
        problems = (
            [value, *(item for item in errors if isinstance(item, dict))] if isinstance(errors, list) else [value]
        )

        def texts(*names: str) -> list[str]:
            return [item[name] for item in problems for name in names if isinstance(item.get(name), str)]

        return cls(
            reply=reply,
            value=value,
            types=frozenset(name.rsplit("/", 1)[-1] for name in texts("type")),
            titles=frozenset(texts("title")),
            codes=frozenset(item["code"] for item in problems if isinstance(item.get("code"), int)),
            about=frozenset(texts("resource_type")),
            reasons=frozenset(texts("reason")),
            text=" ".join(texts("message", "detail")),
        )

    @property
    def status(self) -> int:
        return self.reply.status

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def unauthorized(self) -> bool:
        if self.ok and self.value.get("data") is not None:
            # X applied the request, whatever else it states: a repetition would apply it twice.
            return False
        return self.status == 401 or (self.status < 500 and bool(self.codes & {32, 89, 99, 135, 215}))

    def first(self, name: str) -> str:
        """Return a member of the top level or of the first error, as a short safe text."""
        errors = self.value.get("errors")
        inner = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        return excerpt(self.value.get(name) or inner.get(name) or "", 200)

    def upstream(self) -> dict[str, object]:
        """Return X's own words, shortened, for the answer's `upstream`."""
        return {
            "status": self.status,
            "type": self.first("type"),
            "title": self.first("title"),
            "detail": self.sentence(),
        }

    def sentence(self) -> str:
        """Return X's most specific words: an error's own message is more specific than the general detail above it."""
        return self.first("message") or self.first("detail")


_Rule = Callable[[_ReplyFacts, Reading], bool]


# The first rule that matches decides. Bills and enrolment come first, whatever the status, since linking again fixes
# neither. Types are matched by their last segment, since X sends them from two hosts.
_RULES: tuple[tuple[Reason, _Rule], ...] = (
    ("x_spend_cap", lambda facts, _: "SpendCapReached" in facts.titles),
    ("x_credits_depleted", lambda facts, _: facts.status == 402 or bool(facts.types & {"credits", "credits-depleted"})),
    ("x_usage_capped", lambda facts, _: "usage-capped" in facts.types),
    ("x_user_not_enrolled", lambda facts, _: "client-forbidden" in facts.types and "user-not-enrolled" in facts.reasons),
    ("x_tier_lacks_action", lambda facts, reading: "client-forbidden" in facts.types and reading.enterprise),
    ("x_not_enrolled", lambda facts, _: "client-forbidden" in facts.types or bool(facts.codes & {261, 416})),
    ("x_tier_lacks_action", lambda facts, _: 453 in facts.codes),
    ("x_window_24h", lambda facts, _: 185 in facts.codes or (facts.status == 429 and exhausted(facts.reply.headers) in ("24h", "24h_app"))),
    ("x_window_15m", lambda facts, _: facts.status == 429 or 88 in facts.codes),
    ("x_5xx", lambda facts, _: facts.status >= 500 or bool(facts.codes & {130, 131})),
    ("reply_target_not_found", lambda facts, _: "reply to a Tweet that is deleted or not visible" in facts.text or 385 in facts.codes),
    ("user_not_found", lambda facts, reading: (_not_found(facts) or _not_visible(facts) or 34 in facts.codes) and _is_about(facts, reading, "user")),
    ("tweet_not_found", lambda facts, _: bool(facts.codes & {17, 50, 63, 108}) and "tweet" in facts.about),
    ("user_not_found", lambda facts, _: bool(facts.codes & {17, 50, 63, 108})),
    ("tweet_not_found", lambda facts, _: _not_found(facts) or bool(facts.codes & {34, 144, 179, 421, 422})),
    ("tweet_not_found", lambda facts, reading: "not-authorized-for-resource" in facts.types and ("tweet" in facts.about or (facts.ok and _is_about(facts, reading, "tweet")))),
    ("duplicate_post", lambda facts, _: "duplicate content" in facts.text or 187 in facts.codes),
    ("x_tier_lacks_action", lambda facts, reading: "only reply to or quote posts" in facts.text and reading.enterprise),
    ("reply_not_allowed", lambda facts, _: "only reply to or quote posts" in facts.text or "Reply to this conversation is not allowed" in facts.text or 433 in facts.codes),
    ("x_cashtag_limit", lambda facts, _: "one cashtag" in facts.text),
    ("x_user_suspended", lambda facts, _: "user-suspended" in facts.types or bool(facts.codes & {64, 326})),
    ("text_too_long", lambda facts, _: 186 in facts.codes),
    ("x_not_user_token", lambda facts, _: "unsupported-authentication" in facts.types),
    ("x_invalid_request", lambda facts, _: bool(facts.codes & {38, 44, 195, 323, 324, 325, 386, 407})),
    ("x_refused", lambda facts, _: bool(facts.codes & {136, 161, 162, 220, 226, 425})),
    ("x_tier_lacks_action", lambda facts, reading: facts.status == 403 and reading.enterprise and not reading.recently_allowed),
    ("x_refused", lambda facts, _: facts.status == 403),
    ("x_account_mismatch", lambda facts, _: "must be the same as the authenticating user" in facts.text),
    ("x_invalid_request", lambda facts, _: bool(facts.value) and facts.status == 400),
    ("x_conflict", lambda facts, _: facts.status == 409),
)  # fmt: skip


def _reason_of(facts: _ReplyFacts, reading: Reading) -> Reason | None:
    """Return the reason of X's refusal, if a rule matches it."""
    return next((reason for reason, matches in _RULES if matches(facts, reading)), None)


def _not_found(facts: _ReplyFacts) -> bool:
    return "resource-not-found" in facts.types or "cannot be found" in facts.text


def _not_visible(facts: _ReplyFacts) -> bool:
    """Return whether a success names something that the account may not see; in a 403 the type means more than that."""
    return facts.ok and "not-authorized-for-resource" in facts.types


def _is_about(facts: _ReplyFacts, reading: Reading, kind: str) -> bool:
    """Return whether X's refusal is about a kind of object; if X names none, whether the request is."""
    return kind in facts.about or (not facts.about and reading.about == kind)


def _refusal(reason: Reason, facts: _ReplyFacts, now: datetime) -> GatewayError:
    values: dict[str, Any] = {
        "message": facts.sentence() or "no reason given.",
        "account": "the linked account",
        "target": "the post's id",
        "edits": "",
        "length": "greater than X accepts",
        "limit": "X's own limit",
        "period": (facts.first("period") or "monthly").lower(),
        "reset_date": facts.first("reset_date") or "a date that X did not report",
    }
    retry_after_s = None
    if reason in ("x_window_15m", "x_window_24h"):
        retry_after_s = wait_s(facts.reply.headers, exhausted(facts.reply.headers) or "15m", now)
        values["reset"] = "at " + rfc3339(now + timedelta(seconds=retry_after_s))
    if reason == "x_spend_cap":
        retry_after_s = _until_date_s(facts.first("reset_date"), now)
    outcome: Literal["refused", "unknown"] = "unknown" if reason == "x_5xx" else "refused"
    return GatewayError(reason, retry_after_s=retry_after_s, outcome=outcome, upstream=facts.upstream(), **values)


def _until_date_s(date: str, now: datetime) -> int | None:
    """Return the seconds until 00:00 UTC of a date such as 2026-05-12; None if it is past, or not a date."""
    try:
        day = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=now.tzinfo)
    except ValueError:
        return None
    return max(1, int((day - now).total_seconds())) if day > now else None
