"""The strict parse of a body: what passes is unambiguous, and what does not is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from birdwire.body import MAX_DEPTH, Body, check, parse, read
from birdwire.call import Call
from birdwire.errors import GatewayError
from birdwire.oauth import AuthTwitter
from birdwire.operations import TweetTarget

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)
OBJECTS = st.dictionaries(st.text(max_size=10), JSON, max_size=5)


def reason(raw: bytes) -> str:
    """Why it does not parse."""
    with pytest.raises(GatewayError) as caught:
        parse(raw)
    return caught.value.reason


def refusal(call: Call, model: type[Body] = TweetTarget) -> str:
    """Why a call's body is refused."""
    with pytest.raises(GatewayError) as caught:
        read(call, model)
    return caught.value.reason


def tried(raw: bytes) -> dict[str, object] | GatewayError:
    """The object, or the refusal; anything else that is raised fails the test."""
    try:
        return parse(raw)
    except GatewayError as error:
        return error


@settings(max_examples=200, deadline=None)
@given(OBJECTS)
def test_a_good_object_comes_out_as_it_went_in(value: dict[str, object]) -> None:
    """In either spelling of its characters."""
    for ascii_only in (False, True):
        assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@settings(max_examples=400, deadline=None)
@given(
    st.binary(max_size=120) | st.text(max_size=80).map(str.encode) | JSON.map(lambda value: json.dumps(value).encode())
)
@example(b"[" * 16_000)
@example(b'{"a":' * 3_000)
@example(b'{"a":' + b"9" * 16_000 + b"}")
@example(b'{"a":-1e99999}')
@example(rb'{"\ud800":1}')
@example(rb'{"a":"\ud800"}')
@pytest.mark.trust("G3")
def test_any_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    """Nothing else comes out of the parser."""
    said = tried(raw)
    assert isinstance(said, dict) or said.problem.code == "json_parse_error"


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["tweet_id", "scopes", "expected_username", "x"]) | st.text(max_size=5), JSON, max_size=4
    )
)
@pytest.mark.parametrize("model", [TweetTarget, AuthTwitter])
def test_any_object_fits_or_its_field_is_named(model: type[Body], value: dict[str, object]) -> None:
    """In the closed set of reasons."""
    try:
        checked = check(value, model)
    except GatewayError as error:
        said = error
    else:
        assert checked.model_dump(exclude_unset=True) == value
        return
    assert said.reason == "unknown_field" or said.reason.rpartition("_")[0] in model.model_fields


def nested(depth: int) -> bytes:
    """An object with so many levels."""
    return b'{"a":' * depth + b"1" + b"}" * depth


def test_the_depth_is_bounded() -> None:
    """To the level."""
    assert parse(nested(MAX_DEPTH))
    assert reason(nested(MAX_DEPTH + 1)) == "json_malformed"
    assert reason(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}") == "json_malformed"


@pytest.mark.parametrize(("digits", "good"), [(4_300, True), (4_301, False)])
def test_the_digits_of_a_number_are_bounded(digits: int, good: bool) -> None:  # noqa: FBT001 - a parameter
    """No quadratic arithmetic for a stranger."""
    assert isinstance(tried(b'{"a":' + b"1" * digits + b"}"), dict) is good


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":1}', rb'{"a":1,"\u0061":2}', b'{"b":{"a":1,"a":2}}', b'[{"a":1,"a":2}]', b'{"a":1,"b":2,"a":3}'],
)
def test_no_member_comes_twice_at_any_depth(raw: bytes) -> None:
    """Two readers might take two different ones."""
    assert reason(raw) == "duplicate_field"


@pytest.mark.parametrize("raw", [rb'{"\ud800":1}', rb'{"a":{"\udfff\ud800":1}}', rb'{"\ud800":1,"?":2}'])
def test_a_name_that_is_no_text_is_no_name(raw: bytes) -> None:
    """Half a character in a member's name."""
    assert reason(raw) == "json_malformed"


def test_a_pair_of_surrogates_is_one_character() -> None:
    """As JSON writes what lies beyond 16 bits."""
    assert parse(rb'{"a":"\ud83d\udc26","\ud83d\udc26":1}') == {"a": "\U0001f426", "\U0001f426": 1}


def test_the_field_with_half_a_character_is_named() -> None:
    """Also inside a list."""
    for raw, model, expected in (
        (rb'{"tweet_id":"\ud800"}', TweetTarget, "tweet_id_malformed"),
        (rb'{"scopes":["\ud800"]}', AuthTwitter, "scopes_malformed"),
    ):
        with pytest.raises(GatewayError) as caught:
            check(parse(raw), model)
        assert caught.value.reason == expected


@pytest.mark.parametrize("tweet_id", ["0", "1", "9" * 19, "0" * 19])
def test_an_id_is_kept_as_text(tweet_id: str) -> None:
    """Every digit, leading zeros too."""
    assert check({"tweet_id": tweet_id}, TweetTarget).tweet_id == tweet_id


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=25))
@example("1\n")
@example("\u0661")
def test_only_ascii_digits_are_an_id(text: str) -> None:
    """The pattern matches whole strings."""
    good = 0 < len(text) <= 19 and text.isascii() and text.isdigit()
    try:
        check({"tweet_id": text}, TweetTarget)
    except GatewayError as error:
        refused = error.reason
    else:
        refused = ""
    assert refused == ("" if good else "tweet_id_malformed")


class Optional(Body):
    """A body that may be absent."""

    tweet_id: str | None = Field(None, description="an id")


TYPE = ("content-type", "application/json")


def test_a_body_may_be_absent_only_where_nothing_is_needed() -> None:
    """And then it needs no type."""
    assert read(Call("POST", "/"), Optional) == Optional(tweet_id=None)
    assert refusal(Call("POST", "/")) == "json_malformed"
    assert refusal(Call("POST", "/", headers=(TYPE,)), Optional) == "json_malformed"


@pytest.mark.parametrize(
    "headers",
    [
        (("content-type", "text/plain"),),
        (TYPE, TYPE),
        (("content-type", "application/json; charset=latin-1"),),
        (("content-type", "application/json; boundary=x"),),
        (("content-type", "application/jsonx"),),
        (TYPE, ("content-encoding", "gzip")),
        (TYPE, ("content-encoding", "identity"), ("content-encoding", "br")),
        (),
    ],
)
def test_a_body_of_another_type_is_not_looked_at(headers: tuple[tuple[str, str], ...]) -> None:
    """Even if it is JSON by its looks."""
    assert refusal(Call("POST", "/", headers=headers, body=b'{"tweet_id":"1"}')) == "unsupported_media_type"


def test_an_identity_coding_is_none() -> None:
    """RFC 9110 §8.4.1 keeps the word for that."""
    headers = (("content-type", 'Application/JSON ; Charset="utf-8"'), ("content-encoding", "Identity"))
    assert read(Call("POST", "/", headers=headers, body=b'{"tweet_id":"1"}'), TweetTarget).tweet_id == "1"


def test_a_query_is_refused_before_the_body_is_read() -> None:
    """Two places for a parameter are one too many."""
    assert refusal(Call("POST", "/", query="tweet_id=2", headers=(TYPE,), body=b"{")) == "unexpected_query"


def test_what_is_missing_is_told_before_what_is_too_much() -> None:
    """The field that a call needs is the better hint."""
    assert refusal(Call("POST", "/", headers=(TYPE,), body=b'{"tweetId":"1"}')) == "tweet_id_missing"
    assert refusal(Call("POST", "/", headers=(TYPE,), body=b'{"tweet_id":1,"x":2}')) == "unknown_field"
