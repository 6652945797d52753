"""What a key may do: its end, actions, addresses, return_to, daily cap; and the patience with bad keys."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from birdwire.keys.rules import KeyRuleError, KeyRules
from birdwire.keys.secrets import mint
from harness.gateway import API, POST
from harness.linking import HTML, begin, open_callback, press_undo, reason_of

if TYPE_CHECKING:
    import httpx2

    from harness.gateway import RunningGateway


async def with_rules(running: RunningGateway, **rules: Any) -> None:
    """Make the gateway's client use a new key with these rules, linked to ada."""
    key, running.raw_key = await running.gateway.keys.create("test", "ruled", "growth", rules=KeyRules(**rules))
    running.key_id = key.key_id
    running.client.headers["authorization"] = f"Bearer {running.raw_key}"


async def like_of_a_live_key(running: RunningGateway) -> httpx2.Response:
    """A like, once the gateway has heard that its key lives: PostgreSQL tells of a change within a second."""
    async with asyncio.timeout(20):
        while (answer := await running.like()).status_code == 401:
            pass
    return answer


async def test_a_key_ends_when_it_should(running: RunningGateway) -> None:
    """401 with its own reason, from that moment on."""
    await with_rules(running, expires_at=running.clock.now() + timedelta(hours=1))
    assert (await running.client.get(API + "auth/status")).status_code == 200
    running.clock.advance(hours=1)
    answer = await running.client.get(API + "auth/status")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_expired")


@pytest.mark.engines("sqlite", "postgres")
async def test_the_link_of_an_expired_key_ends_a_day_later(linked: RunningGateway) -> None:
    """Until then more time brings it back; after that its tokens are revoked at X."""
    keys = linked.gateway.keys
    await keys.change(linked.key_id, expires_at=linked.clock.now() + timedelta(hours=1))
    linked.clock.advance(hours=24, minutes=50)
    await linked.gateway.links.sweep()
    assert (await linked.like()).json()["error"]["reason"] == "key_expired"
    await keys.change(linked.key_id, expires_at=linked.clock.now() + timedelta(hours=1))
    assert (await like_of_a_live_key(linked)).status_code == 200
    linked.clock.advance(hours=24, minutes=50)
    await linked.gateway.links.sweep()
    assert await linked.calls("/2/oauth2/revoke") == []
    linked.clock.advance(minutes=11)
    await linked.gateway.links.sweep()
    assert [call["status"] for call in await linked.calls("/2/oauth2/revoke")] == [200, 200]
    await keys.change(linked.key_id, expires_at=None)
    assert (await like_of_a_live_key(linked)).json()["error"]["reason"] == "x_not_linked"


async def test_tokens_of_an_expired_key_are_not_revoked_while_another_key_has_the_account(
    running: RunningGateway,
) -> None:
    """X might end both. The link is deleted here; the last key's tokens are revoked."""
    await with_rules(running, expires_at=running.clock.now() + timedelta(hours=1))
    await running.link("ada")
    first, raw_key = running.key_id, running.raw_key
    await with_rules(running)
    await running.link("ada")
    running.clock.advance(hours=25, seconds=1)
    await running.gateway.links.sweep()
    assert await running.calls("/2/oauth2/revoke") == []
    assert (await running.like()).status_code == 200
    await running.gateway.keys.change(first, expires_at=None)
    told = await running.bare.get(API + "auth/status", headers={"authorization": f"Bearer {raw_key}"})
    assert told.json()["linked"] is False
    await running.gateway.keys.change(running.key_id, expires_at=running.clock.now() + timedelta(hours=1))
    running.clock.advance(hours=25, seconds=1)
    await running.gateway.links.sweep()
    assert len(await running.calls("/2/oauth2/revoke")) == 2


async def test_a_key_does_only_what_it_may(running: RunningGateway) -> None:
    """The rest is refused before X is asked, and its link asks X for no more than it needs."""
    await with_rules(running, actions=("like_twitter", "link"))
    await running.link("ada")
    assert (await running.like()).status_code == 200
    answer = await running.call("post_twitter", {"text": "no"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "key_not_allowed")
    assert (await running.client.get(API + "user/info?userName=grace")).json()["error"]["reason"] == "key_not_allowed"
    assert set((await running.status())["scopes"]) == {"like.write", "tweet.read", "users.read", "offline.access"}
    asked = await running.call("auth_twitter", {"scopes": ["tweet.write"]})
    assert asked.json()["error"]["reason"] == "key_not_allowed"


@pytest.mark.parametrize("path", ["auth_twitter", "auth/confirm", "unlink_twitter"])
async def test_a_key_manages_its_link_only_if_its_actions_name_it(linked: RunningGateway, path: str) -> None:
    """403 by the path and its alias, in the relay dialect too; the link stays, and its state can still be read."""
    await linked.gateway.keys.change(linked.key_id, actions=("like_twitter",))
    body = {"state": "s", "username": "ada"} if path == "auth/confirm" else {}
    action = "unlink" if path == "unlink_twitter" else "link"
    relayed = {**body, "aisa_api_key": linked.raw_key}
    answers = [
        await linked.call(path, body),
        await linked.client.post(f"/apis/v1/{path}", json=body),
        await linked.call(path, relayed),
    ]
    assert [answer.status_code for answer in answers] == [403] * 3
    error = answers[0].json()["error"]
    assert (error["reason"], action in error["message"]) == ("key_not_allowed", True)
    assert (await linked.status())["username"] == "ada"
    liked = await linked.like()
    outcome = await linked.client.get(f"{API}requests/{liked.headers['x-request-id']}")
    assert (liked.status_code, outcome.json()["state"]) == (200, "confirmed")


async def test_a_link_that_the_key_started_ends_with_its_action(linked: RunningGateway) -> None:
    """Else a key could keep an approval in reserve for the time after it was narrowed."""
    redirect = await linked.consent("grace", body={"expected_username": "grace"})
    await linked.gateway.keys.change(linked.key_id, actions=("like_twitter",))
    assert reason_of(await open_callback(linked, redirect)) == "state_unknown"
    assert (await linked.status())["username"] == "ada"


async def test_a_key_with_both_actions_links_and_unlinks(running: RunningGateway) -> None:
    """They bring no scope of their own."""
    await with_rules(running, actions=("link", "unlink"))
    await running.link("ada")
    assert set((await running.status())["scopes"]) == {"tweet.read", "users.read", "offline.access"}
    assert (await running.call("unlink_twitter")).status_code == 200
    assert (await running.like()).json()["error"]["reason"] == "key_not_allowed"


async def test_a_key_works_only_from_its_addresses(running: RunningGateway) -> None:
    """A network that holds us is fine; another is not."""
    await with_rules(running, ips=("127.0.0.0/8",))
    assert (await running.client.get(API + "auth/status")).status_code == 200
    await with_rules(running, ips=("192.0.2.0/24", "2001:db8::/32"))
    answer = await running.client.get(API + "auth/status")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "ip_not_allowed")
    assert "x-ratelimit-limit" in answer.headers


async def test_a_daily_cap_holds_until_midnight(running: RunningGateway) -> None:
    """Writes count, other calls do not; Retry-After leads to the next day."""
    await with_rules(running, daily_writes=2)
    await running.link("ada")
    assert [(await running.like()).status_code for _ in range(3)] == [200, 200, 429]
    refused = await running.like()
    assert (refused.json()["error"]["code"], refused.json()["error"]["reason"]) == ("quota_exceeded", "daily_cap")
    running.clock.advance(seconds=int(refused.headers["retry-after"]))
    assert (await running.like()).status_code == 200


async def test_a_cap_that_was_just_set_counts_the_next_write(linked: RunningGateway) -> None:
    """A key without a cap leaves no trace that would outlast the change."""
    assert (await linked.like()).status_code == 200
    await linked.gateway.keys.change(linked.key_id, daily_writes=1)
    assert [(await linked.like()).status_code for _ in range(2)] == [200, 429]
    await linked.gateway.keys.change(linked.key_id, daily_writes=None)
    assert (await linked.like()).status_code == 200


@pytest.mark.parametrize(
    "return_to",
    [
        "//evil.example",
        "https:evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "data:text/html,x",
        "https://app.example/done/",
        "https://app.example/done?x=1",
        "https://app.example.evil.example/done",
        "https://user@app.example/done",
        "http://app.example/done",
        "HTTPS://app.example/done",
        " https://app.example/done",
        "https://app.example/done#x",
    ],
)
async def test_people_are_sent_nowhere_but_where_the_key_may(running: RunningGateway, return_to: str) -> None:
    """Exactly the allowed address, nothing like it."""
    await with_rules(running, return_to=("https://app.example/done",))
    answer = await running.call("auth_twitter", {"return_to": return_to})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "return_to_not_allowed")


async def test_the_page_leads_back_to_the_app(running: RunningGateway) -> None:
    """By a link that the person chooses, never by a redirect."""
    await with_rules(running, return_to=("https://app.example/done",))
    page = await running.link("ada", {"return_to": "https://app.example/done"})
    assert page.status_code == 200
    assert 'href="https://app.example/done"' in page.text


async def test_the_examples_of_the_document_begin_a_link(running: RunningGateway) -> None:
    """With any key: the example of return_to is the gateway's own URL, where the page is already, without a button."""
    document = (await running.bare.get("/openapi.json")).json()
    fields = document["components"]["schemas"]["AuthTwitter"]["properties"]
    page = await running.link("ada", {name: schema["examples"][0] for name, schema in fields.items()})
    assert page.status_code == 200
    assert running.settings.base_url in fields["return_to"]["examples"]
    assert f'href="{running.settings.base_url}"' not in page.text


async def test_the_page_leads_nowhere_that_the_key_may_no_longer(running: RunningGateway) -> None:
    """The address was allowed when the link began, and is not when the page is shown, or shown again."""
    await with_rules(running, return_to=("https://app.example/done",))
    redirect = await running.consent("ada", body={"return_to": "https://app.example/done"})
    await running.gateway.keys.change(running.key_id, return_to=None)
    for _ in range(2):
        page = await running.bare.get(redirect, headers={"accept": "text/html"})
        assert page.status_code == 200
        assert "app.example" not in page.text


async def test_too_many_bad_keys_from_one_address_are_slowed(running: RunningGateway) -> None:
    """Guessing gets 429; a good key from the same address still works."""
    bad = {"authorization": f"Bearer {mint('test')}"}
    answers = [await running.bare.get(API + "auth/status", headers=bad) for _ in range(61)]
    assert {answer.status_code for answer in answers[:60]} == {401}
    assert (answers[60].status_code, answers[60].json()["error"]["reason"]) == (429, "auth_failures")
    assert int(answers[60].headers["retry-after"]) >= 1
    assert (await running.client.get(API + "auth/status")).status_code == 200


async def test_a_key_of_a_premium_account_posts_longer_texts(running: RunningGateway) -> None:
    """The limit is the key's, and still a limit."""
    await with_rules(running, text_limit=1_000)
    await running.link("ada")
    refused = await running.call("post_twitter", {"text": "a" * 1_001})
    assert refused.json()["error"]["reason"] == "text_too_long"
    assert len(await running.calls("/2/tweets")) == 0


@pytest.mark.parametrize(
    "rules",
    [
        {"actions": ("fly",)},
        {"ips": ("300.1.1.1",)},
        {"return_to": ("http://app.example",)},
        {"return_to": ("javascript:alert(1)",)},
        {"daily_writes": 0},
        {"text_limit": 0},
        {"account_username": "@ada"},
        {"account_username": "ada lovelace"},
    ],
)
async def test_a_rule_that_cannot_be_kept_is_refused(running: RunningGateway, rules: dict[str, Any]) -> None:
    """At creation, not at the first call."""
    with pytest.raises(KeyRuleError):
        await running.gateway.keys.create("test", "bad", rules=KeyRules(**rules))


def state_of(auth_url: str) -> str:
    """The state in an auth_url."""
    return parse_qs(urlsplit(auth_url).query)["state"][0]


async def confirm(running: RunningGateway, state: str, username: str) -> Any:
    """POST auth/confirm."""
    return await running.call("auth/confirm", {"state": state, "username": username})


async def test_a_link_may_wait_for_the_keys_holder(confirming: RunningGateway) -> None:
    """Mode confirm: named at both ends, unusable until the holder agrees to that very account."""
    redirect = await confirming.consent("ada")
    page = await confirming.bare.get(redirect)
    assert "@ada" in page.text
    assert "confirm" in page.text
    refused = await confirming.like()
    assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "x_link_pending")
    assert "auth/confirm" in refused.json()["error"]["fix"]
    state = state_of(redirect)
    assert (await confirm(confirming, state, "grace")).json()["error"]["reason"] == "account_mismatch"
    answer = await confirm(confirming, state, "@ada")
    assert (answer.json()["state"], answer.json()["username"]) == ("active", "ada")
    assert (await confirm(confirming, state, "ada")).json()["state"] == "active"
    assert (await confirming.like(POST)).status_code == 200


async def test_a_named_link_that_waits_is_reported_instead_of_one_that_is_over(confirming: RunningGateway) -> None:
    """To start again would end it. Before X names it, the older link's end is reported."""
    running = confirming
    await running.link("ada", {"expected_username": "ada"})
    user_id = (await running.status())["user_id"]
    (await running.x.post(f"/_sandbox/users/{user_id}/revoke_app")).raise_for_status()
    running.clock.advance(hours=3)
    assert (await running.like()).json()["error"]["reason"] == "x_session_expired"
    await running.fault("GET", "/2/users/me", {"status": 503}, times=2)
    redirect = await running.consent("ada")
    await running.bare.get(redirect)
    assert (await running.like()).json()["error"]["reason"] == "x_session_expired"
    assert (await running.status())["state"] == "needs_relink"
    running.clock.advance(seconds=5)
    for _ in range(2):
        assert (await running.like()).json()["error"]["reason"] == "x_link_pending"
        status = await running.status()
        assert (status["state"], status["username"], status["usable"]) == ("pending", "ada", False)
    await confirm(running, state_of(redirect), "ada")
    assert (await running.like(POST)).status_code == 200


async def test_a_late_confirmation_reports_the_state_of_the_link(confirming: RunningGateway) -> None:
    """Open, denied, undone, expired."""

    async def refused(redirect: str) -> str:
        return str((await confirm(confirming, state_of(redirect), "ada")).json()["error"]["reason"])

    auth_url = await begin(confirming)
    assert await refused(auth_url) == "x_link_pending"
    denied = await confirming.consent("ada", "deny")
    await confirming.bare.get(denied)
    assert await refused(denied) == "consent_denied"
    undone = await confirming.consent("ada")
    await press_undo(confirming, await confirming.bare.get(undone, headers=HTML))
    assert await refused(undone) == "state_used"
    confirming.clock.advance(minutes=10)
    assert await refused(auth_url) == "state_expired"


async def test_an_unconfirmed_link_ends_after_ten_minutes(confirming: RunningGateway) -> None:
    """Revoked at X, deleted here."""
    state = state_of(await confirming.consent("ada"))
    await confirming.link("ada")
    confirming.clock.advance(minutes=10, seconds=1)
    await confirming.gateway.links.sweep()
    assert (await confirming.status())["linked"] is False
    assert len(await confirming.calls("/2/oauth2/revoke")) == 2
    assert (await confirm(confirming, state, "ada")).status_code == 400


async def test_a_link_has_the_end_of_its_key_once_it_is_confirmed(confirming: RunningGateway) -> None:
    """Before that it has ten minutes, whatever becomes of the key's own end."""
    keys, links = confirming.gateway.keys, confirming.gateway.links
    for confirmed in (False, True):
        await keys.change(confirming.key_id, expires_at=confirming.clock.now() + timedelta(hours=1))
        redirect = await confirming.consent("ada")
        await confirming.bare.get(redirect)
        await keys.change(confirming.key_id, expires_at=confirming.clock.now() + timedelta(hours=2))
        if confirmed:
            await confirm(confirming, state_of(redirect), "ada")
        confirming.clock.advance(minutes=11)
        await links.sweep()
        assert (await confirming.status())["linked"] is confirmed
    assert len(await confirming.calls("/2/oauth2/revoke")) == 2
    confirming.clock.advance(hours=26)
    await links.sweep()
    assert len(await confirming.calls("/2/oauth2/revoke")) == 4


async def test_an_expected_account_needs_no_confirmation(confirming: RunningGateway) -> None:
    """The holder said beforehand whom to expect."""
    await confirming.link("ada", {"expected_username": "ada"})
    assert (await confirming.status())["state"] == "active"


async def test_a_stranger_who_finishes_a_relink_changes_nothing(confirming: RunningGateway) -> None:
    """The old link goes on; the stranger's waits and ends."""
    await confirming.link("ada", {"expected_username": "ada"})
    redirect = await confirming.consent("grace")
    await confirming.bare.get(redirect)
    assert (await confirming.like()).status_code == 200
    assert (await confirming.status())["username"] == "ada"


async def test_another_keys_state_cannot_be_confirmed(confirming: RunningGateway) -> None:
    """Nor learnt from."""
    state = state_of(await confirming.consent("ada"))
    await with_rules(confirming)
    assert (await confirm(confirming, state, "ada")).json()["error"]["reason"] == "state_unknown"
