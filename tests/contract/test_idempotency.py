"""Idempotency-Key: one call is carried out once, and a repeat gets the same response; and what became of a request."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.outcomes.own_refusals import MAX_PER_KEY
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.encryption.key_files import read_key_file
from birdwire.store.encryption.vault import Place, Vault
from harness.gateway import API, PNG, POST, gateway, serving

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

    from harness.gateway import RunningGateway


async def once(running: RunningGateway, name: str, body: Any, key: str = "k1") -> httpx2.Response:
    """A call with an Idempotency-Key."""
    return await running.call(name, body, headers={"idempotency-key": key})


@pytest.mark.trust("#228")
async def test_a_replay_returns_the_first_answer(linked: RunningGateway) -> None:
    """Same status, same body, one post; white space and the order of members do not matter."""
    first = await once(linked, "post_twitter", {"text": "once", "made_with_ai": True})
    raw = b'{ "made_with_ai" : true, "text": "once" }'
    headers = {"idempotency-key": "k1", "content-type": "application/json"}
    second = await linked.client.post(API + "post_twitter", content=raw, headers=headers)
    assert (first.status_code, second.status_code, first.content) == (201, 201, second.content)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(await linked.calls("/2/tweets")) == 1


@pytest.mark.trust("F40")
async def test_a_hundred_concurrent_requests_make_one_post(linked: RunningGateway) -> None:
    """The rest hear that it runs, or how it ended."""
    answers = await asyncio.gather(*(once(linked, "post_twitter", {"text": "one of many"}) for _ in range(100)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    waiting = [answer for answer in answers if answer.status_code == 409]
    assert {answer.json()["error"]["reason"] for answer in waiting} <= {"idempotency_in_flight"}
    assert {answer.headers["retry-after"] for answer in waiting} <= {"1"}
    assert len(await linked.calls("/2/tweets")) == 1


@pytest.mark.trust("#224")
@pytest.mark.trust("#225")
@pytest.mark.parametrize(("name", "body"), [("post_twitter", {"text": "other"}), ("like_twitter", {"tweet_id": POST})])
async def test_the_same_key_for_another_call_is_a_conflict(
    linked: RunningGateway, name: str, body: dict[str, str]
) -> None:
    """Another body, another operation."""
    await once(linked, "post_twitter", {"text": "first"})
    answer = await once(linked, name, body)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "idempotency_key_reused")


@pytest.mark.trust("#223")
async def test_quotes_are_not_part_of_an_idempotency_key(linked: RunningGateway) -> None:
    """The draft writes it as a quoted string, Stripe does not."""
    await once(linked, "post_twitter", {"text": "quoted"}, '"k"')
    assert (await once(linked, "post_twitter", {"text": "quoted"}, "k")).headers["idempotent-replayed"] == "true"


@pytest.mark.trust("#226")
async def test_another_api_keys_keys_are_its_own(linked: RunningGateway) -> None:
    """The same name, two callers: two calls."""
    await once(linked, "like_twitter", {"tweet_id": POST})
    _, other = await linked.gateway.keys.create("test", "other")
    headers = {"idempotency-key": "k1", "authorization": f"Bearer {other}"}
    answer = await linked.bare.post(API + "like_twitter", json={"tweet_id": POST}, headers=headers)
    assert answer.json()["error"]["reason"] == "x_not_linked"


@pytest.mark.trust("#229")
async def test_a_key_is_new_again_after_a_day(linked: RunningGateway) -> None:
    """Kept for 24 hours, as documented."""
    await once(linked, "like_twitter", {"tweet_id": POST})
    linked.clock.advance(hours=24, seconds=1)
    assert "idempotent-replayed" not in (await once(linked, "like_twitter", {"tweet_id": POST})).headers


@pytest.mark.trust("#219")
@pytest.mark.parametrize("key", ["", '""', "a" * 256, "caf\u00e9".encode("latin-1"), b"a\tb", [b"a", b"b"]])
async def test_a_malformed_idempotency_key_is_refused(linked: RunningGateway, key: Any) -> None:
    """Empty, too long, not ASCII, a control character, two of them."""
    values = key if isinstance(key, list) else [key if isinstance(key, bytes) else key.encode()]
    headers = [*linked.client.headers.raw, *((b"idempotency-key", value) for value in values)]
    answer = await linked.client.post(API + "like_twitter", json={"tweet_id": POST}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["reason"]) in {
        (400, "idempotency_key_malformed"),
        (400, "duplicate_header"),
    }


async def test_a_refusal_by_x_is_replayed_and_one_by_birdwire_is_not(linked: RunningGateway) -> None:
    """X's word is final for the key; what never reached X may be fixed and sent again."""
    refused = [await once(linked, "like_twitter", {"tweet_id": "404"}, "x") for _ in range(2)]
    assert [answer.status_code for answer in refused] == [404, 404]
    assert refused[0].content == refused[1].content
    assert len(await linked.calls("/2/users/", method="POST")) == 1
    assert (await once(linked, "like_twitter", {"tweet_id": "nonsense"}, "ours")).status_code == 400
    assert (await once(linked, "like_twitter", {"tweet_id": POST}, "ours")).status_code == 200


@pytest.mark.parametrize("error", ["unauthorized", "rate-limited", "unavailable"])
async def test_a_retryable_call_can_use_its_idempotency_key_again(linked: RunningGateway, error: str) -> None:
    """X's 401 and 429 were not applied, and a like does no harm twice."""
    await linked.fault("POST", "/2/users/*/likes", {"error": error}, times=3)
    assert (await once(linked, "like_twitter", {"tweet_id": POST})).status_code != 200
    await linked.x.delete("/_sandbox/faults")
    linked.clock.advance(minutes=16)
    assert (await once(linked, "like_twitter", {"tweet_id": POST})).status_code == 200


@pytest.mark.parametrize("do", [{"drop": "after_apply"}, {"status": 503}])
async def test_a_post_whose_answer_is_lost_is_never_sent_again(linked: RunningGateway, do: dict[str, Any]) -> None:
    """Its key stays unknown, also across the next try."""
    await linked.fault("POST", "/2/tweets", do)
    answers = [await once(linked, "post_twitter", {"text": "lost"}) for _ in range(3)]
    assert {answer.json()["error"]["code"] for answer in answers} == {"outcome_unknown"}
    assert len(await linked.calls("/2/tweets")) == 1
    assert answers[1].headers["idempotent-replayed"] == "true"


async def test_a_post_without_a_key_is_given_one(linked: RunningGateway) -> None:
    """So that its outcome can be asked for; asking sends nothing."""
    first = await linked.call("post_twitter", {"text": "mint"})
    second = await once(linked, "post_twitter", {"text": "mint"}, first.headers["idempotency-key"])
    assert second.content == first.content
    assert len(await linked.calls("/2/tweets")) == 1
    assert "idempotency-key" not in (await linked.like()).headers


async def test_the_dialect_has_its_own_envelope_on_a_replay(linked: RunningGateway) -> None:
    """The stored answer is rendered in the dialect of the caller that repeats."""
    body = {"aisa_api_key": linked.raw_key, "tweet_id": POST}
    await once(linked, "like_twitter", body)
    again = await once(linked, "like_twitter", body)
    assert again.content == b'{"code":200,"msg":"ok","data":{"liked":true}}'
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.trust("F2")
async def test_a_call_that_a_crash_cut_off_is_unknown_or_free(tmp_path: Path) -> None:
    """After the next start: a post is never sent again under its key, a like may be."""
    sandbox = create_sandbox()
    async with contextlib.AsyncExitStack() as stack:
        x_url = await stack.enter_async_context(serving(sandbox_config(sandbox)))
        async with gateway(tmp_path, sandbox, x_url, stack) as running:
            _, raw_key = await running.gateway.keys.create("test", "kept", "free")
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.link("ada")
            await running.fault("POST", "/2/*", {"delay_s": 30}, times=None)
            posting = asyncio.create_task(once(running, "post_twitter", {"text": "cut"}, "post"))
            liking = asyncio.create_task(once(running, "like_twitter", {"tweet_id": POST}, "like"))
            while len(await running.calls("/2/", method="POST")) < 4:  # the exchange and revocations aside
                if len([c for c in await running.calls("/2/") if c["status"] is None]) == 2:
                    break
            async with contextlib.AsyncExitStack() as second, gateway(tmp_path, sandbox, x_url, second) as again:
                again.client.headers["authorization"] = f"Bearer {raw_key}"
                await again.x.delete("/_sandbox/faults")
                in_flight = await once(again, "post_twitter", {"text": "cut"}, "post")
                assert in_flight.json()["error"]["reason"] == "idempotency_in_flight"
                again.clock.advance(seconds=30)  # the first is not heard of any more
                post = await once(again, "post_twitter", {"text": "cut"}, "post")
                like = await once(again, "like_twitter", {"tweet_id": POST}, "like")
            assert post.json()["error"]["code"] == "outcome_unknown"
            assert like.status_code == 200
            posting.cancel()
            liking.cancel()
            await asyncio.wait([posting, liking])


async def test_a_request_can_be_asked_for_by_its_key(linked: RunningGateway) -> None:
    """What was asked, what became of it, and X's data; to any other key it is not there."""
    posted = await linked.call("post_twitter", {"text": "ask for me"})
    request_id = posted.headers["x-request-id"]
    answer = (await linked.client.get(API + f"requests/{request_id}")).json()
    names = ["request_id", "operation", "state", "status", "reason", "data", "created_at", "started_at", "settled_at"]
    names += ["why", "cost_usd", "approval"]
    assert list(answer) == names
    assert (answer["request_id"], answer["operation"], answer["state"]) == (request_id, "post_twitter", "confirmed")
    assert (answer["status"], answer["data"]) == (201, posted.json()["data"])
    refused = await linked.like("404")
    told = (await linked.client.get(API + f"requests/{refused.headers['x-request-id']}")).json()
    assert (told["state"], told["status"], told["reason"], told["data"]) == ("refused", 404, "tweet_not_found", None)
    _, other = await linked.gateway.keys.create("test", "other")
    foreign = await linked.bare.get(API + f"requests/{request_id}", headers={"authorization": f"Bearer {other}"})
    assert (foreign.status_code, foreign.json()["error"]["reason"]) == (404, "request_not_found")
    assert (await linked.client.get(API + "requests/req_none")).status_code == 404


async def test_a_caller_that_polls_pushes_out_no_refusal(running: RunningGateway) -> None:
    """Only what acts or looks something up is remembered."""
    refused = await running.like()
    for number in range(MAX_PER_KEY):
        assert (await running.client.get(API + f"requests/req_{number}")).status_code == 404
        assert (await running.client.get(API + "auth/status?now=1")).status_code == 400
    told = (await running.client.get(API + f"requests/{refused.headers['x-request-id']}")).json()
    assert (told["state"], told["reason"]) == ("not_sent", "x_not_linked")


@pytest.mark.parametrize(
    ("do", "state"),
    [({"status": 503}, "unknown"), ({"drop": "after_apply"}, "unknown"), ({"error": "duplicate-post"}, "refused")],
)
async def test_the_journal_reports_what_is_known_of_a_post(
    linked: RunningGateway, do: dict[str, Any], state: str
) -> None:
    """Unknown is named."""
    await linked.fault("POST", "/2/tweets", do)
    request_id = (await linked.call("post_twitter", {"text": "?"})).headers["x-request-id"]
    assert (await linked.client.get(API + f"requests/{request_id}")).json()["state"] == state


async def test_a_post_that_could_not_be_recorded_is_not_sent_again(linked: RunningGateway) -> None:
    """X has it, the store does not answer: what became of it is written down as soon as the store is back."""
    await linked.fault("POST", "/2/tweets", {"delay_s": 0.5})
    posting = asyncio.create_task(once(linked, "post_twitter", {"text": "unrecorded"}))
    async with asyncio.timeout(20):
        while not await linked.calls("/2/tweets"):
            pass
    other = sqlite3.connect(linked.directory / "birdwire.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        first = await posting
    assert (first.status_code, first.json()["error"]["reason"]) == (503, "storage_unavailable")
    assert "X carried out the write" in first.json()["error"]["message"]
    seen = set()
    async with asyncio.timeout(20):
        while 201 not in seen:
            answer = await once(linked, "post_twitter", {"text": "unrecorded"})
            seen.add(answer.status_code)
    assert seen <= {201, 502}
    assert len(await linked.calls("/2/tweets")) == 1


@pytest.mark.trust("F10")
async def test_a_like_goes_on_while_the_store_takes_no_writes(linked: RunningGateway) -> None:
    """Its row waits in memory, and its key is not stuck as one that runs."""
    await linked.fault("POST", "/2/users/*/likes", {"delay_s": 0.5})
    liking = asyncio.create_task(once(linked, "like_twitter", {"tweet_id": POST}))
    async with asyncio.timeout(20):
        while not await linked.calls("/2/users/", method="POST"):
            pass
    other = sqlite3.connect(linked.directory / "birdwire.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        first = await liking
        assert first.status_code == 200
        told = await linked.client.get(API + f"requests/{first.headers['x-request-id']}")
        assert told.json()["state"] == "confirmed"
        assert (await linked.like()).status_code == 200
        posted = await linked.call("post_twitter", {"text": "not now"})
        assert (posted.status_code, posted.json()["error"]["reason"]) == (503, "storage_unavailable")
        assert not await linked.calls("/2/tweets")
    assert (await once(linked, "like_twitter", {"tweet_id": POST})).status_code == 200


async def test_a_replayed_refusal_stays_one_in_the_dialect(linked: RunningGateway) -> None:
    """The envelope is for success alone."""
    body = {"aisa_api_key": linked.raw_key, "tweet_id": "404"}
    answers = [await once(linked, "like_twitter", body) for _ in range(2)]
    assert [(answer.status_code, list(answer.json())) for answer in answers] == [(404, ["error"])] * 2


async def test_the_operators_fault_is_not_kept_for_the_caller(linked: RunningGateway) -> None:
    """X refused the gateway's own credentials: once that is fixed, the same key works."""
    await linked.advance_x(7_300)
    await linked.fault("POST", "/2/oauth2/token", {"error": "token-bad-client"})
    assert (await once(linked, "like_twitter", {"tweet_id": POST})).json()["error"]["reason"] == "x_client_credentials"
    assert (await once(linked, "like_twitter", {"tweet_id": POST})).status_code == 200


async def test_a_post_whose_upload_failed_was_not_sent_and_may_be(linked: RunningGateway) -> None:
    """Its outcome is known: nothing was posted."""
    await linked.fault("POST", "/2/media/upload/*/append", {"status": 503})
    fields = [("aisa_api_key", (None, linked.raw_key)), ("content", (None, "with an image"))]
    files: Any = [*fields, ("media_files", ("a.png", PNG, "image/png"))]
    headers = {"idempotency-key": "k1"}
    first = await linked.bare.post(API + "post_twitter", files=files, headers=headers)
    assert (first.status_code, first.json()["error"]["reason"]) == (502, "x_5xx")
    second = await linked.bare.post(API + "post_twitter", files=files, headers=headers)
    assert second.json()["msg"] == "ok"
    assert len(await linked.calls("/2/tweets")) == 1


async def test_an_old_code_in_a_5xx_does_not_repeat_a_post(linked: RunningGateway) -> None:
    """Only a 401 is known not to have been applied."""
    body = {"errors": [{"code": 215, "message": "Bad Authentication data."}]}
    await linked.fault("POST", "/2/tweets", {"status": 503, "body": body})
    assert (await linked.call("post_twitter", {"text": "215"})).json()["error"]["code"] == "outcome_unknown"
    assert len(await linked.calls("/2/tweets")) == 1


async def test_a_kept_answer_is_sealed(linked: RunningGateway) -> None:
    """The state of a link and the words of a post are for their caller, not for a reader of the file."""
    state = (await once(linked, "auth_twitter", {})).json()["state"]
    assert (await once(linked, "auth_twitter", {})).json()["state"] == state
    assert state.encode() not in b"".join(path.read_bytes() for path in linked.directory.glob("birdwire.db*"))


@pytest.mark.trust("G16")
async def test_a_damaged_stored_answer_is_rebuilt_from_the_journal(linked: RunningGateway) -> None:
    """Answer what the journal knows, repeat what X refused, call the rest unknown, and do nothing a second time."""
    calls: dict[str, tuple[str, dict[str, str]]] = {
        "post": ("post_twitter", {"text": "kept"}),
        "like": ("like_twitter", {"tweet_id": POST}),
        "refused": ("like_twitter", {"tweet_id": "404"}),
        "link": ("auth_twitter", {}),
    }
    first = {key: await once(linked, name, body, key) for key, (name, body) in calls.items()}
    await linked.call("unlike_twitter", {"tweet_id": POST})
    with contextlib.closing(sqlite3.connect(linked.directory / "birdwire.db")) as file, file:
        file.execute("UPDATE idempotency SET body = CAST(substr(body, 1, length(body) - 1) || x'00' AS BLOB)")
    again = {key: await once(linked, name, body, key) for key, (name, body) in calls.items()}
    assert {key: answer.status_code for key, answer in again.items()} == {
        "post": 201,
        "like": 200,
        "refused": 404,
        "link": 502,
    }
    assert [again[key].json() for key in ("post", "like")] == [first[key].json() for key in ("post", "like")]
    assert {again[key].headers["idempotent-replayed"] for key in ("post", "like", "link")} == {"true"}
    assert again["link"].json()["error"]["reason"] == "outcome_unknown"
    assert len(await linked.calls("/2/tweets")) == 1
    assert (await linked.state())["likes"] == []


async def test_an_api_key_that_serves_as_a_name_is_not_stored(linked: RunningGateway) -> None:
    """The database holds API keys as hashes alone; the name works as any other."""
    for replayed in (None, "true"):
        answer = await linked.call("like_twitter", {"tweet_id": POST}, headers={"idempotency-key": linked.raw_key})
        assert (answer.status_code, answer.headers.get("idempotent-replayed")) == (200, replayed)
    stored = b"".join(path.read_bytes() for path in linked.directory.glob("birdwire.db*"))
    assert linked.raw_key.encode() not in stored


SHORT = "/apis/v1/"
FILE = ("a.png", PNG, "image/png")
REPLY = {"content": "kept", "type": "reply", "in_reply_to_tweet_id": POST}

STORED_CALLS: list[tuple[str, str, dict[str, Any], str, str]] = [
    (
        *(API + "post_twitter", "json", {"made_with_ai": True, "text": "kept"}, "documented"),
        "d2796e5a8f6008dae344d4adbee8eb1eadb4846666760df401b6a6bf78fa793d",
    ),
    (
        *(API + "auth/confirm", "json", {"state": "s", "username": "ada"}, "documented"),
        "a58ca1444874f590c605cdf2ea07f86898bb64805f114a9b803951035b27ded0",
    ),
    (
        *(API + "upload_media", "files", {"media_files": FILE}, "documented"),
        "4c5885f14ac2900f8a2f8b5be06421f5c1e336052cc348525a55685a1596dd9f",
    ),
    (
        *(API + "post_twitter", "json", REPLY, "relay"),
        "abb982f3adad6baeafbd33b05c2998dbceeea1a0cfef7621832a3cac87dad482",
    ),
    (
        *(SHORT + "post_twitter", "json", REPLY, "relay"),
        "abb982f3adad6baeafbd33b05c2998dbceeea1a0cfef7621832a3cac87dad482",
    ),
    (
        *(SHORT + "post_twitter", "data", {"content": "kept", "made_with_ai": "true"}, "relay"),
        "d2796e5a8f6008dae344d4adbee8eb1eadb4846666760df401b6a6bf78fa793d",
    ),
    (
        *(SHORT + "post_twitter", "files", {"content": (None, "kept"), "media_files": FILE}, "relay"),
        "755bcfd7fafdfeb37f9e31f32cbc14eba302571ba6f7eea8756bcf1e7514ee30",
    ),
]
"""Calls in every form: path, encoding, fields, dialect, and the hash that an earlier version
stored. That version hashed the last part of the path, where this one hashes the operation's name."""


@pytest.mark.parametrize(("path", "encoding", "fields", "dialect", "asked"), STORED_CALLS)
async def test_an_answer_stored_before_an_upgrade_is_replayed(
    linked: RunningGateway, path: str, encoding: str, fields: dict[str, Any], dialect: str, asked: str
) -> None:
    """A row outlives the upgrade. If the hash no longer matched, the caller would get 409 for a call that was made."""
    vault = Vault(read_key_file(linked.directory / "vault.key"))
    row = {
        "key_id": linked.key_id,
        "name": "k1",
        "asked": bytes.fromhex(asked),
        "repeatable": False,
        "request_id": "req_earlier",
        "owner": "gw_earlier",
        "state": "kept",
        "status": 201,
        "body": vault.seal('{"data":{"kept":true}}', Place("idempotency", f"{linked.key_id}/k1", "body")),
        "created_at": int(linked.clock.now().timestamp() * 1_000_000),
    }
    with contextlib.closing(sqlite3.connect(linked.directory / "birdwire.db")) as file, file:
        file.execute(
            "INSERT INTO idempotency"
            " (key_id, name, asked, repeatable, request_id, owner, state, status, body, created_at) VALUES"
            " (:key_id, :name, :asked, :repeatable, :request_id, :owner, :state, :status, :body, :created_at)",
            row,
        )
    sent = len(await linked.calls())
    key: Any = (None, linked.raw_key) if encoding == "files" else linked.raw_key
    relayed = dialect == "relay"
    body = {"aisa_api_key": key, **fields} if relayed else fields
    client = linked.bare if relayed else linked.client
    options: dict[str, Any] = {encoding: body}
    answer = await client.post(path, headers={"idempotency-key": "k1"}, **options)
    data = {"kept": True}
    expected = (200, {"code": 200, "msg": "ok", "data": data}) if relayed else (201, {"data": data})
    assert (answer.status_code, answer.json()) == expected
    assert answer.headers["idempotent-replayed"] == "true"
    assert len(await linked.calls()) == sent
