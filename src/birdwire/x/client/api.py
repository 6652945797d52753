"""X's API: send() asks, read() tells what X's answer means in our words. Raises; never repeats, never renews a token, keeps no table of X's numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import Field, ValidationError
from pydantic_core import from_json

from birdwire.api.errors import SEND_REASONS, GatewayError, excerpt
from birdwire.api.messages import JSON_TYPE, encode
from birdwire.runtime.clock import rfc3339
from birdwire.x.client.pool import Request, SendFailed
from birdwire.x.client.rate_headers import exhausted, wait_s
from birdwire.x.client.requests import ID_PATTERN, Reading, XData, XRequest

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.metrics import Metrics
    from birdwire.x.client.pool import ConnectionPool, Reply

ME = XRequest("GET", "/2/users/me")

_VARYING = re.compile(r"(?<=username)/[^/]+|(?<=[a-z])/(?:[0-9]+|\{[^}]*\})(?![^/])")
_TELLING = frozenset({401, 429})  # statuses that are counted apart from their class


class Account(XData):
    """An X account, as users/me names it."""

    id: str = Field(pattern=ID_PATTERN)
    username: str = Field(pattern=r"^[A-Za-z0-9_]{1,50}$")


class Unauthorized(GatewayError):  # noqa: N818 - named after the status
    """X answered 401: the token ran out, was revoked, or X is unwell. One 401 alone proves nothing."""

    def __init__(self, upstream: dict[str, object]) -> None:
        super().__init__("x_session_expired", account="the linked account", outcome="refused", upstream=upstream)


class X:
    """X's API over one Upstream."""

    def __init__(self, upstream: ConnectionPool, clock: Clock, metrics: Metrics) -> None:
        self._upstream = upstream
        self._clock = clock
        self._metrics = metrics
        self._heard: tuple[str, datetime] | None = None

    def skew(self) -> timedelta | None:
        """How far X's clock is before ours (behind: negative), by the Date of its last reply; None if it is not known."""
        if self._heard is None:
            return None
        try:
            return parsedate_to_datetime(self._heard[0]) - self._heard[1]
        except (ValueError, TypeError, OverflowError):
            return None

    def now(self) -> datetime:
        """The time by X's clock, as far as it is known."""
        return self._clock.now() + (self.skew() or timedelta())

    async def send(
        self, access_token: str, request: XRequest, deadline_s: float, may_send: Callable[[], None] | None = None
    ) -> Reply:
        """Ask once; X's whole reply, for `read`. `may_send` is as in `Upstream.send`.

        Raises:
            GatewayError: there is none; `outcome` says whether X may have got the request.
        """
        headers: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {access_token}"),)
        body, content_type = request.content, request.content_type
        if request.json is not None:
            body, content_type = encode(request.json), JSON_TYPE
        if content_type:
            headers += (("content-type", content_type),)
        began = self._clock.monotonic()
        try:
            reply = await self._upstream.send(
                Request(request.method, request.path, headers, body), deadline_s=deadline_s, may_send=may_send
            )
        except SendFailed as error:
            self._note(request, error.cause, began)
            raise GatewayError(SEND_REASONS[error.cause], outcome="unknown" if error.sent else "not_sent") from None
        outcome = str(reply.status) if reply.status in _TELLING else f"{reply.status // 100}xx"
        self._note(request, outcome, began)
        self._heard = (reply.headers.get("date", ""), self._clock.now())
        return reply

    def _note(self, request: XRequest, outcome: str, began: float) -> None:
        endpoint = _label(request.endpoint or f"{request.method} {request.path}")
        self._metrics.add("birdwire_x_calls_total", endpoint, outcome)
        self._metrics.add("birdwire_x_outcomes_total", outcome)
        self._metrics.time("birdwire_x_call_seconds", self._clock.monotonic() - began, endpoint)

    async def me(self, access_token: str, deadline_s: float) -> Account:
        """Whose token this is. X bills it and allows 75 in 15 minutes: ask once a link.

        Raises:
            Unauthorized, GatewayError: as `read`; or there was no reply.
        """
        reply = await self.send(access_token, ME, deadline_s)
        return Account.model_validate(read(reply, Reading(Account, about="user"), self._clock.now()))


@lru_cache(256)
def _label(endpoint: str) -> str:
    """An endpoint as the metrics name it."""
    return _VARYING.sub("/:id", endpoint.partition("?")[0])


def read(reply: Reply, reading: Reading, now: datetime) -> dict[str, Any]:
    """X's `data`, reduced to the members of `reading.answer`; the order of the questions is part of the contract.

    Raises:
        Unauthorized: X answered 401.
        GatewayError: any other refusal, or what cannot be read, in our words, with X's under `upstream`.
    """
    value = _object_in(reply.body)
    if (
        200 <= reply.status < 300
        and value is not None
        and value.keys() == _PLAIN
        and not (reading.bare or reading.whole)
    ):
        try:  # most answers: there is nothing in them to be asked about
            return reading.answer.model_validate(value["data"]).model_dump()
        except ValidationError:
            pass
    said = _Said.of(reply, value or {})
    if reply.status == 404 and value is None:
        raise GatewayError("x_endpoint_gone", outcome="refused", upstream=said.upstream())
    if said.unauthorized:
        raise Unauthorized(said.upstream())
    done = next((answer for code, answer in reading.already.items() if code in said.codes), None)
    if done is not None:
        return dict(done)
    if said.ok and reading.bare:
        return {}
    whole = reading.whole and ("data" in said.value or ("meta" in said.value and "errors" not in said.value))
    told_of = said.value if whole else said.value.get("data")
    if said.ok and isinstance(told_of, dict):
        return _pick(said, reading, told_of)
    reason = _told(said, reading)
    if reason is None and said.ok and reading.whole and "meta" in said.value:
        return _pick(said, reading, said.value)  # an empty page, whatever the errors beside it are about
    if reason is None:
        raise GatewayError("x_reply_malformed", outcome="unknown", upstream=said.upstream())
    raise _refusal(reason, said, now)


def _pick(said: _Said, reading: Reading, value: object) -> dict[str, Any]:
    try:
        return reading.answer.model_validate(value).model_dump()
    except ValidationError:
        raise GatewayError("x_reply_malformed", outcome="unknown", upstream=said.upstream()) from None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)  # NaN and Infinity are no JSON, and would make our answer none


_PLAIN = {"data"}


def _object_in(body: bytes) -> dict[str, Any] | None:
    """The JSON object that a body is, if it is one."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:  # and half characters, which only the slower reading lets pass, as X might
        try:
            value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class _Said:
    """A reply of X, boiled down to what its problems can be told by. X breaks its own schema: read leniently."""

    reply: Reply
    value: dict[str, Any]
    types: frozenset[str]
    titles: frozenset[str]
    codes: frozenset[int]
    about: frozenset[str]
    reasons: frozenset[str]
    text: str

    @classmethod
    def of(cls, reply: Reply, value: dict[str, Any]) -> _Said:
        errors = value.get("errors")
        problems = (
            [value, *(item for item in errors if isinstance(item, dict))] if isinstance(errors, list) else [value]
        )

        def words(*names: str) -> list[str]:
            return [item[name] for item in problems for name in names if isinstance(item.get(name), str)]

        return cls(
            reply=reply,
            value=value,
            types=frozenset(word.rsplit("/", 1)[-1] for word in words("type")),
            titles=frozenset(words("title")),
            codes=frozenset(item["code"] for item in problems if isinstance(item.get("code"), int)),
            about=frozenset(words("resource_type")),
            reasons=frozenset(words("reason")),
            text=" ".join(words("message", "detail")),
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
            return False  # it was done, whatever else X says: asking again would do it twice
        return self.status == 401 or (self.status < 500 and bool(self.codes & {32, 89, 99, 135, 215}))

    def first(self, name: str) -> str:
        """A member of the top level or of the first error, as a short safe text."""
        errors = self.value.get("errors")
        inner = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        return excerpt(self.value.get(name) or inner.get(name) or "", 200)

    def upstream(self) -> dict[str, object]:
        """X's own words, shortened, for the answer's `upstream`."""
        return {
            "status": self.status,
            "type": self.first("type"),
            "title": self.first("title"),
            "detail": self.sentence(),
        }

    def sentence(self) -> str:
        """X's most telling words: an error's own message says more than the general detail above it."""
        return self.first("message") or self.first("detail")


_Question = Callable[[_Said, Reading], bool]


# Asked from the top; the first yes decides. Bills and enrolment come before all else, whatever the status: linking again
# cures none of them. Types are matched by their last segment, since X sends them from two hosts.
_QUESTIONS: tuple[tuple[str, _Question], ...] = (
    ("x_spend_cap", lambda said, _: "SpendCapReached" in said.titles),
    ("x_credits_depleted", lambda said, _: said.status == 402 or bool(said.types & {"credits", "credits-depleted"})),
    ("x_usage_capped", lambda said, _: "usage-capped" in said.types),
    ("x_user_not_enrolled", lambda said, _: "client-forbidden" in said.types and "user-not-enrolled" in said.reasons),
    ("x_tier_lacks_action", lambda said, reading: "client-forbidden" in said.types and reading.enterprise),
    ("x_not_enrolled", lambda said, _: "client-forbidden" in said.types or bool(said.codes & {261, 416})),
    ("x_tier_lacks_action", lambda said, _: 453 in said.codes),
    ("x_window_24h", lambda said, _: 185 in said.codes or (said.status == 429 and exhausted(said.reply.headers) in ("24h", "24h_app"))),
    ("x_window_15m", lambda said, _: said.status == 429 or 88 in said.codes),
    ("x_5xx", lambda said, _: said.status >= 500 or bool(said.codes & {130, 131})),
    ("reply_target_not_found", lambda said, _: "reply to a Tweet that is deleted or not visible" in said.text or 385 in said.codes),
    ("user_not_found", lambda said, reading: (_gone(said) or _hidden(said) or 34 in said.codes) and _is_about(said, reading, "user")),
    ("tweet_not_found", lambda said, _: bool(said.codes & {17, 50, 63, 108}) and "tweet" in said.about),
    ("user_not_found", lambda said, _: bool(said.codes & {17, 50, 63, 108})),
    ("tweet_not_found", lambda said, _: _gone(said) or bool(said.codes & {34, 144, 179, 421, 422})),
    ("tweet_not_found", lambda said, reading: "not-authorized-for-resource" in said.types and ("tweet" in said.about or (said.ok and _is_about(said, reading, "tweet")))),
    ("duplicate_post", lambda said, _: "duplicate content" in said.text or 187 in said.codes),
    ("x_tier_lacks_action", lambda said, reading: "only reply to or quote posts" in said.text and reading.enterprise),
    ("reply_not_allowed", lambda said, _: "only reply to or quote posts" in said.text or "Reply to this conversation is not allowed" in said.text or 433 in said.codes),
    ("x_cashtag_limit", lambda said, _: "one cashtag" in said.text),
    ("x_user_suspended", lambda said, _: "user-suspended" in said.types or bool(said.codes & {64, 326})),
    ("text_too_long", lambda said, _: 186 in said.codes),
    ("x_not_user_token", lambda said, _: "unsupported-authentication" in said.types),
    ("x_invalid_request", lambda said, _: bool(said.codes & {38, 44, 195, 323, 324, 325, 386, 407})),
    ("x_refused", lambda said, _: bool(said.codes & {136, 161, 162, 220, 226, 425})),
    ("x_tier_lacks_action", lambda said, reading: said.status == 403 and reading.enterprise and not reading.lately_allowed),
    ("x_refused", lambda said, _: said.status == 403),
    ("x_account_mismatch", lambda said, _: "must be the same as the authenticating user" in said.text),
    ("x_invalid_request", lambda said, _: bool(said.value) and said.status == 400),
    ("x_conflict", lambda said, _: said.status == 409),
)  # fmt: skip


def _told(said: _Said, reading: Reading) -> str | None:
    """The reason that X's answer names, if any question knows it."""
    return next((reason for reason, told in _QUESTIONS if told(said, reading)), None)


def _gone(said: _Said) -> bool:
    return "resource-not-found" in said.types or "cannot be found" in said.text


def _hidden(said: _Said) -> bool:
    """Whether X answered a question with a thing that the account may not see; in a 403 the type says more than that."""
    return said.ok and "not-authorized-for-resource" in said.types


def _is_about(said: _Said, reading: Reading, kind: str) -> bool:
    """Whether X says that its refusal is about a kind of thing; if it does not say, whether the call is."""
    return kind in said.about or (not said.about and reading.about == kind)


def _refusal(reason: str, said: _Said, now: datetime) -> GatewayError:
    values: dict[str, Any] = {
        "message": said.sentence() or "no reason given.",
        "account": "the linked account",
        "target": "the post's id",
        "edits": "",
        "length": "greater than X accepts",
        "limit": "X's own limit",
        "period": (said.first("period") or "monthly").lower(),
        "reset_date": said.first("reset_date") or "a date that X did not report",
    }
    retry_after_s = None
    if reason in ("x_window_15m", "x_window_24h"):
        retry_after_s = wait_s(said.reply.headers, exhausted(said.reply.headers) or "15m", now)
        values["reset"] = "at " + rfc3339(now + timedelta(seconds=retry_after_s))
    if reason == "x_spend_cap":
        retry_after_s = _until_date_s(said.first("reset_date"), now)
    outcome: Literal["refused", "unknown"] = "unknown" if reason == "x_5xx" else "refused"
    return GatewayError(reason, retry_after_s=retry_after_s, outcome=outcome, upstream=said.upstream(), **values)


def _until_date_s(date: str, now: datetime) -> int | None:
    """Seconds until 00:00 UTC of a date such as 2026-05-12; None if it is none, or past."""
    try:
        day = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=now.tzinfo)
    except ValueError:
        return None
    return max(1, int((day - now).total_seconds())) if day > now else None
