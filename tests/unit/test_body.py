"""The strict parse of a body: what passes is unambiguous, and what does not is named."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from birdwire.accounts.bodies import AuthTwitter
from birdwire.api import body as bodies
from birdwire.api.body import MAX_DEPTH, Parsed, check, parse, read, whole_json
from birdwire.api.errors import GatewayError, describe
from birdwire.api.messages import Call
from birdwire.edge.asgi import headers_in
from birdwire.x.catalog.operations import TweetTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.api.forms import Take
    from birdwire.api.models import Body

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


PIECES = st.sampled_from([
    *('{"a":"b"}', '{"a":"b","c":"d"}', '{"a":"b","a":"d"}', '{"a":1,"a":"b"}', '{"a":{"b":"c"}}', '{"a":["b"]}', "{}"),
    *('{"', '":"', '","', '"}', '"', "{", "}", "[", "]", ":", ",", "a", "b", " ", "\t", "\n", "\r", "\x00", "\x1f"),
    *("\\", '\\"', "\\u0061", "\\ud800", "1", "-", "1e5", "NaN", "Infinity", "null", "true", "\x7f", "\ufeff"),
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=12).map("".join)
FLAT = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=4).map(
    lambda pairs: "{" + ", ".join(f'"{name}" : "{value}"' for name, value in pairs) + "}"
)


@settings(max_examples=600, deadline=None)
@given(
    (TEXTS | FLAT | JSON.map(json.dumps)).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers(0, 60),
    st.none() | st.binary(min_size=1, max_size=1),
)
@example(b'{"a":"b"} {"a":"b"}', 0, None)
@example(b'{"a":"b",}', 0, None)
@example(b'{"a":"\xed\xa0\x80"}', 0, None)
@example(b'{"a":"b","a":"c"}', 0, None)
@example(b'{"a":"b","":1,"":"c"}', 0, None)
@pytest.mark.trust("G3")
def test_the_fast_decoder_changes_no_verdict(raw: bytes, place: int, other: bytes | None) -> None:
    """Not for one byte: what it does not accept is for the strict decoder, and what it accepts is the same there."""
    if other is not None:
        raw = raw[:place] + other + raw[place + 1 :]
    said = tried(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_strings", lambda _: None)
        strict = tried(raw)
    if isinstance(strict, GatewayError):
        assert isinstance(said, GatewayError)
        assert describe(said) == describe(strict)
    else:
        assert said == strict
        assert list(said) == list(strict)


def test_the_fast_decoder_serves_an_ordinary_call() -> None:
    """Otherwise the test above would compare the strict one with itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_DECODER", None)
        assert parse(b'{"tweet_id": "1", "text": "\xf0\x9f\x90\xa6 {[:,"}') == {
            "tweet_id": "1",
            "text": "\U0001f426 {[:,",
        }


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["[", "{"]), min_size=MAX_DEPTH - 4, max_size=MAX_DEPTH + 3),
    st.sampled_from(['"x"', '"[[[{{{"', "1", '["{", []]', '{"[": {}}', '["\\u005b"]']),
)
def test_the_depth_is_the_nesting_and_not_the_brackets(opened: list[str], inner: str) -> None:
    """Brackets in a string, or side by side, only make the parser count more closely."""
    value = inner
    for bracket in reversed(opened):
        value = f"[{value}, []]" if bracket == "[" else f'{{"a": {value}, "[": "]{{"}}'
    raw = f'{{"a": {value}}}'.encode()
    fits = bodies._depth(json.loads(raw)) <= MAX_DEPTH  # noqa: SLF001 - the definition, without the count of brackets
    assert isinstance(tried(raw), dict) is fits


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
    """Return an object with this many levels."""
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
def test_a_member_name_with_an_unpaired_surrogate_is_refused(raw: bytes) -> None:
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
        refused: str = error.reason
    else:
        refused = ""
    assert refused == ("" if good else "tweet_id_malformed")


TYPE = ("content-type", "application/json")
LIMIT = 1_000


def call(*headers: tuple[str, str], body: bytes = b'{"tweet_id":"1"}') -> Call:
    """A call whose body comes in two chunks."""

    async def stream() -> AsyncIterator[bytes]:
        for chunk in (body[:5], body[5:]):
            yield chunk

    raw_headers = [(name.encode(), value.encode()) for name, value in headers]
    return Call("POST", "/", headers=headers_in(raw_headers), stream=stream)


async def no_files(_: object) -> NoReturn:
    """Refuse files: these readers take none."""
    raise AssertionError


async def refusal(sent: Call) -> str:
    """Why a call's body is refused."""
    with pytest.raises(GatewayError) as caught:
        await read(sent, LIMIT, no_files)
    return caught.value.reason


@pytest.mark.parametrize(
    "types",
    [
        *((), ("application/json",), ("application/json",) * 2),
        *(("text/plain",), ("application/x-www-form-urlencoded",)),
        *(("multipart/form-data; boundary=x",), ("multipart/form-data",), ("application/json; charset=utf-16",)),
    ],
)
async def test_an_empty_body_counts_as_missing_whatever_its_type(types: tuple[str, ...]) -> None:
    """Whether that will do is for the call to say."""
    headers = [("content-type", value) for value in types]
    assert await read(call(*headers, body=b""), LIMIT, no_files) == Parsed("none")


@pytest.mark.parametrize(
    "types",
    [
        *((), ("application/x-www-form-urlencoded",), ("text/plain;charset=UTF-8",)),
        *(("multipart/form-data; boundary=x",), ("multipart/form-data",)),
    ],
)
@pytest.mark.parametrize("body", [b'{"tweet_id":"1"}', b' \r\n{"a":"b=c&d=e"}'])
async def test_json_without_its_type_is_refused_with_the_header_to_add(types: tuple[str, ...], body: bytes) -> None:
    """Nothing is guessed from its looks but the advice."""
    with pytest.raises(GatewayError) as caught:
        await read(call(*[("content-type", value) for value in types], body=body), LIMIT, no_files)
    assert caught.value.reason == "unsupported_media_type"
    assert describe(caught.value)[1] == "Add the header Content-Type: application/json."


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
async def test_a_body_of_another_type_is_not_parsed(headers: tuple[tuple[str, str], ...]) -> None:
    """Even if it is JSON by its looks."""
    assert await refusal(call(*headers)) == "unsupported_media_type"


async def test_the_identity_coding_is_accepted() -> None:
    """RFC 9110 §8.4.1 keeps the word for that."""
    headers = (("content-type", 'Application/JSON ; Charset="utf-8"'), ("content-encoding", "Identity"))
    assert (await read(call(*headers), LIMIT, no_files)).fields == {"tweet_id": "1"}


DECLARED = st.lists(
    st.sampled_from([
        *(TYPE, ("content-type", "application/json; charset=utf-8"), ("content-type", "Application/JSON")),
        *(("content-type", " application/json"), ("content-type", "application/json;"), ("content-type", "text/plain")),
        *(("content-encoding", "gzip"), ("content-encoding", "identity"), ("content-encoding", "")),
    ]),
    max_size=3,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(DECLARED, st.sampled_from([b"", b"{}", b'{"a":"b"}', b"[]", b'{"a":"b","a":"c"}', b"a=b", b" " * (LIMIT + 1)]))
async def test_a_whole_body_is_read_as_any_other(headers: list[tuple[str, str]], body: bytes) -> None:
    """Only plain JSON is read the short way, with the same result or refusal."""
    whole = call(*headers, body=body)
    whole.whole = body
    try:
        expected: object = await read(call(*headers, body=body), LIMIT, no_files)
    except GatewayError as error:
        expected = describe(error)
    try:
        short: object = whole_json(whole, LIMIT)
    except GatewayError as error:
        short = describe(error)
    assert short == expected if headers == [TYPE] and body else short is None


async def test_a_body_over_its_limit_is_not_read_to_its_end() -> None:
    """One byte more is too much."""
    assert await refusal(call(TYPE, body=b" " * (LIMIT + 1))) == "body_too_large"


def test_a_missing_field_is_reported_before_an_unknown_field() -> None:
    """The field that a call needs is the better hint."""
    for body, expected in (({"tweetId": "1"}, "tweet_id_missing"), ({"tweet_id": 1, "x": 2}, "unknown_field")):
        with pytest.raises(GatewayError) as caught:
            check(body, TweetTarget)
        assert caught.value.reason == expected


FORM = ("content-type", "application/x-www-form-urlencoded")
MULTIPART = ("content-type", "multipart/form-data; boundary=x")


async def test_a_form_keeps_repeated_fields() -> None:
    """It has no other way to write a list."""
    parsed = await read(call(FORM, body=b"a=1&b=2&a=3&c="), LIMIT, no_files)
    assert (parsed.kind, parsed.fields) == ("form", {"a": ["1", "3"], "b": "2", "c": ""})


@pytest.mark.parametrize("body", [b"a=%FF", b"\xff=1", b"a", b"&".join(b"a=1" for _ in range(65))])
async def test_a_form_that_cannot_be_read_is_refused(body: bytes) -> None:
    """Bad escapes, other bytes than ASCII, a name without a value, too many fields."""
    assert await refusal(call(FORM, body=body)) == "form_malformed"


def parts(*inner: bytes) -> bytes:
    """A multipart body."""
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in inner) + b"--x--\r\n"


async def test_a_multipart_body_is_fields_and_files() -> None:
    """And the reader is asked once, when the first file begins, with the fields before it."""
    seen: list[dict[str, object]] = []

    async def before_file(fields: dict[str, object]) -> tuple[int, Take]:
        seen.append(dict(fields))
        return LIMIT, reserved.append

    reserved: list[int] = []

    body = parts(
        b'Content-Disposition: form-data; name="a"\r\n\r\n1',
        b'Content-Disposition: form-data; name="f"; filename="x"\r\nContent-Type: image/png\r\n\r\n\x00\xff',
        b'Content-Disposition: form-data; name="b"\r\n\r\n2',
    )
    parsed = await read(call(MULTIPART, body=body), LIMIT, before_file)
    with contextlib.closing(parsed):
        assert (parsed.fields, [(file.name, file.size) for file in parsed.files]) == ({"a": "1", "b": "2"}, [("f", 2)])
        assert parsed.files[0].file.read() == b"\x00\xff"
    assert len(seen) == 1
    assert sum(reserved) >= len(body) - body.index(b"\x00\xff")


@pytest.mark.parametrize(
    "body",
    [
        b"--x",
        b"--x\r\n",
        b"rubbish",
        parts(b'Content-Disposition: form-data; name="a"\r\n\r\n1')[:-6],
        parts(b"Content-Disposition: form-data\r\n\r\n1"),
        parts(b'Content-Disposition: attachment; name="a"\r\n\r\n1'),
        parts(b"X-Large: " + b"a" * 5_000 + b"\r\n\r\n1"),
        parts(b'Content-Disposition: form-data; name="a"\r\n\r\n\xff'),
        parts(*[b'Content-Disposition: form-data; name="a"\r\n\r\n1'] * 65),
    ],
)
async def test_a_multipart_body_that_cannot_be_read_is_refused(body: bytes) -> None:
    """Cut off, without a name, with a huge head, with other bytes than UTF-8, with too many parts."""
    with pytest.raises(GatewayError) as caught:
        await read(call(MULTIPART, body=body), 10_000, no_files)
    assert caught.value.reason == "form_malformed"
    assert "unknown" not in describe(caught.value)[0]


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'x' * 71}"])
async def test_a_multipart_body_needs_its_boundary(boundary: str) -> None:
    """Which its Content-Type names."""
    sent = call(("content-type", f"multipart/form-data{boundary}"), body=parts(b"rubbish"))
    with pytest.raises(GatewayError) as caught:
        await read(sent, LIMIT, no_files)
    assert "boundary of 1 to 70 characters" in describe(caught.value)[0]


DISPOSITION = b'Content-Disposition: form-data; name="media"'


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (DISPOSITION + b'; filename=""\r\n\r\n', ()),
        (DISPOSITION + b"\r\n\r\n", ("media_files", "media")),
        (DISPOSITION + b"\r\nContent-Type: Image/PNG\r\n\r\n", ()),
        (DISPOSITION + b"\r\nContent-Type: video/mp4\r\n\r\n", ()),
        (DISPOSITION + b"\r\nContent-Type: application/octet-stream\r\n\r\n", ()),
    ],
)
async def test_a_part_is_a_file_by_its_filename_its_name_or_its_type(part: bytes, names: tuple[str, ...]) -> None:
    """Not every client gives a file a name (RFC 7578 §4.2); its bytes are kept as they came."""
    content = b"\x89PNG\r\n\x1a\n\xff\r\n--not the boundary\r\n"

    reserved: list[int] = []

    async def before_file(_: dict[str, object]) -> tuple[int, Take]:
        return LIMIT, reserved.append

    with contextlib.closing(await read(call(MULTIPART, body=parts(part + content)), LIMIT, before_file, names)) as got:
        assert [(file.name, file.file.read()) for file in got.files] == [("media", content)]
        assert got.fields == {}


@pytest.mark.parametrize(
    ("part", "names", "fields"),
    [
        (b'name="text"\r\nContent-Type: application/octet-stream\r\n\r\nhello', (), {"text": "hello"}),
        (DISPOSITION[32:] + b"\r\n\r\n", ("media_files", "media"), {}),
        (DISPOSITION[32:] + b"\r\nContent-Type: image/png\r\n\r\n", (), {"media": ""}),
    ],
)
async def test_a_part_without_a_filename_is_no_file_by_a_type_of_any_bytes_or_without_a_byte(
    part: bytes, names: tuple[str, ...], fields: dict[str, str]
) -> None:
    """Some clients give every field the type application/octet-stream, and send fields that they leave empty."""
    parsed = await read(call(MULTIPART, body=parts(b"Content-Disposition: form-data; " + part)), LIMIT, no_files, names)
    assert (parsed.fields, parsed.files) == (fields, ())


@pytest.mark.parametrize("more", [b"", b"\r\nContent-Type: text/plain", b"\r\nContent-Type: application/json"])
async def test_binary_data_without_a_filename_is_refused_with_a_hint(more: bytes) -> None:
    """A filename."""
    sent = call(MULTIPART, body=parts(DISPOSITION + more + b"\r\n\r\n\x89PNG"))
    with pytest.raises(GatewayError) as caught:
        await read(sent, LIMIT, no_files)
    message = "The form cannot be parsed: the part media is not UTF-8 text; if it is a file, add a filename."
    assert describe(caught.value)[0] == message


@given(st.binary(max_size=300))
async def test_any_multipart_body_is_read_or_refused(body: bytes) -> None:
    """Never anything else."""

    async def before_file(_: object) -> tuple[int, Take]:
        return LIMIT, list[int]().append

    with contextlib.suppress(GatewayError):
        (await read(call(MULTIPART, body=b"--x\r\n" + body), LIMIT, before_file)).close()
