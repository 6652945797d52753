"""Every source of error, walked in one file: one shape, one order of members, the headers that each status demands."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import pytest_asyncio
from pydantic import BaseModel

import birdwire
from birdwire.accounts.bodies import AuthTwitter, Confirm, Undo
from birdwire.api.errors import FIELDS, PROBLEMS, RETRY_AFTER_S, SEND_REASONS, GatewayError, describe, reason_named
from birdwire.api.reason_type import FieldReason, OwnReason
from birdwire.edge import asgi, server
from birdwire.edge.connections import EdgeLimits
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.sandbox.api.errors import Catalogue
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS
from harness.gateway import API, RunningGateway, bound, gateway, serving
from harness.linking import JSON
from harness.raw_http import MEMBERS, RawRequest, RawResponse, exchange, inspect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2
    from starlette.applications import Starlette

    from birdwire.api.messages import Answer, Call

MEANS: dict[str, tuple[int, str, str, bool]] = {
    "body_too_large": (413, "body_too_large", "caller", False),
    "code_rejected": (400, "invalid-request", "account_owner", False),
    "concurrency_exceeded": (429, "rate_limit_exceeded", "caller", True),
    "duplicate_post": (409, "conflict", "x_rule", False),
    "internal": (500, "internal_error", "birdwire", True),
    "json_malformed": (400, "json_parse_error", "caller", False),
    "key_missing": (401, "missing_api_key", "caller", False),
    "key_unknown": (401, "invalid_api_key", "caller", False),
    "key_malformed": (401, "invalid_api_key", "caller", False),
    "method_not_allowed": (405, "method_not_allowed", "caller", False),
    "reply_not_allowed": (403, "client-forbidden", "x_rule", False),
    "reply_target_not_found": (404, "resource-not-found", "caller", False),
    "route_unknown": (404, "unknown_endpoint", "caller", False),
    "rpm_exceeded": (429, "rate_limit_exceeded", "caller", True),
    "tweet_id_malformed": (400, "invalid-request", "caller", False),
    "tweet_not_found": (404, "resource-not-found", "caller", False),
    "unsupported_media_type": (415, "unsupported_media_type", "caller", False),
    "user_not_found": (404, "resource-not-found", "caller", False),
    "x_5xx": (502, "upstream_unavailable", "x_outage", True),
    "x_account_mismatch": (403, "client-forbidden", "account_owner", False),
    "x_cashtag_limit": (400, "invalid-request", "x_rule", False),
    "x_client_credentials": (502, "upstream_unavailable", "operator", False),
    "x_credits_depleted": (403, "client-forbidden", "x_billing", False),
    "x_endpoint_gone": (502, "upstream_bad_reply", "x_outage", False),
    "x_invalid_request": (400, "invalid-request", "caller", False),
    "x_not_enrolled": (403, "client-forbidden", "operator", False),
    "x_not_user_token": (403, "client-forbidden", "account_owner", False),
    "x_refused": (403, "client-forbidden", "x_rule", False),
    "x_reply_malformed": (502, "upstream_bad_reply", "x_outage", True),
    "x_session_expired": (403, "client-forbidden", "account_owner", False),
    "x_spend_cap": (429, "quota_exceeded", "x_billing", True),
    "x_tier_lacks_action": (403, "client-forbidden", "x_rule", False),
    "x_timeout": (502, "upstream_timeout", "x_outage", True),
    "x_unreachable": (502, "upstream_unavailable", "x_outage", True),
    "x_usage_capped": (429, "quota_exceeded", "x_billing", False),
    "x_user_not_enrolled": (403, "client-forbidden", "x_billing", False),
    "x_user_suspended": (403, "client-forbidden", "account_owner", False),
    "x_window_15m": (429, "upstream_rate_limit", "x_rule", True),
    "x_window_24h": (429, "upstream_rate_limit", "x_rule", True),
}
"""What callers may build on, by reason: status, code, whose, retryable. Written down here a second time on purpose."""

X_SAYS: dict[str, tuple[int, str, str]] = {
    "missing-scope": (403, "x_tier_lacks_action", "x_refused"),
    "app-only-token": (403, "x_not_user_token", "x_not_user_token"),
    "client-not-enrolled": (403, "x_tier_lacks_action", "x_not_enrolled"),
    "user-not-enrolled": (403, "x_user_not_enrolled", "x_user_not_enrolled"),
    "access-level-453": (403, "x_tier_lacks_action", "x_tier_lacks_action"),
    "credits-depleted-old": (402, "x_credits_depleted", "x_credits_depleted"),
    "credits-depleted-new": (402, "x_credits_depleted", "x_credits_depleted"),
    "spend-cap": (403, "x_spend_cap", "x_spend_cap"),
    "usage-capped": (429, "x_usage_capped", "x_usage_capped"),
    "rate-limited": (429, "x_window_15m", "x_window_15m"),
    "rate-limited-24h": (429, "x_window_24h", "x_window_24h"),
    "rate-limited-88": (429, "x_window_15m", "x_window_15m"),
    "like-tweet-gone": (400, "tweet_not_found", "tweet_not_found"),
    "not-found-in-200": (200, "tweet_not_found", "tweet_not_found"),
    "user-not-found-in-200": (200, "user_not_found", "user_not_found"),
    "not-found-404": (404, "tweet_not_found", "tweet_not_found"),
    "not-authorized-in-200": (200, "tweet_not_found", "tweet_not_found"),
    "invalid-parameter": (400, "x_invalid_request", "x_invalid_request"),
    "id-mismatch": (400, "x_account_mismatch", "x_account_mismatch"),
    "duplicate-post": (403, "duplicate_post", "duplicate_post"),
    "reply-not-allowed-new": (403, "x_tier_lacks_action", "reply_not_allowed"),
    "reply-not-allowed": (403, "reply_not_allowed", "reply_not_allowed"),
    "reply-target-gone": (403, "reply_target_not_found", "reply_target_not_found"),
    "cashtag-limit": (403, "x_cashtag_limit", "x_cashtag_limit"),
    "not-permitted-feature": (403, "x_tier_lacks_action", "x_refused"),
    "not-permitted-action": (403, "x_tier_lacks_action", "x_refused"),
    "suspended-user": (403, "x_user_suspended", "x_user_suspended"),
    "unavailable": (503, "x_5xx", "x_5xx"),
    "empty-404": (404, "x_endpoint_gone", "x_endpoint_gone"),
}
"""A refusal of X's API, its status, and what it means for a like (kept from self-serve apps) and for an unlike."""

AT_THE_TOKEN_ENDPOINT = {
    "token-refresh-invalid": "code_rejected",
    "token-code-invalid": "code_rejected",
    "token-bad-client": "x_client_credentials",
    "token-no-client-id": "x_client_credentials",
    "unavailable": "x_5xx",
}

ELSEWHERE = {"revoke-no-hint", "unauthorized"}
"""The first is invisible: a revocation is retried in the background. The second has its own test."""


def judge(answer: httpx2.Response | RawResponse, reason: str, upstream: int | None = None) -> dict[str, Any]:
    """The whole shape of one refusal; the inside of its envelope."""
    got = (
        answer
        if isinstance(answer, RawResponse)
        else RawResponse(answer.status_code, dict(answer.headers), answer.content)
    )
    status, code, whose, retryable = MEANS[reason]
    inspect(got, (status, code, reason))
    error = got.error
    assert list(json.loads(got.body)) == ["error"]
    assert list(error) == [*MEMBERS, *(["upstream"] if upstream else [])]
    assert (error["whose"], error["retryable"]) == (whose, retryable)
    assert upstream or error["message"].endswith(".")  # X's own words may stand at the end
    assert error["fix"].endswith(".")
    if upstream:
        assert list(error["upstream"]) == ["status", "type", "title", "detail"]
        assert error["upstream"]["status"] == upstream
    if status in {429, 503}:
        assert int(got.headers["retry-after"]) >= 1
    else:
        assert "retry-after" not in got.headers
    return error


@pytest_asyncio.fixture(loop_scope="module")
async def place(shared_gateway: RunningGateway) -> AsyncIterator[RunningGateway]:
    """Return the shared gateway; afterwards remove faults, and let windows and breakers expire."""
    yield shared_gateway
    shared_gateway.clock.advance(hours=25)
    await shared_gateway.x.delete("/_sandbox/faults")


# X's own refusals.


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", X_SAYS)
async def test_each_refusal_of_x_has_one_meaning(place: RunningGateway, name: str) -> None:
    """By its id in the sandbox: for an action that X keeps from self-serve apps, and for one that it does not."""
    upstream, like, unlike = X_SAYS[name]
    await place.fault("*", "/2/users/*/likes*", {"error": name}, times=None)
    for operation, reason in (("like_twitter", like), ("unlike_twitter", unlike)):
        error = judge(await place.call(operation, {"tweet_id": "1"}), reason, upstream)
        relink = "auth_twitter" in error["fix"]
        assert relink == (reason in {"x_session_expired", "x_not_user_token", "x_account_mismatch"}), (
            "advice to link again"
        )


async def test_a_second_401_of_x_has_the_shape(linked: RunningGateway) -> None:
    """X's word comes along, and the advice is to link again."""
    await linked.fault("POST", "/2/users/*/likes", {"error": "unauthorized"}, times=None)
    error = judge(await linked.like(), "x_session_expired", 401)
    assert "@ada" in error["message"]
    assert "auth_twitter" in error["fix"]


def test_every_refusal_that_the_sandbox_knows_is_in_a_table_here() -> None:
    """A new one needs a meaning before it can be forgotten."""
    assert set(Catalogue().ids()) == {*X_SAYS, *AT_THE_TOKEN_ENDPOINT, *ELSEWHERE}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", AT_THE_TOKEN_ENDPOINT)
async def test_each_refusal_of_the_token_endpoint_reaches_the_callback(place: RunningGateway, name: str) -> None:
    """As JSON here; browsers get a page with the same words."""
    redirect = await place.consent("ada")
    await place.fault("POST", "/2/oauth2/token", {"error": name})
    answer = await place.bare.get(redirect, headers=JSON)
    error = answer.json()["error"]
    status, code, whose, retryable = MEANS[AT_THE_TOKEN_ENDPOINT[name]]
    assert (answer.status_code, error["code"], error["reason"]) == (status, code, AT_THE_TOKEN_ENDPOINT[name])
    assert list(error) == [*MEMBERS, "upstream"]
    assert (error["whose"], error["retryable"]) == (whose, retryable)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("do", "upstream"),
    [
        ({"status": 200, "body": "<html>busy</html>"}, 200),
        ({"status": 200}, 200),
        ({"status": 200, "body": {"data": None}}, 200),
        ({"status": 200, "body": {"data": {}}}, 200),
        ({"status": 200, "body": {"data": {"liked": "true"}}}, 200),
        ({"status": 204}, 204),
        ({"status": 302, "headers": {"location": "https://evil.example/"}}, 302),
        ({"status": 418, "body": {"title": "Teapot"}}, 418),
        ({"status": 451}, 451),
    ],
)
@pytest.mark.trust("F30")
async def test_an_unreadable_reply_is_reported_as_malformed(
    place: RunningGateway, do: dict[str, Any], upstream: int
) -> None:
    """Never followed, never guessed."""
    await place.fault("POST", "/2/users/*/likes", do)
    judge(await place.like(), "x_reply_malformed", upstream)


# X does not answer.


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("do", [{"drop": "before_apply"}, {"drop": "after_apply"}, {"truncate": 5}])
@pytest.mark.trust("F28")
async def test_a_connection_that_x_cuts_is_an_outage(place: RunningGateway, do: dict[str, Any]) -> None:
    """Whether X did it or not, a like is safe to repeat."""
    await place.fault("POST", "/2/users/*/likes", do, times=None)
    judge(await place.like(), "x_5xx")


@pytest.mark.trust("F26")
async def test_an_x_that_stalls_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    """The whole call has one deadline."""
    async with RunningGateway.built(tmp_path, x_deadline_s=0.2) as running:
        await running.link("ada")
        await running.fault("POST", "/2/users/*/likes", {"delay_s": 1}, times=None)
        judge(await running.like(), "x_timeout")


@pytest.mark.trust("F25")
async def test_an_x_that_is_not_there_is_unreachable(linked: RunningGateway) -> None:
    """Nothing was sent."""
    with bound() as listener:
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        lost = await stack.enter_async_context(gateway(linked.directory, linked.sandbox, nowhere, stack))
        lost.client.headers["authorization"] = f"Bearer {linked.raw_key}"
        judge(await lost.like(), "x_unreachable")


# What the caller did.


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("route_unknown", RawRequest(target="/nowhere")),
        ("route_unknown", RawRequest(target="/", method="GET", body=b"", types=())),
        ("method_not_allowed", RawRequest(method="PUT")),
        ("key_missing", RawRequest(authorization=lambda _: [])),
        ("key_malformed", RawRequest(authorization=lambda _: ["Bearer x"])),
        ("json_malformed", RawRequest(b"{")),
        ("tweet_id_malformed", RawRequest(b'{"tweet_id":1}')),
        ("unsupported_media_type", RawRequest(types=("text/plain",))),
        ("body_too_large", RawRequest(b" " * 16_385)),
    ],
)
async def test_each_refusal_of_a_caller_has_the_shape(place: RunningGateway, reason: str, sent: RawRequest) -> None:
    """From the router, the gate and the body alike."""
    got = await exchange(place, sent)
    judge(got, reason)
    assert ("allow" in got.headers) == (got.status == 405)


@pytest.mark.trust("#255")
async def test_the_call_over_the_limit_has_the_shape(running: RunningGateway) -> None:
    """With a Retry-After not earlier than the reset."""
    await running.gateway.keys.change(running.key_id, rpm=1)
    await running.client.get(API + "auth/status")
    answer = await running.client.get(API + "auth/status")
    judge(answer, "rpm_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


# What we did.


def broken() -> tuple[Starlette, io.StringIO]:
    """An app whose one route has a bug, and its log."""
    log = io.StringIO()

    async def handle(_: Call) -> Answer:
        raise ZeroDivisionError("secret-in-an-exception")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield

    app = asgi.create(
        [asgi.Route("POST", API + "like_twitter", handle)],
        lifespan=lifespan,
        telemetry=Telemetry(log, Clock()),
    )
    return app, log


async def test_a_bug_shows_nothing_of_itself(running: RunningGateway) -> None:
    """500 in the shape; the log names the exception's type and place, never its text."""
    app, log = broken()
    async with serving(server.config(app, limits=EdgeLimits())) as url:
        answer = await running.bare.post(url + API + "like_twitter", json={"tweet_id": "1"})
    got = RawResponse(
        answer.status_code, {**answer.headers, "x-ratelimit-limit": "-"}, answer.content
    )  # no key was read yet
    judge(got, "internal")
    assert "secret-in-an-exception" not in answer.text + log.getvalue()
    crash = json.loads(log.getvalue().splitlines()[0])
    assert (crash["exception"], crash["request_id"]) == ("ZeroDivisionError", answer.headers["x-request-id"])


# The table of reasons.

SOURCES = {
    path: path.read_text()
    for path in Path(birdwire.__file__).parent.rglob("*.py")
    if "sandbox" not in path.relative_to(Path(birdwire.__file__).parent).parts
}


def placeholders(reason: str) -> set[str]:
    """What a reason's sentences leave open."""
    problem = PROBLEMS[reason]
    return {name for text in (problem.message, problem.fix) for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_reason_has_complete_sentences() -> None:
    """What happened, and what to do."""
    for reason, problem in PROBLEMS.items():
        assert problem.message[0].isupper() or problem.message[0] in "@{`" or reason.endswith("_malformed"), reason
        assert problem.message.endswith((".", "{message}")), reason
        assert problem.fix.endswith("."), reason
        assert 400 <= problem.status <= 503, reason


def test_every_429_and_503_knows_how_long_to_wait() -> None:
    """Also when its raiser does not set one."""
    for reason, problem in PROBLEMS.items():
        if problem.status in {429, 503}:
            assert RETRY_AFTER_S[reason] >= 1


def test_every_declared_reason_is_used() -> None:
    """An unreachable row would document an error that never occurs."""
    elsewhere = "".join(text for path, text in SOURCES.items() if path.name not in {"errors.py", "reasons.py"})
    fields = {f"{name}_{end}" for name in FIELDS for end in ("missing", "malformed")}
    unused = {reason for reason in PROBLEMS if f'"{reason}"' not in elsewhere}
    assert unused - fields - set(SEND_REASONS.values()) == set()


def test_the_type_of_reasons_names_every_reason_and_no_other() -> None:
    """The type checker finds an undeclared reason only if the two lists agree."""
    assert sorted((*get_args(OwnReason), *get_args(FieldReason))) == sorted(PROBLEMS)


def test_every_refusal_fills_its_placeholders() -> None:
    """A literal reason is passed together with its values."""
    found = 0
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "GatewayError"):
                continue
            reason = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if not isinstance(reason, str):
                continue
            found += 1
            given = {keyword.arg for keyword in node.keywords}
            assert placeholders(reason) <= given, (
                f"{path.name}:{node.lineno} leaves {placeholders(reason) - given} open"
            )
    assert found > 40


@pytest.mark.parametrize("name", ["code_rejected", *SEND_REASONS.values()])
def test_reasons_that_are_raised_by_a_variable_leave_nothing_open(name: str) -> None:
    """They come with no values, so their sentences must need none."""
    assert placeholders(name) == set()
    assert "unknown" not in " ".join(describe(GatewayError(reason_named(name))))


def test_a_window_without_a_known_reset_leaves_nothing_open() -> None:
    """As when X's token endpoint answers 429."""
    assert "unknown" not in " ".join(describe(GatewayError("x_window_15m")))


def test_the_fields_with_reasons_are_those_of_the_bodies() -> None:
    """No field without its reasons, no reasons without a field."""

    def names(model: type[BaseModel]) -> set[str]:
        found = set(model.model_fields)
        for field in model.model_fields.values():
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    found |= names(inner)
        return found

    bodies: list[type[BaseModel]] = [
        AuthTwitter,
        Confirm,
        Undo,
        *(row.body for row in OPERATIONS),
        *(row.query for row in LOOKUPS),
    ]
    assert {name for body in bodies for name in names(body)} | {"media_files"} == set(FIELDS)
