"""The commands that act, manage keys and accounts, and check: what they print, and how they exit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import re
import shlex
import sqlite3
import stat
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from birdwire.api.errors import PROBLEMS
from birdwire.cli.command_line import COMMANDS, build, load
from birdwire.cli.commands.accounts import check_attempt
from birdwire.cli.commands.post import FIELDS, ROWS
from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.output import meaning, remedy
from birdwire.cli.stop import Stop
from birdwire.keys.rules import KeyRules
from birdwire.settings import PREFIX, Settings
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.post import PostTwitter
from harness.commands import Outcome
from harness.gateway import GRACE, PNG, POST, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.engines import Redis

ADA = "2244994945"
TRICKLE_S = 0.02
"""Pause of a slow peer between two bytes: far shorter than the client's deadline, which only the total exceeds."""
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = {
    "sandbox": ("proxy",),
    "mcp": ("setup",),
    "keys": ("create", "change", "list", "rotate", "revoke"),
    "accounts": ("link", "status", "confirm", "unlink", "list"),
    "vault": ("create", "status", "rotate"),
    "policy": ("show", "set", "unset", "test", "report"),
    "notify": ("set", "test", "show", "off", "rotate"),
    "approvals": ("list", "show", "approve", "deny", "edit", "cancel", "link", "watch"),
}
EVERY_COMMAND: list[tuple[str, ...]] = [
    *((row.name,) for row in COMMANDS if row.name not in FAMILIES or row.name == "sandbox"),
    *((family, name) for family, names in FAMILIES.items() for name in names),
]


async def run(*arguments: str, stdin: str | bytes | None = None, **environment: str | None) -> Outcome:
    """Run a command in a thread of this process, whose loop may be serving the gateway it talks to."""
    given: dict[str, str | None] = {"BIRDWIRE_URL": None, "BIRDWIRE_API_KEY": None, "COLUMNS": "120", "NO_COLOR": "1"}
    environment = {**given, **environment}
    result = await asyncio.to_thread(CliRunner().invoke, build(), list(arguments), stdin, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningGateway, dict[str, str]]]:
    """A gateway of this module, linked to ada, and the environment of a person at its machine."""
    async with RunningGateway.built(tmp_path_factory.mktemp("running"), rpm=1_000_000) as running:
        await running.link("ada")
        yield (
            running,
            {
                "BIRDWIRE_URL": running.settings.base_url,
                "BIRDWIRE_API_KEY": running.raw_key,
                "BIRDWIRE_DATABASE_URL": running.settings.database_url,
                "BIRDWIRE_X_API_URL": running.settings.x_api_url,
            },
        )


Operator = tuple[RunningGateway, dict[str, str]]


@contextlib.asynccontextmanager
async def gateway_that_answers(raw: bytes) -> AsyncIterator[str]:
    """Something on loopback that reads a request's head and answers these bytes, then closes; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# The commands that act.


@pytest.mark.parametrize(
    "target",
    [
        POST,
        f"https://x.com/grace/status/{POST}",
        f"https://x.com/grace/status/{POST}?s=20&t=abc#top",
        f"https://twitter.com/grace/status/{POST}",
        f"http://www.twitter.com/grace/statuses/{POST}/",
        f"https://mobile.twitter.com/grace/status/{POST}/photo/1",
        f"https://m.x.com/i/status/{POST}",
        f"https://X.com/i/web/status/{POST}",
        f"x.com/grace/status/{POST}",
    ],
)
async def test_a_post_may_be_named_by_its_id_or_any_of_its_addresses(operator: Operator, target: str) -> None:
    """Each likes the same post and says so in one line."""
    assert await run("like", target, **operator[1]) == Outcome(0, f"{POST}: liked\n", "")


@pytest.mark.parametrize(
    "target",
    [
        "first",
        "",
        "-5",
        "12345678901234567890",
        "١٢٣",
        f"{POST}\n",
        "https://x.com/grace",
        f"https://x.com.example.com/grace/status/{POST}",
        f"https://example.com/grace/status/{POST}",
        f"https://x.com@example.com/grace/status/{POST}",
        f"ftp://x.com/grace/status/{POST}",
        f"https://x.com/grace/status/{POST}/../1",
        "https://[x.com/grace/status/1",
    ],
)
async def test_an_invalid_reference_to_a_post_is_refused_before_anything_is_sent(target: str) -> None:
    """Exit 2, though no gateway runs and no key is set: a leading dash after -- is a value like any other."""
    outcome = await run("like", "--", target)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not a post's id or URL" in outcome.err


async def test_json_is_the_gateways_answer(operator: Operator) -> None:
    """The documented document, on one line, and nothing else."""
    liked = await run("like", POST, "--json", **operator[1])
    unliked = await run("unlike", POST, "--json", **operator[1])
    assert (liked.code, liked.document, liked.err) == (0, {"data": {"liked": True}}, "")
    assert (unliked.code, unliked.document, unliked.err) == (0, {"data": {"liked": False}}, "")
    assert (await run("unlike", POST, **operator[1])).out == f"{POST}: no longer liked\n"


async def test_a_refusal_states_the_reason_the_fix_and_the_request(operator: Operator) -> None:
    """On stderr for people; with --json the gateway's own document on stdout; exit 3."""
    outcome = await run("like", "404", "--json", **operator[1])
    error = outcome.document["error"]
    assert (outcome.code, error["reason"]) == (3, "tweet_not_found")
    assert outcome.err == f"Error: {error['message']}\nFix: {error['fix']}\nRequest: {error['request_id']}\n"


async def test_the_exit_code_shows_who_has_to_act(operator: Operator) -> None:
    """4 for the key, 3 for a missing link, 5 for a limit, 6 for X."""
    running, person = operator
    limited, limited_key = await running.gateway.keys.create("test", "limited", "free", 1)
    _, revoked_key = revoked = await running.gateway.keys.create("test", "revoked", "free")
    await running.gateway.keys.revoke(revoked[0].key_id)
    codes = [
        (await run("like", POST, **person | {"BIRDWIRE_API_KEY": key})).code
        for key in (revoked_key, limited_key, limited_key)
    ]
    assert (limited.rpm, codes) == (1, [4, 3, 5])
    _, unlinked_key = await running.gateway.keys.create("test", "unlinked", "free")
    assert (
        "Fix: Run `birdwire accounts link`"
        in (await run("like", POST, **person | {"BIRDWIRE_API_KEY": unlinked_key})).err
    )
    await running.fault("POST", "/2/users/*/likes", {"status": 503}, times=None)
    try:
        assert (await run("like", POST, **person)).code == 6
    finally:
        (await running.x.delete("/_sandbox/faults")).raise_for_status()


async def test_an_unreachable_gateway_is_reported_plainly() -> None:
    """Exit 6, and how to start one."""
    async with gateway_that_answers(b"") as url:
        pass
    outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert outcome.code == 6
    assert f"Cannot connect to a gateway at {url}" in outcome.err
    assert "birdwire dev" in outcome.err


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"nonsense\r\n\r\n"],
    ids=["closed", "half an answer", "no HTTP"],
)
async def test_an_answer_that_got_lost_is_an_unknown_outcome(raw: bytes) -> None:
    """The request was sent, so it may have taken effect: exit 7."""
    async with gateway_that_answers(raw) as url:
        outcome = await run("like", POST, "--json", BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (outcome.code, outcome.document["error"]["code"]) == (7, "unknown")


@pytest.mark.parametrize(("method", "code"), [("POST", 7), ("GET", 6)])
async def test_an_answer_that_trickles_ends_at_the_deadline(method: str, code: int) -> None:
    """One deadline for the whole exchange, not one for each read. A look-up whose answer is lost changed nothing."""

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not writer.is_closing():
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(TRICKLE_S)

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        gateway = GatewayClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", deadline_s=0.2)
        with pytest.raises(Stop) as stopped:
            await asyncio.to_thread(gateway.ask, method, "/")
    assert stopped.value.code == code


async def test_a_response_not_from_a_gateway_is_rejected() -> None:
    """Exit 6, without quoting the response."""
    raw = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nGo away!!"
    async with gateway_that_answers(raw) as url:
        outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert outcome.code == 6
    assert "answered with HTTP 404, but it is not a Birdwire gateway" in outcome.err
    assert "Go away" not in outcome.err


@pytest.mark.parametrize("arguments", [("like", POST), ("post", "hi"), ("user", "@a"), ("posts", "1"), ("search", "a")])
@pytest.mark.parametrize(
    "document", [b"{}", b'{"data":[1],"users":1}', b'{"data":{"tweets":[1],"id":{}},"users":[[]]}']
)
async def test_an_answer_of_another_shape_causes_no_crash(arguments: tuple[str, ...], document: bytes) -> None:
    """The status said that it went well, and that is believed."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(document), document)
    async with gateway_that_answers(raw) as url:
        assert (await run(*arguments, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")).code == 0


@pytest.mark.parametrize("arguments", [("follow", "@a"), ("upload", __file__)])
async def test_an_answer_without_the_required_id_is_reported(arguments: tuple[str, ...]) -> None:
    """Exit 6: the server is not a Birdwire gateway."""
    raw = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":{}}'
    async with gateway_that_answers(raw) as url:
        outcome = await run(*arguments, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (outcome.code, "but did not return an ID" in outcome.err) == (6, True)


async def test_a_gateways_message_cannot_control_the_terminal() -> None:
    """Escape sequences and line breaks in a message are shown as blanks, and brackets are not markup."""
    error = {"message": "\x1b[2Jbad\r\nnews [red]now[/red]", "fix": "\x9b31mhide", "request_id": "req_1"}
    body = json.dumps({"error": error}).encode()
    raw = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with gateway_that_answers(raw) as url:
        outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert outcome.err == "Error:  [2Jbad  news [red]now[/red]\nFix:  31mhide\nRequest: req_1\n"


@pytest.mark.parametrize(
    "url",
    [
        "http://birdwire.example.com",
        "http://10.0.0.1:8700",
        "ftp://127.0.0.1",
        "127.0.0.1:8700",
        "https://a@b.example.com",
        "https://b.example.com/x",
        "https://b.example.com:x",
    ],
)
async def test_a_key_is_never_sent_to_a_doubtful_address(url: str) -> None:
    """Plain HTTP to another machine, and anything but a plain base URL, is refused before a connection is made."""
    outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (outcome.code, outcome.out) == (2, "")
    assert "bw_test_x" not in outcome.err


async def test_the_key_may_come_from_a_file(operator: Operator, tmp_path: Path) -> None:
    """The file goes before the environment; a missing one is said."""
    running, person = operator
    file = tmp_path / "key"
    file.write_text(f"{running.raw_key}\n", "utf-8")
    elsewhere = person | {"BIRDWIRE_API_KEY": "bw_test_wrong"}
    assert (await run("like", POST, "--api-key-file", str(file), **elsewhere)).code == 0
    missing = await run("like", POST, "--api-key-file", str(tmp_path / "none"), **person)
    assert (missing.code, "Cannot read the API key file" in missing.err) == (2, True)


@pytest.mark.parametrize("key", ["", "two words", "bw_test_\u00e9", "a\nHost: b"])
async def test_without_a_usable_key_nothing_is_sent(key: str) -> None:
    """Exit 4; what was given is not repeated."""
    outcome = await run("like", POST, BIRDWIRE_API_KEY=key)
    assert outcome.code == 4
    assert not key or key not in outcome.err


@pytest.mark.parametrize(
    "user",
    [GRACE, "@grace", "grace", "https://x.com/grace", "https://www.twitter.com/GRACE/?s=20", "x.com/i/user/" + GRACE],
)
async def test_a_user_may_be_named_by_id_name_or_address(operator: Operator, user: str) -> None:
    """Each follows the same user; a name is looked up."""
    outcome = await run("follow", user, "--json", **operator[1])
    assert outcome.document == {"data": {"following": True, "pending_follow": False}}
    assert (await run("unfollow", user, **operator[1])).out.endswith("no longer following\n")
    follows = (await operator[0].state())["follows"]
    assert not [one for one in follows if one["target_user_id"] == GRACE and one["source_user_id"] == ADA]


async def test_a_protected_user_has_yet_to_accept(operator: Operator) -> None:
    """People read who it is and what holds now."""
    outcome = await run("follow", "@pat", **operator[1])
    assert (outcome.code, outcome.out) == (0, "@pat (2244994948): pending follow\n")


@pytest.mark.parametrize(
    "user",
    [
        "",
        "@",
        "two words",
        "a" * 16,
        "x.com",
        "https://x.com/home",
        "https://x.com/i/lists",
        f"https://x.com/grace/status/{POST}",
        "https://x.com.example.com/grace",
        "grace@example.com",
    ],
)
async def test_an_invalid_reference_to_a_user_is_refused_before_anything_is_sent(user: str) -> None:
    """Exit 2, though no gateway runs and no key is set."""
    outcome = await run("follow", "--", user)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not a user's id, @username or profile URL" in outcome.err


async def test_a_gateway_without_look_ups_requires_an_id(tmp_path: Path) -> None:
    """Its operator switched look-ups off; the refusal says what works."""
    async with RunningGateway.built(tmp_path, reads="") as running:
        person = {"BIRDWIRE_URL": running.settings.base_url, "BIRDWIRE_API_KEY": running.raw_key}
        outcome = await run("follow", "@grace", **person)
    assert (outcome.code, outcome.out) == (3, "")
    assert "the id of @grace is unknown" in outcome.err
    assert "Fix: Use the user's ID instead." in outcome.err


@pytest.mark.parametrize(
    ("command", "undo", "word"), [("retweet", "unretweet", "retweeted"), ("bookmark", "unbookmark", "bookmarked")]
)
async def test_what_is_done_can_be_undone(operator: Operator, command: str, undo: str, word: str) -> None:
    """Reposts and bookmarks."""
    assert (await run(command, POST, **operator[1])).out == f"{POST}: {word}\n"
    assert (await run(undo, POST, **operator[1])).out == f"{POST}: no longer {word}\n"


# Posts and media.


async def test_a_post_prints_its_id_for_the_next_to_reply_to(operator: Operator) -> None:
    """The id alone is on stdout, and what X stored on stderr. The post can be deleted."""
    running, person = operator
    first = await run("post", "One. Rock & roll", **person)
    assert first.err == "Posted. Text as stored by X: One. Rock & roll\n"
    second = (
        await run("post", "Two", "--reply-to", f"https://x.com/ada/status/{first.out.strip()}", "--json", **person)
    ).document
    assert (await running.post_of(second["data"]["id"]))["in_reply_to_tweet_id"] == first.out.strip()
    deleted = await run("delete", first.out.strip(), **person)
    assert (deleted.code, deleted.out) == (0, f"{first.out.strip()}: deleted\n")


async def test_options_become_the_body_of_the_post(operator: Operator) -> None:
    """Poll, quote and flags, as X got them."""
    running, person = operator
    asked = await run(
        "post", "Tea?", "--poll", "Yes | No", "--poll-minutes", "60", "--made-with-ai", "--json", **person
    )
    assert (await running.post_of(asked.document["data"]["id"]))["poll"]["options"] == ["Yes", "No"]
    quoted = await run(
        "post", "--quote", f"x.com/grace/status/{POST}", "--reply-settings", "mentionedUsers", "--json", **person
    )
    assert (await running.post_of(quoted.document["data"]["id"]))["quote_tweet_id"] == POST


async def test_the_text_may_come_from_stdin(operator: Operator) -> None:
    """As it is, but for the line end that a shell adds."""
    outcome = await run("post", "-", "--json", stdin="Line one\nLine two, — the last\n", **operator[1])
    assert outcome.document["data"]["text"] == "Line one\nLine two, — the last"
    for wrong in (b"\xff\n", b"a" * 70_000):
        assert (await run("post", "-", stdin=wrong, **operator[1])).code == 2


async def test_files_are_uploaded_and_attached(operator: Operator, tmp_path: Path) -> None:
    """By the post itself or beforehand; the ids are printed."""
    running, person = operator
    file = tmp_path / "dot.png"
    file.write_bytes(PNG)
    uploaded = (await run("upload", str(file), **person)).out.strip()
    users = ("--tag", "@grace", "--tag", ADA)
    outcome = await run("post", "Dots", "--media", str(file), "--media-id", uploaded, *users, "--json", **person)
    assert outcome.code == 0, outcome.err
    media_ids = (await running.post_of(outcome.document["data"]["id"]))["media_ids"]
    assert (media_ids[0], len(media_ids)) == (uploaded, 2)
    assert f"dot.png as {media_ids[1]}" in outcome.err


async def test_a_file_that_x_does_not_take_is_refused(operator: Operator, tmp_path: Path) -> None:
    """By the gateway, in one sentence: before X is asked for anything."""
    running, person = operator
    file = tmp_path / "notes.txt"
    file.write_text("words", "utf-8")
    before = await running.calls("/2/media")
    outcome = await run("upload", str(file), "--json", **person)
    assert (outcome.code, outcome.document["error"]["reason"]) == (3, "media_files_malformed")
    assert await running.calls("/2/media") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Send text, media, a poll, a quote or a card."),
        (("hi", "--poll", "Yes|No"), "duration_minutes"),
        (("hi", "--poll", "Yes", "--poll-minutes", "60"), "options"),
        (("hi", "--poll", "A|B", "--poll-minutes", "60", "--quote", POST), "poll"),
        (("hi", "--reply-to", "grace"), "not a post's id or URL"),
        (("hi", "--media-id", POST, "--tag", "a b"), "not a user's id"),
        (("hi", "--community", "birds"), "community_id"),
        (("hi", "--reply-settings", "nobody"), "nobody"),
        (("hi", "--media", "nowhere.png"), "nowhere.png"),
        (("hi", "--idempotency-key", "caf\u00e9"), "printable ASCII"),
    ],
)
async def test_a_post_that_cannot_be_is_refused_before_anything_is_sent(arguments: tuple[str, ...], words: str) -> None:
    """Exit 2, though no gateway runs and no key is set."""
    outcome = await run("post", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err


async def test_a_lost_post_states_how_to_retry_without_posting_twice(operator: Operator) -> None:
    """Exit 7; under the same name it is not sent again, and the journal tells what is known."""
    running, person = operator
    await running.fault("POST", "/2/tweets", {"drop": "after_apply"})
    before = len(await running.calls("/2/tweets", method="POST"))
    lost = await run("post", "Lost?", **person)
    name = lost.err.split("--idempotency-key ")[1].split(":")[0]
    again = await run("post", "Lost?", "--idempotency-key", name, **person)
    assert (lost.code, again.code) in {(7, 7), (7, 0)}
    assert len(await running.calls("/2/tweets", method="POST")) == before + 1
    request_id = lost.err.rsplit("Request: ", 1)[1].strip()
    told = await run("explain", request_id, "--json", **person)
    assert (told.code, told.document["operation"]) == (0, "post_twitter")
    assert told.document["state"] in {"unknown", "found"}
    async with asyncio.timeout(20):
        while told.document["state"] != "found":  # the gateway may be at a look of its own, which a round leaves to it
            running.clock.advance(seconds=3)
            await running.gateway.reconciler.round()
            told = await run("explain", request_id, "--json", **person)
    explained = await run("explain", request_id, **person)
    assert "the post is in the account's timeline" in explained.out
    assert "text: Lost?" in explained.out
    assert "$0.015" in explained.out


async def test_the_log_shows_requests_without_post_text(operator: Operator) -> None:
    """Of every key, newest first; by key, kind, state and age."""
    running, person = operator
    await run("post", "Words that are nobody's business", **person)
    await run("like", "404", **person)
    listed = (await run("log", "--limit", "2", "--json", **person)).document["requests"]
    assert [(row["operation"], row["state"]) for row in listed] == [
        ("like_twitter", "refused"),
        ("post_twitter", "confirmed"),
    ]
    assert (listed[0]["key_id"], listed[0]["about"], listed[0]["reason"]) == (running.key_id, "404", "tweet_not_found")
    assert listed[1]["cost_usd"] == 0.015
    text = await run("log", **person)
    assert listed[0]["request_id"] in text.out
    assert text.out.splitlines()[2].endswith("  0.015")
    assert "business" not in text.out + json.dumps(listed)
    for given, found in (("like", "like_twitter"), ("post", "post_twitter")):
        rows = (await run("log", "--operation", given, "--json", **person)).document["requests"]
        assert {row["operation"] for row in rows} == {found}
    narrowed = ("--state", "refused", "--since", "1h", "--key", running.key_id)
    assert (await run("log", *narrowed, "--json", **person)).document["requests"][0] == listed[0]
    assert "No writes match these filters." in (await run("log", "--key", "key_none", **person)).out


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (("--state", "lost"), "'lost'"),
        (
            ("--since", "yesterday"),
            "'yesterday' is not a valid time.\nFix: Use an age such as 24h or 7d, or a time such as 2026-09-22T10:00Z.",
        ),
        (("--operation", "shout"), "'shout'"),
    ],
)
async def test_the_log_names_what_it_accepts(operator: Operator, wrong: tuple[str, str], advice: str) -> None:
    """Exit 2, with the values that would do."""
    outcome = await run("log", *wrong, **operator[1])
    assert (outcome.code, outcome.out) == (2, "")
    assert advice in outcome.err


async def test_explain_covers_birdwires_own_refusals(tmp_path: Path) -> None:
    """The id that the command line shows with any such refusal: of a write, a look-up, a link, or the key's limit."""
    async with RunningGateway.built(tmp_path, rpm=11) as running:
        person = {"BIRDWIRE_URL": running.settings.base_url, "BIRDWIRE_API_KEY": running.raw_key}
        _, other = await running.gateway.keys.create("test", "other", "free")
        unlinked = await run("like", POST, **person)
        request_id = unlinked.err.rsplit("Request: ", 1)[1].strip()
        told = await run("explain", request_id, "--json", **person)
        explained = await run("explain", request_id, **person)
        looked = await run("user", "grace", **person)
        foreign = await run("explain", request_id, **person | {"BIRDWIRE_API_KEY": other})
        also = await run("explain", looked.err.rsplit("Request: ", 1)[1].strip(), "--json", **person)
        while (limited := await run("like", POST, **person)).code != 5:
            pass
        running.clock.advance(seconds=61)
        limit = await run("explain", limited.err.rsplit("Request: ", 1)[1].strip(), **person)
    assert (told.document["operation"], told.document["state"]) == ("like_twitter", "not_sent")
    assert (told.document["status"], told.document["reason"]) == (403, "x_not_linked")
    assert "No X account is linked to this API key." in explained.out
    assert explained.out.splitlines()[-1].endswith("have the account's owner open the auth_url.")
    assert (foreign.code, "in the gateway's log by this ID" in foreign.err) == (3, True)
    assert (also.document["operation"], also.document["state"]) == ("user/info", "not_sent")
    assert "This key has used up its calls per minute." in limit.out
    assert "X bills" not in limit.out


async def test_explanations_of_reasons_contain_no_placeholders() -> None:
    """A sentence that only the refusal itself could fill is left out; the cause always stands there, or its name."""
    for reason in PROBLEMS:
        assert not re.search(r"…|\x00|[{}]", meaning(reason) + remedy(reason)), reason
        assert meaning(reason).endswith("."), reason
    assert meaning("unsupported_media_type") == "unsupported_media_type."
    assert remedy("unknown_field") == "Remove it."


async def test_explain_knows_only_what_it_can(operator: Operator) -> None:
    """A malformed id is not sent; a request of another key is not found."""
    assert [(await run("explain", one, **operator[1])).code for one in ("../livez", "req_none")] == [2, 3]


async def test_a_refusal_sent_before_the_upload_ends_is_received(tmp_path: Path) -> None:
    """A gateway that answers before it has read everything is not an unknown outcome."""
    file = tmp_path / "large.png"
    file.write_bytes(PNG + bytes(16 << 20))
    body = b'{"error":{"code":"missing_api_key","message":"No.","fix":"","request_id":"req_1"}}'
    raw = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with gateway_that_answers(raw) as url:
        outcome = await run("upload", str(file), BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (outcome.code, outcome.err) == (4, "Error: No.\nRequest: req_1\n")


# Dry runs.


def would(outcome: str, **more: Any) -> bytes:
    """A gateway's answer to a dry run."""
    refusal = {"reason": "policy_denied", "message": "Links are not allowed.", "fix": "Change it.", "retryable": False}
    finding = {"rule": "links", "outcome": "deny", "scope": "key_1", "version": 3, "message": "\x1b[2Ja link"}
    verdict = {"outcome": outcome, "refusals": [], "findings": [], "cost_usd": 0.2, "listed_on": "2026-08-22"} | more
    if outcome == "deny":
        verdict |= {"refusals": [refusal], "findings": [finding]}
    body = json.dumps({"would": verdict}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(("outcome", "code"), [("allow", 0), ("deny", 3), ("require_approval", 8), ("other", 6)])
@pytest.mark.parametrize("command", [("like", POST), ("delete", POST), ("post", "hi"), ("upload", __file__)])
@pytest.mark.trust("#306")
async def test_a_dry_runs_verdict_is_its_exit_code(command: tuple[str, ...], outcome: str, code: int) -> None:
    """With --json the gateway's document is printed unchanged."""
    async with gateway_that_answers(would(outcome)) as url:
        done = await run(*command, "--dry-run", "--json", BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (done.code, done.document["would"]["outcome"]) == (code, outcome)


async def test_a_dry_run_shows_refusals_findings_cost_and_warnings() -> None:
    """One line each, and no finding can control the terminal."""
    async with gateway_that_answers(would("deny", warnings=["X may bill it."])) as url:
        done = await run("like", POST, "--dry-run", BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert done.out.splitlines() == [
        "Birdwire would refuse this call.",
        "- Links are not allowed. Change it.",
        "- links of key_1, version 3 (deny):  [2Ja link",
        "Estimated cost at X: $0.200, by X's list of 2026-08-22.",
        "Note: X may bill it.",
    ]
    async with gateway_that_answers(would("allow", cost_usd=None)) as url:
        free = await run("like", POST, "--dry-run", BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert free.out == "Birdwire would send this call to X.\nX's price list has no price for this call.\n"


async def test_a_dry_run_at_a_gateway_sends_nothing_to_x(operator: Operator, tmp_path: Path) -> None:
    """Whatever the command is; a file is inspected, too, and the same call succeeds right after."""
    running, person = operator
    file = tmp_path / "dot.png"
    file.write_bytes(PNG)
    wrong = tmp_path / "notes.txt"
    wrong.write_text("words", "utf-8")
    before = len(await running.calls())
    tried = [("like", POST), ("post", "Not yet", "--media", str(file)), ("upload", str(file)), ("delete", POST)]
    assert [(await run(*one, "--dry-run", **person)).code for one in tried] == [0, 0, 0, 0]
    assert (await run("upload", str(wrong), "--dry-run", **person)).code == 3
    assert (await run("post", "No", "--media", str(wrong), "--dry-run", **person)).code == 3
    assert len(await running.calls()) == before
    assert (await run("like", POST, **person)).code == 0


@pytest.mark.parametrize("command", [("follow", "@grace"), ("post", "hi", "--reply-to", POST, "--exclude", "@grace")])
@pytest.mark.trust("#306")
async def test_a_dry_run_looks_up_no_username(command: tuple[str, ...]) -> None:
    """X would bill it; so this is refused before the gateway is asked."""
    done = await run(*command, "--dry-run", BIRDWIRE_API_KEY="bw_test_x")
    assert (done.code, "Use the user's ID instead." in done.err) == (2, True)


async def test_a_dry_run_of_a_post_stops_at_a_file_that_would_be_refused(tmp_path: Path) -> None:
    """The verdict on the file is the verdict on the post."""
    async with gateway_that_answers(would("deny")) as url:
        file = tmp_path / "dot.png"
        file.write_bytes(PNG)
        done = await run(
            "post", "hi", "--media", str(file), "--dry-run", BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x"
        )
    assert (done.code, done.out.splitlines()[0]) == (3, "Birdwire would refuse this call.")


# Look-ups.


async def test_look_ups_print_users_and_posts(operator: Operator) -> None:
    """A user, their posts, and a search for users."""
    person = operator[1]
    assert (await run("user", "@grace", **person)).out.startswith(f"@grace\nGrace\n{GRACE}\n")
    posts = await run("posts", "grace", **person)
    assert posts.out.splitlines()[0].split() == ["ID", "CREATED_AT", "TEXT"]
    assert POST in posts.out
    assert (await run("search", "gra", **person)).out.splitlines()[1].split() == [GRACE, "grace", "Grace"]
    assert (await run("search", "zzz", **person)).out == "No users were found.\n"


async def test_look_ups_in_json_are_the_gateways_answers(operator: Operator) -> None:
    """In the published shapes; an id serves for posts."""
    person = operator[1]
    assert (await run("user", "x.com/grace", "--json", **person)).document["data"]["id"] == GRACE
    timeline = (await run("posts", GRACE, "--json", **person)).document
    assert (timeline["status"], timeline["has_next_page"]) == ("success", False)
    assert (await run("search", "gra", "--json", **person)).document["users"][0]["screen_name"] == "grace"
    gone = await run("user", "@nobody", "--json", **person)
    assert (gone.code, gone.document["error"]["reason"]) == (3, "user_not_found")
    assert (await run("user", GRACE, **person)).code == 2


# Keys.


async def test_keys_are_made_rotated_and_revoked_alongside_a_running_gateway(operator: Operator) -> None:
    """Each holds from the gateway's very next answer on; the vault key is not needed."""
    running, person = operator
    made = (
        await run("keys", "create", "--label", "agent", "--tier", "starter", "--rpm", "90", "--json", **person)
    ).document
    assert list(made) == ["key_id", "api_key", "label", "tier", "rpm"]
    assert (made["label"], made["tier"], made["rpm"], made["api_key"][:8]) == ("agent", "starter", 90, "bw_test_")

    async def asked(raw_key: str) -> str:
        answer = await running.bare.get("/apis/v1/twitter/auth/status", headers={"authorization": f"Bearer {raw_key}"})
        return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

    assert await asked(made["api_key"]) == "ok"
    rotated = (await run("keys", "rotate", made["key_id"], "--json", **person)).document
    assert (rotated["key_id"], rotated["old_key_works_s"]) == (made["key_id"], 86_400)
    assert [await asked(made["api_key"]), await asked(rotated["api_key"])] == ["ok", "ok"]
    again = (await run("keys", "rotate", made["key_id"], "--overlap", "0", "--json", **person)).document
    assert [await asked(key["api_key"]) for key in (made, rotated, again)] == [
        "revoked_api_key",
        "revoked_api_key",
        "ok",
    ]
    revoked = await run("keys", "revoke", made["key_id"], "--json", **person)
    assert (revoked.code, revoked.document["key_id"]) == (0, made["key_id"])
    assert await asked(again["api_key"]) == "revoked_api_key"


RULED = (
    *("--actions", "like,unlike_twitter, upload,user/info", "--ips", "127.0.0.0/8,2001:db8::/32"),
    *("--return-to", "https://app.example/done", "--daily-writes", "1", "--text-limit", "4000", "--expires-in", "3600"),
    *("--account", "@ada"),
)


async def test_a_key_may_be_given_rules(operator: Operator) -> None:
    """The gateway keeps them, the list shows them, and the document of a new key stays as documented."""
    person = operator[1]
    made = (await run("keys", "create", "--label", "ruled", *RULED, "--json", **person)).document
    assert list(made) == ["key_id", "api_key", "label", "tier", "rpm"]
    refused = await run("retweet", POST, "--json", **person | {"BIRDWIRE_API_KEY": made["api_key"]})
    assert refused.document["error"]["reason"] == "key_not_allowed"
    [row] = [
        row
        for row in (await run("keys", "list", "--json", **person)).document["keys"]
        if row["key_id"] == made["key_id"]
    ]
    rules = row["rules"]
    created_at, expires_at = (datetime.fromisoformat(at) for at in (row["created_at"], rules.pop("expires_at")))
    assert timedelta(seconds=3590) < expires_at - created_at < timedelta(seconds=3610)
    assert rules == {
        "actions": ["like_twitter", "unlike_twitter", "upload_media", "user/info"],
        "ips": ["127.0.0.0/8", "2001:db8::/32"],
        "return_to": ["https://app.example/done"],
        "daily_writes": 1,
        "text_limit": 4000,
        "account_username": "ada",
        "account_user_id": None,
    }
    text = (await run("keys", "list", **person)).out
    assert "only like_twitter, unlike_twitter, upload_media, user/info; from 127.0.0.0/8" in text
    assert "as @ada only" in text


async def test_a_keys_rules_can_be_changed_alongside_a_running_gateway(operator: Operator) -> None:
    """A rule applies from the next answer on; other rules stay; a lifted rule no longer applies."""
    running, person = operator
    made = (await run("keys", "create", "--label", "agent", "--json", *RULED, **person)).document
    mine = {"authorization": f"Bearer {made['api_key']}"}

    async def limit() -> str:
        return str((await running.bare.get("/apis/v1/twitter/auth/status", headers=mine)).headers["x-ratelimit-limit"])

    assert await limit() == "60"
    change = ("keys", "change", made["key_id"])
    told = ("--label", "renamed", "--tier", "growth", "--rpm", "7", "--actions", "retweet")
    changed = (await run(*change, *told, "--lift", "ips,daily-writes", "--json", **person)).document
    assert (changed["label"], changed["tier"], changed["rpm"]) == ("renamed", "growth", 7)
    rules = changed["rules"]
    assert (rules["actions"], rules["ips"], rules["daily_writes"]) == (["retweet_twitter"], [], None)
    assert (rules["return_to"], rules["text_limit"]) == (["https://app.example/done"], 4000)
    assert await limit() == "7"
    refused = await run("like", POST, "--json", **person | {"BIRDWIRE_API_KEY": made["api_key"]})
    assert refused.document["error"]["reason"] == "key_not_allowed"
    text = await run(*change, "--lift", "rpm,actions,return-to,text-limit,expires-in,account", **person)
    assert text.out == f"{made['key_id']}: 3000 calls per minute.\n"
    assert await limit() == "3000"


async def test_a_new_key_is_alone_on_stdout(operator: Operator) -> None:
    """A script can capture it; the notes for people are on stderr."""
    outcome = await run("keys", "create", "--label", "agent", **operator[1])
    assert outcome.out.startswith("bw_test_")
    assert outcome.out.count("\n") == 1
    assert "will not be shown again" in outcome.err
    assert "The key is stored in the database " in outcome.err
    assert "just created" not in outcome.err


async def test_creating_a_key_in_a_new_database_reports_its_path(tmp_path: Path) -> None:
    """Without settings the database is made in the folder, and no gateway knows the key."""
    url = f"sqlite:///{tmp_path}/birdwire.db"
    outcome = await run("keys", "create", "--label", "early", BIRDWIRE_DATABASE_URL=url)
    assert (
        f"The key is stored in the database {tmp_path}/birdwire.db, which was just created. Only a gateway"
        in outcome.err
    )


async def test_a_rule_is_lifted_by_the_name_that_the_log_shows(operator: Operator) -> None:
    """As well as by its option's."""
    person = operator[1]
    made = (await run("keys", "create", "--label", "agent", *RULED, "--json", **person)).document
    lifted = ("--lift", "daily_writes,expires_at,account_username")
    rules = (await run("keys", "change", made["key_id"], *lifted, "--json", **person)).document["rules"]
    assert [rules[name] for name in ("daily_writes", "expires_at", "account_username")] == [None] * 3
    unknown = await run("keys", "change", made["key_id"], "--lift", "label", **person)
    assert "--lift: label is not one of rpm, expires-in, actions" in unknown.err


async def test_a_network_is_kept_without_the_bits_of_a_host(operator: Operator) -> None:
    """It is shown as it is compared; an address stays one."""
    person = operator[1]
    made = (await run("keys", "create", "--label", "n", "--ips", "127.0.0.1/8,::1", "--json", **person)).document
    rows = (await run("keys", "list", "--json", **person)).document["keys"]
    assert [row["rules"]["ips"] for row in rows if row["key_id"] == made["key_id"]] == [["127.0.0.0/8", "::1"]]


async def test_a_custom_key_without_a_limit_is_named_so(operator: Operator) -> None:
    """Not as one of another tier."""
    outcome = await run("keys", "create", "--label", "x", "--tier", "custom", **operator[1])
    assert "Error: A key of the tier custom requires its own limit (--rpm)." in outcome.err


async def test_a_key_that_is_malformed_is_looked_for_where_the_command_line_takes_it(operator: Operator) -> None:
    """A person at a terminal sends no header."""
    outcome = await run("like", POST, **operator[1] | {"BIRDWIRE_API_KEY": "bw_test_short"})
    assert (outcome.code, "Fix: Check BIRDWIRE_API_KEY" in outcome.err, "Bearer" in outcome.err) == (4, True, False)


async def test_the_list_of_keys_shows_no_key(operator: Operator) -> None:
    """Only its last four characters."""
    running, person = operator
    listed = await run("keys", "list", "--json", **person)
    mine = next(key for key in listed.document["keys"] if key["key_id"] == running.key_id)
    assert (mine["label"], mine["mode"], mine["hint"], mine["revoked_at"]) == (
        "test key",
        "test",
        running.raw_key[-4:],
        None,
    )
    text = await run("keys", "list", **person)
    assert running.key_id in text.out
    assert running.raw_key not in listed.out + text.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("create",),
        ("create", "--label", ""),
        ("create", "--label", "a\nb"),
        ("create", "--label", "x", "--tier", "gold"),
        ("create", "--label", "x", "--tier", "custom"),
        ("create", "--label", "x", "--rpm", "0"),
        ("create", "--label", "x", "--actions", ""),
        ("create", "--label", "x", "--actions", "like,,post"),
        ("create", "--label", "x", "--actions", "dance"),
        ("create", "--label", "x", "--ips", ""),
        ("create", "--label", "x", "--ips", "here"),
        ("create", "--label", "x", "--return-to", ""),
        ("create", "--label", "x", "--return-to", "http://app.example"),
        ("create", "--label", "x", "--daily-writes", "0"),
        ("create", "--label", "x", "--text-limit", "25001"),
        ("create", "--label", "x", "--expires-in", "0"),
        ("create", "--label", "x", "--account", ""),
        ("create", "--label", "x", "--account", "@@ada"),
        ("change", "key_none", "--rpm", "5"),
        ("change", "key_none"),
        ("change", "key_none", "--lift", "label"),
        ("change", "key_none", "--lift", "rpm", "--rpm", "5"),
        ("change", "key_none", "--lift", "account", "--account", "ada"),
        ("change", "key_none", "--lift", ""),
        ("rotate", "key_none"),
        ("rotate", "key_none", "--overlap", "86401"),
        ("revoke", "key_none"),
        ("list", "--data", "nowhere"),
        ("list", "--config", "nowhere.toml"),
    ],
)
async def test_what_cannot_be_asked_of_keys_is_a_usage_error(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Exit 2, nothing on stdout, no traceback."""
    outcome = await run("keys", *arguments, **operator[1])
    assert (outcome.code, outcome.out) == (2, "")
    assert "Error" in outcome.err
    assert "Traceback" not in outcome.err


async def test_all_problems_of_the_settings_are_reported_together(tmp_path: Path) -> None:
    """Not one at a time."""
    database = f"mysql://{tmp_path}"
    outcome = await run("keys", "list", BIRDWIRE_PORT="many", BIRDWIRE_PROT="1", BIRDWIRE_DATABASE_URL=database)
    assert outcome.code == 2
    assert [line[:14] for line in outcome.err.splitlines() if line.startswith("- ")] == [
        "- BIRDWIRE_POR",
        "- BIRDWIRE_PRO",
        "- database_url",
    ]
    assert "BIRDWIRE_PROT is not a setting; did you mean BIRDWIRE_PORT?" in outcome.err
    nowhere = await run("check", "--config", str(tmp_path / "none.toml"))
    assert (nowhere.code, "cannot be read: No such file or directory." in nowhere.err) == (2, True)


# Accounts.


async def test_accounts_are_linked_looked_at_and_unlinked(operator: Operator) -> None:
    """Over HTTP with the key alone; the operator's list comes from the database."""
    running, person = operator
    key, raw_key = await running.gateway.keys.create("test", "theirs", "free")
    theirs = person | {"BIRDWIRE_API_KEY": raw_key}
    assert "No X account is linked" in (await run("accounts", "status", **theirs)).out
    begun = (await run("accounts", "link", "--expect", "alan", "--json", **theirs)).document
    assert list(begun) == ["auth_url", "state", "expires_at"]
    await approve(running, begun["auth_url"], "alan")
    assert (await run("accounts", "status", **theirs)).out.splitlines()[0] == "This key acts as @alan."
    listed = (await run("accounts", "list", "--json", **theirs)).document["accounts"]
    mine = next(row for row in listed if row["key_id"] == key.key_id)
    assert (mine["label"], mine["username"], mine["state"]) == ("theirs", "alan", "active")
    times = {"access_expires_at", "refreshed_at", "linked_at"}
    assert set(mine) == {"key_id", "label", "user_id", "username", "state", "why", "generation", *times}
    assert (await run("accounts", "unlink", "--json", **theirs)).document == {"data": {"linked": False}}
    assert (await run("accounts", "status", "--json", **theirs)).document["linked"] is False


async def test_the_status_of_an_account_reads_as_sentences(tmp_path: Path) -> None:
    """Not renewed yet; then to be linked again, with the reason."""
    async with RunningGateway.built(tmp_path) as running:
        await running.link("ada")
        person = {"BIRDWIRE_URL": running.settings.base_url, "BIRDWIRE_API_KEY": running.raw_key}
        fresh = (await run("accounts", "status", **person)).out.splitlines()
        assert fresh[0] == "This key acts as @ada."
        assert fresh[2].startswith("Not renewed yet; the next renewal is due at ")
        await running.x.post(f"/_sandbox/users/{(await running.status())['user_id']}/revoke_app")
        await running.like()
        over = (await run("accounts", "status", **person)).out.splitlines()
        assert over[0] == "@ada must be linked again: X refused to renew the tokens."
        assert over[2] == "Not renewed yet; no renewal is planned."


async def test_the_status_shows_what_x_recently_allowed_and_refused(tmp_path: Path) -> None:
    """The key's holder over HTTP, the operator from the database."""
    async with RunningGateway.built(tmp_path) as running:
        await running.link("ada")
        await running.configure(tier="self_serve_2026_04", tier_refusal="client-not-enrolled")
        assert [
            (await running.like()).status_code,
            (await running.call("unlike_twitter", {"tweet_id": POST})).status_code,
        ] == [403, 200]
        person = {
            "BIRDWIRE_URL": running.settings.base_url,
            "BIRDWIRE_API_KEY": running.raw_key,
            "BIRDWIRE_DATABASE_URL": running.settings.database_url,
            "BIRDWIRE_X_API_URL": running.settings.x_api_url,
            "BIRDWIRE_X_CLIENT_ID": running.settings.x_client_id,
            "BIRDWIRE_X_CLIENT_SECRET": running.sandbox.state.clients.client_secret,
            "BIRDWIRE_VAULT_KEY_FILE": str(running.settings.vault_key_file),
        }
        status = await run("accounts", "status", **person)
        checked = await run("check", "--live", **person)
        found = (await run("check", "--live", "--json", **person)).document
    assert re.search(r"^X refuses like_twitter: X .+\.$", status.out, re.MULTILINE)
    assert "\nX allows unlike_twitter.\n" in status.out
    assert (
        f"ok: X is reachable at {running.settings.x_api_url}\nok: X accepts the client ID and secret\n" in checked.out
    )
    assert re.search(r"^X refused like_twitter, most recently at \S+Z: X .+\.$", checked.out, re.MULTILINE)
    assert re.search(r"^X allowed unlike_twitter, most recently at \S+Z$", checked.out, re.MULTILINE)
    assert [(one["operation"], one["allowed"]) for one in found["capabilities"]] == [
        ("like_twitter", False),
        ("unlike_twitter", True),
    ]


def settings_of(running: RunningGateway) -> dict[str, str]:
    """A gateway's settings as its operator's environment has them, without the API key and the client secret."""
    names = ("public_url", "database_url", "vault_key_file", "x_client_id", "x_api_url", "x_authorize_url")
    return {f"BIRDWIRE_{name.upper()}": str(getattr(running.settings, name)) for name in names}


async def approve(running: RunningGateway, auth_url: str, username: str) -> None:
    """Approve a page as a user of the sandbox, and come back to the gateway."""
    decision = {"auth_url": auth_url, "username": username, "action": "allow"}
    redirect_to = (await running.x.post("/_sandbox/consent", json=decision)).raise_for_status().json()["redirect_to"]
    (await running.bare.get(redirect_to)).raise_for_status()


async def test_the_readme_s_narrow_key_is_linked_by_the_readme_s_command(operator: Operator, tmp_path: Path) -> None:
    """Steps 7 and 8 of going live, as they stand: the operator needs neither the key's secret nor its actions."""
    running = operator[0]
    config = tmp_path / "birdwire.toml"
    settings = settings_of(running)
    lines = [f'{name.removeprefix("BIRDWIRE_").lower()} = "{value}"' for name, value in settings.items()]
    config.write_text("\n".join(lines))
    commands = re.findall(r"^ +birdwire ((?:keys create|accounts link) .+)$", README, re.MULTILINE)
    real = {"/etc/birdwire/birdwire.toml": str(config), "@HANDLE": "@ada"}

    async def follow(command: str) -> Any:
        words = [real.get(word, word) for word in shlex.split(command)]
        return (await run(*words, "--json")).document

    create, link = commands
    made = await follow(create)
    real["KEY_ID"] = made["key_id"]
    begun = await follow(link)
    assert list(begun) == ["auth_url", "state", "expires_at"]
    await approve(running, begun["auth_url"], "ada")
    assert (await run("like", POST, **operator[1] | {"BIRDWIRE_API_KEY": made["api_key"]})).code == 0
    refused = await run("accounts", "unlink", "--json", **operator[1] | {"BIRDWIRE_API_KEY": made["api_key"]})
    assert refused.document["error"]["reason"] == "key_not_allowed"


async def test_a_link_for_a_key_reports_why_it_failed(operator: Operator, tmp_path: Path) -> None:
    """Before anything is stored: a key that cannot be used here, what its rules say, and settings that are missing."""
    running, settings = operator[0], settings_of(operator[0])
    keys = running.gateway.keys
    made = [
        (await keys.create("test", "pinned", rules=KeyRules(account_username="ada", actions=("like_twitter",))))[0],
        (await keys.create("test", "revoked"))[0],
        (await keys.create("live", "live"))[0],
        (await keys.create("test", "likes", rules=KeyRules(actions=("like_twitter",))))[0],
    ]
    pinned, revoked, live, likes = (key.key_id for key in made)
    await keys.revoke(revoked)
    assert (await run("vault", "create", str(tmp_path / "other.key"))).code == 0
    for code, words, arguments, changes in (
        (2, "There is no key key_none", ("key_none",), {}),
        (3, "revoked", (revoked,), {}),
        (3, "bw_live_", (live,), {}),
        (3, "expects @ada", (pinned, "--expect", "@grace"), {}),
        (3, "does not request the scope dm.read from X", (pinned, "--scopes", "like.write,dm.read"), {}),
        (3, "tweet.write", (pinned, "--scopes", "tweet.write"), {}),
        (3, "return_to", (pinned, "--return-to", "https://app.example"), {}),
        (3, "expected_username", (pinned, "--expect", "ada lovelace"), {}),
        (2, "BIRDWIRE_X_CLIENT_ID", (pinned,), {"BIRDWIRE_X_CLIENT_ID": ""}),
        (2, "callback URL", (pinned,), {"BIRDWIRE_PUBLIC_URL": "", "BIRDWIRE_PORT": "0"}),
        (2, "vault key", (pinned,), {"BIRDWIRE_VAULT_KEY_FILE": str(tmp_path / "other.key")}),
        (2, "none.db does not exist", (pinned,), {"BIRDWIRE_DATABASE_URL": f"sqlite:///{tmp_path}/none.db"}),
        (2, "mutually exclusive", (pinned, "--api-key-file", "file"), {}),
        (2, "KEY_ID", ("--config", "file"), {}),
    ):
        outcome = await run("accounts", "link", *arguments, "--json", **settings | changes)
        assert (outcome.code, words in outcome.document["error"]["message"]) == (code, True), (words, outcome.err)
    # The operator confirms what its holder may not.
    assert (await run("accounts", "link", likes, "--json", **settings | {"BIRDWIRE_LINK_MODE": "confirm"})).code == 0


class Waiting:
    """`birdwire accounts link --wait --json`, which prints its one document on stdout when the link has ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        self._process, self._stderr = process, process.stderr

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, running: RunningGateway, at: str) -> AsyncIterator[Waiting]:
        """Wait at the gateway with the API key, or on the database with the operator's settings."""
        which: tuple[str, ...] = () if at == "gateway" else (running.key_id,)
        person = {"BIRDWIRE_URL": running.settings.base_url, "BIRDWIRE_API_KEY": running.raw_key}
        environment = person if at == "gateway" else settings_of(running)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "birdwire.cli", "accounts", "link", *which, "--json", "--wait"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment | {"PATH": ""},
        )
        try:
            yield cls(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def line(self, start: str) -> str:
        """The next line on stderr that begins so."""
        while True:
            line = (await asyncio.wait_for(self._stderr.readline(), 30)).decode()
            assert line
            if line.startswith(start):
                return line.strip()

    async def end(self) -> tuple[int | None, Any]:
        """The exit code and the document."""
        out, _ = await asyncio.wait_for(self._process.communicate(), 30)
        return self._process.returncode, json.loads(out)


@pytest.mark.parametrize("at", ["gateway", "database"])
async def test_linking_waits_until_the_account_is_there(tmp_path: Path, at: str) -> None:
    """The page is on stderr while it waits; the one document on stdout is the link."""
    async with RunningGateway.built(tmp_path) as running, Waiting.started(running, at) as waiting:
        await approve(running, await waiting.line("http"), "grace")
        code, document = await waiting.end()
        assert (code, document["username"]) == (0, "grace")


async def test_a_link_that_waits_behind_an_older_one_shows_how_to_confirm_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """auth/status shows the older link. At the end the command does not claim that approval is missing."""
    monkeypatch.setattr("birdwire.cli.commands.accounts.ASK_EVERY_S", 0)
    monkeypatch.setattr("birdwire.cli.commands.accounts.WAIT_S", 0)
    last = {"outcome": "approved", "expires_at": "then"}
    older = {"linked": True, "state": "active", "linked_at": "before", "username": "ada"}

    def ask(_gateway: GatewayClient, method: str, _path: str, _body: object = None) -> dict[str, Any]:
        if method == "POST":
            return {"auth_url": "https://x.example/page", "state": "abc", "expires_at": "then"}
        return older | {"last_attempt": last}

    monkeypatch.setattr(GatewayClient, "ask", ask)
    outcome = await run("accounts", "link", "--wait", BIRDWIRE_API_KEY="bw_test_x", BIRDWIRE_URL="http://127.0.0.1:1")
    shown = outcome.err + outcome.out
    assert "birdwire accounts confirm @USERNAME --state abc" in shown
    assert "The approval was not confirmed within 10 minutes." in shown
    assert "was not approved" not in shown


async def test_linking_ends_when_the_owner_denies_it(tmp_path: Path) -> None:
    """Asked at the gateway: exit 3 and a sentence, within one poll."""
    async with RunningGateway.built(tmp_path) as running, Waiting.started(running, "gateway") as waiting:
        decision = {"auth_url": await waiting.line("http"), "username": "ada", "action": "deny"}
        decided = (await running.x.post("/_sandbox/consent", json=decision)).raise_for_status()
        await running.bare.get(decided.json()["redirect_to"])
        code, document = await waiting.end()
        assert (code, document["error"]["message"]) == (3, ENDS["denied"])
        assert document["error"]["fix"] == "Run the command again to get a new page."


async def test_linking_ends_when_the_page_has_expired(tmp_path: Path) -> None:
    """Read from the database: the same."""
    async with RunningGateway.built(tmp_path) as running, Waiting.started(running, "database") as waiting:
        await waiting.line("http")
        database = sqlite3.connect(running.directory / "birdwire.db")
        with contextlib.closing(database), database:  # the command has the time of the system, which nothing can move
            database.execute("UPDATE link_states SET expires_at = created_at")
        code, document = await waiting.end()
        assert (code, document["error"]["message"]) == (3, ENDS["expired"])


ENDS = {
    "denied": "The account's owner denied access on X's consent page. Nothing was linked.",
    "expired": "The link was not approved within 10 minutes.",
}


@pytest.mark.parametrize(
    ("outcome", "reason", "words"),
    [
        ("refused", "consent_denied", ENDS["denied"]),
        ("refused", "account_mismatch", "A different X account approved"),
        ("refused", "x_scope_missing", "did not approve users.read and tweet.read"),
        ("refused", "code_rejected", "X refused the authorization code"),
        ("refused", "of_a_newer_version", "of_a_newer_version."),
        ("expired", None, ENDS["expired"]),
        ("undone", None, "The account's owner undid the link."),
    ],
)
async def test_every_end_of_a_link_is_a_sentence(outcome: str, reason: str | None, words: str) -> None:
    """Without unfilled placeholders. An open or approved link continues."""
    with pytest.raises(Stop) as stop:
        check_attempt({"outcome": outcome, "reason": reason})
    assert (stop.value.code, words in stop.value.message) == (3, True)
    assert "unknown" not in stop.value.message
    for going_on in ({"outcome": "open"}, {"outcome": "approved"}, {}):
        check_attempt(going_on)


async def test_a_link_that_waits_is_confirmed_by_its_holder_or_the_operator(tmp_path: Path) -> None:
    """By the account and the link's state over HTTP, by the key's id on the database; another account is refused."""
    async with RunningGateway.built(tmp_path, link_mode="confirm") as running:
        person = {"BIRDWIRE_URL": running.settings.base_url, "BIRDWIRE_API_KEY": running.raw_key}
        begun = (await run("accounts", "link", "--json", **person)).document
        await approve(running, begun["auth_url"], "ada")
        assert (await run("accounts", "status", **person)).out.startswith("@ada approved. The link is waiting")
        wrong = await run("accounts", "confirm", "@grace", "--state", begun["state"], "--json", **person)
        assert (wrong.code, wrong.document["error"]["reason"]) == (3, "account_mismatch")
        done = await run("accounts", "confirm", "@ada", "--state", begun["auth_url"], **person)
        assert (done.code, done.out) == (0, "This key acts as @ada.\n")
        settings = settings_of(running)
        none = await run("accounts", "confirm", running.key_id, **settings)
        assert (none.code, "is waiting for confirmation" in none.err) == (3, True)
        await running.call("unlink_twitter")
        async with Waiting.started(running, "database") as waiting:
            await approve(running, await waiting.line("http"), "grace")
            assert await waiting.line("@grace") == (
                "@grace approved. To activate the link, run: "
                f"birdwire accounts confirm {running.key_id} --expect @grace"
            )
            unnamed = await run("accounts", "confirm", running.key_id, **settings)
            assert (unnamed.code, f"{running.key_id} --expect @grace" in unnamed.err) == (2, True)
            wrong = await run("accounts", "confirm", running.key_id, "--expect", "@ada", **settings)
            assert (wrong.code, "@grace approved, not @ada. The link keeps waiting" in wrong.err) == (3, True)
            done = await run("accounts", "confirm", running.key_id, "--expect", "@grace", "--json", **settings)
            assert (done.document["username"], done.document["state"]) == ("grace", "active")
            assert (await waiting.end())[0] == 0
        assert (await running.like()).status_code == 200
        acts = (await run("log", "--acts", "--json", **settings)).document["acts"]
        assert [act["via"] for act in acts if act["act"] == "link.activated"].count("cli") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("confirm", "@ada"), "requires --state"),
        (("confirm", "@ada", "--state", "s", "--expect", "ada"), "excludes --expect"),
        (("confirm", "@ada", "--state", "s", "--config", "file"), "--config requires KEY_ID"),
        (("confirm", "key_1", "--state", "s"), "--state requires @USERNAME"),
        (("confirm", "key_1", "--api-key-file", "file"), "are mutually exclusive"),
        (("confirm", "key_1"), "BIRDWIRE_X_CLIENT_ID is not set"),
        (("unlink", "key_1"), "A `birdwire dev` gateway has no settings"),
        (("unlink", "--config", "file"), "--config requires KEY_ID"),
        (("unlink", "key_1", "--api-key-file", "file"), "are mutually exclusive"),
    ],
)
async def test_options_of_accounts_that_do_not_fit_are_a_usage_error(arguments: tuple[str, ...], words: str) -> None:
    """Before anything is asked or opened."""
    outcome = await run("accounts", *arguments)
    assert (outcome.code, words in outcome.err) == (2, True), outcome.err


async def test_the_operator_unlinks_a_key_without_its_secret(tmp_path: Path) -> None:
    """Deleted here and revoked at X; the running gateway refuses the next call."""
    async with RunningGateway.built(tmp_path) as running:
        await running.link("ada")
        assert (await running.like()).status_code == 200
        secret = running.settings.x_client_secret
        assert secret is not None
        settings = settings_of(running) | {"BIRDWIRE_X_CLIENT_SECRET": secret.get_secret_value()}
        done = await run("accounts", "unlink", running.key_id, "--json", **settings)
        assert (done.code, done.document) == (0, {"data": {"linked": False}})
        assert [call["status"] for call in await running.calls("/2/oauth2/revoke")] == [200, 200]
        async with asyncio.timeout(5):  # another process's change reaches the gateway within a second
            while (await running.like()).json().get("error", {}).get("reason") != "x_not_linked":
                pass
        again = await run("accounts", "unlink", running.key_id, **settings)
        assert (again.code, again.out) == (0, f"No X account was linked to {running.key_id}.\n")
        missing = await run("accounts", "unlink", "key_none", **settings)
        assert (missing.code, "There is no key key_none" in missing.err) == (2, True)
        acts = (await run("log", "--acts", "--json", **settings)).document["acts"]
        assert [act["via"] for act in acts if act["act"] == "link.unlinked"] == ["cli"]


# Before a start.


async def test_check_reports_every_problem_and_no_secret(tmp_path: Path) -> None:
    """Client id, vault key and database in one run, each with the next step; exit 2."""
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ"
    database = f"sqlite:///{tmp_path}/nowhere/birdwire.db"
    given = {"BIRDWIRE_VAULT_KEY": secret, "BIRDWIRE_X_CLIENT_SECRET": secret, "BIRDWIRE_DATABASE_URL": database}
    outcome = await run("check", "--json", **given)
    problems = outcome.document["problems"]
    assert (outcome.code, outcome.document["ok"], len(problems)) == (2, False, 3)
    assert ["CLIENT_ID" in problems[0], "vault key" in problems[1], "database" in problems[2]] == [True] * 3
    for problem, fix in zip(problems, ("Set it to", "Copy the whole line", "Create the folder"), strict=True):
        assert fix in problem
    assert secret not in outcome.out + outcome.err


async def test_check_names_the_python_that_runs_it(ready: dict[str, str]) -> None:
    """Its build and its speed, for people and for programs, whether or not the gateway can start."""
    sound = await run("check", **ready)
    name = rf"Python {re.escape(platform.python_version())} \(\w+ from [\w/ ]+, .+\)"
    line = re.compile(rf"^{name}: \d+\.\d\d million steps/s in the calibration loop$", re.MULTILINE)
    assert (sound.code, len(line.findall(sound.out))) == (0, 1)
    broken = await run("check", **ready | {"BIRDWIRE_X_CLIENT_ID": ""})
    assert (broken.code, len(line.findall(broken.out))) == (2, 1)
    python = (await run("check", "--json", **ready)).document["python"]
    assert python.keys() == {
        "implementation",
        "version",
        "origin",
        "compiler",
        "optimizations",
        "million_steps_s",
    }
    assert python["million_steps_s"] > 0
    assert sys.prefix not in sound.out + json.dumps(python)


async def test_check_goes_on_where_single_settings_are_wrong(tmp_path: Path) -> None:
    """Only what hangs on a wrong setting is left out; what merely follows from one is not reported."""
    given = {
        "BIRDWIRE_PORT": "70000",
        "BIRDWIRE_PUBLIC_URL": "http://birdwire.example.com",
        "BIRDWIRE_HOSTS": "birdwire.example.com",
        "BIRDWIRE_NO_SUCH": "1",
        "BIRDWIRE_DATABASE_URL": f"sqlite:///{tmp_path}/nowhere/birdwire.db",
    }
    outcome = await run("check", "--json", **given)
    assert outcome.code == 2
    begins = ("BIRDWIRE_PORT: ", "BIRDWIRE_NO_SUCH ", "public_url ", "BIRDWIRE_X_CLIENT_ID ", "No vault key is set")
    found = outcome.document["problems"]
    assert [problem.startswith(start) for problem, start in zip(found, begins, strict=False)] == [True] * 5
    assert "nowhere" in found[5]
    assert len(found) == 6
    assert not [passed for passed in outcome.document["passed"] if "callback" in passed]
    broken = await run("check", "--json", **given | {"BIRDWIRE_DATABASE_URL": "mysql://a/b"})
    assert [problem for problem in broken.document["problems"] if "database" in problem] == [
        "database_url must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME."
    ]


@pytest.fixture
async def ready(tmp_path: Path) -> dict[str, str]:
    """Settings with which a gateway can start, towards X, before its first start."""
    key = tmp_path / "vault.key"
    assert (await run("vault", "create", str(key))).code == 0
    return {
        "BIRDWIRE_DATABASE_URL": f"sqlite:///{tmp_path / 'birdwire.db'}",
        "BIRDWIRE_VAULT_KEY_FILE": str(key),
        "BIRDWIRE_X_CLIENT_ID": "id",
        "BIRDWIRE_PUBLIC_URL": "https://birdwire.example.com",
        "BIRDWIRE_TRUSTED_PROXIES": "10.0.0.1",
    }


@pytest.mark.parametrize(
    ("name", "value", "note"),
    [
        ("TRUSTED_PROXIES", "", "Set BIRDWIRE_TRUSTED_PROXIES to"),
        ("HOST", "0.0.0.0", "listens on 0.0.0.0 over plain HTTP"),  # noqa: S104 - nothing listens here
        (
            "PUBLIC_URL",
            "",
            "Only a browser on this machine can complete a link, because the callback URL is on 127.0.0.1.",
        ),
        ("PUBLIC_URL", "http://localhost:8700", "Set BIRDWIRE_PUBLIC_URL to"),
        ("REDIS_URL", "redis://127.0.0.1:1", "Redis does not respond"),
        ("TRUSTED_PROXIES", "10.0.0.1,0.0.0.0/0", "Every address is trusted as a proxy"),
        ("TRUSTED_PROXIES", "::/0", "Every address is trusted as a proxy"),
    ],
)
async def test_check_notes_valid_but_unwise_settings(ready: dict[str, str], name: str, value: str, note: str) -> None:
    """With the next step, and exit 0; sound settings get no note."""
    sound = await run("check", "--json", **ready)
    assert (sound.code, sound.document["problems"], sound.document["notes"]) == (0, [], [])
    outcome = await run("check", **ready | {f"BIRDWIRE_{name}": value})
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("note: ")]
    assert (outcome.code, note in line) == (0, True)


async def test_check_notes_metrics_that_the_network_can_read(ready: dict[str, str]) -> None:
    """Unless a token protects them, or they are for this machine alone."""
    given = ready | {"BIRDWIRE_METRICS_PORT": "9700", "BIRDWIRE_METRICS_HOST": "10.0.0.1"}
    (note,) = (await run("check", "--json", **given)).document["notes"]
    assert note.startswith("The metrics on 10.0.0.1 port 9700 can be read without a token. Set BIRDWIRE_METRICS_TOKEN")
    for sound in ({"BIRDWIRE_METRICS_TOKEN": "a token for the tests"}, {"BIRDWIRE_METRICS_HOST": "127.0.0.1"}):
        assert (await run("check", "--json", **given | sound)).document["notes"] == []


async def test_a_wrong_setting_hides_no_note_on_another(ready: dict[str, str]) -> None:
    """A port that cannot be has nothing to do with the proxies, nor with a callback that is set."""
    given = {"BIRDWIRE_PORT": "70000", "BIRDWIRE_TRUSTED_PROXIES": "", "BIRDWIRE_PUBLIC_URL": "https://localhost"}
    outcome = await run("check", "--json", **ready | given)
    assert [note.partition(". ")[0] for note in outcome.document["notes"]] == [
        "Only a browser on this machine can complete a link, because the callback URL is on localhost",
        "The public URL is https, but no proxy is trusted",
    ]
    assert len(outcome.document["problems"]) == 1


async def test_a_missing_client_id_is_a_single_problem(ready: dict[str, str]) -> None:
    """It is one problem, and not fine as a public client, too."""
    outcome = await run("check", "--json", **ready | {"BIRDWIRE_X_CLIENT_ID": ""})
    assert len(outcome.document["problems"]) == 1
    assert not [passed for passed in outcome.document["passed"] if "X app" in passed]


async def test_a_file_that_is_not_a_database_is_named(ready: dict[str, str], tmp_path: Path) -> None:
    """There is no server to check."""
    file = tmp_path / "birdwire.db"
    file.write_text("x_client_id = 1\n" * 100)
    file.chmod(0o600)
    (problem,) = (await run("check", "--json", **ready)).document["problems"]
    assert problem.startswith(f"{file} is not a Birdwire database. Check BIRDWIRE_DATABASE_URL")


async def test_check_notes_a_settings_file_that_others_may_read(ready: dict[str, str], tmp_path: Path) -> None:
    """Without a secret it is a note, with one a problem, and never both."""
    file = tmp_path / "birdwire.toml"
    file.write_text("port = 8701\n")
    file.chmod(0o644)
    noted = (await run("check", "--json", "--config", str(file), **ready)).document
    assert (noted["ok"], noted["notes"]) == (
        True,
        [f"The config file {file} is open to every user; run: chmod 600 {file}."],
    )
    file.write_text('x_client_secret = "canary"\n')
    refused = (await run("check", "--json", **ready, BIRDWIRE_CONFIG=str(file))).document
    assert (refused["ok"], refused["notes"], len(refused["problems"])) == (False, [], 1)


async def test_an_empty_client_secret_makes_no_confidential_client(ready: dict[str, str]) -> None:
    """A template that was not filled in leaves the app a public client."""
    outcome = await run("check", **ready, BIRDWIRE_X_CLIENT_SECRET="")
    assert "ok: The X app is a public client (no secret)" in outcome.out


async def test_check_knows_the_right_vault_key(operator: Operator, tmp_path: Path) -> None:
    """With it all is well, live X included; with another one nothing would open."""
    running, person = operator
    right = person | {
        "BIRDWIRE_X_CLIENT_ID": running.settings.x_client_id,
        "BIRDWIRE_X_CLIENT_SECRET": running.sandbox.state.clients.client_secret,
        "BIRDWIRE_VAULT_KEY_FILE": str(running.settings.vault_key_file),
    }
    assert (await run("check", "--live", **right)).code == 0
    assert (await run("vault", "create", str(tmp_path / "vault.key"))).code == 0
    wrong = await run("check", **right | {"BIRDWIRE_VAULT_KEY_FILE": str(tmp_path / "vault.key")})
    assert (wrong.code, "This database was encrypted with a different vault key" in wrong.err) == (2, True)


async def test_check_distinguishes_wrong_credentials_from_an_unreachable_x(operator: Operator) -> None:
    """Only if asked to; an X that is merely out of order is a note."""
    running, person = operator
    async with gateway_that_answers(b"") as nowhere:
        pass
    given = person | {
        "BIRDWIRE_X_CLIENT_ID": running.settings.x_client_id,
        "BIRDWIRE_X_CLIENT_SECRET": "canary",
        "BIRDWIRE_VAULT_KEY_FILE": str(running.settings.vault_key_file),
    }
    assert (await run("check", **given)).code == 0
    wrong = await run("check", "--live", **given)
    assert (wrong.code, "canary" in wrong.out + wrong.err) == (2, False)
    assert "X rejects the client ID and secret (HTTP 401 unauthorized_client)." in wrong.err
    assert f"ok: X is reachable at {running.settings.x_api_url}" in wrong.out
    away = await run("check", "--live", **given | {"BIRDWIRE_X_API_URL": nowhere})
    assert (away.code, f"Cannot reach {nowhere}" in away.err, "rejects" in away.err) == (2, True, False)
    assert [one.err.splitlines()[0] for one in (wrong, away)] == ["Error: Ready to start, but not to act on X:"] * 2
    neither = await run("check", "--live", **given | {"BIRDWIRE_X_API_URL": nowhere, "BIRDWIRE_VAULT_KEY_FILE": "none"})
    assert neither.err.startswith("Error: Not ready to start:\n")
    await running.fault("POST", "/2/oauth2/token", {"status": 503})
    failing = await run("check", "--live", **given)
    assert (failing.code, "note: X's response (HTTP 503" in failing.out) == (0, True)


async def test_check_reports_whether_redis_answers(ready: dict[str, str], redis: Redis) -> None:
    """A gateway starts without it, so it is a note; why it does not answer is said without the password."""
    assert "Redis" not in (await run("check", **ready)).out
    assert "ok: Redis responds" in (await run("check", **ready, BIRDWIRE_REDIS_URL=redis.url)).out
    outcome = await run("check", **ready, BIRDWIRE_REDIS_URL=f"redis://nobody:canary@127.0.0.1:{redis.port}")
    assert outcome.code == 0
    assert "note: Redis does not respond (WRONGPASS)" in outcome.out
    assert "canary" not in outcome.out + outcome.err


async def test_check_leaves_no_database_behind(tmp_path: Path) -> None:
    """It only looks, and says that the first start will make it."""
    file = tmp_path / "birdwire.db"
    outcome = await run("check", "--json", BIRDWIRE_DATABASE_URL=f"sqlite:///{file}")
    assert f"The database {file} will be created at the first start" in outcome.document["passed"]
    assert not file.exists()


LOOKING = [("log",), ("accounts", "list"), ("keys", "list"), ("keys", "revoke", "key_none"), ("vault", "status")]


@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
async def test_a_missing_database_is_reported_and_not_created(tmp_path: Path, words: tuple[str, ...]) -> None:
    """An empty list out of a database made that moment would be believed."""
    key = tmp_path / "vault.key"
    await run("vault", "create", str(key))
    file = tmp_path / "birdwire.db"
    outcome = await run(*words, BIRDWIRE_DATABASE_URL=f"sqlite:///{file}", BIRDWIRE_VAULT_KEY_FILE=str(key))
    assert (outcome.code, outcome.out, f"The database {file} does not exist." in outcome.err) == (2, "", True)
    assert "--config FILE" in outcome.err
    assert not file.exists()


async def test_a_key_may_be_made_before_the_first_start(tmp_path: Path) -> None:
    """It alone makes a database; what looks finds it then."""
    url = f"sqlite:///{tmp_path}/birdwire.db"
    key_id = (await run("keys", "create", "--label", "early", "--json", BIRDWIRE_DATABASE_URL=url)).document["key_id"]
    assert key_id in (await run("keys", "list", BIRDWIRE_DATABASE_URL=url)).out
    assert (await run("log", BIRDWIRE_DATABASE_URL=url)).out == "There are no writes yet.\n"


async def test_a_dev_folder_is_counted_copied_and_put_back(tmp_path: Path) -> None:
    """With its own vault key, whatever the settings say."""
    database, key, copy = (tmp_path / name for name in ("birdwire.db", "vault.key", "copy.db"))
    await run("vault", "create", str(key))
    await run("migrate", BIRDWIRE_DATABASE_URL=f"sqlite:///{database}")
    here = ("--data", str(tmp_path))
    assert (await run("backup", *here, str(copy))).code == 0
    again = await run("backup", *here, str(copy))
    assert (again.code, "Choose another file" in again.err) == (2, True)
    assert (await run("restore", *here, str(copy))).code == 0
    assert stat.S_IMODE((tmp_path / "birdwire.db.lock").stat().st_mode) == 0o600
    counted = await run("vault", "status", *here)
    assert re.fullmatch(r"[0-9a-f]{16} +0 +yes +yes", counted.out.splitlines()[1])


async def test_the_help_of_check_names_every_setting() -> None:
    """With the sentence that the settings themselves have."""
    out = (await run("check", "--help")).out
    assert [name for name in Settings.model_fields if f"{PREFIX}{name.upper()}: " not in out] == []


async def test_a_vault_key_is_made_once(tmp_path: Path) -> None:
    """For the owner alone, never shown, never overwritten."""
    file = tmp_path / "vault.key"
    outcome = await run("vault", "create", str(file))
    key = file.read_text("ascii").strip()
    assert (outcome.code, stat.S_IMODE(file.stat().st_mode), key in outcome.out) == (0, 0o600, False)
    again = await run("vault", "create", str(file), "--json")
    assert (again.code, again.document["error"]["code"]) == (2, "usage")
    assert file.read_text("ascii").strip() == key
    lost = await run("vault", "create", str(tmp_path / "nowhere" / "vault.key"))
    assert (lost.code, f"mkdir -m 700 -p {tmp_path / 'nowhere'}" in lost.err.replace("\n", "")) == (2, True)


async def test_migrate_makes_a_database_ready(tmp_path: Path) -> None:
    """And finds nothing to do the second time."""
    url = f"sqlite:///{tmp_path}/birdwire.db"
    outcomes = [await run("migrate", "--json", BIRDWIRE_DATABASE_URL=url) for _ in range(2)]
    assert [(one.code, one.document["database"]) for one in outcomes] == [(0, "up to date")] * 2


async def test_serve_refuses_without_an_x_app(tmp_path: Path) -> None:
    """In a sentence, before it listens."""
    outcome = await run("serve", BIRDWIRE_DATABASE_URL=f"sqlite:///{tmp_path}/birdwire.db")
    assert (outcome.code, "BIRDWIRE_X_CLIENT_ID is not set" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("proxy",), "--to"),
        (("proxy", "--to", "localhost"), "is not a valid address"),
        (("proxy", "--to", "127.0.0.1:port"), "is not a valid address"),
        (("proxy", "--to", "http://127.0.0.1:8701/path"), "is not a valid address"),
        (("--port", "0", "proxy", "--to", "127.0.0.1:9"), "Use: birdwire sandbox proxy --port"),
        (("--json", "proxy", "--to", "127.0.0.1:9"), "Use: birdwire sandbox proxy --json"),
        (("prox",), "prox"),
    ],
)
async def test_a_proxy_that_cannot_be_is_a_usage_error(arguments: tuple[str, ...], words: str) -> None:
    """Exit 2, before anything listens."""
    outcome = await run("sandbox", *arguments)
    assert (outcome.code, words in outcome.err) == (2, True)


# The whole.


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
async def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    """With what it does, an example where there is something to give, and --json."""
    outcome = await run(*path, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    assert "\x1b" not in outcome.out
    assert "<bool>" not in outcome.out
    assert f"Example: birdwire {' '.join(path)}" in outcome.out


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
async def test_the_list_of_commands_shows_each_commands_own_summary(row: Any) -> None:
    """One sentence, the same in both places."""
    command = load(row.name)
    assert command.help.splitlines()[0] == row.summary
    assert tuple(getattr(command, "commands", ())) == FAMILIES.get(row.name, ())


async def test_every_operation_and_look_up_is_a_command() -> None:
    """Whatever rows there are."""
    said = {row.summary for row in COMMANDS}
    assert {f"{row.summary}." for row in OPERATIONS} | {f"{row.summary}." for row in LOOKUPS} <= said


async def test_every_field_of_a_post_is_an_option() -> None:
    """Those of its objects included, each under a name of its own."""
    flags = [field.row.flag for field in FIELDS]
    places = [name for name, field in PostTwitter.model_fields.items() if name != "text" and field.description]
    assert {field.place.partition(".")[0] for field in FIELDS} == set(places)
    assert len(set(flags)) == len(flags)
    assert set(ROWS) <= {field.place for field in FIELDS}
    out = (await run("post", "--help", COLUMNS="200")).out
    assert [flag for flag in flags if f"{flag} " not in out] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("like",), "Missing argument"),
        (("liek", "12"), "No such command"),
        (("keys", "create"), "Missing option"),
        (("keys", "craete"), "No such command"),
        (("log", "--limit", "none"), "--limit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_what_cannot_be_understood_is_refused_in_json_if_asked(arguments: tuple[str, ...], words: str) -> None:
    """One document on stdout, as for every other refusal; without --json, nothing there."""
    outcome = await run(*arguments, "--json")
    error = outcome.document["error"]
    assert (outcome.code, error["code"]) == (2, "usage")
    assert words in error["message"]
    assert error["fix"].endswith(" --help`.")
    assert (await run(*arguments)).out == ""


async def test_a_crash_shows_no_values_of_variables() -> None:
    """Typer's own tracebacks print them, and with them keys and tokens."""
    assert build().pretty_exceptions_enable is False


async def test_without_arguments_the_commands_are_listed() -> None:
    """And --version names the version."""
    listed = (await run()).out
    assert "To get started, run: birdwire dev" in listed
    assert "<bool>" not in listed
    assert (await run("--version")).out.startswith("birdwire 0.")


async def test_acting_loads_neither_server_nor_database() -> None:
    """A command starts quickly."""
    code = (
        "import sys; sys.argv = ['birdwire', 'like', 'x']\n"
        "try: __import__('birdwire.cli').cli.main()\n"
        "except SystemExit: from birdwire.cli.commands import accounts, lookups, post\n"
        "print(sorted({'sqlalchemy', 'starlette', 'uvicorn', 'cryptography'} & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert out == b"[]\n"


async def test_limits_shows_the_allowance_and_xs_remaining_calls(operator: Operator) -> None:
    """As a table, and for programs."""
    running, environment = operator
    await running.like()
    told = await run("limits", **environment)
    lines = told.out.splitlines()
    assert lines[0].split() == ["OPERATION", "WINDOW", "LIMIT", "REMAINING", "RESET_AT"]
    assert re.match(r"any call +60s +1000000 +\d+ +20\d\d-", lines[1])
    assert any(re.match(r"like_twitter +15m +50 +\d+ +20\d\d-\S+Z$", line) for line in lines[2:])
    document = (await run("limits", "--json", **environment)).document
    assert document["allowance"]["limit"] == 1_000_000
    assert document["limits"]["like_twitter"]["24h"]["limit"] == 1_000


async def test_limits_shows_why_xs_limits_are_unknown(operator: Operator) -> None:
    """The key's own allowance is there all the same."""
    running, environment = operator
    _, raw_key = await running.gateway.keys.create("test", "unlinked", "free", None)
    told = await run("limits", **{**environment, "BIRDWIRE_API_KEY": raw_key})
    assert len(told.out.splitlines()) == 2
    assert told.err == "X's rate limits are unknown: no X account is linked to this key.\n"
