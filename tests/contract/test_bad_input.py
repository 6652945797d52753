"""Bad input, byte by byte: each row is refused in the one shape, names its reason, and never reaches X."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.keys.secrets import mint
from birdwire.sandbox.state import seed
from birdwire.surfaces.site.documents import DOCUMENTS
from harness.gateway import API, PNG, POST
from harness.raw_http import RawRequest, Refusal, Row, bearer, exchange, inspect, judge, last_call, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from harness.gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(shared_gateway: RunningGateway) -> AsyncIterator[RunningGateway]:
    """Raise X's own limit on the shared gateway."""
    await shared_gateway.configure(likes_per_15m=1_000_000, likes_per_24h=1_000_000)
    yield shared_gateway


# The key.

MISSING = (401, "missing_api_key", "key_missing")
IN_QUERY = (401, "missing_api_key", "key_in_query")
MALFORMED = (401, "invalid_api_key", "key_malformed")
TWICE = (400, "invalid-request", "duplicate_header")


def wrong(number: int, what: str, refusal: Refusal | None, form: Callable[[str], list[str]], **more: Any) -> Row:
    """A row about the Authorization header."""
    return number, what, RawRequest(authorization=form, **more), refusal


KEYS = [
    wrong(1, "no header", MISSING, lambda _: []),
    wrong(2, "an empty header", MISSING, lambda _: [""]),
    wrong(3, "a scheme alone", MISSING, lambda _: ["Bearer"]),
    wrong(4, "a scheme and blanks", MISSING, lambda _: ["Bearer   "]),
    wrong(5, "the scheme in lower case", None, lambda key: [f"bearer {key}"]),
    wrong(6, "Basic", MALFORMED, lambda _: ["Basic YTpi"]),
    wrong(7, "another scheme", MALFORMED, lambda key: [f"Token {key}"]),
    wrong(8, "no scheme", MALFORMED, lambda key: [key]),
    wrong(9, "two equal headers", TWICE, lambda key: [f"Bearer {key}"] * 2),
    wrong(10, "two different headers", TWICE, lambda key: [f"Bearer {key}", "Bearer other"]),
    wrong(11, "a trailing blank", None, lambda key: [f"Bearer {key} \t"]),
    wrong(12, "two keys in one header", MALFORMED, lambda key: [f"Bearer {key},{key}"]),
    wrong(13, "a quoted key", MALFORMED, lambda key: [f'Bearer "{key}"']),
    wrong(14, "a character cut", MALFORMED, lambda key: [f"Bearer {key[:-1]}"]),
    wrong(15, "a character changed", MALFORMED, lambda key: [f"Bearer {key[:20]}{'AB'[key[20] == 'A']}{key[21:]}"]),
    wrong(16, "upper and lower case flipped", MALFORMED, lambda key: [f"Bearer {key[:8]}{key[8:].swapcase()}"]),
    wrong(17, "10 KB", MALFORMED, lambda _: [f"Bearer bw_test_{'A' * 10_000}"]),
    wrong(18, "characters outside ASCII", MALFORMED, lambda key: [f"Bearer {key}\u00e9\u6f22"]),
    wrong(20, "well-formed and unknown", (401, "invalid_api_key", "key_unknown"), lambda _: [f"Bearer {mint('test')}"]),
    wrong(24, "in the URL", IN_QUERY, lambda _: [], target=f"{API}like_twitter?api_key={mint('test')}"),
    wrong(24, "in the URL by another name", IN_QUERY, bearer, target=f"{API}like_twitter?x=1&auth={mint('live')}"),
    wrong(24, "in the URL as a name", IN_QUERY, bearer, target=f"{API}like_twitter?{mint('test')}"),
    wrong(24, "in the URL, encoded", IN_QUERY, bearer, target=f"{API}like_twitter?k=bw%5Ftest_{mint('test')[8:]}"),
    wrong(24, "in the URL beside a good one", IN_QUERY, bearer, target=f"{API}like_twitter?x=1&Access_Token=y"),
    wrong(25, "in a member of the body", MISSING, lambda _: [], body=b'{"tweet_id":"1","api_key":"bw_test_"}'),
    wrong(26, "in a cookie", MISSING, lambda _: [], more=(("Cookie", f"api_key={mint('test')}"),)),
    wrong(27, "a console's cookie alone", MISSING, lambda _: [], more=(("Cookie", "__Host-session=abc"),)),
    wrong(28, "SQL", MALFORMED, lambda _: ["Bearer ' OR '1'='1' --"]),
    wrong(29, "a token of X", MALFORMED, lambda _: ["Bearer " + "QUFBQUFB" * 11]),
]


@pytest.mark.parametrize(("sent", "refusal"), rows(KEYS))
async def test_only_one_whole_and_right_key_in_its_header_is_a_key(
    place: RunningGateway, sent: RawRequest, refusal: Refusal | None
) -> None:
    """Anything else is refused before its owner could be asked about."""
    await judge(place, sent, refusal)


@pytest.mark.trust("#21")
async def test_a_revoked_key_is_refused_as_revoked(place: RunningGateway) -> None:
    """Only the whole right secret learns that it was once good."""
    key, raw_key = await place.gateway.keys.create("test", "short-lived", "free")
    await place.gateway.keys.revoke(key.key_id)
    await judge(place, RawRequest(), (401, "revoked_api_key", "key_revoked"), raw_key)
    await judge(place, RawRequest(), MALFORMED, raw_key[:-1] + "AB"[raw_key[-1] == "A"])


@pytest.mark.trust("#23")
async def test_a_live_key_is_of_no_use_at_a_sandbox(place: RunningGateway) -> None:
    """403, with both kinds named."""
    _, raw_key = await place.gateway.keys.create("live", "real", "free")
    got = await judge(place, RawRequest(), (403, "client-forbidden", "mode_mismatch"), raw_key)
    assert got.error["message"].index("bw_live_") < got.error["message"].index("bw_test_")


@pytest.mark.trust("#32")
async def test_a_key_without_a_link_is_refused_after_its_body(place: RunningGateway) -> None:
    """A wrong body is named first: the caller can fix it immediately."""
    _, raw_key = await place.gateway.keys.create("test", "new", "free")
    await judge(place, RawRequest(), (403, "client-forbidden", "x_not_linked"), raw_key)
    await judge(place, RawRequest(b"{}"), (400, "invalid-request", "tweet_id_missing"), raw_key)


# The id.

ID_MALFORMED = (400, "invalid-request", "tweet_id_malformed")
ID_MISSING = (400, "invalid-request", "tweet_id_missing")
BROKEN = (400, "json_parse_error", "json_malformed")
UNKNOWN = (400, "invalid-request", "unknown_field")

IDS: list[tuple[int, str]] = [
    *enumerate(("null", '""', '" "', '" 1"', '"1 "', r'"1\n"', r'"1\r"', r'"1\t"', r'"1\u0000"', r'"\ufeff1"'), 36),
    *enumerate((r'"1\u200b"', '"+1"', '"-1"', '"1.0"', '"1e3"', '"0x1"', '"1_000"', '"1,000"', f'"{"1" * 20}"'), 46),
    *((55, f'"{"1" * 10_000}"'), (59, '"\uff11\uff12"'), (60, '"\u0661\u0662"'), (61, '"\u00b2"')),
    *enumerate(("1346889436626259968", "1", "1.5", "true", "[]", '["1"]', "{}", '{"$ne":null}'), 62),
    *enumerate(('"../../users/2"', '"1/../../2/likes"', '"1%2F2"', '"1?x=1"', '"1#"', '"1;DROP TABLE x"'), 70),
    *enumerate(('"\' OR 1=1"', '"${jndi:ldap://x}"', '"{{7*7}}"', '"<script>alert(1)</script>"'), 76),
    *((80, f'"https://x.com/grace/status/{POST}"'), (81, r'"\ud800"'), (82, '"\U0001f426"'), (86, "-0")),
]


@pytest.mark.parametrize("operation", ["like_twitter", "unlike_twitter"])
@pytest.mark.parametrize(
    "value", [pytest.param(value, id=f"{n} {value[:30]!a}", marks=pytest.mark.trust(f"#{n}")) for n, value in IDS]
)
async def test_an_id_is_a_string_of_one_to_nineteen_ascii_digits(
    place: RunningGateway, operation: str, value: str
) -> None:
    """No sign, blank, newline, other digit, number or structure passes, whatever it would mean elsewhere."""
    sent = RawRequest(b'{"tweet_id":' + value.encode() + b"}", target=API + operation)
    await judge(place, sent, ID_MALFORMED)


@pytest.mark.parametrize(
    ("value", "advice"),
    [("1346889436626259968", "as a string"), (f'"https://x.com/a/status/{POST}"', "only the digits")],
)
async def test_the_two_usual_mistakes_name_their_fix(place: RunningGateway, value: str, advice: str) -> None:
    """A number, and a link to the post."""
    got = await judge(place, RawRequest(b'{"tweet_id":' + value.encode() + b"}"), ID_MALFORMED)
    assert advice in got.error["message"]


@pytest.mark.parametrize(
    "tweet_id",
    [
        pytest.param("9999999999999999999", marks=pytest.mark.trust("#56")),
        pytest.param("0", marks=pytest.mark.trust("#57")),
        pytest.param("0000000000000000001", marks=pytest.mark.trust("#58")),
        pytest.param("404", marks=pytest.mark.trust("#87")),
        pytest.param(seed.PROTECTED_POST_ID, marks=pytest.mark.trust("#88")),
    ],
)
async def test_digits_that_x_does_not_know_reach_it_as_they_are(place: RunningGateway, tweet_id: str) -> None:
    """Text from end to end, so that no integer type can overflow or cut zeros."""
    before = await last_call(place)
    got = await exchange(place, RawRequest(json.dumps({"tweet_id": tweet_id}).encode(), target=API + "unlike_twitter"))
    inspect(got, (404, "resource-not-found", "tweet_not_found"))
    calls = (await place.x.get("/_sandbox/calls", params={"since": before})).json()["calls"]
    assert [call["path"].rpartition("/")[2] for call in calls] == [tweet_id]


# The body.

NO_OBJECT = (400, "json_parse_error", "body_not_object")
DOUBLE = (400, "json_parse_error", "duplicate_field")
TOO_LARGE = (413, "body_too_large", "body_too_large")
ONE = b'{"tweet_id":"1"}'


def padded(size: int) -> bytes:
    """Return a valid body of exactly this many bytes."""
    body = json.dumps({"tweet_id": POST}).encode()
    return body[:-1] + b" " * (size - len(body)) + b"}"


BODIES: list[Row] = [
    (number, what, RawRequest(body), refusal)
    for number, what, body, refusal in [
        (35, "no id", b"{}", ID_MISSING),
        (83, "NaN", b'{"tweet_id":NaN}', BROKEN),
        (84, "Infinity", b'{"tweet_id":-Infinity}', BROKEN),
        (85, "a number without a double", b'{"tweet_id":1e400}', BROKEN),
        (89, "a member too many", b'{"tweet_id":"1","text":"x"}', UNKNOWN),
        (90, "a name in other case", b'{"tweet_Id":"1"}', ID_MISSING),
        (91, "a prototype", b'{"tweet_id":"1","__proto__":{},"constructor":1}', UNKNOWN),
        (91, "a class", b'{"tweet_id":"1","__class__":"x"}', UNKNOWN),
        (92, "somebody else's user id", b'{"tweet_id":"1","user_id":"2"}', UNKNOWN),
        (93, "nothing", b"", BROKEN),
        (94, "null", b"null", NO_OBJECT),
        (95, "a list", b"[]", NO_OBJECT),
        (96, "a string", b'"1"', NO_OBJECT),
        (97, "an open brace", b"{", BROKEN),
        (98, "a trailing comma", b'{"tweet_id":"1",}', BROKEN),
        (99, "a comment", b'{"tweet_id":"1"/*x*/}', BROKEN),
        (100, "single quotes", b"{'tweet_id':'1'}", BROKEN),
        (101, "a letter after the end", ONE + b"x", BROKEN),
        (102, "two objects", ONE + ONE, BROKEN),
        (103, "a member twice", b'{"tweet_id":"1","tweet_id":"1"}', DOUBLE),
        (104, "a member twice and different", b'{"tweet_id":"1","tweet_id":"2"}', DOUBLE),
        (105, "a member twice by an escape", rb'{"tweet_id":"1","tweet_\u0069d":"2"}', DOUBLE),
        (106, "100,000 brackets", b"[" * 100_000, TOO_LARGE),
        (106, "16,000 brackets", b"[" * 16_000, BROKEN),
        (106, "16,000 brackets inside", b'{"tweet_id":' + b"[" * 8_000 + b"]" * 8_000 + b"}", BROKEN),
        (107, "50,000 nested objects", b'{"a":' * 50_000, TOO_LARGE),
        (107, "2,700 nested objects", b'{"a":' * 2_700 + b"1" + b"}" * 2_700, BROKEN),
        (108, "an integer of 5,000 digits", b'{"tweet_id":' + b"1" * 5_000 + b"}", BROKEN),
        (109, "a byte order mark", b"\xef\xbb\xbf" + ONE, BROKEN),
        (110, "UTF-16", ONE.decode().encode("utf-16"), BROKEN),
        (110, "UTF-16 without a mark", ONE.decode().encode("utf-16-le"), BROKEN),
        (111, "UTF-7", b"+AHs-+ACI-tweet_id+ACI-:+ACI-1+ACIAfQ-", BROKEN),
        (112, "overlong UTF-8", b'{"tweet_id":"\xc0\xb1"}', BROKEN),
        (112, "a surrogate in UTF-8", b'{"tweet_id":"\xed\xa0\x80"}', BROKEN),
        (113, "cut UTF-8", b'{"tweet_id":"\xf0\x9f"}', BROKEN),
        (114, "a raw control character", b'{"tweet_id":"1\x01"}', BROKEN),
        (115, "an unknown escape", rb'{"tweet_id":"\x31"}', BROKEN),
        (116, "1 MB of blanks", padded(1_000_000), TOO_LARGE),
        (117, "a byte over 16 KiB", padded(16_385), TOO_LARGE),
        (118, "16 KiB exactly", padded(16_384), None),
        (119, "a string of 1 MB", b'{"tweet_id":"' + b"1" * 1_000_000 + b'"}', TOO_LARGE),
        (120, "100,000 members", json.dumps(dict.fromkeys(map(str, range(100_000)))).encode(), TOO_LARGE),
        (121, "colliding members", b"{%s}" % b",".join(b'"%d":1' % (n << 61) for n in range(500)), ID_MISSING),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("sent", "refusal"), rows(BODIES))
async def test_a_body_is_one_strict_json_object(
    place: RunningGateway, sent: RawRequest, refusal: Refusal | None
) -> None:
    """Whatever two parsers could read differently is refused."""
    await judge(place, sent, refusal)


GRAMMAR = """
[1 true] | [a] | ["": 1] | [""], | [,1] | [1,,2] | ["x"]] | [""],] | ["x" | [x | [3[4]] | [1:2] | [,] | [-] | [ | [1, | [,""] | {]
{"a":"b"}# | {"a":"b"}// | {"a" b} | {:"b"} | {"a"::"b"} | {"a":"a" 123} | {a:"b"} | {"a" | {1:1} | {,"a":1} | {"a":1,,"b":2} | {"a"
[++1] | [+1] | [+Inf] | [-01] | [-1.0.] | [-2.] | [.5] | [.2e-3] | [0.1.2] | [0.3e+] | [0.3e] | [0.e1] | [0E] | [0e+] | [1.0e] | [1eE2] | [2.e3]
[9.e+] | [Inf] | [1+2] | [0x1] | [0x42] | [-Infinity] | [- 1] | [-012] | [-1x] | [-] | [1a] | [012] | [1.] | [1 000.0] | [NaN] | [-NaN] | [1ea]
["\\uD800\\u"] | ["\\x00"] | ["\\\\\\"] | ["\\u00A"] | ["\\a"] | ["\\uqqqq"] | ["\\"] | ["\\{[\\"] | ["\\u"] | ['x'] | [\\u0020"a"] | ["new\nline"] | ["tab\there"]
<.> | <null> | abc | * | [True] | [nul] | [fals] | truth | 1] | {"x":true,} | [1]x | {}} | {'a':0} | 2@ | {"a":/*x*/"b"} | \\u000A"" | [\u2060] | \u00a0{}
"""  # noqa: E501 - strings between bars, each breaking one rule of RFC 8259


@pytest.mark.trust("#122")
async def test_what_breaks_the_grammar_of_json_is_refused(place: RunningGateway) -> None:
    """One text for each rule of the grammar, bare and as the value of the id."""
    texts = [
        text.strip("\n") for line in GRAMMAR.split("\n\n") for text in line.replace("\n", " | ").split(" | ") if text
    ]
    assert len(texts) > 90
    for text in texts:
        for body in (text, f'{{"tweet_id":{text}}}'):
            inspect(await exchange(place, RawRequest(body.encode())), BROKEN)


@pytest.mark.trust("#123")
@pytest.mark.parametrize(
    "value",
    [
        *(b"123123e100000", b"-1e+9999", b"0.4e00669999999999999999999999999999999999999999999999999969999999006"),
        *(
            b"100000000000000000000",
            b"-237462374673276894279832749832423479823246327846",
            b"1.5e+9999",
            b"123.456e-789",
        ),
        *(rb'"\uDADA"', rb'"\uD888\u1234"', rb'"\uD800\n"', rb'"\uDd1e\uD834"', rb'"\ud800abc"', rb'"\uDFAA"'),
        *(b'"\xe6\x97\xa5\xd1\x88\xfa"', b'"\xff"', b'"\x81"', b'"\xf4\xbf\xbf\xbf"', b'"\xfc\x83\xbf\xbf\xbf\xbf"'),
        *(b"[" * 31 + b"]" * 31, b"[" * 500 + b"]" * 500, b"\xef\xbb\xbf{}", b'"\xe0\xff"'),
    ],
)
async def test_what_json_leaves_open_is_refused_too(place: RunningGateway, value: bytes) -> None:
    """Huge numbers, lone surrogates and wrong UTF-8: parsers disagree on them, so none passes."""
    got = await exchange(place, RawRequest(b'{"tweet_id":' + value + b"}"))
    inspect(got, BROKEN if got.error["code"] == "json_parse_error" else ID_MALFORMED)


NAUGHTY = [
    *("undefined", "nil", "True", "\\", "\\\\", "1/2", "1E02", "$1.00", "-$1", "0..0", "--1", "0xffffffffffffffff"),
    *("123456789012345678901234567890123456789", "NaN", "1#INF", "1'000", "1 000.00", "Infinity"),
    *(",./;'[]\\-=", '<>?:"{}|_+', "!@#$%^&*()`~", "\u0001\u0002\u007f", "\u0085\u00a0\u2028\u2029", "\u202e1\u202c"),
    *(
        "\ufeff",
        "\ufffe",
        "\u03a9\u2248\u00e7",
        "\u2070\u2074",
        "\u0967\u0968",
        "\u2460",
        "\U0001d7d9",
        "1\u0300",
        "\u06f1",
    ),
    *(
        "\u7530\u4e2d",
        "\u0e47" * 50,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1fa\U0001f1f8",
        "\u062b\u0645",
    ),
    *("\u2001", "\u1680", "\u180e", "\u3000", "Z\u0351\u036b\u0343", "\u02d9\u0250n\u0287", "\u24c9\u24d7\u24d4"),
    *(
        "<script>alert(0)</script>",
        "<img src=x onerror=alert(1)>",
        "javascript:alert(1)",
        '"><svg onload=1>',
        "\x3csvg",
    ),
    *(
        "1;DROP TABLE users",
        "1'; --",
        "' OR 1=1 -- 1",
        "%27",
        "-",
        "--",
        "--version",
        "$(touch x)",
        "`ls`",
        "$HOME",
        "%x%s",
    ),
    *("{0}", "{{7*7}}", "${7*7}", "#{1}", "../../../etc/passwd%00", "/dev/null; touch x", "() { 0; }; touch x", "CON"),
    *('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY y SYSTEM "file:///x">]>', "=1+1", "@SUM(1)", "http://a/%%30%30"),
    *("\x1b[31m", "a\r\nset-cookie: x", "%0d%0aset-cookie:x", "\u0007", "If you're reading this", "Scunthorpe"),
]


@pytest.mark.trust("#124")
async def test_naughty_strings_are_refused_as_ids(place: RunningGateway) -> None:
    """Reserved words, scripts, injections, odd blanks, odd digits: the same dry refusal for all."""
    for text in NAUGHTY:
        inspect(await exchange(place, RawRequest(json.dumps({"tweet_id": text}).encode())), ID_MALFORMED)
        inspect(await exchange(place, RawRequest(json.dumps({"tweet_id": "1", text: 1}).encode())), UNKNOWN)


# The content type.

FORM = ("application/x-www-form-urlencoded",)
FORMLESS = (400, "invalid-request", "form_malformed")
WRONG_TYPE = (415, "unsupported_media_type", "unsupported_media_type")
ZIPPED = gzip.compress(ONE)


def typed(number: int, what: str, refusal: Refusal | None, *types: str, **more: Any) -> Row:
    """A row about the content type."""
    return number, what, RawRequest(types=types, **more), refusal


TYPES = [
    typed(125, "none, with a body", WRONG_TYPE),
    *(
        typed(125, f"{', '.join(types) or 'none'}, without a body", None, *types, body=b"", target=API + "auth_twitter")
        for types in ((), ("application/json",), FORM, ("text/plain",), ("multipart/form-data; boundary=x",))
    ),
    typed(126, "text/plain", WRONG_TYPE, "text/plain"),
    typed(127, "urlencoded", WRONG_TYPE, "application/x-www-form-urlencoded", body=b"tweet_id=1"),
    typed(128, "multipart", WRONG_TYPE, "multipart/form-data; boundary=x", body=b"--x--\r\n"),
    typed(128, "multipart with no end of parameters", WRONG_TYPE, "multipart/form-data" + ";" * 15_000),
    typed(129, "XML that names a file", WRONG_TYPE, "text/xml", body=b'<!DOCTYPE x [<!ENTITY y SYSTEM "file:///x">]>'),
    typed(130, "UTF-8 said aloud", None, "application/json; charset=utf-8"),
    typed(130, "UTF-8 in quotes", None, 'application/json;charset="UTF-8"'),
    typed(131, "UTF-16 said aloud", WRONG_TYPE, "application/json; charset=utf-16"),
    typed(132, "upper case", None, "APPLICATION/JSON"),
    typed(133, "two headers", WRONG_TYPE, "application/json", "text/plain"),
    typed(133, "two types in one", WRONG_TYPE, "application/json, text/plain"),
    typed(134, "a type of a vendor", WRONG_TYPE, "application/vnd.x+json"),
    typed(135, "gzip", WRONG_TYPE, "application/json", body=ZIPPED, more=(("Content-Encoding", "gzip"),)),
    typed(136, "a gzip bomb", WRONG_TYPE, "application/json", body=gzip.compress(b" " * 10_000_000)[:16_000],
        more=(("Content-Encoding", "gzip"),)),
    typed(137, "HTML wanted", ID_MISSING, "application/json", body=b"{}", more=(("Accept", "text/html"),)),
    typed(138, "nonsense wanted", ID_MISSING, "application/json", body=b"{}", more=(("Accept", "x;;q=banana/"),)),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "refusal"), rows(TYPES))
async def test_a_body_is_json_by_name_and_uncompressed(
    place: RunningGateway, sent: RawRequest, refusal: Refusal | None
) -> None:
    """Nothing is guessed from a body's looks, and nothing is inflated."""
    await judge(place, sent, refusal)


@pytest.mark.parametrize("types", [(), ("application/json",), FORM])
@pytest.mark.parametrize("name", ["like_twitter", "auth/confirm"])
async def test_a_body_that_is_needed_is_not_empty(place: RunningGateway, name: str, types: tuple[str, ...]) -> None:
    """Whatever its Content-Type: that is not what it lacks."""
    got = await judge(place, RawRequest(b"", target=API + name, types=types), BROKEN)
    assert "the body is empty" in got.error["message"]


async def test_a_post_without_a_body_lacks_its_text(place: RunningGateway) -> None:
    """No one field is required, so the answer names what may be sent."""
    await judge(place, RawRequest(b"", target=API + "post_twitter"), (400, "missing_parameter", "text_missing"))


@pytest.mark.parametrize("types", [(), FORM, ("text/plain;charset=UTF-8",), ("multipart/form-data; boundary=x",)])
async def test_json_with_another_content_type_is_refused_with_the_header_to_add(
    place: RunningGateway, types: tuple[str, ...]
) -> None:
    """Which is what curl's -d, urllib and fetch leave out."""
    for name in ("like_twitter", "auth_twitter"):
        got = await judge(place, RawRequest(ONE, target=API + name, types=types), WRONG_TYPE)
        assert got.error["fix"] == "Add the header Content-Type: application/json."


async def test_curl_sends_an_empty_body_and_json_as_a_form(place: RunningGateway) -> None:
    """The first is not a body; the second has no Content-Type."""

    async def curl(name: str, data: str, key: str) -> dict[str, Any]:
        command = ("curl", "--silent", "--noproxy", "*", "--data", data, "--header", f"Authorization: Bearer {key}")
        process = await asyncio.create_subprocess_exec(
            *command, f"{place.client.base_url}{API}{name}", stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), 15)
        return dict(json.loads(said))

    _, unlinked = await place.gateway.keys.create("test", "new", "free")
    assert list(await curl("auth_twitter", "", unlinked)) == ["auth_url", "state", "expires_at"]
    assert await curl("unlink_twitter", "", unlinked) == {"data": {"linked": False}}
    error = (await curl("like_twitter", ONE.decode(), place.raw_key))["error"]
    assert (error["code"], error["fix"]) == (WRONG_TYPE[1], "Add the header Content-Type: application/json.")


async def test_urllib_calls_every_body_a_form(place: RunningGateway) -> None:
    """An empty one too, which does not count as a body."""
    _, unlinked = await place.gateway.keys.create("test", "new", "free")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(name: str, data: bytes) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"{place.client.base_url}{API}{name}", data)  # noqa: S310 - our own gateway
        request.add_header("Authorization", f"Bearer {unlinked}")
        try:
            with opener.open(request, timeout=15) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.loads(refusal.read())

    for name in ("auth_twitter", "unlink_twitter"):
        assert (await asyncio.to_thread(post, name, b""))[0] == 200
    status, answer = await asyncio.to_thread(post, "like_twitter", ONE)
    assert (status, answer["error"]["fix"]) == (415, "Add the header Content-Type: application/json.")


# Files.


def form(part: str, content: bytes) -> bytes:
    """A multipart body with one part."""
    return f"--x\r\nContent-Disposition: form-data; {part}\r\n\r\n".encode() + content + b"\r\n--x--\r\n"


MULTIPART = ("multipart/form-data; boundary=x",)
NO_FILE = (400, "missing_parameter", "media_files_missing")
BAD_FILE = (400, "invalid-request", "media_files_malformed")
AS_PART = "as part of a multipart form: curl -F media_files=@FILE."


@pytest.mark.parametrize("name", ["media_files", "media", "media_file", "file"])
async def test_a_file_needs_no_filename(place: RunningGateway, name: str) -> None:
    """Its part's name tells that it is one."""
    sent = RawRequest(form(f'name="{name}"', PNG), target=API + "upload_media", types=MULTIPART)
    before = await last_call(place)
    got = await judge(place, sent, None)
    assert json.loads(got.body)["data"]["media_id"].isdigit()
    assert await last_call(place) > before


@pytest.mark.parametrize(
    ("target", "body", "types", "refusal", "words"),
    [
        ("upload_media", b"", MULTIPART, NO_FILE, f"Send the file {AS_PART}"),
        ("upload_media", form('name="media_files"', b""), MULTIPART, NO_FILE, f"Send the file {AS_PART}"),
        ("upload_media", form('name="picture"', b"a.png"), MULTIPART, NO_FILE, f"Send the file {AS_PART}"),
        ("upload_media", form('name="media"', b"a.png"), MULTIPART, BAD_FILE, f"an image, a GIF or a video {AS_PART}"),
        ("upload_media", form('name="picture"', PNG), MULTIPART, FORMLESS, "if it is a file, add a filename"),
        ("upload_media", PNG, ("image/png",), WRONG_TYPE, f"Send the file {AS_PART}"),
        ("upload_media", PNG, FORM, WRONG_TYPE, f"Send the file {AS_PART}"),
        ("upload_media", b"a=b", FORM, WRONG_TYPE, f"Send the file {AS_PART}"),
        ("upload_media", ONE, (), WRONG_TYPE, f"Send the file {AS_PART}"),
        ("upload_media", ONE, FORM, WRONG_TYPE, f"Send the file {AS_PART}"),
        ("upload_media", ONE, MULTIPART, WRONG_TYPE, f"Send the file {AS_PART}"),
        ("upload_media", ONE, ("application/json",), NO_FILE, f"Send the file {AS_PART}"),
        ("like_twitter", form('name="tweet_id"', b"\xff"), MULTIPART, FORMLESS, "the part tweet_id is not UTF-8 text"),
    ],
)
async def test_a_body_without_a_file_is_refused_with_how_to_send_one(  # the columns of the table
    place: RunningGateway, target: str, body: bytes, types: tuple[str, ...], refusal: Refusal, words: str
) -> None:
    """As the part that it must be."""
    got = await exchange(place, RawRequest(body, target=API + target, types=types))
    assert (got.status, got.error["code"], got.error["reason"]) == refusal
    assert words in got.error["message"] + got.error["fix"]


# Methods and paths.

NOT_ALLOWED = (405, "method_not_allowed", "method_not_allowed")
NOWHERE = (404, "unknown_endpoint", "route_unknown")
NOT_HTTP = (400, "invalid-request", "http_malformed")
QUERY = (400, "invalid-request", "unexpected_query")


def at(number: int, what: str, refusal: Refusal | None, target: str, **more: Any) -> Row:
    """A row about the path."""
    return number, what, RawRequest(target=target, **more), refusal


PATHS = [
    *(
        at(number, method, NOT_ALLOWED, API + "like_twitter", method=method)
        for number, method in ((181, "GET"), (182, "PUT"), (182, "PATCH"), (182, "DELETE"), (184, "TRACE"))
    ),
    at(186, "OPTIONS without Origin", NOT_ALLOWED, API + "like_twitter", method="OPTIONS", body=b""),
    at(187, "a foreign preflight", NOT_ALLOWED, API + "like_twitter", method="OPTIONS", body=b"",
        more=(("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST"))),
    at(188, "a trailing slash", NOWHERE, API + "like_twitter/"),
    at(189, "two slashes", NOWHERE, "//apis/v1/twitter/like_twitter"),
    at(190, "upper case", NOWHERE, "/APIS/v1/twitter/like_twitter"),
    at(191, "dots by escape", NOWHERE, "/apis/v1/x/%2e%2e/twitter/like_twitter"),
    at(191, "dots", NOWHERE, "/apis/v1/x/../twitter/like_twitter"),
    at(192, "a slash by escape", NOWHERE, "/apis/v1/twitter%2flike_twitter"),
    at(192, "a letter by escape", NOWHERE, "/apis/v1/twitter/lik%65_twitter"),
    at(193, "NUL", NOT_HTTP, "/apis/v1/twitter/like_twitter%00"),
    at(194, "a wrong escape", NOT_HTTP, "/apis/v1/twitter/%zz"),
    at(195, "a parameter of a segment", NOWHERE, API + "like_twitter;v=1"),
    at(196, "a trailing blank", NOWHERE, API + "like_twitter%20"),
    at(197, "an unknown name", NOWHERE, API + "love_twitter"),
    at(198, "a file of secrets", NOWHERE, "/.env"),
    at(198, "a repository", NOWHERE, "/.git/config"),
    at(199, "an id in the URL and another in the body", QUERY, API + "like_twitter?tweet_id=2"),
    at(199, "a query of a status", QUERY, API + "auth/status?x=1", method="GET", body=b"", types=()),
    at(200, "an overridden method", None, API + "like_twitter", more=(("X-HTTP-Method-Override", "DELETE"),)),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "refusal"), rows(PATHS))
async def test_a_path_has_one_spelling_and_its_own_methods(
    place: RunningGateway, sent: RawRequest, refusal: Refusal | None
) -> None:
    """No redirect, no normalising, no CORS."""
    got = await judge(place, sent, refusal)
    assert got.headers.get("allow") == ("POST" if refusal == NOT_ALLOWED else None)


READ_BY_ALL = ["/livez", "/readyz", *DOCUMENTS]


@pytest.mark.trust("#183")
@pytest.mark.parametrize(
    ("target", "allow"),
    [
        (API + "like_twitter", "POST"),
        (API + "auth/undo", "POST"),
        (API + "auth/status", "GET"),
        (API + "user/info?userName=ada", "GET"),
        (API + "requests/req_01JD3K8W6ZQ4T5V7X9YABCDEFG", "GET"),
    ],
)
async def test_a_head_is_refused_where_a_key_is_needed_or_a_post(
    place: RunningGateway, target: str, allow: str
) -> None:
    """405 with Allow, as RFC 9110 §9.3.2 has it the headers only: a look-up may cost money."""
    before = await last_call(place)
    got = await exchange(place, RawRequest(method="HEAD", body=b"", types=(), target=target))
    assert (got.status, got.headers["allow"], got.body) == (405, allow, b"")
    assert int(got.headers["content-length"]) > 0
    assert await last_call(place) == before


@pytest.mark.parametrize("target", [*READ_BY_ALL, "/", "/nowhere"])
async def test_a_head_of_a_public_page_is_a_get_without_its_body(place: RunningGateway, target: str) -> None:
    """The same status and headers (RFC 9110 §9.1), on a connection that goes on."""
    plain: dict[str, Any] = {"target": target, "body": b"", "types": (), "authorization": lambda _: []}
    head, get = [await exchange(place, RawRequest(method=method, **plain)) for method in ("HEAD", "GET")]
    for got in (head, get):
        del got.headers["x-request-id"], got.headers["date"]
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")
    assert get.status == (200 if target in READ_BY_ALL else 404)
    statuses = [(await client_method(target)).status_code for client_method in (place.bare.head, place.bare.get)]
    assert statuses == [get.status] * 2


@pytest.mark.parametrize("target", READ_BY_ALL)
async def test_public_pages_list_head_as_allowed(place: RunningGateway, target: str) -> None:
    """In the Allow of another method."""
    got = await judge(place, RawRequest(target=target), NOT_ALLOWED)
    assert got.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("target", DOCUMENTS)
async def test_a_document_ends_with_a_newline(place: RunningGateway, target: str) -> None:
    """One, as a text file does."""
    assert re.search(rb"[^\n]\n\Z", (await place.bare.get(target)).content)


@pytest.mark.trust("#251")
@pytest.mark.trust("O18")
async def test_a_head_of_the_callback_spends_nothing(place: RunningGateway) -> None:
    """Scanners of mail and previews of chats look before the owner does: they are answered, and use nothing up."""
    redirect = await place.consent("ada")
    before = await last_call(place)
    for target in (redirect, f"{API}oauth_callback", f"{API}oauth_callback?state=a&code=b"):
        for accept, kind in (("text/html", "text/html; charset=utf-8"), ("application/json", "application/json")):
            answer = await place.bare.head(target, headers={"accept": accept})
            assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, kind, b"")
            assert "content-length" not in answer.headers  # of the page that was not made
            assert "transfer-encoding" not in answer.headers
            assert answer.headers["cache-control"] == "no-store"
    assert await last_call(place) == before
    page = await place.bare.get(redirect, headers={"accept": "text/html"})
    assert (page.status_code, "@ada" in page.text) == (200, True)
    assert page.text.endswith("</html>\n")
    gone = await place.bare.get(f"{API}oauth_callback?state=a&code=b", headers={"accept": "text/html"})
    assert (gone.status_code, gone.text[-8:]) == (400, "</html>\n")


# Linking.

SCOPE = (400, "invalid-request", "scope_unknown")
RETURN_TO = (400, "invalid-request", "return_to_not_allowed")
CALLBACK = (400, "invalid-request", "callback_malformed")
STRANGE = (400, "invalid-request", "state_unknown")
HANDLE = (400, "invalid-request", "expected_username_malformed")
SCOPES = (400, "invalid-request", "scopes_malformed")
PREFETCH = (400, "invalid-request", "prefetch")
ISSUER = (400, "invalid-request", "issuer_mismatch")
UNDO = (400, "invalid-request", "undo_unknown")
ELSEWHERE = (
    *("//evil.example", "https:evil.example", "\\\\evil.example", "/\\evil.example", "javascript:alert(1)",
        "data:text/html,x"),
    *("https://evil.example", "https://birdwire.example.com@evil.example", "http:/evil.example",
        "file:///etc/passwd", " https://a"),
    *("https://evil.example#.birdwire.example.com", "vbscript:x"),
)  # fmt: skip


def asked(number: int, what: str, refusal: Refusal, **body: object) -> Row:
    """A row about auth_twitter."""
    return number, what, RawRequest(json.dumps(body).encode(), target=API + "auth_twitter"), refusal


def back(number: int, what: str, refusal: Refusal, query: str, **more: Any) -> Row:
    """A row about what comes back through the browser, asked for as JSON."""
    wanted = (("Accept", "application/json"), *more.pop("more", ()))
    target = f"{API}oauth_callback{'?' * bool(query)}{query}"
    plain: dict[str, Any] = {"method": "GET", "body": b"", "types": (), "authorization": lambda _: [], **more}
    return number, what, RawRequest(target=target, more=wanted, **plain), refusal


LINKING = [
    asked(230, "a member too many", UNKNOWN, tweet_id="1"),
    asked(231, "an unknown scope", SCOPE, scopes=["like.write", "everything"]),
    asked(231, "a scope of blanks", SCOPE, scopes=["like.write tweet.read"]),
    asked(231, "a scope that is a number", SCOPES, scopes=[1]),
    asked(231, "scopes as text", SCOPES, scopes="like.write"),
    asked(231, "1,000 scopes", SCOPES, scopes=["like.write"] * 1_000),
    asked(217, "a handle of 16 characters", HANDLE, expected_username="a" * 16),
    asked(217, "a handle with a hyphen", HANDLE, expected_username="a-b"),
    asked(217, "a handle with a newline", HANDLE, expected_username="ada\n"),
    *(asked(233, f"back to {place!a}", RETURN_TO, return_to=place) for place in ELSEWHERE),
    asked(233, "back to a number", (400, "invalid-request", "return_to_malformed"), return_to=1),
    back(234, "no parameters", CALLBACK, ""),
    back(235, "no code", CALLBACK, "state=abc"),
    back(236, "no state", CALLBACK, "code=abc"),
    back(236, "an empty state", CALLBACK, "code=abc&state="),
    back(237, "an unknown state", STRANGE, "code=abc&state=abc"),
    back(240, "a state of 501 characters", CALLBACK, f"code=a&state={'s' * 501}"),
    back(242, "a code twice", CALLBACK, "code=a&code=b&state=c"),
    back(242, "a code twice, the same", CALLBACK, "code=a&code=a&state=c"),
    back(243, "a state twice", CALLBACK, "code=a&state=c&state=d"),
    back(244, "a code and an error", CALLBACK, "code=a&error=access_denied&state=c"),
    back(246, "HTML in an error without a state of ours", STRANGE,
        "error=%3Cscript%3E&error_description=%3Cb%3E&state=c"),
    back(246, "HTML in a state", STRANGE, "code=a&state=%3Cscript%3E"),
    back(247, "a code of 5 KB", CALLBACK, f"code={'c' * 5_000}&state=c"),
    back(247, "NUL in a code", CALLBACK, "code=a%00&state=c"),
    back(247, "a newline in a code", CALLBACK, "code=a%0D%0Ab&state=c"),
    back(247, "a code outside ASCII", CALLBACK, "code=%C3%A9&state=c"),
    back(247, "a code that is not UTF-8", CALLBACK, "code=%FF&state=c"),
    back(247, "30 parameters", CALLBACK, "&".join(f"p{n}=1" for n in range(30)) + "&code=a&state=c"),
    back(250, "a POST", NOT_ALLOWED, "code=a&state=c", method="POST"),
    back(251, "a prefetch", PREFETCH, "code=a&state=c", more=(("Sec-Purpose", "prefetch;prerender"),)),
    back(251, "an older prefetch", PREFETCH, "code=a&state=c", more=(("Purpose", "prefetch"),)),
    back(254, "a wrong issuer", ISSUER, "code=a&state=c&iss=https%3A%2F%2Fevil.example"),
    back(254, "an empty issuer", ISSUER, "code=a&state=c&iss="),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "refusal"), rows(LINKING))
async def test_what_a_link_is_asked_or_answered_with_is_checked_first(
    place: RunningGateway, sent: RawRequest, refusal: Refusal
) -> None:
    """Nothing is exchanged, and a client that asks for JSON gets the envelope."""
    await judge(place, sent, refusal)


@pytest.mark.parametrize(
    ("body", "types", "refusal"),
    [
        (b"", FORM, (400, "missing_parameter", "undo_token_missing")),
        (b"undo_token=", FORM, UNDO),
        (b"undo_token=abc", FORM, UNDO),
        (b"undo_token=a&undo_token=b", FORM, (400, "invalid-request", "undo_token_malformed")),
        (b"undo_token=" + b"a" * 10_000, FORM, (413, "body_too_large", "body_too_large")),
        (b"undo_token=%FF%00", FORM, (400, "invalid-request", "form_malformed")),
        (b"\xff\xfe", FORM, (400, "invalid-request", "form_malformed")),
        (b'{"undo_token":"abc"}', ("application/json",), UNDO),
        (b"{}", ("application/json",), (400, "missing_parameter", "undo_token_missing")),
        (b'{"undo_token":1}', ("application/json",), (400, "invalid-request", "undo_token_malformed")),
        (b'{"undo_token":"a","x":1}', ("application/json",), UNKNOWN),
        (b"{", ("application/json",), BROKEN),
        (b"undo_token=abc", ("text/plain",), WRONG_TYPE),
        (b"undo_token=abc", (), WRONG_TYPE),
    ],
)
async def test_an_undo_takes_its_own_token_and_nothing_else(
    place: RunningGateway, body: bytes, types: tuple[str, ...], refusal: Refusal
) -> None:
    """By the page's form or as JSON; it needs no key, so it tells no allowance."""
    wanted = (("Accept", "application/json"),)
    got = await exchange(
        place, RawRequest(body, target=API + "auth/undo", types=types, authorization=lambda _: [], more=wanted)
    )
    assert (got.status, got.error["code"], got.error["reason"]) == refusal
    assert "x-ratelimit-limit" not in got.headers


@pytest.mark.parametrize("target", ["auth/status", "unlink_twitter", "auth_twitter", "unlike_twitter"])
async def test_every_route_of_a_key_refuses_the_same_keys(place: RunningGateway, target: str) -> None:
    """None, garbage, unknown: 401 everywhere."""
    method = "GET" if target == "auth/status" else "POST"
    for form, refusal in (
        ((lambda _: []), MISSING),
        ((lambda _: ["Bearer x"]), MALFORMED),
        ((lambda _: [f"Bearer {mint('test')}"]), (401, "invalid_api_key", "key_unknown")),
    ):
        await judge(place, RawRequest(b"", method, API + target, (), form), refusal)
