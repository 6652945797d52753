"""The pages of a link: denied, linked, undone; what they say, and what they never repeat or load."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from sqlalchemy import update

from birdwire.accounts.linking import MAX_STATES, hash_of
from birdwire.accounts.undo_cookie import write
from birdwire.store.database import StorageDownError
from birdwire.store.tables import api_keys
from birdwire.store.tables.x_sessions import x_sessions
from harness.acts import recorded
from harness.gateway import API, POST, RunningGateway
from harness.linking import (
    HTML,
    JSON,
    changed,
    exchanges,
    open_callback,
    other_key,
    press_undo,
    reason_of,
    revoked,
    undo_token,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.keys.registry import Key

XSS = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "'-alert(1)-'")


@pytest.mark.parametrize("payload", XSS)
@pytest.mark.trust("O5")
async def test_a_denial_is_a_quiet_page_whatever_x_or_others_write_into_it(
    running: RunningGateway, payload: str
) -> None:
    """The state is spent, nothing is exchanged, and no text of the URL is repeated."""
    redirect = changed(await running.consent("ada", "deny"), error_description=payload, error_uri=payload)
    page = await running.bare.get(redirect, headers=HTML)
    assert page.status_code == 400
    assert "consent_denied" in page.text
    assert "Access was denied on X&#39;s page; nothing was linked." in page.text
    assert payload not in page.text
    assert reason_of(await open_callback(running, changed(redirect, error=payload))) == "state_used"
    assert await exchanges(running) == 0


async def test_an_error_of_x_is_not_called_a_denial(running: RunningGateway) -> None:
    """The page says whose it is and does not repeat it; the act has it, bounded."""
    redirect = changed(await running.consent("ada", "deny"), error="server_error" + "<" * 100)
    page = await running.bare.get(redirect, headers=HTML)
    assert "X returned an error instead of an approval; nothing was linked." in page.text
    assert "server_error" not in page.text
    assert "denied on" not in page.text
    denied = (await recorded(running.settings.database_url))[-1]
    assert denied["act"] == "link.denied"
    assert denied["after"] == {"reason": "consent_denied", "error": "server_error" + "?" * 28 + "..."}


@pytest.mark.parametrize("payload", XSS)
@pytest.mark.trust("O5")
async def test_markup_in_an_error_or_a_state_is_not_repeated(running: RunningGateway, payload: str) -> None:
    """An unknown state, and a strange error of a known one."""
    redirect = await running.consent("ada", "deny")
    for url in (changed(redirect, state=payload), changed(redirect, error=payload)):
        page = await running.bare.get(url, headers=HTML)
        assert page.status_code == 400
        assert payload not in page.text


async def test_a_page_never_reports_that_nothing_was_linked_once_the_pair_is_stored(running: RunningGateway) -> None:
    """X names the account, and the store takes no writes just then: the next call links it, so the undo is offered."""
    await running.fault("GET", "/2/users/me", {"delay_s": 0.5})
    landing = asyncio.create_task(running.link("ada"))
    async with asyncio.timeout(20):
        while not await running.calls("/2/users/me"):
            pass
    other = sqlite3.connect(running.directory / "birdwire.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        page = await landing
    assert (await running.like()).status_code == 200
    assert "Nothing was linked" not in page.text
    assert (await press_undo(running, page)).status_code == 200
    assert (await running.status())["linked"] is False


# Loads of the page while its callback is under way.


async def arrived(running: RunningGateway) -> None:
    """Let requests that were started before this reach the gateway, which shares the event loop."""
    for _ in range(20):
        (await running.bare.get("/livez")).raise_for_status()


@pytest.mark.trust("G12", "O16")
async def test_loads_during_the_exchange_show_its_end_and_one_offers_the_undo(running: RunningGateway) -> None:
    """The browser of the first load alone gets the undo."""
    redirect = await running.consent("ada")
    await running.fault("POST", "/2/oauth2/token", {"delay_s": 1})
    pages = await asyncio.gather(*(running.bare.get(redirect, headers=HTML) for _ in range(120)))
    assert await exchanges(running) == 1
    assert {page.status_code for page in pages} == {200}
    assert all("@ada is linked" in page.text for page in pages)
    assert sum("undo_token" in page.text for page in pages) == 1


async def test_loads_during_an_exchange_that_fails_show_why(running: RunningGateway) -> None:
    """Only a load after its end reports that the link was used."""
    redirect = changed(await running.consent("ada"), code="wrong")
    await running.fault("POST", "/2/oauth2/token", {"delay_s": 1})
    loads = [asyncio.create_task(open_callback(running, redirect)) for _ in range(20)]
    assert {reason_of(answer) for answer in await asyncio.gather(*loads)} == {"code_rejected"}
    assert reason_of(await open_callback(running, redirect)) == "state_used"
    assert await exchanges(running) == 1


async def test_loads_during_a_denial_show_it(running: RunningGateway) -> None:
    """A store that is slow just then keeps them waiting."""
    redirect = await running.consent("ada", "deny")
    database = running.directory / "birdwire.db"
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        # In a thread: the gateway, which may be writing, runs in this one.
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        loads = [asyncio.create_task(open_callback(running, redirect)) for _ in range(20)]
        await arrived(running)
        other.execute("ROLLBACK")
        assert {reason_of(answer) for answer in await asyncio.gather(*loads)} == {"consent_denied"}
    assert await exchanges(running) == 0


async def test_the_link_is_finished_when_the_first_browser_leaves(running: RunningGateway) -> None:
    """A second load shows it, without the undo."""
    redirect = await running.consent("ada")
    await running.fault("POST", "/2/oauth2/token", {"delay_s": 0.5})
    first = asyncio.create_task(running.bare.get(redirect, headers=HTML))
    async with asyncio.timeout(20):
        while not await exchanges(running):
            pass
    first.cancel()
    page = await running.bare.get(redirect, headers=HTML)
    assert "@ada is linked already" in page.text
    assert "undo_token" not in page.text
    assert await exchanges(running) == 1


async def test_a_callback_that_died_keeps_later_loads_for_twenty_seconds_at_most(tmp_path: Path) -> None:
    """Then nothing can come of it any more."""
    async with RunningGateway.built(tmp_path, failpoints="link_after_exchange=raise") as running:
        redirect = await running.consent("ada")
        assert (await open_callback(running, redirect)).status_code == 500
        load = asyncio.create_task(open_callback(running, redirect))
        done, _ = await asyncio.wait({load}, timeout=1)  # it polls, so nothing tells that it waits
        assert not done
        running.clock.advance(seconds=20)
        assert reason_of(await load) == "state_used"
        assert reason_of(await open_callback(running, redirect)) == "state_used"
        assert await exchanges(running) == 1


async def test_a_callback_that_the_store_fails_keeps_no_later_load(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is recorded if the store takes that again, so a reload answers without waiting."""
    redirect = await running.consent("ada")

    async def fail(_key_id: str) -> Key:
        raise StorageDownError("OperationalError")

    monkeypatch.setattr(running.gateway.keys, "get", fail)
    assert reason_of(await open_callback(running, redirect)) == "storage_unavailable"
    async with asyncio.timeout(5):
        assert reason_of(await open_callback(running, redirect)) == "state_used"


# Undo.


async def test_an_undo_works_once(running: RunningGateway) -> None:
    """The link is deleted here and at X; the second press gets a page that states it."""
    page = await running.link("ada")
    undone = await press_undo(running, page)
    assert undone.status_code == 200
    assert "@ada" in undone.text
    assert await revoked(running) == [200, 200]
    assert (await running.status())["linked"] is False
    running.bare.cookies.clear()
    again = await press_undo(running, page)
    assert (again.status_code, "Nothing was undone" in again.text) == (400, True)


@pytest.mark.parametrize(("seconds", "status"), [(598, 200), (600, 400)])
async def test_an_undo_works_for_ten_minutes(running: RunningGateway, seconds: int, status: int) -> None:
    """Then the page's token is worth nothing."""
    page = await running.link("ada")
    running.clock.advance(seconds=seconds)
    assert (await press_undo(running, page)).status_code == status


async def test_an_undo_can_be_sent_as_json(running: RunningGateway) -> None:
    """For programs that drive the page."""
    token = undo_token(await running.link("ada"))
    answer = await running.bare.post(API + "auth/undo", json={"undo_token": token}, headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {"data": {"linked": False}})
    assert (await running.status())["linked"] is False


async def test_a_pending_link_can_be_undone(running: RunningGateway) -> None:
    """Also before X has named the account."""
    await running.fault("GET", "/2/users/me", {"status": 503})
    undone = await press_undo(running, await running.link("ada"))
    assert undone.status_code == 200
    assert (await running.status())["linked"] is False


async def test_an_undo_ends_its_own_link_only(running: RunningGateway) -> None:
    """A later link of the same key is not touched."""
    first = await running.link("ada")
    await running.link("ada")
    assert (await press_undo(running, first)).status_code == 400
    assert (await running.like(POST)).status_code == 200


async def test_an_undo_of_a_link_that_waits_ends_the_older_link_of_its_account(confirming: RunningGateway) -> None:
    """Its owner said "This was not me", so the key no longer acts for them. Another account's link stays."""
    await confirming.link("ada", {"expected_username": "ada"})
    waiting = await confirming.link("ada")
    assert (await confirming.like()).status_code == 200
    assert (await press_undo(confirming, waiting)).status_code == 200
    assert reason_of(await confirming.like()) == "x_not_linked"
    status = await confirming.status()
    assert (status["why"], status["last_attempt"]["outcome"]) == ("undone_by_owner", "undone")
    assert await revoked(confirming) == [200] * 4
    await confirming.link("ada", {"expected_username": "ada"})
    await press_undo(confirming, await confirming.link("grace"))
    assert (await confirming.like(POST)).status_code == 200


async def test_an_undo_during_a_relink_ends_nothing_and_reports_it(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer link comes between the look-up and the undo's own transaction."""
    page, hold = await running.link("ada"), api_keys.hold
    held: list[str] = []

    async def late(connection: AsyncConnection, key_id: str) -> bool:
        held.append(key_id)
        await connection.execute(update(x_sessions).values(undo_hash=b"newer"))
        return await hold(connection, key_id)

    monkeypatch.setattr(api_keys, "hold", late)
    answer = await press_undo(running, page)
    assert (answer.status_code, "Nothing was undone" in answer.text) == (400, True)
    assert held == [running.key_id]
    monkeypatch.undo()
    assert (await running.like()).status_code == 200


# Reloads of the page.


def cookies(running: RunningGateway) -> dict[str, str]:
    """The cookies of the browser, which holds each once for either page."""
    return {cookie.name: cookie.value or "" for cookie in running.bare.cookies.jar}


async def test_a_reload_in_the_same_browser_shows_the_undo_for_ten_minutes(running: RunningGateway) -> None:
    """The page of the first load once more; its button works. Later it is linked already, and the way back is named."""
    redirect = await running.consent("ada")
    first = await running.bare.get(redirect, headers=HTML)
    again = await running.bare.get(redirect, headers=HTML)
    assert "@ada is linked</h1>" in again.text
    assert undo_token(again) == undo_token(first)
    cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies(running).items())}
    running.clock.advance(minutes=10)
    late = await running.bare.get(redirect, headers=HTML | cookie)  # a browser would have dropped it by now
    assert "undo_token" not in late.text
    running.clock.advance(minutes=-1)
    assert (await press_undo(running, again)).status_code == 200
    assert (await running.status())["linked"] is False


async def test_the_cookie_goes_to_the_two_pages_only(running: RunningGateway) -> None:
    """No script reads it, no call carries it, no form of another site brings it, and it ends with the undo."""
    page = await running.link("ada")
    sent = page.headers.get_list("set-cookie")
    assert {re.search("; Path=([^;]+)", cookie).group(1) for cookie in sent} == {  # type: ignore[union-attr]
        API + "oauth_callback",
        API + "auth/undo",
    }
    for cookie in sent:
        assert set(re.sub("; Path=[^;]+", "", cookie).split("; ")[1:]) == {"Max-Age=600", "HttpOnly", "SameSite=Lax"}
    again = await running.bare.get(str(page.url), headers=HTML)
    assert "set-cookie" not in again.headers


def test_the_cookie_is_secure_under_tls() -> None:
    """As the gateway's public URL says, whatever the front sends on."""
    ((_, cookie),) = write(b"0" * 32, "token", ["/"], secure=True)
    assert cookie.endswith("; Secure")


@pytest.mark.trust("O16", "T1")
async def test_a_reload_elsewhere_shows_no_undo_but_the_way_to_x(running: RunningGateway) -> None:
    """Without the cookie, with a guess in it, with that of another link, or joined to a load that has the right one."""
    redirect = await running.consent("ada")
    await running.bare.get(redirect, headers=HTML)
    ((name, token),) = cookies(running).items()
    running.bare.cookies.clear()
    theirs = await other_key(running)
    async with httpx2.AsyncClient(base_url=running.bare.base_url, headers=theirs) as other:
        begun = (await other.post(API + "auth_twitter")).json()
        consent = {"auth_url": begun["auth_url"], "username": "grace", "action": "allow"}
        answer = await running.x.post("/_sandbox/consent", json=consent)
        await running.bare.get(answer.json()["redirect_to"], headers=HTML)
    ((_, other_token),) = cookies(running).items()
    running.bare.cookies.clear()
    for cookie in (
        None,
        f"{name}=guess",
        f"{name}={other_token}",
        "birdwire_undo_=",
        "birdwire_undo_x!=a",
        f"x={token}",
    ):
        page = await running.bare.get(redirect, headers=HTML | ({"cookie": cookie} if cookie else {}))
        assert "@ada is linked already" in page.text
        assert "undo_token" not in page.text
        assert 'href="https://x.com/settings/connected_apps"' in page.text
    planted = await running.bare.get(redirect, headers=HTML | {"cookie": f"{name}=planted; {name}={token}"})
    assert undo_token(planted) == token
    held = HTML | {"cookie": f"{name}={token}"}
    loads = [running.bare.get(redirect, headers=held if number % 2 else HTML) for number in range(20)]
    pages = await asyncio.gather(*loads)
    assert ["undo_token" in page.text for page in pages] == [bool(number % 2) for number in range(20)]


async def test_a_planted_cookie_does_not_keep_ours_out(running: RunningGateway) -> None:
    """The person who started the link knows its state, and so the cookie's name."""
    redirect = await running.consent("ada")
    state = parse_qs(urlsplit(redirect).query)["state"][0]
    ((_, planted),) = write(hash_of(state), "planted", ["/"], secure=False)
    first = await running.bare.get(redirect, headers=HTML | {"cookie": planted.partition(";")[0]})
    assert undo_token(await running.bare.get(redirect, headers=HTML)) == undo_token(first)


async def test_the_keys_holder_cannot_take_the_undo_away(running: RunningGateway) -> None:
    """However many links they make; after its ten minutes the state goes as others do."""
    redirect = await running.consent("ada")
    first = await running.bare.get(redirect, headers=HTML)
    for _ in range(MAX_STATES + 1):
        (await running.call("auth_twitter")).raise_for_status()
    assert undo_token(await running.bare.get(redirect, headers=HTML)) == undo_token(first)
    running.clock.advance(minutes=10, seconds=1)
    (await running.call("auth_twitter")).raise_for_status()
    assert reason_of(await open_callback(running, redirect)) == "state_unknown"


async def test_a_reload_after_an_undo_shows_already_undone(running: RunningGateway) -> None:
    """The undo's page, and the page before it in any browser. The answer to programs is unchanged."""
    redirect = await running.consent("ada")
    page = await running.bare.get(redirect, headers=HTML)
    assert "<h1>Undone</h1>" in (await press_undo(running, page)).text
    for again in (await press_undo(running, page), await running.bare.get(redirect, headers=HTML)):
        assert (again.status_code, "<h1>Already undone</h1>" in again.text, "@ada" in again.text) == (200, True, True)
    ((name, token),) = cookies(running).items()
    running.bare.cookies.clear()
    assert "Already undone" in (await running.bare.get(redirect, headers=HTML)).text
    assert reason_of(await open_callback(running, redirect)) == "state_used"
    held = HTML | {"cookie": f"{name}={token}"}
    wrong = await running.bare.post(API + "auth/undo", data={"undo_token": "x" * 43}, headers=held)
    assert wrong.status_code == 400


async def test_a_reload_of_a_link_that_no_longer_works_reports_it(running: RunningGateway) -> None:
    """Its key has expired or been revoked, or its access cannot be renewed; the undo stays while it is valid."""

    async def reload(url: str) -> str:
        return (await running.bare.get(url, headers=HTML)).text

    granted = ["tweet.read", "users.read", "like.write"]
    redirect = await running.consent("ada", scopes=granted)
    await running.bare.get(redirect, headers=HTML)
    await running.gateway.keys.change(running.key_id, expires_at=running.clock.now() + timedelta(minutes=5))
    running.clock.advance(minutes=6)
    expired = await running.bare.get(redirect, headers=HTML)
    assert "<h1>This link no longer works</h1>" in expired.text
    assert "@ada is linked" not in expired.text
    assert undo_token(expired)
    await running.gateway.keys.change(running.key_id, expires_at=running.clock.now() + timedelta(days=1))
    running.bare.cookies.clear()
    assert "@ada is linked already" in await reload(redirect)
    running.clock.advance(hours=2)
    page = await reload(redirect)
    assert "<h1>This link no longer works</h1>" in page
    assert "ask the people who run the app for a new link" in page
    redirect = await running.consent("ada")
    await running.bare.get(redirect, headers=HTML)
    await running.gateway.keys.revoke(running.key_id)
    assert "<h1>This link no longer works</h1>" in await reload(redirect)


async def test_an_older_page_shows_that_its_link_has_ended(running: RunningGateway) -> None:
    """It was replaced, or the key's holder ended it: not that nothing was linked, nor that there is no access now."""
    for replaced in (True, False):
        redirect = await running.consent("ada")
        page = await running.bare.get(redirect, headers=HTML)
        await (running.link("ada") if replaced else running.call("unlink_twitter"))
        again, pressed = await running.bare.get(redirect, headers=HTML), await press_undo(running, page)
        assert (again.status_code, pressed.status_code) == (400, 400)
        assert "<h1>This link has ended</h1>" in again.text
        assert "<h1>Nothing left to undo</h1>" in pressed.text
        for told in (again.text, pressed.text):
            assert "a newer link replaced it, the people who run the app ended it" in told
            assert 'href="https://x.com/settings/connected_apps"' in told
        assert reason_of(await open_callback(running, redirect)) == "state_used"


async def test_an_account_owner_reads_what_happened_in_their_own_words(linked: RunningGateway) -> None:
    """What the API says to developers stays in the small print, with its commands as code."""
    mismatch = await linked.link("grace")
    assert "You approved as @grace; the app asked for @ada." in mismatch.text
    assert "Switch to @ada on X, then ask for a new link." in mismatch.text
    unticked = await linked.link("ada", scopes=["users.read"])
    assert "You unticked a required permission: see posts." in unticked.text
    assert "<code>birdwire accounts link KEY_ID</code>" in unticked.text
    assert "`" not in unticked.text
    cut = await linked.bare.get(API + "oauth_callback", headers=HTML)
    assert "This address is incomplete." in cut.text
    assert "Open the link again from where you got it." in cut.text
    await linked.fault("POST", "/2/oauth2/token", {"status": 500})
    assert "X is having a problem at the moment." in (await linked.link("ada")).text


async def test_the_address_of_the_undo_explains_itself_to_a_browser(running: RunningGateway) -> None:
    """Programs get the same refusal as before."""
    page = await running.bare.get(API + "auth/undo", headers=HTML)
    assert (page.status_code, page.headers["allow"]) == (405, "POST")
    assert "This was not me: undo" in page.text
    assert 'href="https://x.com/settings/connected_apps"' in page.text
    for accept in ("*/*", "application/json"):
        answer = await running.bare.get(API + "auth/undo", headers={"accept": accept})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert reason_of(answer) == "method_not_allowed"


@pytest.mark.trust("#293")
async def test_a_page_of_another_site_cannot_press_undo(running: RunningGateway) -> None:
    """By Fetch Metadata, or by Origin in a browser without it; programs send neither."""
    page = await running.link("ada")
    form, own = {"undo_token": undo_token(page)}, str(running.bare.base_url).rstrip("/")
    for foreign in (
        {"sec-fetch-site": "cross-site", "origin": own},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": own.replace("http:", "https:")},
    ):
        answer = await running.bare.post(API + "auth/undo", data=form, headers=JSON | foreign)
        assert (answer.status_code, reason_of(answer)) == (403, "origin_not_allowed")
    assert (await running.status())["linked"] is True
    assert (await running.bare.post(API + "auth/undo", data=form, headers=HTML | {"origin": own})).status_code == 200


async def test_the_page_lists_what_the_key_may_do(running: RunningGateway) -> None:
    """In words, from the key's rules and from what the owner granted; a reload says the same."""
    await running.gateway.keys.change(
        running.key_id,
        actions=("like_twitter", "post_twitter", "follow_twitter", "link"),
        daily_writes=50,
        expires_at=datetime(2100, 3, 1, tzinfo=UTC),
    )
    granted = ["tweet.read", "users.read", "like.write", "tweet.write", "offline.access"]
    redirect = await running.consent("ada", scopes=granted)
    for _ in range(2):
        page = await running.bare.get(redirect, headers=HTML)
        assert "It may like posts and post, up to 50 actions a day, until 1 March 2100." in page.text
        running.bare.cookies.clear()


async def test_the_page_of_a_key_that_may_do_nothing_on_x_claims_nothing_else(tmp_path: Path) -> None:
    """It may only link, or use a look-up that the gateway does not offer."""
    async with RunningGateway.built(tmp_path, reads="user/search") as running:
        await running.gateway.keys.change(running.key_id, actions=("link", "user/info"), daily_writes=50)
        redirect = await running.consent("ada")
        for _ in range(2):
            page = await running.bare.get(redirect, headers=HTML)
            assert "is linked to @ada" in page.text
            assert "It is currently not allowed to do anything on X." in page.text
            assert "act on X as" not in page.text
            running.bare.cookies.clear()


# The pages.


async def pages_of(running: RunningGateway) -> list[httpx2.Response]:
    """Every page there is, once."""
    redirect = await running.consent("ada")
    linked = await running.bare.get(redirect, headers=HTML)
    again = await running.bare.get(redirect, headers=HTML)
    running.bare.cookies.clear()
    return [
        linked,
        again,
        await running.bare.get(redirect, headers=HTML),
        await running.bare.get(API + "oauth_callback", headers=HTML),
        await running.bare.get(API + "oauth_callback?code=a&state=b", headers=HTML),
        await press_undo(running, linked),
        await press_undo(running, linked),
        await running.bare.get(API + "auth/undo", headers=HTML),
    ]


@pytest.mark.trust("O15")
async def test_every_page_forbids_scripts_frames_caches_and_referrers(running: RunningGateway) -> None:
    """And loads nothing from anywhere."""
    for page in await pages_of(running):
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert policy["style-src"].startswith("'sha256-")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-store"
        forms = "<form" in page.text  # whose Origin would be null under no-referrer
        assert page.headers["referrer-policy"] == ("same-origin" if forms else "no-referrer")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "location" not in page.headers
        loading = re.sub(r'<a href="https://x\.com/settings/connected_apps" rel="noreferrer">', "", page.text)
        assert not re.search(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//|<script|@import|url\(""", loading)


@pytest.mark.trust("O8")
async def test_the_callback_redirects_nowhere(running: RunningGateway) -> None:
    """Whatever a parameter would like."""
    for target in (
        "//evil.example",
        "https:evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "data:text/html,x",
    ):
        answer = await running.bare.get(
            changed(await running.consent("ada"), return_to=target, redirect_uri=target), headers=HTML
        )
        assert answer.status_code == 200
        assert "location" not in answer.headers
        assert target not in answer.text


@pytest.mark.trust("T15")
async def test_a_label_with_markup_is_shown_as_text(running: RunningGateway) -> None:
    """The operator sets the key's label, but a page trusts no input."""
    theirs = await other_key(running, "<b onmouseover=alert(1)>&\"'")
    running.client.headers.update(theirs)
    page = await running.link("ada")
    assert "&lt;b onmouseover=alert(1)&gt;&amp;&#34;&#39;" in page.text
    assert "<b " not in page.text


@pytest.mark.trust("O15")
async def test_codes_and_states_are_in_no_log_line(running: RunningGateway) -> None:
    """Of good and bad callbacks alike."""
    redirect = await running.consent("ada")
    for url in (redirect, redirect, changed(redirect, state="unknownstate"), f"{redirect}&code=1"):
        await open_callback(running, url)
    log = running.log.getvalue()
    assert log.count(f'"path":"{API}oauth_callback"') == 4
    for secret in (
        *parse_qs(urlsplit(redirect).query)["code"],
        *parse_qs(urlsplit(redirect).query)["state"],
        "unknownstate",
    ):
        assert secret not in log


async def test_the_callback_returns_json_on_request(running: RunningGateway) -> None:
    """The link's end without a page; a browser, which names HTML first, gets the page."""
    answer = await open_callback(running, await running.consent("ada"))
    assert answer.json() == {"data": {"linked": True, "how": "linked", "username": "ada"}}
    page = await running.bare.get(API + "oauth_callback", headers={"accept": "text/html,application/json"})
    assert page.headers["content-type"].startswith("text/html")
