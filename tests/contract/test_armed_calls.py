"""Calls admitted before their key or link changed: requests to X not yet started by then are not sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.gateway.guardrails.pauses import pause
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.database import Database
from birdwire.store.tables import journal, policies
from birdwire.store.tables.acts import Actor
from birdwire.store.tables.pauses import PauseRow
from birdwire.store.tables.policies import PolicyRow
from birdwire.x.catalog.media import CHUNK_BYTES
from harness.gateway import API, POST, RunningGateway, gateway, serving
from harness.linking import JSON, reason_of
from harness.raw_http import RawRequest, RawResponse, SlowRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx2
    from starlette.types import ASGIApp, Receive, Scope, Send

    Change = Callable[[RunningGateway], Awaitable[object]]

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPERATOR = Actor("uid 0", "cli")

JPEG = b"\xff\xd8\xff" + bytes(2 * CHUNK_BYTES)
"""Three parts of an upload."""


async def revoke(running: RunningGateway) -> None:
    """Revoke the key."""
    await running.gateway.keys.revoke(running.key_id)


async def rotate(running: RunningGateway) -> None:
    """Rotate the key without an overlap."""
    await running.gateway.keys.rotate(running.key_id, timedelta())


async def expire(running: RunningGateway) -> None:
    """Let the key expire."""
    running.clock.advance(minutes=1)


async def unlink(running: RunningGateway) -> None:
    """Unlink the account."""
    (await running.call("unlink_twitter")).raise_for_status()


async def relink(running: RunningGateway, username: str) -> None:
    """Link an account in place of the one that is linked."""
    answer = await running.link(username, {"expected_username": username})
    assert answer.status_code == 200


def narrow(**rules: Any) -> Change:
    """Change the key's rules."""
    return lambda running: running.gateway.keys.change(running.key_id, **rules)


CHANGES: dict[str, tuple[Change, tuple[int, str]]] = {
    "revoked": (revoke, (401, "key_revoked")),
    "rotated": (rotate, (401, "key_revoked")),
    "expired": (expire, (401, "key_expired")),
    "actions": (narrow(actions=("bookmark_twitter",)), (403, "key_not_allowed")),
    "addresses": (narrow(ips=("192.0.2.0/24",)), (403, "ip_not_allowed")),
    "unlinked": (unlink, (403, "x_not_linked")),
}


async def pause_key(running: RunningGateway) -> None:
    """Pause the key, as another process does."""
    database, now = Database(running.settings.database_url), running.clock.now()
    try:
        async with database.write() as connection:
            await pause(connection, OPERATOR, PauseRow(running.key_id, "operator", now, None, "a test", OPERATOR.who))
    finally:
        await database.close()


async def ask_a_person(running: RunningGateway) -> None:
    """Let every write of the key wait for a person, as another process does."""
    database, now = Database(running.settings.database_url), running.clock.now()
    row = PolicyRow(running.key_id, "operator", 1, "enforce", None, {"approve": "*"}, now, OPERATOR.who)
    try:
        async with database.write() as connection:
            assert await policies.append(connection, row)
    finally:
        await database.close()


CHANGES["paused"] = (pause_key, (403, "paused"))
CHANGES["policy"] = (ask_a_person, (409, "approval_stale"))


ASKED = (202, "")
"""The answer to a call that the rules find before it is armed: it waits for a person."""


def kinds(*names: str) -> pytest.MarkDecorator:
    """Once with each of these changes."""
    return pytest.mark.parametrize(("change", "refused"), [CHANGES[name] for name in names], ids=names)


class Held:
    """A sandbox that holds the calls to one path until the test lets them go."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._path = ""
        self._come, self._go = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one call on, now or later."""
        if self._path and scope["type"] == "http" and scope["path"].endswith(self._path):
            self._come.set()
            await self._go.wait()
        await self._app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def holding(self, path: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
        """Hold calls to a path that ends so, until the block ends; yields how to wait for the first."""
        self._path, self._come, self._go = path, asyncio.Event(), asyncio.Event()
        try:
            yield partial(asyncio.wait_for, self._come.wait(), 20)
        finally:
            self._path = ""
            self._go.set()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the setting for the module's database; empty for the gateway's own file."""
    if request.param == "sqlite":
        return {}
    template = request.getfixturevalue("prepared")
    return {"database_url": request.getfixturevalue("postgres").database(template)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_database: dict[str, Any]
) -> AsyncIterator[RunningGateway]:
    """Start one gateway for the module; every test creates its own key."""
    async with RunningGateway.built(tmp_path_factory.mktemp("armed"), **shared_database) as built:
        yield built


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def waiting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningGateway, Held]]:
    """The same, with an X that can be held."""
    async with AsyncExitStack() as stack:
        sandbox = create_sandbox()
        held = Held(sandbox)
        x_url = await stack.enter_async_context(serving(sandbox_config(held, log_level="error")))
        folder = tmp_path_factory.mktemp("held")
        running = await stack.enter_async_context(gateway(folder, sandbox, x_url, stack, x_deadline_s=120))
        yield running, held


async def armed(running: RunningGateway) -> RunningGateway:
    """Give the gateway a new key, which is linked to ada and expires in a minute."""
    key, running.raw_key = await running.gateway.keys.create("test", "armed", "growth")
    running.key_id = key.key_id
    running.client.headers["authorization"] = f"Bearer {running.raw_key}"
    await running.link("ada")
    await running.gateway.keys.change(key.key_id, expires_at=running.clock.now() + timedelta(minutes=1))
    return running


async def heard(running: RunningGateway, refused: tuple[int, str]) -> None:
    """Wait until the gateway has heard of the change: until it refuses a new call."""
    async with asyncio.timeout(20):
        while (answer := await running.like()).status_code == 200:  # noqa: ASYNC110 - nothing else reports it
            await asyncio.sleep(0.01)
    assert outcome(answer) == refused


async def writes(running: RunningGateway, path: str) -> int:
    """How many writes X got so far, other than those of links."""
    return len([call for call in await running.calls(path) if call["method"] != "GET"])


async def recorded(running: RunningGateway, request_id: str) -> tuple[str, str | None]:
    """State and reason of a write in the journal."""
    database = Database(running.settings.database_url)
    try:
        async with database.read() as connection:
            row = await journal.get(connection, request_id)
    finally:
        await database.close()
    assert row is not None
    return row.state, row.reason


def slow_call(running: RunningGateway, sent: RawRequest) -> contextlib.AbstractAsyncContextManager[SlowRequest]:
    """Start a call of the gateway's key whose last byte is held back."""
    return SlowRequest.started(str(running.client.base_url), running.raw_key, sent)


def outcome(got: RawResponse | httpx2.Response) -> tuple[int, str]:
    """Status and reason."""
    body = got.body if isinstance(got, RawResponse) else got.content
    status = got.status if isinstance(got, RawResponse) else got.status_code
    return status, str(json.loads(body).get("error", {}).get("reason", ""))


# While the body comes in.


@kinds(*(name for name in CHANGES if name != "policy"))
async def test_a_slow_body_is_checked_against_the_rules_at_its_end(
    shared: RunningGateway, change: Change, refused: tuple[int, str]
) -> None:
    """The post is not sent. Its allowance was charged once, and its Idempotency-Key is free."""
    running = await armed(shared)
    before = await writes(running, "/2/tweets")
    sent = RawRequest(b'{"text": "armed"}', target=API + "post_twitter", more=(("Idempotency-Key", "armed"),))
    async with slow_call(running, sent) as slow:
        await change(running)
        await heard(running, refused)
        got = await slow.finish()
    assert outcome(got) == refused
    assert await writes(running, "/2/tweets") == before
    assert (
        outcome(await running.call("post_twitter", {"text": "armed"}, headers={"idempotency-key": "armed"})) == refused
    )


async def test_a_slow_body_waits_for_a_person_by_a_policy_of_now(shared: RunningGateway) -> None:
    """The call was not armed yet, so it is not stale."""
    running = await armed(shared)
    before = await writes(running, "/2/tweets")
    async with slow_call(running, RawRequest(b'{"text": "armed"}', target=API + "post_twitter")) as slow:
        await ask_a_person(running)
        await heard(running, ASKED)
        assert outcome(await slow.finish()) == ASKED
    assert await writes(running, "/2/tweets") == before


async def test_a_slow_body_never_acts_as_an_account_that_was_linked_since(shared: RunningGateway) -> None:
    """What was meant for ada is not posted as grace."""
    running = await armed(shared)
    before = await writes(running, "/2/tweets")
    sent = RawRequest(b'{"text": "meant for ada"}', target=API + "post_twitter")
    async with slow_call(running, sent) as slow:
        await relink(running, "grace")
        running.clock.advance(seconds=2)
        assert outcome(await slow.finish()) == (403, "x_not_linked")
    assert await writes(running, "/2/tweets") == before


async def test_a_slow_body_starts_no_link_with_a_revoked_key(shared: RunningGateway) -> None:
    """What needs no X is bound by the key, too."""
    running = await armed(shared)
    async with slow_call(running, RawRequest(b"{}", target=API + "auth_twitter")) as slow:
        await revoke(running)
        await heard(running, (401, "key_revoked"))
        assert outcome(await slow.finish()) == (401, "key_revoked")


async def test_a_slow_body_is_served_by_a_key_that_changed_in_nothing_that_matters(shared: RunningGateway) -> None:
    """A new label, a new limit, an overlap: the call goes on."""
    running = await armed(shared)
    async with slow_call(running, RawRequest()) as slow:
        await running.gateway.keys.change(running.key_id, label="renamed", rpm=50)
        await running.gateway.keys.rotate(running.key_id, timedelta(hours=1))
        assert (await slow.finish()).status == 200


# While it waits for another call, with its body whole.


@contextlib.asynccontextmanager
async def queued(running: RunningGateway, held: Held) -> AsyncIterator[asyncio.Task[httpx2.Response]]:
    """An unlike that waits for a like, which X holds until the block ends."""
    async with held.holding("/likes") as come:
        like = asyncio.create_task(running.like())
        await come()
        unlike = asyncio.create_task(running.call("unlike_twitter", {"tweet_id": POST}))
        async with asyncio.timeout(20):
            while not running.gateway.order.waiting:  # noqa: ASYNC110 - nothing else reports it
                await asyncio.sleep(0)
        yield unlike
    await like


@kinds(*CHANGES)
async def test_a_queued_call_is_not_started_after_the_change(
    waiting: tuple[RunningGateway, Held], change: Change, refused: tuple[int, str]
) -> None:
    """The call on the wire ends; the one behind it is refused before its first byte."""
    running, held = await armed(waiting[0]), waiting[1]
    before = await writes(running, "/2/users/")
    async with queued(running, held) as unlike:
        await change(running)
    answer = await unlike
    assert outcome(answer) == refused
    assert await writes(running, "/2/users/") == before + 1
    assert await recorded(running, answer.json()["error"]["request_id"]) == ("not_sent", refused[1])


async def test_a_queued_call_never_acts_as_an_account_that_was_linked_since(
    waiting: tuple[RunningGateway, Held],
) -> None:
    """It was recorded as ada's, so it is neither ada's nor grace's now."""
    running, held = await armed(waiting[0]), waiting[1]
    before = await writes(running, "/2/users/")
    async with queued(running, held) as unlike:
        await relink(running, "grace")
    assert outcome(await unlike) == (403, "x_not_linked")
    assert await writes(running, "/2/users/") == before + 1
    assert (await running.status())["username"] == "grace"


async def test_a_queued_call_uses_the_newest_session_of_its_account(waiting: tuple[RunningGateway, Held]) -> None:
    """The same account was linked again, and the token that the call was admitted with has ended at X."""
    running, held = await armed(waiting[0]), waiting[1]
    async with queued(running, held) as unlike:
        await running.advance_x(7_200)
        await relink(running, "ada")
    assert outcome(await unlike) == (200, "")


async def test_a_call_with_a_token_of_seconds_is_sent(shared: RunningGateway) -> None:
    """Every call renews such a token first, and the news of the renewal does not hold the call back."""
    running = await armed(shared)
    await running.configure(access_token_s=30)
    try:
        await relink(running, "ada")
        asked = len(await running.calls("/2/oauth2/token"))
        assert [(await running.like()).status_code for _ in range(2)] == [200, 200]
        assert asked < len(await running.calls("/2/oauth2/token")) <= asked + 2
    finally:
        await running.configure(access_token_s=7_200)


# While a link is under way.


def lose_link(running: RunningGateway) -> Awaitable[object]:
    """Take the action `link` from the key."""
    return running.gateway.keys.change(running.key_id, actions=("like_twitter",))


async def revocations(running: RunningGateway) -> int:
    """End what is over, and return how many tokens X was asked to revoke so far."""
    await running.gateway.links.sweep()
    return len(await running.calls("/2/oauth2/revoke"))


@pytest.mark.parametrize(
    ("path", "reason"), [("/oauth2/token", "state_unknown"), ("/users/me", "x_not_linked")], ids=["exchange", "name"]
)
async def test_a_callback_links_nothing_once_its_key_has_lost_the_action(
    waiting: tuple[RunningGateway, Held], path: str, reason: str
) -> None:
    """Whether X is asked for the pair just then or whose it is: the pair is revoked, and the older link goes on."""
    running, held = await armed(waiting[0]), waiting[1]
    before = await revocations(running)
    redirect = await running.consent("grace", body={"expected_username": "grace"})
    async with held.holding(path) as come:
        landing = asyncio.create_task(running.bare.get(redirect, headers=JSON))
        await come()
        await lose_link(running)
    answer = await landing
    assert (answer.is_error, reason_of(answer)) == (True, reason)
    assert await revocations(running) == before + 2
    assert (await running.like()).status_code == 200
    assert (await running.status())["username"] == "ada"


@pytest.mark.parametrize("later", [{}, {"expires_at": None}], ids=["at once", "after another change"])
async def test_a_pair_that_x_has_not_named_ends_with_the_action(
    waiting: tuple[RunningGateway, Held], later: dict[str, object]
) -> None:
    """The next call asks X nothing about it, and nothing that hangs on the key's end brings it back."""
    running = await armed(waiting[0])
    before = await revocations(running)
    await running.fault("GET", "/2/users/me", {"status": 503})
    assert "Almost linked" in (await running.link("grace", {"expected_username": "grace"})).text
    await lose_link(running)
    if later:
        await running.gateway.keys.change(running.key_id, **later)
    asked = len(await running.calls("/2/users/me"))
    assert (await running.like()).status_code == 200
    assert (len(await running.calls("/2/users/me")), (await running.status())["username"]) == (asked, "ada")
    assert await revocations(running) == before + 2


async def test_a_call_admitted_before_the_change_starts_no_link(waiting: tuple[RunningGateway, Held]) -> None:
    """Its write comes after the change, for which it waits."""
    running = await armed(waiting[0])
    other = sqlite3.connect(running.directory / "birdwire.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        change = asyncio.ensure_future(lose_link(running))
        begun = asyncio.create_task(running.call("auth_twitter", {}))
        for _ in range(20):  # until it has reached its write, in the same event loop
            (await running.bare.get("/livez")).raise_for_status()
        assert not change.done()
        other.execute("ROLLBACK")
        await change
        assert outcome(await begun) == (403, "key_not_allowed")


# Between two tries.


@kinds("revoked", "expired", "unlinked", "paused")
async def test_no_retry_is_started_after_the_change(
    waiting: tuple[RunningGateway, Held], change: Change, refused: tuple[int, str]
) -> None:
    """X's 503 leaves open whether the first try was applied, and so it stays recorded."""
    running, _ = await armed(waiting[0]), waiting[1]
    before = await writes(running, "/2/users/")
    await running.fault("POST", "/2/users/*/likes", {"status": 503})

    async def meanwhile() -> None:
        running.clock.meanwhile = None
        await change(running)

    running.clock.meanwhile = meanwhile
    answer = await running.like()
    assert outcome(answer) == refused
    assert await writes(running, "/2/users/") == before + 1
    assert await recorded(running, answer.json()["error"]["request_id"]) == ("unknown", refused[1])


async def test_what_was_read_again_does_not_count_after_news_of_the_key(waiting: tuple[RunningGateway, Held]) -> None:
    """A call whose key changed while it waited has read it again; a revocation after that stops its retry as well."""
    running, held = await armed(waiting[0]), waiting[1]
    await running.fault("DELETE", "/2/users/*/likes/*", {"status": 503})

    async def meanwhile() -> None:
        running.clock.meanwhile = None
        await revoke(running)

    before = len(await running.calls("/2/users/", method="DELETE"))
    async with queued(running, held) as unlike:
        await running.gateway.keys.change(running.key_id, label="renamed")
        running.clock.meanwhile = meanwhile
    answer = await unlike
    assert outcome(answer) == CHANGES["revoked"][1]
    assert len(await running.calls("/2/users/", method="DELETE")) == before + 1
    assert await recorded(running, answer.json()["error"]["request_id"]) == ("unknown", "key_revoked")


# Between the requests of a lookup.


@kinds("revoked", "actions", "paused")
async def test_no_further_request_of_a_lookup_is_sent_after_the_change(
    waiting: tuple[RunningGateway, Held], change: Change, refused: tuple[int, str]
) -> None:
    """The user was found; the user's posts are not read."""
    # An earlier answer of X is remembered for a minute.
    waiting[0].clock.advance(minutes=2)
    running, held = await armed(waiting[0]), waiting[1]
    before = len(await running.calls("/2/users/", method="GET"))
    async with held.holding("/by/username/grace") as come:
        posts = asyncio.create_task(running.client.get(f"{API}user/last_tweets?userName=grace"))
        await come()
        await change(running)
    assert outcome(await posts) == refused
    assert len(await running.calls("/2/users/", method="GET")) == before + 1


# Between the parts of an upload, and between the uploads and the post.


@kinds("rotated", "actions", "unlinked", "paused")
async def test_no_further_part_of_an_upload_is_sent_after_the_change(
    waiting: tuple[RunningGateway, Held], change: Change, refused: tuple[int, str]
) -> None:
    """The part on the wire ends; neither the next one nor the end of the upload is sent."""
    running, held = await armed(waiting[0]), waiting[1]
    before = await writes(running, "/2/media")
    files = {"media": ("a.jpg", JPEG, "image/jpeg")}
    async with held.holding("/append") as come:
        upload = asyncio.create_task(running.client.post(API + "upload_media", files=files))
        await come()
        await change(running)
    answer = await upload
    assert outcome(answer) == refused
    assert await writes(running, "/2/media") == before + 2  # the beginning and one part
    assert await recorded(running, answer.json()["error"]["request_id"]) == ("not_sent", refused[1])


async def test_an_upload_whose_parts_are_all_sent_ends_and_is_recorded(waiting: tuple[RunningGateway, Held]) -> None:
    """Its key was revoked while X took the end of it."""
    running, held = await armed(waiting[0]), waiting[1]
    async with held.holding("/finalize") as come:
        files = {"media": ("a.jpg", JPEG[:100], "image/jpeg")}
        upload = asyncio.create_task(running.client.post(API + "upload_media", files=files))
        await come()
        await revoke(running)
    answer = await upload
    assert answer.status_code == 200
    assert await recorded(running, answer.headers["x-request-id"]) == ("confirmed", None)


@pytest.mark.parametrize(
    ("change", "refused"),
    [CHANGES["revoked"], CHANGES["actions"], (narrow(text_limit=5), (400, "text_too_long"))],
    ids=["revoked", "actions", "text limit"],
)
async def test_a_post_goes_by_the_rules_that_hold_when_its_files_are_uploaded(
    waiting: tuple[RunningGateway, Held], change: Change, refused: tuple[int, str]
) -> None:
    """The files went before; the post does not follow."""
    running, held = await armed(waiting[0]), waiting[1]
    before = await writes(running, "/2/tweets")
    files: dict[str, Any] = {
        "aisa_api_key": (None, running.raw_key),
        "content": (None, "with a picture"),
        "media_files": ("a.jpg", JPEG[:100], "image/jpeg"),
    }
    async with held.holding("/finalize") as come:
        post = asyncio.create_task(running.bare.post(API + "post_twitter", files=files))
        await come()
        await change(running)
    answer = await post
    assert outcome(answer) == refused
    assert await writes(running, "/2/tweets") == before
    assert (await recorded(running, answer.json()["error"]["request_id"]))[0] == "not_sent"


async def test_a_post_that_the_store_stops_after_its_files_is_recorded(waiting: tuple[RunningGateway, Held]) -> None:
    """Whether it may go on cannot be read: nothing was published, and the journal says so."""
    running, held = await armed(waiting[0]), waiting[1]
    before = await writes(running, "/2/tweets")
    files: dict[str, Any] = {
        "aisa_api_key": (None, running.raw_key),
        "content": (None, "with a picture"),
        "media_files": ("a.jpg", JPEG[:100], "image/jpeg"),
    }
    other = sqlite3.connect(running.directory / "birdwire.db", isolation_level=None)
    with contextlib.closing(other):
        try:
            async with held.holding("/finalize") as come:
                post = asyncio.create_task(running.bare.post(API + "post_twitter", files=files))
                await come()
                await running.gateway.keys.change(running.key_id, label="to be read again")
                other.execute("ALTER TABLE api_keys RENAME TO away")
            answer = await post
        finally:
            other.execute("ALTER TABLE away RENAME TO api_keys")
    assert outcome(answer) == (503, "storage_unavailable")
    assert await writes(running, "/2/tweets") == before
    assert (await recorded(running, answer.json()["error"]["request_id"]))[0] == "not_sent"
