"""What a reply of X means: the order of the questions, old codes, both hosts, waits, and nonsense."""
# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdwire.api.errors import GatewayError
from birdwire.x.catalog.operations import OPERATIONS, Liked, Operation, Posted
from birdwire.x.catalog.timeline import TimelinePage
from birdwire.x.client.api import Account
from birdwire.x.client.pool import Reply
from birdwire.x.client.replies import Unauthorized, read
from birdwire.x.client.requests import Reading

NOW = datetime(2026, 9, 18, 12, tzinfo=UTC)
EPOCH = int(NOW.timestamp())
LIKE = Reading(Liked, enterprise=True, already={139: {"liked": True}})
UNLIKE = Reading(Liked)
ME = Reading(Account, about="user")
NEW, OLD = "https://api.x.com/2/problems/", "https://api.twitter.com/2/problems/"


def now() -> datetime:
    """The time at which replies are read."""
    return NOW


def reply(status: int, body: object = None, **headers: str) -> Reply:
    """A reply; text stands as it is, anything else is JSON."""
    raw = body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
    fields = {"date": format_datetime(NOW, usegmt=True)} | headers
    return Reply(status, {name.replace("_", "-"): value.encode() for name, value in fields.items()}, raw)


def refusal(answer: Reply, reading: Reading = UNLIKE) -> GatewayError:
    """Why X said no."""
    with pytest.raises(GatewayError) as caught:
        read(answer, reading, now)
    return caught.value


def reason(answer: Reply, reading: Reading = UNLIKE) -> str:
    """The reason alone."""
    return refusal(answer, reading).reason


def bare(status: int, title: str = "Forbidden", **more: object) -> dict[str, object]:
    """X's problem without a type of its own."""
    return {"title": title, "detail": title, "type": "about:blank", "status": status, **more}


# Success.


@pytest.mark.parametrize("status", [200, 201])
def test_a_success_is_reduced_to_what_is_passed_on(status: int) -> None:
    """X's other members, and errors alongside the data, are left out."""
    body = {"data": {"liked": True, "rest_id": "1"}, "errors": [{"title": "x"}], "meta": {}}
    assert read(reply(status, body), LIKE, now) == {"liked": True}


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.usual_reply], ids=lambda one: one.name)
@pytest.mark.parametrize("status", [200, 201, 299, 300, 401, 403, 500])
def test_the_usual_reply_means_the_same_without_being_parsed(operation: Operation, status: int) -> None:
    """Only where it is a success; the answer belongs to its call alone."""
    parsed = Reading(operation.answer, about=operation.about, already=operation.already)
    compared = replace(parsed, expect=operation.expect, usual=operation.usual_reply)
    sent = Reply(status, {}, operation.usual_reply)
    first, second = outcome(sent, compared), outcome(sent, parsed)
    assert repr(first) == repr(second)
    if isinstance(first, dict):
        first["changed"] = True
        assert outcome(sent, compared) == second


def test_an_empty_reply_is_never_the_usual_one() -> None:
    """An operation whose replies differ has none."""
    assert reason(Reply(200, {}, b""), Reading(Posted)) == "x_reply_malformed"


def test_an_unexpected_result_is_passed_on_as_x_returns_it() -> None:
    """liked:false to a like is X's word."""
    assert read(reply(200, {"data": {"liked": False}}), LIKE, now) == {"liked": False}


@pytest.mark.parametrize("status", [200, 400, 403])
def test_already_liked_is_a_success_in_the_old_code(status: int) -> None:
    """139, whatever the status; for an unlike it means nothing."""
    body = {"errors": [{"code": 139, "message": "You have already favorited this status."}]}
    assert read(reply(status, body), LIKE, now) == {"liked": True}
    assert refusal(reply(status, body)).reason != "x_tier_lacks_action"


@pytest.mark.parametrize("data", [None, [], "x", 1, {}, {"liked": "true"}, {"liked": 1}, {"liked": None}])
def test_a_success_without_its_boolean_is_malformed(data: object) -> None:
    """Maybe applied, so the outcome is unknown."""
    error = refusal(reply(200, {"data": data}), LIKE)
    assert (error.reason, error.outcome) == ("x_reply_malformed", "unknown")


@pytest.mark.parametrize(
    "body", ["", "<html>", '{"data":', "[]", "null", '"x"', "[" * 50_000, '{"a":' * 50_000, "\ufeff{}"]
)
@pytest.mark.parametrize("status", [200, 201, 204, 301, 302, 307])
def test_a_body_that_is_not_an_object_is_malformed(status: int, body: str) -> None:
    """However deep, and whatever redirect it claims to be."""
    assert reason(reply(status, body)) == "x_reply_malformed"


@pytest.mark.parametrize("body", ["", "<html>", "[]", "null"])
def test_a_404_without_an_object_does_not_mean_a_missing_post(body: str) -> None:
    """It means that the endpoint does not exist."""
    assert reason(reply(404, body)) == "x_endpoint_gone"


# The order of the questions.

CLIENT = {"title": "Client Forbidden", "reason": "client-not-enrolled"}
ORDER: list[tuple[str, Reply, str, str]] = [
    ("a cap before its type", reply(403, {"title": "SpendCapReached", "type": NEW + "client-forbidden"}), "x_spend_cap", "x_spend_cap"),
    ("credits by status", reply(402, bare(402, "?")), "x_credits_depleted", "x_credits_depleted"),
    ("credits without a body", reply(402), "x_credits_depleted", "x_credits_depleted"),
    ("credits by type in a 403", reply(403, {"type": OLD + "credits"}), "x_credits_depleted", "x_credits_depleted"),
    ("a cap before the window", reply(429, {"type": OLD + "usage-capped"}, x_rate_limit_remaining="0"), "x_usage_capped", "x_usage_capped"),
    ("the user's enrolment", reply(403, {"type": NEW + "client-forbidden", "reason": "user-not-enrolled"}), "x_user_not_enrolled", "x_user_not_enrolled"),
    ("the app's enrolment", reply(403, {**CLIENT, "type": OLD + "client-forbidden"}), "x_tier_lacks_action", "x_not_enrolled"),
    ("the access level before the 403", reply(403, {"errors": [{"code": 453}]}), "x_tier_lacks_action", "x_tier_lacks_action"),
    ("the day's window first", reply(429, bare(429), x_rate_limit_remaining="0", x_user_limit_24hour_remaining="0"), "x_window_24h", "x_window_24h"),
    ("the app's day", reply(429, bare(429), x_app_limit_24hour_remaining="0"), "x_window_24h", "x_window_24h"),
    ("a 429 without headers", reply(429), "x_window_15m", "x_window_15m"),
    ("a 5xx of any form", reply(503, "<html>"), "x_5xx", "x_5xx"),
    ("gone in a 400", reply(400, {"errors": [{"message": "This tweet cannot be found."}]}), "tweet_not_found", "tweet_not_found"),
    ("gone in a 200", reply(200, {"errors": [{"type": NEW + "resource-not-found", "resource_type": "tweet"}]}), "tweet_not_found", "tweet_not_found"),
    ("a user gone in a 200", reply(200, {"errors": [{"type": OLD + "resource-not-found", "resource_type": "user"}]}), "user_not_found", "user_not_found"),
    ("not to be seen", reply(200, {"errors": [{"type": NEW + "not-authorized-for-resource", "resource_type": "tweet"}]}), "tweet_not_found", "tweet_not_found"),
    ("a hidden user", reply(200, {"errors": [{"type": NEW + "not-authorized-for-resource", "resource_type": "user"}]}), "user_not_found", "user_not_found"),
    ("hidden, without saying what", reply(200, {"errors": [{"type": OLD + "not-authorized-for-resource"}]}), "tweet_not_found", "tweet_not_found"),
    ("no user, said of a post", reply(403, {"errors": [{"code": 50, "resource_type": "tweet"}]}), "tweet_not_found", "tweet_not_found"),
    ("not about the post", reply(403, {"type": NEW + "not-authorized-for-resource", "resource_type": "user"}), "x_tier_lacks_action", "x_refused"),
    ("duplicate", reply(403, bare(403, detail="You are not allowed to create a Tweet with duplicate content.")), "duplicate_post", "duplicate_post"),
    ("suspended before forbidden", reply(403, {"type": NEW + "user-suspended"}), "x_user_suspended", "x_user_suspended"),
    ("a bare 403", reply(403, bare(403)), "x_tier_lacks_action", "x_refused"),
    ("a 403 of the edge", reply(403, "<html>"), "x_tier_lacks_action", "x_refused"),
    ("another's id", reply(400, {"errors": [{"message": "must be the same as the authenticating user [1]"}]}), "x_account_mismatch", "x_account_mismatch"),
    ("a wrong parameter", reply(400, {"errors": [{"message": "not valid"}], "type": OLD + "invalid-request"}), "x_invalid_request", "x_invalid_request"),
    ("a 400 without an object", reply(400, "<html>"), "x_reply_malformed", "x_reply_malformed"),
    ("a conflict", reply(409, bare(409, "Conflict")), "x_conflict", "x_conflict"),
    ("another status", reply(418, {}), "x_reply_malformed", "x_reply_malformed"),
    ("errors without a type we know", reply(200, {"errors": [{"type": NEW + "new-kind"}]}), "x_reply_malformed", "x_reply_malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "like", "unlike"), [pytest.param(*rest, id=name) for name, *rest in ORDER])
def test_each_question_is_asked_in_its_turn(answer: Reply, like: str, unlike: str) -> None:
    """Bills and enrolment first, then windows, missing objects, messages, and the rest."""
    assert (reason(answer, LIKE), reason(answer, UNLIKE)) == (like, unlike)


@pytest.mark.parametrize("host", [NEW, OLD, "https://api.example/2/problems/", ""])
@pytest.mark.parametrize("where", ["top", "inside"])
def test_a_type_is_known_by_its_last_segment(host: str, where: str) -> None:
    """On both hosts and in both generations, at the top level and in errors."""
    problem = {"type": f"{host}client-forbidden", "reason": "user-not-enrolled"}
    assert reason(reply(403, problem if where == "top" else {"errors": [problem]})) == "x_user_not_enrolled"


def test_a_missing_account_is_a_missing_user_when_users_are_asked_about() -> None:
    """Without a resource_type, the question tells."""
    body = {"errors": [{"type": NEW + "resource-not-found"}]}
    assert (reason(reply(200, body), ME), reason(reply(200, body))) == ("user_not_found", "tweet_not_found")


def test_a_page_of_errors_alone_is_not_an_empty_page() -> None:
    """A timeline that may not be seen is not one without posts, even if X counts none."""
    hidden = {"errors": [{"type": OLD + "not-authorized-for-resource"}], "meta": {"result_count": 0}}
    page = Reading(TimelinePage, about="user", whole=True)
    assert reason(reply(200, hidden), page) == "user_not_found"
    assert read(reply(200, {"meta": {"result_count": 0}}), page, now)["data"] == []


def test_a_page_with_errors_that_say_nothing_of_it_is_a_page() -> None:
    """X may add errors of new types."""
    odd = {"errors": [{"type": NEW + "odd", "title": "Odd"}], "meta": {"result_count": 0}}
    assert read(reply(200, odd), Reading(TimelinePage, about="user", whole=True), now)["data"] == []


@pytest.mark.parametrize(("about", "expected"), [("user", "user_not_found"), ("tweet", "tweet_not_found")])
def test_the_old_code_of_no_such_page_is_about_what_was_asked(about: str, expected: str) -> None:
    """34, to a follow and to a like."""
    error = {"errors": [{"code": 34, "message": "Sorry, that page does not exist."}]}
    assert reason(reply(404, error), Reading(Liked, about=about)) == expected


CODES = {
    **dict.fromkeys((64, 326), "x_user_suspended"),
    **dict.fromkeys((34, 144, 179, 421, 422), "tweet_not_found"),
    **dict.fromkeys((17, 50, 63, 108), "user_not_found"),
    **dict.fromkeys((136, 161, 162, 220, 226, 425), "x_refused"),
    **dict.fromkeys((38, 44, 195, 323, 324, 325, 386, 407), "x_invalid_request"),
    **dict.fromkeys((261, 416), "x_not_enrolled"),
    **dict.fromkeys((130, 131), "x_5xx"),
    385: "reply_target_not_found",
    433: "reply_not_allowed",
    187: "duplicate_post",
    186: "text_too_long",
    88: "x_window_15m",
    185: "x_window_24h",
    453: "x_tier_lacks_action",
}


@pytest.mark.parametrize(("code", "expected"), CODES.items())
@pytest.mark.parametrize("status", [200, 400, 404])
def test_an_old_code_decides_whatever_the_status(code: int, expected: str, status: int) -> None:
    """v1.1's codes in errors[].code."""
    assert reason(reply(status, {"errors": [{"code": code, "message": "as it was"}]})) == expected


@pytest.mark.parametrize(("code", "expected"), CODES.items())
def test_an_old_code_decides_before_the_bare_403(code: int, expected: str) -> None:
    """A 403 that names its reason is not a bare one."""
    assert reason(reply(403, {"errors": [{"code": code, "message": "as it was"}]})) == expected


@pytest.mark.parametrize("code", [32, 89, 99, 135, 215])
@pytest.mark.parametrize("status", [200, 400, 401, 403])
def test_an_old_code_of_authentication_counts_as_a_401(code: int, status: int) -> None:
    """So the session is renewed once before anything is said."""
    with pytest.raises(Unauthorized):
        read(reply(status, {"errors": [{"code": code}]}), LIKE, now)


@pytest.mark.parametrize("code", [32, 89, 99, 135, 215])
def test_a_success_is_not_a_401_whatever_else_the_body_contains(code: int) -> None:
    """Else it would be asked for again, and a post done twice."""
    both = {"data": {"liked": True}, "errors": [{"code": code}]}
    assert read(reply(200, both), LIKE, now) == {"liked": True}


@pytest.mark.parametrize("body", [None, "<html>", {}, bare(401, "Unauthorized"), {"data": {"liked": True}}])
def test_a_401_is_a_401_whatever_its_body(body: object) -> None:
    """It was not applied."""
    with pytest.raises(Unauthorized):
        read(reply(401, body), LIKE, now)


# How long to wait.


@pytest.mark.parametrize(
    ("reset", "wait_s"),
    [
        *(
            (str(EPOCH + 90), 90),
            (str(EPOCH), 1),
            (str(EPOCH - 500), 1),
            (f" {EPOCH + 90} ", 90),
            (str(EPOCH + 5_000), 900),
        ),
        *(
            ("", 60),
            ("soon", 60),
            ("1e18", 60),
            ("-5", 60),
            ("9" * 18, 60),
            ("9" * 400, 60),
            ("\u0661", 60),
            ("1.5", 60),
        ),
    ],
)
@pytest.mark.trust("#258")
@pytest.mark.trust("#259")
def test_the_wait_is_the_reset_by_xs_own_clock_and_60_if_it_is_absurd(reset: str, wait_s: int) -> None:
    """At least a second, and at most the window."""
    error = refusal(reply(429, bare(429), x_rate_limit_remaining="0", x_rate_limit_reset=reset))
    assert (error.reason, error.retry_after_s) == ("x_window_15m", wait_s)


@pytest.mark.parametrize("skew", [timedelta(minutes=-10), timedelta(0), timedelta(minutes=10)])
@pytest.mark.trust("F22")
def test_a_clock_that_differs_from_xs_changes_no_wait(skew: timedelta) -> None:
    """Reset minus X's Date, never minus our time."""
    answer = reply(429, None, date=format_datetime(NOW + skew, usegmt=True), x_rate_limit_remaining="0",
                   x_rate_limit_reset=str(EPOCH + int(skew.total_seconds()) + 120))  # fmt: skip
    assert refusal(answer).retry_after_s == 120


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Sep 2026 12:00:00 GMT", "Fri, 18 Sep 99999 12:00:00 GMT"])
def test_a_date_that_cannot_be_read_is_replaced_by_ours(date: str) -> None:
    """No header of X can break the answer."""
    answer = reply(429, None, date=date, x_rate_limit_remaining="0", x_rate_limit_reset=str(EPOCH + 30))
    assert refusal(answer).retry_after_s == 30


def test_a_days_window_may_be_waited_for_a_day() -> None:
    """Its own reset counts, not the quarter hour's."""
    answer = reply(
        429, None, x_rate_limit_remaining="0", x_rate_limit_reset=str(EPOCH + 60),
        x_user_limit_24hour_remaining="0", x_user_limit_24hour_reset=str(EPOCH + 40_000),
    )  # fmt: skip
    error = refusal(answer)
    assert (error.reason, error.retry_after_s) == ("x_window_24h", 40_000)


@pytest.mark.parametrize(
    ("date", "wait_s"), [("2026-09-19", 43_200), ("2026-09-01", 86_400), ("soon", 86_400), (7, 86_400)]
)
def test_a_spending_limit_is_waited_for_until_its_date(date: object, wait_s: int) -> None:
    """00:00 UTC of that date; a day for an invalid or past date."""
    body = {"title": "SpendCapReached", "reset_date": date}
    assert refusal(reply(403, body)).retry_after_s == wait_s


# Nonsense.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.sampled_from(
    [
        "data",
        "errors",
        "type",
        "title",
        "detail",
        "message",
        "code",
        "status",
        "reason",
        "resource_type",
        "reset_date",
        "period",
    ]
)
NEARLY = st.dictionaries(MEMBERS, JSON | st.lists(st.dictionaries(MEMBERS, JSON, max_size=5), max_size=3), max_size=6)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "date",
            "x-rate-limit-remaining",
            "x-rate-limit-reset",
            "x-user-limit-24hour-remaining",
            "x-user-limit-24hour-reset",
        ]
    ),
    st.sampled_from(["0", "1", "-1", "", "x", str(EPOCH), "9" * 30])
    | st.text(st.characters(codec="latin-1"), max_size=30),
).map(lambda headers: {name: value.encode("latin-1") for name, value in headers.items()})


def outcome(answer: Reply, reading: Reading) -> dict[str, Any] | GatewayError:
    """The data, or the refusal; anything else that is raised fails the test."""
    try:
        return read(answer, reading, now)
    except GatewayError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(status=st.integers(200, 599), body=JSON | NEARLY, headers=HEADERS, reading=st.sampled_from([LIKE, UNLIKE, ME]))
@pytest.mark.trust("T19")
def test_any_json_under_any_status_is_data_or_a_refusal(
    status: int, body: Any, headers: dict[str, bytes], reading: Reading
) -> None:
    """No reply of X, however odd, causes an internal error."""
    said = outcome(Reply(status, headers, json.dumps(body).encode()), reading)
    assert isinstance(said, dict) or len(said.upstream or {}) == 4
    assert len(json.dumps(said if isinstance(said, dict) else said.upstream)) < 1_000


@settings(max_examples=150, deadline=None)
@given(status=st.integers(200, 599), body=st.binary(max_size=200))
def test_any_bytes_under_any_status_are_data_or_a_refusal(status: int, body: bytes) -> None:
    """Whatever the edge before X answers in its stead."""
    with pytest.raises(GatewayError):
        read(Reply(status, {}, body), LIKE, now)


@pytest.mark.parametrize(
    "errors", ["x", 1, {}, {"message": "x"}, [None], [[]], ["x", {"code": "88"}], [{"message": ["x"]}], [{"type": 1}]]
)
def test_errors_of_any_type_are_read_leniently(errors: object) -> None:
    """X breaks its own specification."""
    assert reason(reply(403, {**bare(403), "errors": errors})) == "x_refused"
