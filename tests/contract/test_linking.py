"""A link from auth_url to undo: permissions to start, end and undo it, and its state after failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from birdwire.keys.rules import KeyRuleError
from birdwire.store.tables.link_states import link_states
from birdwire.x.client.auth_server import DEFAULT_SCOPES, new_verifier
from harness.gateway import API, GRACE, PNG, gateway
from harness.linking import (
    HTML,
    JSON,
    begin,
    changed,
    exchanges,
    open_callback,
    other_key,
    press_undo,
    query_of,
    reason_of,
    revoked,
)

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gateway import RunningGateway

ADA = "2244994945"

# The authorize URL.


async def test_an_auth_url_requests_the_scopes_of_all_operations(running: RunningGateway) -> None:
    """S256, a state of 256 bits, the fixed redirect URI, and offline.access, without which nothing lasts."""
    answer = (await running.call("auth_twitter")).json()
    assert list(answer) == ["auth_url", "state", "expires_at"]
    query = query_of(answer["auth_url"])
    assert query["state"] == answer["state"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", query["state"])
    assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", query["code_challenge"])
    assert query["redirect_uri"] == f"{running.settings.base_url}{API}oauth_callback"
    assert query["scope"].split() == list(DEFAULT_SCOPES)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer["expires_at"])


@pytest.mark.trust("O1")
async def test_no_two_auth_urls_share_a_state_or_a_challenge(running: RunningGateway) -> None:
    """Each starts over."""
    queries = [query_of(await begin(running)) for _ in range(20)]
    assert len({query["state"] for query in queries}) == len({query["code_challenge"] for query in queries}) == 20


@pytest.mark.trust("O2")
def test_verifiers_are_unique_and_of_the_form_of_rfc_7636() -> None:
    """43 characters of 256 random bits."""
    verifiers = {new_verifier() for _ in range(10_000)}
    assert len(verifiers) == 10_000
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier) for verifier in verifiers)


async def test_narrowed_scopes_keep_the_required_ones(running: RunningGateway) -> None:
    """Reading the account's name, and offline.access."""
    scopes = query_of(await begin(running, scopes=["like.write", "like.write"]))["scope"].split()
    assert scopes == ["like.write", "tweet.read", "users.read", "offline.access"]


async def test_a_scope_that_no_operation_needs_must_be_offered_by_the_operator(
    running: RunningGateway, tmp_path: Path
) -> None:
    """It would be handed out unused; the setting extra_scopes adds to what a caller may ask for, not to the default."""
    refused = await running.call("auth_twitter", {"scopes": ["dm.read"]})
    assert (refused.status_code, reason_of(refused)) == (400, "scope_unknown")
    assert "dm.read" not in (await running.bare.get("/openapi.json")).text
    folder = tmp_path / "extra"
    folder.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        x_url = running.settings.x_api_url
        extra = await stack.enter_async_context(
            gateway(folder, running.sandbox, x_url, stack, extra_scopes="dm.read, dm.write")
        )
        _, raw_key = await extra.gateway.keys.create("test", "extra", "growth")
        extra.client.headers["authorization"] = f"Bearer {raw_key}"
        scopes = query_of(await begin(extra, scopes=["dm.read", "like.write"]))["scope"].split()
        assert scopes == ["dm.read", "like.write", "tweet.read", "users.read", "offline.access"]
        assert query_of(await begin(extra))["scope"].split() == list(DEFAULT_SCOPES)
        assert reason_of(await extra.call("auth_twitter", {"scopes": ["list.read"]})) == "scope_unknown"
        assert "dm.write" in (await extra.bare.get("/openapi.json")).text


async def test_the_host_header_never_shapes_a_url(running: RunningGateway) -> None:
    """The redirect URI comes from the settings alone."""
    answer = await running.call("auth_twitter", headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
    assert "evil" not in answer.text


@pytest.mark.trust("O17")
async def test_a_key_has_twenty_pending_links_at_most(running: RunningGateway) -> None:
    """The oldest gives way; the newest works."""
    urls = [await begin(running) for _ in range(60)]
    oldest = (
        await running.x.post("/_sandbox/consent", json={"auth_url": urls[0], "username": "ada", "action": "allow"})
    ).json()
    assert reason_of(await open_callback(running, oldest["redirect_to"])) == "state_unknown"
    assert await states(running) <= 20
    newest = (
        await running.x.post("/_sandbox/consent", json={"auth_url": urls[-1], "username": "ada", "action": "allow"})
    ).json()
    assert (await open_callback(running, newest["redirect_to"])).status_code == 200


async def states(running: RunningGateway) -> int:
    """Rows of pending links in the database file."""
    from birdwire.store.database import Database  # noqa: PLC0415 - only here the file itself is looked into

    database = Database(running.settings.database_url)
    try:
        async with database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(link_states))).scalar_one())
    finally:
        await database.close()


@pytest.mark.trust("O17")
async def test_starting_a_link_uses_the_keys_allowance(running: RunningGateway) -> None:
    """A state costs one call of the allowance."""
    await running.gateway.keys.change(running.key_id, rpm=2)
    assert [(await running.call("auth_twitter")).status_code for _ in range(3)] == [200, 200, 429]


# The callback: once, in time, by its own key and issuer.


@pytest.mark.trust("G12")
@pytest.mark.trust("O1")
async def test_two_hundred_concurrent_callbacks_exchange_one_code_once(running: RunningGateway) -> None:
    """One wins; the others get an answer that the link was used or is complete."""
    redirect = await running.consent("ada")
    answers = await asyncio.gather(*(open_callback(running, redirect) for _ in range(200)))
    assert await exchanges(running) == 1
    assert {answer.status_code for answer in answers} <= {200, 400}
    assert sum(answer.status_code == 200 and answer.json()["data"]["how"] == "linked" for answer in answers) == 1
    assert {reason_of(answer) for answer in answers if answer.status_code == 400} <= {"state_used"}
    assert (await running.like()).status_code == 200


@pytest.mark.parametrize(("seconds", "status"), [(598, 200), (600, 400), (602, 400)])
@pytest.mark.trust("O1")
async def test_a_state_lives_ten_minutes(running: RunningGateway, seconds: int, status: int) -> None:
    """A moment before its end it works, from then on never."""
    redirect = await running.consent("ada")
    running.clock.advance(seconds=seconds)
    answer = await open_callback(running, redirect)
    assert answer.status_code == status
    if status == 400:
        assert reason_of(answer) == "state_expired"
        assert reason_of(await open_callback(running, redirect)) in {"state_used", "state_expired"}
        assert await exchanges(running) == 0


@pytest.mark.parametrize("cut", [slice(0, -1), slice(1, None), slice(0, 10)])
@pytest.mark.trust("O1")
async def test_a_cut_state_is_unknown_and_harms_nothing(running: RunningGateway, cut: slice) -> None:
    """The whole one still works."""
    redirect = await running.consent("ada")
    assert (
        reason_of(await open_callback(running, changed(redirect, state=query_of(redirect)["state"][cut])))
        == "state_unknown"
    )
    assert (await open_callback(running, redirect)).status_code == 200


@pytest.mark.trust("O3")
async def test_the_code_of_one_flow_fails_with_the_state_of_another(running: RunningGateway) -> None:
    """The verifier belongs to the state: X refuses the pair."""
    one, two = await running.consent("ada"), await running.consent("grace")
    answer = await open_callback(running, changed(one, code=query_of(two)["code"]))
    assert (answer.status_code, reason_of(answer)) == (400, "code_rejected")
    assert (await running.status())["linked"] is False


@pytest.mark.trust("O1")
async def test_a_state_links_the_key_that_started_it_and_no_other(running: RunningGateway) -> None:
    """Whatever key the browser's request carries."""
    theirs = await other_key(running)
    await running.bare.get(await running.consent("ada"), headers={**JSON, **theirs})
    assert (await running.status())["username"] == "ada"
    assert (await running.bare.get(API + "auth/status", headers=theirs)).json()["linked"] is False


@pytest.mark.trust("O7")
async def test_a_state_for_x_itself_never_completes_at_a_sandbox(running: RunningGateway, tmp_path: Path) -> None:
    """Two gateways on one database, one towards each: the state knows where it belongs."""
    async with contextlib.AsyncExitStack() as stack:
        url = running.settings.base_url
        real = await stack.enter_async_context(
            gateway(
                tmp_path, running.sandbox, "https://api.x.com", stack,
                public_url=url, x_authorize_url="https://x.com/i/oauth2/authorize",
            )
        )  # fmt: skip
        _, raw_key = await real.gateway.keys.create("live", "live", "free")
        answer = await real.bare.post(API + "auth_twitter", headers={"authorization": f"Bearer {raw_key}"})
        state = answer.json()["state"]
    assert reason_of(await open_callback(running, f"{API}oauth_callback?code=abc&state={state}")) == "issuer_mismatch"
    assert await exchanges(running) == 0


@pytest.mark.trust("O7")
async def test_a_right_issuer_is_accepted_and_a_wrong_one_spends_nothing(running: RunningGateway) -> None:
    """X sends none today; RFC 9207 would have it so."""
    redirect = await running.consent("ada")
    assert reason_of(await open_callback(running, changed(redirect, iss="https://evil.example"))) == "issuer_mismatch"
    right = "{0.scheme}://{0.netloc}".format(urlsplit(running.settings.x_authorize_url))
    assert (await open_callback(running, changed(redirect, iss=right))).status_code == 200


@pytest.mark.parametrize("name", ["state", "code"])
@pytest.mark.parametrize("second", ["same", "other", ""])
@pytest.mark.trust("O6")
async def test_a_repeated_parameter_is_refused_and_spends_nothing(
    running: RunningGateway, name: str, second: str
) -> None:
    """RFC 6749 §3.1; the untouched URL still works."""
    redirect = await running.consent("ada")
    value = query_of(redirect)[name] if second == "same" else second
    assert reason_of(await open_callback(running, f"{redirect}&{name}={value}")) == "callback_malformed"
    assert await exchanges(running) == 0
    assert (await open_callback(running, redirect)).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"purpose": "prefetch"}, {"sec-purpose": "prefetch;anonymous-client-ip"}, {"x-moz": "prefetch"}]
)
@pytest.mark.trust("O18")
async def test_a_prefetch_and_a_head_spend_nothing(running: RunningGateway, headers: dict[str, str]) -> None:
    """The page opens once, so only a person's own visit counts."""
    redirect = await running.consent("ada")
    assert reason_of(await open_callback(running, redirect, **headers)) == "prefetch"
    assert (await running.bare.head(redirect, headers=headers)).status_code == 200
    assert await exchanges(running) == 0
    assert (await open_callback(running, redirect)).status_code == 200


@pytest.mark.trust("O16")
async def test_reloading_the_page_after_a_link_is_harmless(running: RunningGateway) -> None:
    """Friendly, without a second exchange, and without the undo in a browser that has no cookie."""
    redirect = await running.consent("ada")
    await running.bare.get(redirect, headers=HTML)
    running.bare.cookies.clear()
    again = await running.bare.get(redirect, headers=HTML)
    assert again.status_code == 200
    assert "@ada is linked already" in again.text
    assert "undo_token" not in again.text
    assert await exchanges(running) == 1


async def test_reloading_after_a_failed_link_shows_used(running: RunningGateway) -> None:
    """No account came of it, so nothing is claimed."""
    redirect = changed(await running.consent("ada"), code="wrong")
    assert [reason_of(await open_callback(running, redirect)) for _ in range(2)] == ["code_rejected", "state_used"]
    assert await exchanges(running) == 1


# The exchange, and what X says about the account.


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ({"status": 500}, 502, "x_5xx"),
        ({"status": 429}, 429, "x_window_15m"),
        ({"drop": "before_apply"}, 502, "x_5xx"),
        ({"drop": "after_apply"}, 502, "x_5xx"),
        ({"truncate": 10}, 502, "x_5xx"),
        ({"error": "token-code-invalid"}, 400, "code_rejected"),
        ({"error": "token-bad-client"}, 502, "x_client_credentials"),
        ({"error": "token-no-client-id"}, 502, "x_client_credentials"),
    ],
)
@pytest.mark.trust("O4")
async def test_a_failed_exchange_reports_who_must_act(
    running: RunningGateway, do: dict[str, Any], status: int, reason: str
) -> None:
    """Nothing is linked, the page offers a new start, and a new link works."""
    redirect = await running.consent("ada")
    await running.fault("POST", "/2/oauth2/token", do)
    page = await running.bare.get(redirect, headers=HTML)
    assert page.status_code == status
    assert reason in page.text
    assert (await running.status())["linked"] is False
    assert (await running.link("ada")).status_code == 200


GOOD = {"token_type": "bearer", "expires_in": 7200, "access_token": "a1", "refresh_token": "r1", "scope": "like.write"}
MALFORMED_REPLIES = [
    *(
        {name: value for name, value in GOOD.items() if name != left_out}
        for left_out in ("token_type", "expires_in", "access_token")
    ),
    *({**GOOD, "expires_in": value} for value in (0, -1, "7200", 1e12, True, None, 7200.5)),
    *({**GOOD, "access_token": value} for value in ("", 1, None, "a\n", "\u00e9", "a" * 5_000)),
    *({**GOOD, "refresh_token": value} for value in ("", 1, [0])),
    *({**GOOD, "token_type": value} for value in ("mac", None, "")),
    *({**GOOD, "scope": value} for value in (["like.write"], "like.write\0", "like.writ\u00e9")),
]
RAW_REPLIES = ["<html>", "", "[]", "null", '{"access_token":', '"a"', json.dumps({**GOOD, "filler": "x" * 70_000})]


@pytest.mark.trust("O13")
async def test_a_token_reply_that_is_not_whole_links_nothing(running: RunningGateway) -> None:
    """A pair that is stored wrong is lost for good, so it is not stored at all."""
    for body in (*MALFORMED_REPLIES, *RAW_REPLIES):
        redirect = await running.consent("ada")
        await running.fault("POST", "/2/oauth2/token", {"status": 200, "body": body})
        answer = await open_callback(running, redirect)
        assert (answer.status_code, reason_of(answer)) == (502, "x_reply_malformed"), body
        assert (await running.status())["linked"] is False, body


async def test_a_link_whose_verifier_was_changed_at_rest_must_be_started_again(running: RunningGateway) -> None:
    """A plain page that says so; X is not asked, and the next link works."""
    redirect = await running.consent("ada")

    def change() -> None:
        with contextlib.closing(sqlite3.connect(running.directory / "birdwire.db")) as database, database:
            database.execute("UPDATE link_states SET verifier_ct = x'00'")

    # In a thread: the gateway, which may be writing, runs in this one.
    await asyncio.to_thread(change)
    answer = await open_callback(running, redirect)
    assert (answer.status_code, reason_of(answer)) == (400, "state_unknown")
    assert not await running.calls("/2/oauth2/token")
    assert (await running.link("ada")).status_code == 200


async def test_an_account_that_x_does_not_name_yet_stays_pending_until_the_next_call(running: RunningGateway) -> None:
    """The pair is kept: X's single-use code is spent, and asking again is enough."""
    await running.fault("GET", "/2/users/me", {"status": 503}, times=2)
    page = await running.link("ada")
    assert page.status_code == 200
    assert "Almost linked" in page.text
    status = await running.status()
    assert (status["linked"], status["state"], status["username"]) == (True, "pending", None)
    first, second = await running.like(), await running.like()
    assert (first.status_code, second.status_code) == (502, 200)
    assert (await running.status())["state"] == "active"
    assert await exchanges(running) == 1


async def test_a_401_of_the_new_token_leaves_the_link_pending(running: RunningGateway) -> None:
    """One 401 proves nothing: 403 x_link_pending, and the next call asks again."""
    await running.fault("GET", "/2/users/me", {"error": "unauthorized"}, times=2)
    await running.link("ada")
    assert reason_of(await running.like()) == "x_link_pending"
    assert (await running.like()).status_code == 200


async def test_an_old_link_goes_on_while_a_new_one_is_pending(linked: RunningGateway) -> None:
    """The new pair is pending alongside it, and replaces it when X names the account."""
    await linked.fault("GET", "/2/users/me", {"status": 503}, times=2)
    assert "Almost linked" in (await linked.link("ada")).text
    assert (await linked.status())["state"] == "active"
    assert (await linked.like()).status_code == 200
    linked_at = (await linked.status())["linked_at"]
    linked.clock.advance(seconds=5)
    assert (await linked.like()).status_code == 200
    assert (await linked.status())["linked_at"] > linked_at


@pytest.mark.trust("O12")
async def test_the_status_shows_when_a_link_without_offline_access_ends(running: RunningGateway) -> None:
    """No refresh token came: the status shows the end, and says needs_relink when it has come."""
    await running.link("ada", scopes=["tweet.read", "users.read", "like.write"])
    status = await running.status()
    assert "offline.access" not in status["scopes"]
    running.clock.advance(hours=2, seconds=1)
    assert (await running.status())["state"] == "needs_relink"


@pytest.mark.trust("O11")
async def test_the_scopes_that_the_owner_granted_are_the_ones_kept(running: RunningGateway) -> None:
    """Not those that were asked for."""
    await running.link("ada", scopes=["tweet.read", "users.read", "offline.access"])
    assert sorted((await running.status())["scopes"]) == ["offline.access", "tweet.read", "users.read"]


@pytest.mark.parametrize("granted", [["users.read"], ["tweet.read"], ["media.write", "offline.access"]])
@pytest.mark.trust("O11")
async def test_a_link_that_x_would_never_name_is_reported_everywhere(
    running: RunningGateway, granted: list[str]
) -> None:
    """Page, auth/status, confirmation and every call name the missing scope and the next step; X is not asked."""
    lacking = [scope for scope in ("tweet.read", "users.read") if scope not in granted]
    redirect = await running.consent("ada", scopes=[*granted, "like.write"])
    pages = [await running.bare.get(redirect, headers=HTML) for _ in range(2)]
    for page in pages:
        assert page.status_code == 403
        assert "This link cannot be used" in page.text
        assert " ".join(lacking) in page.text
    confirming = {"state": query_of(redirect)["state"], "username": "ada"}
    for refused in (
        await open_callback(running, redirect),
        await running.like(),
        await running.call("post_twitter", {"text": "hello"}),
        await running.client.post(API + "upload_media", files={"media_files": ("a.png", PNG)}),
        await running.client.get(API + "user/info", params={"userName": "ada"}),
        await running.call("auth/confirm", confirming),
    ):
        error = refused.json()["error"]
        assert (refused.status_code, error["reason"]) == (403, "x_scope_missing")
        assert " ".join(lacking) in error["message"]
        assert "auth_twitter" in error["fix"]
    status = await running.status()
    told = (status["linked"], status["usable"], status["state"], status["why"], status["username"])
    assert told == (True, False, "needs_relink", "scope_missing", None)
    assert status["last_attempt"]["reason"] == "x_scope_missing"
    assert [call["path"] for call in await running.calls("/2/") if "oauth2" not in call["path"]] == []
    await running.link("ada")
    assert (await running.like()).status_code == 200
    assert await revoked(running) == []  # X might end the new link, too: the account is probably the same


async def test_an_old_link_goes_on_when_a_new_approval_lacks_a_scope(linked: RunningGateway) -> None:
    """The page says why nothing changed; calls use the older link, as fast as before."""
    asked = len(await linked.calls("/2/users/me"))
    assert (await linked.link("ada", scopes=["like.write", "offline.access"])).status_code == 403
    assert [(await linked.like()).status_code for _ in range(2)] == [200, 200]
    assert linked.gateway.sessions.ready(linked.key_id) is not None
    status = await linked.status()
    assert (status["usable"], status["state"], status["last_attempt"]["outcome"]) == (True, "active", "refused")
    assert len(await linked.calls("/2/users/me")) == asked


async def test_the_status_shows_the_outcome_of_the_last_attempt(running: RunningGateway) -> None:
    """So an app that sent the owner to X's page need not guess why no link came of it."""

    async def last() -> tuple[str, str | None]:
        found = (await running.status())["last_attempt"]
        assert datetime.fromisoformat(found["expires_at"]).tzinfo is not None
        return found["outcome"], found["reason"]

    assert (await running.status())["last_attempt"] is None
    await begin(running)
    assert await last() == ("open", None)
    running.clock.advance(minutes=10)
    assert await last() == ("expired", None)
    await open_callback(running, await running.consent("ada", "deny"))
    assert await last() == ("refused", "consent_denied")
    await press_undo(running, await running.link("ada"))
    assert await last() == ("undone", None)
    await running.link("ada")
    assert await last() == ("approved", None)
    await running.link("grace")
    assert await last() == ("refused", "account_mismatch")


async def test_usable_shows_whether_calls_go_through(running: RunningGateway) -> None:
    """False without a link, before it is named, and after its end; true while it can be renewed."""
    assert (await running.status())["usable"] is False
    await running.fault("GET", "/2/users/me", {"status": 503})
    await running.link("ada")
    assert (await running.status())["usable"] is False
    await running.like()
    assert (await running.status())["usable"] is True
    running.clock.advance(hours=3)
    assert (await running.status())["usable"] is True
    (await running.x.post(f"/_sandbox/users/{(await running.status())['user_id']}/revoke_app")).raise_for_status()
    await running.like()
    status = await running.status()
    assert (status["usable"], status["why"]) == (False, "refused")


async def test_a_scope_missing_from_the_reply_counts_as_granted_as_asked(running: RunningGateway) -> None:
    """RFC 6749 §5.1: left out means unchanged."""
    redirect = await running.consent("ada", body={"scopes": ["like.write"]})
    reply = {name: value for name, value in GOOD.items() if name != "scope"}
    await running.fault("POST", "/2/oauth2/token", {"status": 200, "body": reply})
    await running.fault(
        "GET", "/2/users/me", {"status": 200, "body": {"data": {"id": "2244994945", "username": "ada", "name": "A"}}}
    )
    assert (await open_callback(running, redirect)).status_code == 200
    assert (await running.status())["scopes"] == ["like.write", "tweet.read", "users.read", "offline.access"]


# Whose account.


@pytest.mark.trust("O10")
async def test_another_account_does_not_replace_a_link_unasked(linked: RunningGateway) -> None:
    """409; the old link is unchanged, and the new pair is revoked at X and deleted here."""
    page = await linked.link("grace")
    assert page.status_code == 409
    assert "@grace" in page.text
    assert "@ada" in page.text
    assert await revoked(linked) == [200, 200]
    assert (await linked.status())["username"] == "ada"
    assert (await linked.like()).status_code == 200


@pytest.mark.parametrize("spelling", ["grace", "@grace", "GRACE"])
@pytest.mark.trust("O10")
async def test_an_account_that_was_named_may_replace_the_link(linked: RunningGateway, spelling: str) -> None:
    """The key's holder said so in advance."""
    assert (await linked.link("grace", body={"expected_username": spelling})).status_code == 200
    assert (await linked.status())["username"] == "grace"
    assert (await linked.like()).status_code == 200


async def test_an_expected_account_is_the_only_one_that_links(running: RunningGateway) -> None:
    """Another one leaves nothing behind."""
    redirect = await running.consent("grace", body={"expected_username": "ada"})
    answer = await open_callback(running, redirect)
    assert (answer.status_code, reason_of(answer)) == (409, "account_mismatch")
    assert await revoked(running) == [200, 200]
    assert (await running.status())["linked"] is False
    assert reason_of(await open_callback(running, redirect)) == "state_used"


async def test_a_mismatch_found_by_a_later_call_ends_the_pending_pair_too(linked: RunningGateway) -> None:
    """X names the account late; the old link was and stays the one in use."""
    await linked.fault("GET", "/2/users/me", {"status": 503})
    assert "Almost linked" in (await linked.link("grace")).text
    assert (await linked.like()).status_code == 200
    status = await linked.status()
    assert status["username"] == "ada"
    assert (status["last_attempt"]["outcome"], status["last_attempt"]["reason"]) == ("refused", "account_mismatch")
    assert await revoked(linked) == [200, 200]


async def test_after_an_unlink_any_account_may_come(linked: RunningGateway) -> None:
    """The pin is the link's, not the key's."""
    await linked.call("unlink_twitter")
    assert (await linked.link("grace")).status_code == 200


# A key that the operator pinned to an account.


async def pin(running: RunningGateway, username: str | None = "ada") -> dict[str, Any]:
    """Pin the key, and return its rules."""
    return asdict((await running.gateway.keys.change(running.key_id, account_username=username)).rules)


async def pinned_id(running: RunningGateway) -> str | None:
    """Return the user id that the key is pinned to."""
    return (await running.gateway.keys.get(running.key_id)).rules.account_user_id


async def name(running: RunningGateway, user_id: str, username: str) -> None:
    """Let X name this account for the next link."""
    account = {"data": {"id": user_id, "username": username, "name": "A"}}
    await running.fault("GET", "/2/users/me", {"status": 200, "body": account})


@pytest.mark.parametrize("spelling", ["ada", "ADA"])
async def test_a_pinned_key_links_its_account_alone(running: RunningGateway, spelling: str) -> None:
    """Another account is refused and its pair revoked at X; expected_username cannot override the pin."""
    await pin(running, spelling)
    refused = await open_callback(running, await running.consent("grace"))
    assert (refused.status_code, reason_of(refused)) == (409, "account_mismatch")
    assert await revoked(running) == [200, 200]
    asked = await running.call("auth_twitter", {"expected_username": "@grace"})
    assert (asked.status_code, reason_of(asked)) == (409, "account_mismatch")
    assert await pinned_id(running) is None
    assert (await running.link("ada", {"expected_username": "Ada"})).status_code == 200
    assert await pinned_id(running) == ADA
    assert (await running.like()).status_code == 200


async def test_a_link_that_was_started_before_the_pin_is_held_to_it(linked: RunningGateway) -> None:
    """The state named another account, which the pin no longer lets in."""
    redirect = await linked.consent("grace", body={"expected_username": "grace"})
    assert (await pin(linked))["account_user_id"] == ADA
    assert reason_of(await open_callback(linked, redirect)) == "account_mismatch"
    assert (await linked.status())["username"] == "ada"


async def test_a_pin_is_to_the_account_whatever_its_name(running: RunningGateway) -> None:
    """After a rename at X the same account links again; another account with the old name does not."""
    await pin(running)
    await running.link("ada")
    await running.call("unlink_twitter")
    await name(running, GRACE, "ada")
    assert reason_of(await open_callback(running, await running.consent("grace"))) == "account_mismatch"
    await name(running, ADA, "countess")
    assert (await running.link("ada")).status_code == 200
    rules = (await running.gateway.keys.get(running.key_id)).rules
    assert (rules.account_username, rules.account_user_id) == ("countess", ADA)


async def test_a_pin_stays_to_the_user_id_when_it_is_set_again(linked: RunningGateway) -> None:
    """An operator's script may repeat the command; lifted first, the name counts again."""
    await pin(linked)
    await linked.call("unlink_twitter")
    assert (await pin(linked, "Ada"))["account_user_id"] == ADA
    assert (await pin(linked, None))["account_user_id"] is None
    assert (await pin(linked))["account_user_id"] is None


async def test_a_linked_key_cannot_be_pinned_to_another_account(linked: RunningGateway) -> None:
    """The change is refused as a whole, so no link of another account goes on under a pin."""
    with pytest.raises(KeyRuleError, match="is linked to @ada"):
        await linked.gateway.keys.change(linked.key_id, account_username="grace", rpm=7)
    key = await linked.gateway.keys.get(linked.key_id)
    assert (key.rules.account_username, key.rpm) == (None, 3_000)
    assert (await linked.link("grace", {"expected_username": "grace"})).status_code == 200
    assert (await pin(linked, "grace"))["account_user_id"] == GRACE


async def test_a_pin_needs_no_confirmation(confirming: RunningGateway) -> None:
    """The operator has said which account is meant; one that waits already is held to that, too."""
    await confirming.bare.get(await confirming.consent("grace"))
    with pytest.raises(KeyRuleError, match="is linked to @grace"):
        await pin(confirming)
    await confirming.call("unlink_twitter")
    await pin(confirming)
    assert (await confirming.link("grace")).status_code == 409
    assert (await confirming.link("ada")).status_code == 200
    assert (await confirming.status())["state"] == "active"


@pytest.mark.trust("T1")
async def test_an_owner_from_another_browser_is_linked_named_and_can_undo(running: RunningGateway) -> None:
    """Mode open: nothing but the page tells the owner, so it names both ends and offers the way back."""
    page = await running.link("grace")
    assert "@grace" in page.text
    assert "test key" in page.text
    assert (await running.status())["username"] == "grace"
    await press_undo(running, page)
    assert reason_of(await running.like()) == "x_not_linked"


async def test_a_key_that_was_revoked_meanwhile_links_nothing(running: RunningGateway) -> None:
    """The code is never presented."""
    redirect = await running.consent("ada")
    await running.gateway.keys.revoke(running.key_id)
    assert reason_of(await open_callback(running, redirect)) == "key_revoked"
    assert await exchanges(running) == 0


async def test_a_newer_link_that_ends_unnamed_leaves_the_older_one_in_use(linked: RunningGateway) -> None:
    """A pair that X never named must not stand in for one that works."""
    await linked.fault("GET", "/2/users/me", {"status": 503}, times=None)
    assert "Almost linked" in (await linked.link("ada", scopes=["tweet.read", "users.read", "like.write"])).text
    linked.clock.advance(hours=2, seconds=10)
    await linked.advance_x(7_210)
    assert [(await linked.like()).status_code for _ in range(2)] == [200, 200]
    assert (await linked.status())["state"] == "active"
