"""`birdwire notify` and what `birdwire check` states: the operator, a gateway process, and a receiver of webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

import pytest
import pytest_asyncio
from standardwebhooks import Webhook
from typer.testing import CliRunner

from birdwire.cli import notify_view
from birdwire.cli.command_line import build
from birdwire.cli.stop import ExitCode
from birdwire.gateway.notifications.results import CRASHED, UNREADABLE
from birdwire.runtime.outbound import Failure
from birdwire.store.tables.outbox import TEST
from harness.commands import Outcome
from harness.processes import deploy, environment
from harness.terminal import Terminal
from harness.webhook_receiver import CUT, GONE, UNAVAILABLE, Reply, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.processes import Deployment

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
HIDDEN = "PATH-THAT-IS-A-SECRET"


@dataclass
class Place:
    """A deployment, and the operator's environment. `served`: a gateway runs on it."""

    deployment: Deployment
    served: bool

    async def run(self, *words: str, stdin: str | None = None, **changes: str) -> Outcome:
        """Run a command of the operator's in a thread of this process."""
        given = {f"BIRDWIRE_{name.upper()}": value for name, value in (self.deployment.settings | changes).items()}
        given |= {"COLUMNS": "100", "NO_COLOR": "1"}
        result = await asyncio.to_thread(CliRunner().invoke, build(), list(words), stdin, env=given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    async def json(self, *words: str) -> Any:
        """Run a command that must succeed; return its document."""
        done = await self.run(*words, "--json")
        assert done.code == 0, done.err
        return done.document

    async def write(self, statement: str, *rows: tuple[Any, ...]) -> None:
        """Change the database directly, once for each row, in a thread of its own."""

        def change() -> None:
            with contextlib.closing(sqlite3.connect(self.deployment.directory / "birdwire.db", timeout=30)) as file:
                file.executemany(statement, rows or [()])
                file.commit()

        await asyncio.to_thread(change)

    async def read(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""

        def rows() -> list[tuple[Any, ...]]:
            with contextlib.closing(sqlite3.connect(self.deployment.directory / "birdwire.db", timeout=30)) as file:
                return file.execute(query).fetchall()

        return await asyncio.to_thread(rows)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A database without a gateway."""
    async with deploy(tmp_path_factory.mktemp("bare")) as deployment:
        yield Place(deployment, served=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A database with a gateway."""
    async with deploy(tmp_path_factory.mktemp("served")) as deployment:
        await deployment.serve()
        yield Place(deployment, served=True)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clear(bare: Place, place: Place) -> AsyncIterator[None]:
    """Remove what a test has set."""
    yield
    for one in (bare, place):
        await one.run("notify", "off")


def at(hours: float) -> int:
    """Return a time in the past as the database stores it."""
    return int((datetime.now(UTC) - timedelta(hours=hours)).timestamp() * 1_000_000)


# Setting.


async def test_a_destination_for_programs_prints_its_secret_once(bare: Place) -> None:
    """The secret alone on stdout; what else there is to know on stderr, without the URL."""
    done = await bare.run("notify", "set", f"https://hooks.example.com/{HIDDEN}?token={HIDDEN}")
    assert (done.code, bool(SECRET.fullmatch(done.out.strip()))) == (0, True)
    assert done.err.splitlines() == [
        "Notifications go to hooks.example.com. The secret signs each message. It will not be shown again.",
        "No gateway is running on this database. Start it, then run: birdwire notify test",
    ]
    shown = await bare.run("notify", "show")
    assert "Sender     none: no gateway is running on this database" in shown.out
    document = await bare.json("notify", "show")
    acts = await bare.run("log", "--acts")
    secret = done.out.strip()
    for text in (done.err, shown.out, shown.err, json.dumps(document), acts.out):
        assert HIDDEN not in text
        assert secret not in text
    assert "notify.set" in acts.out
    everything = b"".join(file.read_bytes() for file in bare.deployment.directory.glob("birdwire.db*"))
    assert HIDDEN.encode() not in everything
    assert secret.encode() not in everything
    destination = document["destination"]
    assert {name: destination[name] for name in ("host", "kind", "state", "with_link", "with_text")} == {
        "host": "hooks.example.com",
        "kind": "standard",
        "state": "on",
        "with_link": False,
        "with_text": False,
    }


@pytest.mark.parametrize("kind", ["ntfy", "slack"])
async def test_a_destination_for_people_has_no_secret_and_its_url_comes_from_stdin(bare: Place, kind: str) -> None:
    """So that neither argv nor a shell's history has it."""
    url = f"https://chat.example.com/{HIDDEN}"
    quiet = await bare.run("notify", "set", "-", "--kind", kind, stdin=f"{url}\nmore\n")
    assert (quiet.code, quiet.out) == (0, "Notifications go to chat.example.com.\n")
    assert f"{kind} does not check signatures, so there is no secret." in quiet.err
    assert "history" not in quiet.err
    loud = await bare.run("notify", "set", url, "--kind", kind, "--json")
    assert (loud.code, loud.document["secret"], "history" in loud.err) == (0, None, True)
    assert "It replaces the earlier destination, chat.example.com." in loud.err
    assert HIDDEN not in quiet.err + loud.out + loud.err
    rotated = await bare.run("notify", "rotate")
    assert (rotated.code, rotated.out) == (3, "")
    assert f"Error: A destination of kind {kind} does not check signatures" in rotated.err


async def test_a_person_enters_the_url_without_showing_it(bare: Place) -> None:
    """At a terminal, as a password."""
    settings = environment(**bare.deployment.settings)
    async with Terminal.running("notify", "set", "-", "--kind", "ntfy", env=settings) as terminal:
        await terminal.until("URL: ")
        terminal.press(f"https://ntfy.example.com/{HIDDEN}\n")
        await terminal.until("Notifications go to ntfy.example.com.")
        assert await terminal.ended() == 0
        assert HIDDEN not in terminal.shown


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (f"http://example.com/{HIDDEN}", "Plain http is allowed only"),
        (f"ftp://example.com/{HIDDEN}", "not an https URL"),
        (f"https://user:{HIDDEN}@example.com/", "a user name or a password"),
        (f"https://10.1.2.3/{HIDDEN}", "not a public address"),
        (f"https://169.254.169.254/{HIDDEN}", "not a public address"),
        (f"https://[::ffff:7f00:1]/{HIDDEN}", "IPv6 form"),
        (f"https://0x7f.1/{HIDDEN}", "unusual spelling"),
        (f"https://ex ample.com/{HIDDEN}", "a space"),
        (f"https://example.com:99999/{HIDDEN}", "port"),
        (HIDDEN, "not an https URL"),
        (f"https://example.com/{HIDDEN}{'x' * 2_048}", "more than 2,048 characters"),
        ("", "no URL on stdin"),
    ],
)
async def test_a_forbidden_url_is_refused_immediately_with_what_to_do(bare: Place, url: str, why: str) -> None:
    """Nothing is stored, and nothing of the URL is repeated but an address."""
    done = await bare.run("notify", "set", "-", stdin=f"{url}\n")
    assert (done.code, done.out, why in done.err, "Fix: " in done.err) == (2, "", True, True), done.err
    assert HIDDEN not in done.err
    as_json = await bare.run("notify", "set", "-", "--json", stdin=f"{url}\n")
    assert as_json.document["error"]["code"] == "usage"
    assert as_json.document["error"]["fix"]
    assert (await bare.json("notify", "show"))["destination"] is None


async def test_an_address_of_the_operator_s_own_network_is_allowed_by_a_setting(bare: Place) -> None:
    """And by nothing else."""
    words = ("notify", "set", "https://10.1.2.3/hook")
    assert (await bare.run(*words)).code == 2
    assert (await bare.run(*words, outbound_allow="10.1.2.0/24")).code == 0
    assert (await bare.run(*words, outbound_allow="10.1.3.0/24")).code == 2


async def test_an_option_that_gives_something_away_is_explained(bare: Place) -> None:
    """Who can read it, and where a link leads."""
    words = ("notify", "set", "https://hooks.example.com/hook", "--with-link", "--with-text")
    here = await bare.run(*words)
    assert "Anyone who can read what hooks.example.com receives can decide about what waits." in here.err
    assert "The links lead to 127.0.0.1, which only this machine can open." in here.err
    assert "hooks.example.com can read the texts of posts before they are published." in here.err
    public = await bare.run(*words, public_url="https://birdwire.example.com")
    assert "The links lead" not in public.err
    plain = await bare.run("notify", "set", "https://hooks.example.com/hook", public_url="http://127.0.0.1:8700")
    assert "links" not in plain.err


async def test_a_well_known_host_names_the_kind_that_it_takes(bare: Place) -> None:
    """JSON on a phone would help nobody."""
    wrong = await bare.run("notify", "set", "https://ntfy.sh/topic")
    assert "ntfy.sh takes other messages: set it with --kind ntfy." in wrong.err
    right = await bare.run("notify", "set", "https://ntfy.sh/topic", "--kind", "ntfy")
    assert "takes other messages" not in right.err
    unknown = await bare.run("notify", "set", "https://ntfy.sh/topic", "--kind", "mail")
    assert unknown.code == 2


# Showing, rotating, ending.


async def test_without_a_destination_each_command_states_how_to_set_one(bare: Place) -> None:
    """Showing and ending are no errors."""
    shown = await bare.run("notify", "show")
    assert (shown.code, shown.out) == (0, "No notifications are set.\n")
    assert "birdwire notify set URL" in shown.err
    none = {"destination": None, "waiting": 0, "oldest_at": None, "sender": None}
    assert await bare.json("notify", "show") == none
    off = await bare.run("notify", "off")
    assert (off.code, off.out) == (0, "No notifications are set.\n")
    assert await bare.json("notify", "off") == {"host": None, "dropped": 0}
    for name in ("test", "rotate"):
        done = await bare.run("notify", name, "--json")
        assert (done.code, done.document["error"]["message"]) == (3, "No notifications are set.")
        assert "birdwire notify set URL" in done.document["error"]["fix"]


async def test_a_next_step_works_on_the_same_database(bare: Place, tmp_path: Path) -> None:
    """It repeats the options."""
    config = tmp_path / "birdwire.toml"
    config.touch(0o600)
    for name in ("show", "test", "rotate"):
        done = await bare.run("notify", name, "--config", str(config))
        assert f"notify set URL --config {config}" in "".join(done.err.splitlines()), done.err


async def test_what_waits_is_counted_and_dropped(bare: Place) -> None:
    """With the time of the oldest."""
    await bare.run("notify", "set", "https://hooks.example.com/hook")
    await bare.write(
        "INSERT INTO outbox (event_id, destination_id, type, at, data, tries, due_at, keep_until)"
        " VALUES (?, 'operator', 'paused', ?, '{}', 0, ?, ?)",
        *((f"evt_{number}", at(number), at(number), at(-72)) for number in (1, 2)),
    )
    shown = await bare.run("notify", "show")
    assert re.search(r"^  Waiting +2, the oldest since 20\S+Z$", shown.out, re.MULTILINE)
    assert (await bare.json("notify", "show"))["waiting"] == 2
    replaced = await bare.run("notify", "set", "https://other.example.com/hook")
    assert "2 events that waited for it will go to other.example.com." in replaced.err
    off = await bare.run("notify", "off")
    assert off.out == "Notifications to other.example.com are off. 2 events that waited will not be delivered.\n"
    assert await bare.read("SELECT count(*) FROM outbox") == [(0,)]
    assert await bare.read("SELECT count(*) FROM destinations") == [(0,)]


async def test_a_secret_is_replaced_with_an_overlap(bare: Place) -> None:
    """A day by default, none if it leaked; the new one is printed once."""
    first = (await bare.run("notify", "set", "https://hooks.example.com/hook")).out.strip()
    done = await bare.run("notify", "rotate")
    assert (done.code, bool(SECRET.fullmatch(done.out.strip())), done.out.strip() != first) == (0, True, True)
    assert re.search(r"The old secret signs, too, until 20\S+Z\.$", done.err.strip())
    shown = await bare.run("notify", "show")
    assert re.search(r"^  Secret +since 20\S+Z; the old one signs too until 20\S+Z$", shown.out, re.MULTILINE)
    leaked = await bare.json("notify", "rotate", "--overlap", "0")
    assert (set(leaked), leaked["old_secret_signs_s"]) == ({"secret", "old_secret_signs_s"}, 0)
    shown = await bare.run("notify", "show")
    assert "signs too" not in shown.out
    assert leaked["secret"] not in shown.out
    for seconds in ("-1", "86401", "soon"):
        assert (await bare.run("notify", "rotate", "--overlap", seconds)).code == 2


async def test_every_failure_has_words_and_a_next_step() -> None:
    """Of each class, with a status or without."""
    classes = [*get_args(Failure), str(UNREADABLE["error"]), CRASHED["error"]]
    texts = [notify_view.failure("hooks.example.com", one, None) for one in classes if one != "status"]
    texts += [notify_view.failure("hooks.example.com", "status", code) for code in (302, 400, 401, 404, 410, 429, 500)]
    assert all(happened and fix.endswith(".") for happened, fix in texts)
    assert all("failed (" not in happened for happened, _ in texts)
    assert "failed (later)" in notify_view.failure("hooks.example.com", "later", None)[0]


# Testing.


async def test_without_a_gateway_a_test_leaves_nothing(bare: Place) -> None:
    """It would go out whenever one starts."""
    await bare.run("notify", "set", "https://hooks.example.com/hook")
    done = await bare.run("notify", "test")
    assert (done.code, "No gateway is running" in done.err, "Fix: Start the gateway" in done.err) == (3, True, True)
    assert await bare.read("SELECT count(*) FROM outbox") == [(0,)]


async def test_a_test_arrives_and_is_reported(place: Place) -> None:
    """With its status and the time that it took; the receiver can verify it."""
    async with receiving() as receiver:
        secret = (await place.run("notify", "set", f"{receiver.url}/{HIDDEN}")).out.strip()
        done = await place.run("notify", "test")
        assert done.code == 0, done.err
        assert re.fullmatch(r"127\.0\.0\.1 accepted the test with HTTP 200 after \d+\.\d seconds\.\n", done.out)
        [delivery] = receiver.deliveries
        assert delivery.target == f"/{HIDDEN}"
        assert Webhook(secret).verify(delivery.body, delivery.headers)["type"] == TEST
        document = await place.json("notify", "test")
        names = ("event_id", "outcome", "status", "error", "seconds")
        assert (tuple(document), document["outcome"], document["status"]) == (names, "delivered", 200)
        shown = await place.run("notify", "show")
    assert re.search(r"^  Delivered  20\S+Z$", shown.out, re.MULTILINE)
    assert re.search(r"^  Last try   20\S+Z: HTTP 200$", shown.out, re.MULTILINE)
    assert "Sender" not in shown.out
    assert (await place.json("notify", "show"))["sender"].startswith("gw_")
    assert HIDDEN not in place.deployment.served[0].log.read_text()


@pytest.mark.parametrize(
    ("reply", "why", "fix"),
    [
        (Reply(404), "127.0.0.1 answered with HTTP 404", "does not know the path"),
        (Reply(302, (("location", "/elsewhere"),)), "127.0.0.1 answered with HTTP 302", "follows no redirects"),
        (UNAVAILABLE, "127.0.0.1 answered with HTTP 503", "Check the log of the receiver."),
        (GONE, "127.0.0.1 answered with HTTP 410", "Birdwire has switched notifications off."),
        (CUT, "closed the connection without an answer", "Check the log of the receiver."),
        (None, "accepts no connection", "Check that the receiver runs"),
    ],
)
async def test_a_test_that_fails_states_why_and_what_to_do(
    place: Place, reply: Reply | None, why: str, fix: str
) -> None:
    """After one try, with the exit code of a failure elsewhere."""
    async with receiving() as receiver:
        url = f"{receiver.url}/{HIDDEN}"
        if reply is not None:
            receiver.answer(reply)
            await place.run("notify", "set", url)
            done = await place.run("notify", "test", "--json")
            assert len(receiver.deliveries) == 1
    if reply is None:
        await place.run("notify", "set", url)
        done = await place.run("notify", "test", "--json")
    assert done.code == ExitCode.UPSTREAM
    assert why in done.document["error"]["message"]
    assert fix in done.document["error"]["fix"]
    assert done.document["test"]["outcome"] == "given_up"
    assert (HIDDEN in done.out + done.err, why in done.err) == (False, True)
    shown = await place.run("notify", "show")
    assert re.search(rf"^  Last try   20\S+Z: .*{re.escape(why)}", shown.out, re.MULTILINE)


async def test_a_slow_receiver_is_waited_for_and_that_is_shown(place: Place) -> None:
    """After a second, at a terminal."""
    async with receiving() as receiver:
        receiver.answer(Reply(204, delay_s=2.5))
        await place.run("notify", "set", f"{receiver.url}/hook")
        settings = environment(**place.deployment.settings)
        async with Terminal.running("notify", "test", env=settings) as terminal:
            await terminal.until("Waiting for the gateway to deliver the test")
            await terminal.until("accepted the test with HTTP 204 after ")
            assert await terminal.ended() == 0


async def test_a_test_that_nobody_sends_ends_in_time(bare: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as when the gateway ends meanwhile."""
    monkeypatch.setattr("birdwire.cli.commands.notify.TEST_S", 0.5)
    await bare.run("notify", "set", "https://hooks.example.com/hook")
    await bare.write("INSERT INTO processes (owner, alive_until) VALUES ('gw_dead', ?)", (at(-1),))
    done = await bare.run("notify", "test")
    await bare.write("DELETE FROM processes")
    assert (done.code, "has not delivered the test" in done.err, "notify show" in done.err) == (6, True, True)


# When it was switched off, and what `check` states.


async def notes(place: Place) -> list[str]:
    """Return what `birdwire check` states of notifications."""
    checked = (await place.run("check", "--json")).document
    return [one for one in (*checked["notes"], *checked["passed"]) if "otif" in one]


async def noted(place: Place, start: str) -> str:
    """Wait until the only such note starts with these words; return it."""
    async with asyncio.timeout(30):
        while not (found := await notes(place))[0].startswith(start):  # noqa: ASYNC110 - another process sends
            await asyncio.sleep(0.1)
    [note] = found
    return note


async def test_check_states_how_notifications_stand(place: Place) -> None:
    """Nothing, set, failing, switched off, and on again after a test."""
    assert await notes(place) == []
    async with receiving() as receiver:
        await place.run("notify", "set", f"{receiver.url}/{HIDDEN}")
        assert await notes(place) == ["Notifications go to 127.0.0.1"]
        receiver.answer(UNAVAILABLE)
        await place.run("pause", "gateway", "--why", "to be reported")
        await receiver.wait_for(1)
        note = await noted(place, "No notification has reached")
        assert re.fullmatch(
            r"No notification has reached 127\.0\.0\.1 since 20\S+Z: 127\.0\.0\.1 answered with HTTP 503\. .+", note
        )
        shown = await place.run("notify", "show")
        assert re.search(r"^  Failing    since 20\S+Z: .+ HTTP 503\. ", shown.out, re.MULTILINE)
        receiver.answer(GONE)
        await noted(place, "Birdwire has switched off")
        shown = await place.run("notify", "show")
        assert re.search(r"^  State      off since 20\S+Z: it answered with HTTP 410$", shown.out, re.MULTILINE)
        assert "birdwire notify test" in shown.err
        assert (await place.json("notify", "show"))["destination"]["off_why"] == "410"
        receiver.answer(Reply(204))
        done = await place.run("notify", "test")
        assert done.out.endswith("Notifications are on again.\n")
        assert await notes(place) == ["Notifications go to 127.0.0.1"]
    await place.run("resume", "gateway")


async def test_check_states_that_the_destination_cannot_be_decrypted(bare: Place) -> None:
    """Although no delivery has failed: none is tried."""
    await bare.run("notify", "set", "https://hooks.example.com/hook")
    await bare.write("UPDATE destinations SET error = 'unreadable', tried_at = ?", (at(1),))
    [note] = await notes(bare)
    assert re.match(r"No notification has reached hooks\.example\.com since 20\S+Z: the URL cannot be decrypted", note)


async def test_check_states_that_nobody_is_notified_of_what_waits(bare: Place) -> None:
    """If a policy asks, and only then."""
    [key] = (await bare.json("keys", "list"))["keys"]
    await bare.run("policy", "set", key["key_id"], "approve=post_twitter")
    [note] = await notes(bare)
    assert note == (
        "A policy makes writes wait for a person, and nobody is notified of them. "
        "To set where they go, run: birdwire notify set URL"
    )
    await bare.run("notify", "set", "https://hooks.example.com/hook")
    assert await notes(bare) == ["Notifications go to hooks.example.com"]
    await bare.run("policy", "unset", key["key_id"])


async def test_check_refuses_an_address_that_is_none_and_warns_of_all(bare: Place) -> None:
    """Of the setting that opens the way out."""
    wrong = await bare.run("check", "--json", outbound_allow="10.0.0.0/8, receiver")
    assert wrong.code == 2
    assert "outbound_allow contains receiver" in str(wrong.document["problems"])
    every = await bare.run("check", "--json", outbound_allow="0.0.0.0/0")
    assert "Notifications may be sent to any address" in str(every.document["notes"])


async def test_a_wrong_vault_key_sets_nothing(bare: Place, tmp_path: Path) -> None:
    """The gateway could not open what it seals."""
    created = await bare.run("vault", "create", str(tmp_path / "other.key"))
    assert created.code == 0
    await bare.run("notify", "set", "https://hooks.example.com/hook")
    other = {"vault_key_file": str(tmp_path / "other.key")}
    for words in (("set", "https://other.example.com/hook"), ("rotate",), ("test",), ("off",)):
        done = await bare.run("notify", *words, **other)
        assert (done.code, done.out) == (2, ""), done.err
    assert (await bare.json("notify", "show"))["destination"]["host"] == "hooks.example.com"
