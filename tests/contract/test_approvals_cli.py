"""`birdwire approvals`, `recent --delete` and `--wait`: an operator, a caller, and a gateway process that sends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import insert
from typer.testing import CliRunner

from birdwire.api.messages import new_request_id
from birdwire.cli.command_line import build
from birdwire.cli.commands.recent import _exit_code
from birdwire.cli.explained import explained
from birdwire.cli.stop import ExitCode
from birdwire.keys.registry import Keys
from birdwire.outcomes.approval_payload import Payload
from birdwire.outcomes.approval_records import ApprovalRecords
from birdwire.outcomes.entry import Entry
from birdwire.outcomes.journal_rows import new_row
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import create_key_file, read_key_file
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables.approvals import approvals
from birdwire.store.tables.journal import STATES, State, journal
from harness.commands import Outcome
from harness.gateway import PNG, POST
from harness.processes import deploy, environment
from harness.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.processes import Deployment, GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "Pay \u202eevil\u202c\u200b now\n  Cost       $0\nhttps://ex\u0430mple.org/login " + "long " * 40
SHOWN_S = 0.6
"""A moment longer than the time for which `watch` drops the keys after it has shown a request."""


@dataclass
class Place:
    """A gateway process, its sandbox, the operator's environment, and a caller's."""

    deployment: Deployment
    gateway: GatewayProcess
    key_id: str
    operator: dict[str, str]
    caller: dict[str, str]
    texts: int = field(default=0)

    async def run(self, *words: str, stdin: str | None = None, **changes: str) -> Outcome:
        """Run a command of the operator's or the caller's in a thread of this process."""
        given = {"COLUMNS": "100", "NO_COLOR": "1", **self.operator, **self.caller, **changes}
        result = await asyncio.to_thread(CliRunner().invoke, build(), list(words), stdin, env=given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    async def asked(self, text: str | None = None, *more: str) -> dict[str, Any]:
        """Post something that waits; return the member `approval` of the answer."""
        self.texts += 1
        posted = await self.run("post", text or f"Post {self.texts}", *more, "--json")
        assert posted.code == ExitCode.AWAITING, posted.err
        return dict(posted.document["approval"])

    async def shown(self, request_id: str) -> dict[str, Any]:
        """Return a request as the operator's programs read it."""
        return dict((await self.run("approvals", "show", request_id, "--json")).document)

    async def ends(self, request_id: str, state: str) -> dict[str, Any]:
        """Wait until a request has a state, which its caller can read; return its report."""
        async with asyncio.timeout(30):
            while (report := (await self.run("explain", request_id, "--json")).document)["state"] != state:  # noqa: ASYNC110 - another process sends it
                await asyncio.sleep(0.1)
        return dict(report)

    async def at_x(self, post_id: str) -> str | None:
        """Return the text of a post at X; None if it was deleted, or never published."""
        posts = (await self.deployment.x.get("/_sandbox/state")).json()["posts"]
        return next((str(post["text"]) for post in posts if post["id"] == post_id and not post["deleted"]), None)

    @contextlib.asynccontextmanager
    async def command(self, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a command in a process of its own."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "birdwire.cli", *words),
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command in a process of its own."""
        return {**environment(), **self.operator, **self.caller}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A gateway whose only key must ask a person about posts and likes."""
    async with deploy(tmp_path_factory.mktemp("approvals")) as deployment:
        gateway = await deployment.serve()
        await deployment.link(gateway)
        operator = {f"BIRDWIRE_{name.upper()}": value for name, value in deployment.settings.items()}
        caller = {"BIRDWIRE_URL": gateway.url, "BIRDWIRE_API_KEY": deployment.raw_keys[0]}
        made = Place(deployment, gateway, "", operator, caller)
        [key] = (await made.run("keys", "list", "--json")).document["keys"]
        made.key_id = key["key_id"]
        done = await made.run("policy", "set", made.key_id, "approve=post_twitter,like_twitter")
        assert done.code == 0, done.err
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clear(place: Place) -> AsyncIterator[None]:
    """Cancel what still waits after a test: a key may have 20 such writes."""
    yield
    for one in (await place.run("approvals", "list", "--json")).document["approvals"]:
        await place.run("approvals", "cancel", one["request_id"])


# What the caller sees.


async def test_a_write_that_waits_is_not_reported_as_done(place: Place) -> None:
    """Exit 8, nothing on stdout for people, and how to go on."""
    posted = await place.run("post", "Nothing is published")
    assert (posted.code, posted.out) == (8, "")
    [request_id] = set(re.findall(r"req_[0-9A-Z]{26}", posted.err))
    assert f"Nothing was published. A person must approve it: birdwire approvals approve {request_id}\n" in posted.err
    assert f"birdwire explain {request_id}" in posted.err
    liked = await place.run("like", POST, "--json")
    assert (liked.code, set(liked.document)) == (8, {"approval"})
    told = await place.run("explain", request_id)
    assert (told.code, "waits for a person's approval" in told.out, "Expires at" in told.out) == (0, True, True)


async def test_a_dry_run_states_that_a_person_would_be_asked(place: Place) -> None:
    """With the same exit code, and nobody is asked."""
    before = (await place.run("approvals", "list", "--json")).document["waiting"]
    tried = await place.run("post", "Would it wait?", "--dry-run", "--json")
    assert (tried.code, tried.document["would"]["outcome"]) == (8, "require_approval")
    assert (await place.run("approvals", "list", "--json")).document["waiting"] == before


async def test_a_caller_that_waits_gets_the_answer_that_it_would_have_got(place: Place) -> None:
    """As if nobody had been asked: the id on stdout and exit 0."""
    async with place.command("post", "Worth waiting for", "--wait", "2m") as process:
        asked = await place.shown(await waiting_for(place, "Worth waiting for"))
        done = await place.run("approvals", "approve", asked["request_id"], "--payload", asked["payload_sha256"])
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (done.code, process.returncode, out.decode().strip().isdecimal()) == (0, 0, True), err
    assert await place.at_x(out.decode().strip()) == "Worth waiting for"


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_a_caller_goes_on_asking_after_the_first_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    """The gateway holds each request for a while; the outcome is the same."""
    monkeypatch.setattr("birdwire.cli.waiting.HELD_S", 1)
    text = f"Asked again, {verdict}"
    posting = asyncio.create_task(place.run("post", text, "--wait", "2m", "--json"))
    # Only one command can run in this process at a time.
    async with asyncio.timeout(60):
        while True:
            _, listed = await place.deployment.command("approvals", "list")
            if found := [one for one in listed["approvals"] if one["text"] == text]:
                break
    await asyncio.sleep(1.5)
    words = ("--payload", found[0]["payload_sha256"])
    assert (await place.deployment.command("approvals", verdict, found[0]["request_id"], *words))[0] == 0
    posted = await asyncio.wait_for(posting, 60)
    if verdict == "approve":
        assert (posted.code, posted.document["data"]["text"], set(posted.document)) == (0, text, {"data"})
    else:
        error = posted.document["error"]
        assert (posted.code, error["code"], error["reason"]) == (3, "client-forbidden", "approval_denied")


async def test_a_caller_that_waits_for_a_denial_gets_the_note(place: Place) -> None:
    """Exit 3, as for any refusal."""
    async with place.command("post", "Not this one", "--wait", "2m", "--json") as process:
        request_id = await waiting_for(place, "Not this one")
        await place.run("approvals", "deny", request_id, "--note", "Not today")
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    error = json.loads(out)["error"]
    assert (process.returncode, error["reason"]) == (3, "approval_denied")
    assert "Not today" in error["message"]


async def test_a_caller_that_has_waited_long_enough_is_told_that_it_still_waits(place: Place) -> None:
    """Exit 8, after about the time that was given."""
    started = time.monotonic()
    posted = await place.run("post", "Nobody decides", "--wait", "2s", "--json")
    assert (posted.code, posted.document["approval"]["state"]) == (8, "awaiting_approval")
    assert 2 <= time.monotonic() - started < 15


async def test_a_caller_that_stops_waiting_loses_nothing(place: Place) -> None:
    """The request to approve is shown first; Ctrl-C leaves it waiting, with exit 8 and the gateway's document."""
    async with place.command("post", "Ctrl-C", "--wait", "1h", "--json") as process:
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        assert "A person must approve it: birdwire approvals approve req_" in line
        await asyncio.wait_for(process.stderr.readline(), 60)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 60)
    request_id = json.loads(out)["approval"]["request_id"]
    assert (process.returncode, request_id in line, f"birdwire explain {request_id}" in err.decode()) == (8, True, True)
    assert (await place.shown(request_id))["state"] == "awaiting_approval"


@pytest.mark.parametrize("wait", ["", "0s", "10", "25h", "forever", "-5s"])
async def test_a_duration_that_is_not_valid_is_refused(wait: str) -> None:
    """Exit 2, though no gateway runs."""
    tried = CliRunner().invoke(build(), ["like", POST, "--wait", wait], env={"BIRDWIRE_API_KEY": "bw_test_x"})
    assert tried.exit_code == 2


async def test_an_upload_never_waits() -> None:
    """It asks nobody, so there is nothing to wait for."""
    tried = CliRunner().invoke(build(), ["upload", "--wait", "10s", __file__])
    assert (tried.exit_code, "--wait" in tried.stderr) == (2, True)


async def waiting_for(place: Place, text: str) -> str:
    """Return the request with this text, once it waits."""
    async with asyncio.timeout(30):
        while True:
            listed = (await place.run("approvals", "list", "--json")).document["approvals"]
            if found := [one["request_id"] for one in listed if one["text"] == text]:
                return str(found[0])
            await asyncio.sleep(0.1)


# What the operator sees.


async def test_files_that_were_uploaded_before_the_call_are_described(place: Place, tmp_path: Path) -> None:
    """By type, size and hash, and people see what the terminal cannot show: two images that `post --media` uploaded."""
    files = {"bird.png": PNG, "nest.gif": b"GIF89a" + bytes(2_042)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    options = [word for name in files for word in ("--media", str(tmp_path / name))]
    request_id = (await place.asked("Two birds", *options))["request_id"]
    shown = await place.shown(request_id)
    ids = shown["fields"]["media"]["media_ids"]
    assert shown["media"] == [
        {"media_id": one, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "type": f"image/{name[-3:]}"}
        for one, (name, data) in zip(ids, files.items(), strict=True)
    ]
    listed = (await place.run("approvals", "list", "--json")).document["approvals"]
    assert [one["media"] for one in listed if one["request_id"] == request_id] == [shown["media"]]
    text = (await place.run("approvals", "show", request_id)).out
    assert f"1 GIF, 2 KiB, uploaded earlier, media ID {ids[1]}" in " ".join(text.split())


async def test_what_waits_is_listed_with_all_that_would_be_published(place: Place) -> None:
    """As JSON for programs, and as a table for people."""
    asked = await place.asked("Tea?", "--poll", "Yes|No", "--poll-minutes", "60")
    listed = (await place.run("approvals", "list", "--json")).document
    [row] = [one for one in listed["approvals"] if one["request_id"] == asked["request_id"]]
    assert row == {
        "request_id": asked["request_id"],
        "state": "awaiting_approval",
        "key_id": place.key_id,
        "label": "test",
        "account": {"user_id": "2244994945", "username": "ada"},
        "operation": "post_twitter",
        "text": "Tea?",
        "fields": {"poll": {"options": ["Yes", "No"], "duration_minutes": 60}},
        "media": [],
        "payload_sha256": asked["payload_sha256"],
        "edited_from": None,
        "cost_usd": 0.015,
        "findings": asked["findings"],
        "approve_by": "operator",
        "created_at": row["created_at"],
        "expires_at": asked["expires_at"],
        "decided_at": None,
        "decided_by": None,
        "note": None,
        "reason": None,
    }
    assert listed["waiting"] == len(listed["approvals"])
    assert row == await place.shown(asked["request_id"])
    table = (await place.run("approvals", "list")).out
    [line] = [line for line in table.splitlines() if asked["request_id"] in line]
    assert re.search(r"\(in \d+ min\)  test +@ada +post_twitter +\$0\.015  Tea\?", line)
    only = (await place.run("approvals", "list", "--limit", "1", "--json")).document
    assert (len(only["approvals"]), only["waiting"]) == (1, listed["waiting"])
    unknown = await place.run("approvals", "list", "--key", "key_none")
    assert (unknown.code, unknown.out) == (2, "")
    assert "There is no key key_none." in unknown.err


async def test_a_person_sees_what_the_text_hides(place: Place) -> None:
    """No control reaches the terminal, the look-alike host is named, and no line of the text looks like Birdwire's."""
    asked = await place.asked(HOSTILE)
    shown = (await place.run("approvals", "show", asked["request_id"])).out
    assert {char for char in shown if not char.isprintable()} == {"\n"}
    assert "| Pay \u2039U+202E\u203aevil\u2039U+202C\u203a\u2039U+200B\u203a now" in shown
    assert "|   Cost       $0" in shown
    assert "https://ex\u0430mple.org/login leads to xn--exmple-4nf.org" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert [line for line in shown.splitlines() if line.startswith("  Cost ")] == [
        "  Cost       $0.200, by the price list of X"
    ]
    for words in ('"test" (key_', "@ada (2244994945)", "post_twitter needs a person's approval", "(in 5"):
        assert words in " ".join(shown.split())
    assert asked["payload_sha256"] in shown
    listed = (await place.run("approvals", "list")).out
    assert {char for char in listed if not char.isprintable()} == {"\n"}
    assert (await place.shown(asked["request_id"]))["text"] == HOSTILE


async def test_each_part_of_a_post_is_shown(place: Place) -> None:
    """Whatever the caller set."""
    asked = await place.asked(
        "All of it", "--reply-to", POST, "--quote", "1346889436626259969", "--reply-settings", "following"
    )
    shown = (await place.run("approvals", "show", asked["request_id"])).out
    for words in (f"https://x.com/i/status/{POST}", "https://x.com/i/status/1346889436626259969", "follows"):
        assert words in shown


async def test_a_request_may_be_named_by_the_end_of_its_id(place: Place) -> None:
    """If only one that waits ends so."""
    asked = await place.asked()
    request_id = asked["request_id"]
    assert (await place.shown(request_id[-6:]))["request_id"] == request_id
    assert (await place.shown(request_id[-8:].lower()))["request_id"] == request_id
    for name in (request_id[-5:], "req_none", "ZZZZZZZZ", "", "\x1b[2J"):
        unknown = await place.run("approvals", "show", "--", name)
        assert (unknown.code, unknown.out, "\x1b" in unknown.err) == (3, "", False)


async def test_check_states_that_writes_wait(place: Place) -> None:
    """As a note: it is nothing that keeps the gateway from starting."""
    await place.asked()
    checked = (await place.run("check", "--json")).document
    [note] = [one for one in checked["notes"] if "decision" in one]
    assert re.match(r"\d+ writes? waits? for a person's decision\. To see what waits", note)


# Decisions.


async def test_an_approved_post_is_published_once_and_as_it_was_shown(place: Place) -> None:
    """By the gateway; a second approval is refused, and every place states the outcome."""
    asked = await place.asked("Published once")
    named = ("approvals", "approve", asked["request_id"], "--payload", asked["payload_sha256"])
    done = await place.run(*named, "--json")
    assert (done.code, done.document) == (0, {"request_id": asked["request_id"], "state": "approved"})
    report = await place.ends(asked["request_id"], "confirmed")
    assert await place.at_x(report["data"]["id"]) == "Published once"
    again = await place.run(*named, "--json")
    assert (again.code, again.document["error"]["reason"]) == (3, "approval_not_waiting")
    shown = await place.shown(asked["request_id"])
    assert (shown["state"], shown["text"], shown["fields"], bool(shown["decided_by"])) == (
        "confirmed",
        None,
        None,
        True,
    )
    told = (await place.run("explain", asked["request_id"])).out
    assert ("X confirmed the call." in told, "Approved by " in told, "Expires" in told) == (True, True, False)
    [row] = (await place.run("log", "--state", "confirmed", "--limit", "1", "--json")).document["requests"]
    assert row["request_id"] == asked["request_id"]


async def test_without_a_terminal_the_payload_must_be_named(place: Place) -> None:
    """Nobody approves what was not shown."""
    asked = await place.asked()
    tried = await place.run("approvals", "approve", asked["request_id"], stdin="y\n")
    assert (tried.code, "--payload" in tried.err) == (2, True)
    wrong = await place.run("approvals", "approve", asked["request_id"], "--payload", "0" * 64, "--json")
    assert (wrong.code, wrong.document["error"]["reason"]) == (3, "approval_stale")
    assert f"birdwire approvals show {asked['request_id']}" in wrong.err
    assert (await place.shown(asked["request_id"]))["state"] == "awaiting_approval"


async def test_an_edited_post_must_be_approved_anew(place: Place) -> None:
    """The hash that was shown before approves nothing any more."""
    asked = await place.asked("Good mornnig")
    edited = await place.run("approvals", "edit", asked["request_id"], "--text", "Good morning", "--json")
    document = edited.document
    assert (edited.code, document["state"], document["text"]) == (0, "awaiting_approval", "Good morning")
    assert document["edited_from"] == asked["payload_sha256"] != document["payload_sha256"]
    old = await place.run("approvals", "approve", asked["request_id"], "--payload", asked["payload_sha256"], "--json")
    assert (old.code, old.document["error"]["reason"]) == (3, "approval_stale")
    from_stdin = await place.run("approvals", "edit", asked["request_id"], "--text", "-", stdin="Good morning!\n")
    assert (from_stdin.code, "| Good morning!\n" in from_stdin.out) == (0, True)
    now = await place.shown(asked["request_id"])
    assert now["payload_sha256"] in from_stdin.out
    done = await place.run("approvals", "approve", asked["request_id"], "--payload", now["payload_sha256"])
    assert done.code == 0, done.err
    report = await place.ends(asked["request_id"], "confirmed")
    assert await place.at_x(report["data"]["id"]) == "Good morning!"


@pytest.mark.parametrize(
    ("words", "code"),
    [((), 2), (("--text", "x" * 281), 3), (("--text", ""), 3), (("--text", "fine", "--payload", "0" * 64), 3)],
)
async def test_an_edit_that_cannot_be_changes_nothing(place: Place, words: tuple[str, ...], code: int) -> None:
    """Without a terminal and a text, with a text that cannot be posted, or of another payload."""
    asked = await place.asked()
    assert (await place.run("approvals", "edit", asked["request_id"], *words)).code == code
    assert (await place.shown(asked["request_id"]))["payload_sha256"] == asked["payload_sha256"]


async def test_a_denied_post_states_why_and_is_not_asked_about_again(place: Place) -> None:
    """The caller gets the note; who decided is on record."""
    asked = await place.asked("Buy now")
    denied = await place.run("approvals", "deny", asked["request_id"], "--note", "No adverts", "--json")
    assert (denied.code, denied.document) == (0, {"request_id": asked["request_id"], "state": "denied"})
    told = (await place.run("explain", asked["request_id"])).out
    assert ("A person denied the call." in told, "Note: No adverts" in told) == (True, True)
    again = await place.run("post", "Buy now", "--json")
    assert (again.code, again.document["error"]["reason"]) == (3, "approval_denied")
    shown = (await place.run("approvals", "show", asked["request_id"])).out
    assert ("denied" in shown, "No adverts" in shown) == (True, True)
    [act] = (await place.run("log", "--acts", "--limit", "1", "--json")).document["acts"]
    assert (act["act"], act["via"], act["after"]["note"]) == ("approval.denied", "cli", "No adverts")
    late = await place.run("approvals", "cancel", asked["request_id"])
    assert (late.code, "it is denied" in late.err) == (3, True)


async def test_a_cancelled_post_may_be_asked_for_again(place: Place) -> None:
    """Unlike a denied one."""
    asked = await place.asked("Perhaps later")
    cancelled = await place.run("approvals", "cancel", asked["request_id"], "--json")
    assert (cancelled.code, cancelled.document["state"]) == (0, "cancelled")
    assert "cancelled before it was sent" in (await place.run("explain", asked["request_id"])).out
    assert (await place.asked("Perhaps later"))["request_id"] != asked["request_id"]


async def test_a_link_opens_the_page_of_its_request(place: Place) -> None:
    """At the address of the gateway process; the database and the record of acts do not have the token."""
    asked = await place.asked("Decide on your phone")
    made = (await place.run("approvals", "link", asked["request_id"], "--json")).document
    assert (made["request_id"], made["expires_at"]) == (asked["request_id"], asked["expires_at"])
    assert made["url"].startswith(f"{place.gateway.url}/approve/")
    page = await place.deployment.client.get(made["url"])
    assert (page.status_code, "Decide on your phone" in page.text) == (200, True)
    acts = (await place.run("log", "--acts", "--limit", "1", "--json")).out
    assert ("approval.link_made" in acts, made["url"].rsplit("/", 1)[1] in acts) == (True, False)
    people = await place.run("approvals", "link", asked["request_id"])
    assert (people.out.count("\n"), "Anyone who has this link can decide" in people.err) == (1, True)


async def test_what_cannot_be_decrypted_cannot_be_approved(place: Place) -> None:
    """It can be denied."""
    asked = await place.asked()
    file = place.deployment.directory / "birdwire.db"
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as database, database:
        database.execute("UPDATE approvals SET payload_ct = x'00' WHERE request_id = ?", (asked["request_id"],))
    named = ("approvals", "approve", asked["request_id"], "--payload", asked["payload_sha256"])
    tried = await place.run(*named)
    assert (tried.code, "cannot be decrypted" in tried.err) == (3, True)
    assert "cannot be decrypted" in (await place.run("approvals", "show", asked["request_id"])).out
    assert (await place.run("approvals", "deny", asked["request_id"])).code == 0


async def test_deciding_needs_the_database_and_its_vault_key(place: Place, tmp_path: Path) -> None:
    """Exit 2 with another key, or without one."""
    other = tmp_path / "other.key"
    create_key_file(other)
    for name in (str(other), str(tmp_path / "none.key")):
        tried = await place.run("approvals", "list", BIRDWIRE_VAULT_KEY_FILE=name)
        assert (tried.code, tried.out) == (2, "")


# At a terminal.


async def test_a_person_at_a_terminal_is_shown_the_text_and_asked(place: Place) -> None:
    """Anything but yes decides nothing."""
    asked = await place.asked("Shall we?")
    named = ("approvals", "approve", asked["request_id"])
    for answer, code in (("\n", 3), ("maybe\n", 3), ("y\n", 0)):
        async with Terminal.running(*named, env=place.environment) as terminal:
            before = await terminal.until("Publish this? [y/N] ")
            assert "| Shall we?" in before
            terminal.press(answer)
            assert await terminal.ended() == code
    await place.ends(asked["request_id"], "confirmed")


async def test_a_person_edits_a_post_in_an_editor(place: Place, tmp_path: Path) -> None:
    """That of EDITOR; the text file is gone afterwards."""
    asked = await place.asked("Hello wrold")
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nsed -i s/wrold/world/ "$1"\necho "$1" > {tmp_path}/name\n')
    editor.chmod(0o700)
    environment = place.environment | {"EDITOR": str(editor)}
    async with Terminal.running("approvals", "edit", asked["request_id"], env=environment) as terminal:
        await terminal.until("| Hello world")
        assert await terminal.ended() == 0
    assert (await place.shown(asked["request_id"]))["text"] == "Hello world"
    assert not (tmp_path / "name").read_text().strip().startswith(str(tmp_path))
    # Nothing changes: the editor finds nothing to replace.
    async with Terminal.running("approvals", "edit", asked["request_id"], env=environment) as terminal:
        await terminal.until("The text is the same as before")
        assert await terminal.ended() == 3
    async with Terminal.running(
        "approvals", "edit", asked["request_id"], env=environment | {"EDITOR": "/none"}
    ) as terminal:
        await terminal.until("Cannot start the editor /none")
        assert await terminal.ended() == 2
    await place.run("approvals", "cancel", asked["request_id"])


async def test_watch_shows_what_comes_and_single_keys_decide(place: Place) -> None:
    """Approve, edit, deny, skip and quit; the terminal is as it was before."""
    async with Terminal.running("approvals", "watch", env=place.environment) as terminal:
        await terminal.until("Nothing waits for a decision.")
        assert not terminal.is_restored
        first = await place.asked("One")
        await terminal.until("| One")
        await terminal.until("[q] quit")
        await asyncio.sleep(SHOWN_S)
        terminal.press("a")
        await terminal.until("is approved.")
        await place.ends(first["request_id"], "confirmed")
        second = await place.asked("Two")
        await terminal.until("| Two")
        await asyncio.sleep(SHOWN_S)
        terminal.press("e")
        await terminal.until("New text")
        terminal.press("Two, edited\n")
        await terminal.until("| Two, edited")
        assert (await place.shown(second["request_id"]))["text"] == "Two, edited"
        await asyncio.sleep(SHOWN_S)
        terminal.press("d")
        await terminal.until("Note for the caller")
        terminal.press("Not two\n")
        await terminal.until("is denied.")
        assert (await place.shown(second["request_id"]))["note"] == "Not two"
        third = await place.asked("Three")
        await terminal.until("| Three")
        await asyncio.sleep(SHOWN_S)
        terminal.press("s")
        await terminal.until("1 skipped.")
        assert (await place.shown(third["request_id"]))["state"] == "awaiting_approval"
        terminal.press("q")
        assert (await terminal.ended(), terminal.is_restored) == (0, True)


async def test_watch_decides_only_with_a_key_that_a_person_pressed_for_it(place: Place) -> None:
    """Not with a pasted text, an arrow key, another key, or one that was pressed before the request was shown."""
    async with Terminal.running("approvals", "watch", env=place.environment) as terminal:
        await terminal.until("Nothing waits for a decision.")
        asked = await place.asked("Untouched")
        terminal.press("a")
        await terminal.until("[q] quit")
        terminal.press("a")
        await asyncio.sleep(SHOWN_S)
        for keys in ("aye", "\x1b[A", "A", "x", "\n"):
            terminal.press(keys)
            await asyncio.sleep(0.1)
        assert (await place.shown(asked["request_id"]))["state"] == "awaiting_approval"
        terminal.press("q")
        assert await terminal.ended() == 0


async def test_watch_announces_what_others_decide(place: Place) -> None:
    """A request that was edited is shown again; one that was decided is not."""
    async with Terminal.running("approvals", "watch", env=place.environment) as terminal:
        asked = await place.asked("Before")
        await terminal.until("| Before")
        await place.run("approvals", "edit", asked["request_id"], "--text", "After")
        await terminal.until(f"*** {asked['request_id']} was edited. ***")
        await terminal.until("| After")
        await place.run("approvals", "deny", asked["request_id"])
        await terminal.until(f"*** {asked['request_id']} is denied now by ")
        await terminal.until("Nothing waits for a decision.")
        terminal.press("q")
        assert await terminal.ended() == 0


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm", "ctrl-c at a prompt", "the database is gone"])
async def test_watch_restores_the_terminal_whatever_ends_it(place: Place, how: str, tmp_path: Path) -> None:
    """Its settings are those of before the command."""
    environment = place.environment
    if how == "the database is gone":
        environment |= {"BIRDWIRE_DATABASE_URL": f"sqlite:///{await copied(place, tmp_path)}"}
    async with Terminal.running("approvals", "watch", env=environment) as terminal:
        await terminal.until("Waiting for requests" if "gone" not in how else "[q] quit")
        if how == "ctrl-c":
            terminal.press("\x03")
        elif how == "sigterm":
            terminal.process.send_signal(signal.SIGTERM)
        elif how == "ctrl-c at a prompt":
            await place.asked()
            await terminal.until("[q] quit")
            await asyncio.sleep(SHOWN_S)
            terminal.press("d")
            await terminal.until("Note for the caller")
            terminal.press("\x03")
        else:
            with contextlib.closing(sqlite3.connect(tmp_path / "copy.db", timeout=30)) as database, database:
                database.execute("DROP TABLE approvals")
        code = await terminal.ended()
        assert terminal.is_restored
        assert code == {"sigterm": 143}.get(how, 0 if "ctrl-c" in how else code)


async def copied(place: Place, folder: Path) -> Path:
    """Return a copy of the database in which one request waits."""
    await place.asked()
    file = folder / "copy.db"
    with (
        contextlib.closing(sqlite3.connect(place.deployment.directory / "birdwire.db", timeout=30)) as source,
        contextlib.closing(sqlite3.connect(file)) as target,
    ):
        source.backup(target)
    file.chmod(0o600)
    return file


async def test_watch_prints_a_line_for_each_change(place: Place) -> None:
    """Without a terminal: when a request comes, is edited, and ends; until it is stopped."""
    async with place.command("approvals", "watch", "--json") as process:
        assert process.stdout is not None
        lines = process.stdout

        async def line() -> tuple[str, str, str | None]:
            found = json.loads(await asyncio.wait_for(lines.readline(), 30))
            return found["request_id"], found["state"], found["text"]

        request_id = (await place.asked("A line"))["request_id"]
        assert await line() == (request_id, "awaiting_approval", "A line")
        await place.run("approvals", "edit", request_id, "--text", "Another line")
        assert await line() == (request_id, "awaiting_approval", "Another line")
        await place.run("approvals", "deny", request_id)
        assert await line() == (request_id, "denied", None)
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, out, err) == (0, b"", b"")


# Deleting what was published.


async def test_recent_posts_are_deleted_on_the_operators_order(place: Place) -> None:
    """Even while the key is paused; the order is on record, and each outcome is reported."""
    posted = []
    for text in ("Regrettable", "Also regrettable"):
        asked = await place.asked(text)
        await place.run("approvals", "approve", asked["request_id"], "--payload", asked["payload_sha256"])
        posted.append((await place.ends(asked["request_id"], "confirmed"))["data"]["id"])
    assert (await place.run("pause", place.key_id, "--why", "It was tricked")).code == 0
    try:
        tried = await place.run("recent", place.key_id, "--since", "1h", "--delete", stdin="y\n")
        assert (tried.code, "--yes" in tried.err) == (2, True)
        assert await place.at_x(posted[0]) == "Regrettable"
        done = await place.run("recent", place.key_id, "--since", "1h", "--delete", "--yes", "--json")
    finally:
        assert (await place.run("resume", place.key_id)).code == 0
    assert done.code == 0, done.err
    ordered = {one["post_id"]: (one["state"], one["reason"]) for one in done.document["ordered"]}
    assert {*posted} <= {*ordered}
    assert {*ordered.values()} == {("confirmed", None)}
    assert {one["about"] for one in done.document["requests"]} == {*ordered}
    assert [await place.at_x(one) for one in posted] == [None, None]
    acts = (await place.run("log", "--acts", "--limit", "50", "--json")).document["acts"]
    assert {one["after"]["post_id"] for one in acts if one["act"] == "deletion.ordered"} >= {*posted}
    none = await place.run("recent", place.key_id, "--since", "1h", "--delete", "--yes", "--json")
    assert (none.code, none.document) == (0, {"requests": [], "ordered": []})


async def test_a_person_at_a_terminal_is_asked_before_anything_is_deleted(place: Place) -> None:
    """With the number of posts and the price; a deletion that X refuses is reported with its reason."""
    words = ("recent", place.key_id, "--since", "1h", "--delete")
    assert (await place.run(*words, "--yes")).code == 0
    asked = await place.asked("Gone already")
    await place.run("approvals", "approve", asked["request_id"], "--payload", asked["payload_sha256"])
    post_id = (await place.ends(asked["request_id"], "confirmed"))["data"]["id"]
    async with Terminal.running(*words, env=place.environment) as terminal:
        await terminal.until("Delete 1 post for $0.005, by X's price list? [y/N] ")
        terminal.press("n\n")
        await terminal.until("Nothing was deleted.")
        assert await terminal.ended() == 3
    assert await place.at_x(post_id) == "Gone already"
    refusal = {"status": 403, "body": {"title": "Forbidden", "detail": "Not yours", "status": 403}}
    fault = {"match": {"method": "DELETE", "path": f"/2/tweets/{post_id}"}, "times": None, "do": refusal}
    (await place.deployment.x.post("/_sandbox/faults", json=fault)).raise_for_status()
    async with Terminal.running(*words, env=place.environment) as terminal:
        await terminal.until("[y/N] ")
        terminal.press("y\n")
        await terminal.until("refused")
        assert await terminal.ended() == 3
    (await place.deployment.x.delete("/_sandbox/faults")).raise_for_status()


async def test_the_exit_code_of_deletions_is_that_of_the_worst() -> None:
    """0 if all were deleted; not deleted before unknown before not sent yet."""
    codes = {
        ("confirmed",): 0,
        (): 0,
        ("found", "confirmed"): 0,
        ("confirmed", "refused"): 3,
        ("not_found", "unknown"): 3,
        ("expired", "approved"): 3,
        (None,): 3,
        ("a state of a later version",): 3,
        ("unknown", "approved"): 7,
        ("approved", "confirmed"): 8,
        ("started",): 8,
    }
    assert {states: int(_exit_code([{"state": one} for one in states])) for states in codes} == codes


# Words, and scale.


@pytest.mark.parametrize("state", [state for state in STATES if STATES[state].asked])
async def test_what_became_of_a_request_is_explained(state: State) -> None:
    """What happened, who decided, and what to do next."""
    decided = state in {State.APPROVED, State.DENIED}
    part = {"expires_at": "2026-09-22T11:00:00Z", "decided_by": "grace" if decided else None, "note": None}
    part |= {"decided_at": "2026-09-22T10:30:00Z" if decided else None, "edited_from": "1" * 64}
    document = {"request_id": "req_1", "operation": "post_twitter", "state": state, "approval": part}
    lines = explained(document | {"created_at": "2026-09-22T10:00:00Z", "reason": None, "data": None})
    assert "A person has edited its text." in lines
    verdict = "Denied" if state is State.DENIED else "Approved"
    assert (f"{verdict} by grace at 2026-09-22T10:30:00Z" in lines) == decided
    assert ("Expires at 2026-09-22T11:00:00Z" in lines) == (not STATES[state].final)
    assert "{" not in " ".join(lines)
    assert len(lines) >= 4


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("not_sent", "approval_stale", "something has changed since a person was asked"),
        ("not_sent", "superseded", "opposite"),
        ("expired", "approval_expired", "time"),
        ("expired", "restored_backup", "restored from a backup"),
        ("cancelled", "cancelled", "cancelled before it was sent"),
    ],
)
async def test_why_nothing_was_sent_is_explained(state: str, reason: str, words: str) -> None:
    """With the reason in words, and a way to go on."""
    lines = explained({"request_id": "req_1", "state": state, "reason": reason, "approval": None})
    assert words in " ".join(lines)
    assert "See the fix in the original response" not in lines[-1]


async def test_ten_thousand_that_wait_are_listed_in_a_second(tmp_path: Path) -> None:
    """The CPU time of the command, without the start of the interpreter: on a slow core, 0.1 s, and 0.7 s for all."""
    environment = await many(tmp_path, 10_000)
    seconds = {}
    for limit in (200, 10_000):
        started = time.process_time()
        words = ["approvals", "list", "--json", "--limit", str(limit)]
        listed = await asyncio.to_thread(CliRunner().invoke, build(), words, env=environment)
        seconds[limit] = time.process_time() - started
        document = json.loads(listed.stdout)
        assert (len(document["approvals"]), document["waiting"]) == (limit, 10_000)
    assert seconds[200] < 1
    assert seconds[10_000] < 3


async def many(folder: Path, count: int) -> dict[str, str]:
    """Make a database in which this many posts wait; return the operator's environment."""
    url, key_file, clock = f"sqlite:///{folder / 'birdwire.db'}", folder / "vault.key", Clock()
    create_key_file(key_file)
    database, vault = Database(url), Vault(read_key_file(key_file))
    await database.prepare(upgrade=False)
    await KeyRotation(database, vault, clock).enlist()

    async def find(_: str) -> None:
        """Find nothing: only what the records seal is needed."""

    records, now = ApprovalRecords(database, vault, find, clock), datetime.now(UTC)
    keys = [(await Keys(database, clock).create("test", f"agent {n}", "free"))[0].key_id for n in range(count // 20)]
    rows: list[dict[str, Any]] = []
    entries = []
    for number in range(count):
        key_id, request_id = keys[number % len(keys)], new_request_id()
        finding = {"rule": "approve", "outcome": "require_approval", "scope": key_id, "version": 1, "message": "ask"}
        payload = Payload("post_twitter", "1", {"text": f"Post {number} {'x' * 240}"}, findings=[finding])
        entries.append(
            new_row(Entry(request_id, key_id, "1", "post_twitter", "", b"", 15_000), State.AWAITING_APPROVAL, now)
        )
        row: dict[str, Any] = {"request_id": request_id, "key_id": key_id, "user_id": "1", "username": "ada"}
        row |= {"operation": "post_twitter", "payload_sha256": payload.sha256, "approve_by": "operator"}
        row |= {"payload_ct": records.seal_payload(request_id, payload), "cost_microusd": 15_000, "ordered": False}
        rows.append(row | {"expires_at": now + timedelta(hours=1), "due_at": now + timedelta(hours=1)})
    async with database.write() as connection:
        await connection.execute(insert(journal), entries)
        await connection.execute(insert(approvals), rows)
    await database.close()
    return {
        "BIRDWIRE_DATABASE_URL": url,
        "BIRDWIRE_VAULT_KEY_FILE": str(key_file),
        "BIRDWIRE_X_API_URL": "http://127.0.0.1:1",
    }
