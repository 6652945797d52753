"""An X session stays usable: refreshes, restarts, X's bad hours, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from harness.gateway import API, POST, gateway, serving

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gateway import RunningGateway

pytestmark = pytest.mark.engines("sqlite", "postgres")

REFRESH = {"grant_type": "refresh_token"}


async def test_a_like_after_two_hours_refreshes_once_by_itself(linked: RunningGateway) -> None:
    """X expires access tokens after two hours; callers do not notice."""
    await linked.advance_x(7_300)
    assert (await linked.like()).status_code == 200
    assert len(await linked.calls("/2/oauth2/token", **REFRESH)) == 1


async def test_forty_concurrent_callers_share_one_refresh(linked: RunningGateway) -> None:
    """X's refresh tokens are single use: a second one at the same time would lose the link."""
    await linked.advance_x(7_300)
    answers = await asyncio.gather(*(linked.like() for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(await linked.calls("/2/oauth2/token", **REFRESH)) == 1


async def test_a_token_about_to_end_is_refreshed_before_it_does(linked: RunningGateway) -> None:
    """With a minute left by our clock, the refresh comes first and X never says 401."""
    linked.clock.advance(seconds=7_141)
    await linked.advance_x(7_141)
    assert (await linked.like()).status_code == 200
    assert [call["status"] for call in await linked.calls("/2/users/")][-1] == 200
    assert len(await linked.calls("/2/oauth2/token", **REFRESH)) == 1


@pytest.mark.trust("F34")
async def test_the_removed_app_ends_the_session_for_good(linked: RunningGateway) -> None:
    """Revoked by the person at X: 403, needs_relink, and no further call to the token endpoint."""
    user_id = (await linked.status())["user_id"]
    (await linked.x.post(f"/_sandbox/users/{user_id}/revoke_app")).raise_for_status()
    first, second = await linked.like(), await linked.like()
    assert first.json()["error"]["reason"] == second.json()["error"]["reason"] == "x_session_expired"
    assert "@ada" in first.json()["error"]["message"]
    assert (await linked.status())["state"] == "needs_relink"
    assert len(await linked.calls("/2/oauth2/token", **REFRESH)) == 1


async def test_linking_again_restores_a_session_that_ended(linked: RunningGateway) -> None:
    """The remedy that the refusal names works."""
    await linked.x.post(f"/_sandbox/users/{(await linked.status())['user_id']}/revoke_app")
    await linked.like()
    await linked.link("ada")
    assert (await linked.like()).status_code == 200
    assert (await linked.status())["state"] == "active"


@pytest.mark.parametrize("refusal", ["invalid_request", "invalid_grant"])
async def test_a_definite_refusal_ends_the_session_in_either_spelling(linked: RunningGateway, refusal: str) -> None:
    """X says invalid_request where RFC 6749 says invalid_grant."""
    await linked.configure(refresh_refusal=refusal)
    await linked.x.post(f"/_sandbox/users/{(await linked.status())['user_id']}/revoke_app")
    assert (await linked.like()).json()["error"]["reason"] == "x_session_expired"
    assert (await linked.status())["state"] == "needs_relink"


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ({"status": 500}, "x_renewal_failed"),
        ({"status": 429}, "x_window_15m"),
        ({"error": "token-bad-client"}, "x_client_credentials"),
        ({"error": "token-no-client-id"}, "x_client_credentials"),
        ({"status": 200, "body": "<html>"}, "x_reply_malformed"),
        ({"status": 200, "body": {"token_type": "bearer", "expires_in": 0, "access_token": "a"}}, "x_reply_malformed"),
        ({"status": 400, "body": {"error": "invalid_scope", "error_description": "?"}}, "x_reply_malformed"),
    ],
)
async def test_a_failure_that_does_not_refuse_the_token_keeps_the_link(
    linked: RunningGateway, do: dict[str, object], reason: str
) -> None:
    """Outages, the operator's own faults and nonsense never cost an account its link."""
    await linked.advance_x(7_300)
    await linked.fault("POST", "/2/oauth2/token", do)
    assert (await linked.like()).json()["error"]["reason"] == reason
    assert (await linked.status())["state"] == "active"
    linked.clock.advance(seconds=31)  # where X may have taken the token, its lease is over
    assert (await linked.like()).status_code == 200


async def test_a_refresh_that_fails_early_leaves_the_old_token_in_use(linked: RunningGateway) -> None:
    """With seconds left, an outage of the token endpoint does not affect callers yet."""
    linked.clock.advance(seconds=7_150)
    await linked.fault("POST", "/2/oauth2/token", {"status": 503}, times=None)
    assert (await linked.like()).status_code == 200


@pytest.mark.trust("F33")
async def test_two_401s_in_a_row_keep_the_link_and_spend_one_refresh(linked: RunningGateway) -> None:
    """X once answered 401 to every caller for two hours: no link may be lost, and no token used up."""
    await linked.fault("POST", "/2/users/*/likes", {"error": "unauthorized"}, times=None)
    reasons = [(await linked.like()).json()["error"]["reason"] for _ in range(3)]
    assert reasons == ["x_session_expired"] * 3
    assert len(await linked.calls("/2/oauth2/token", **REFRESH)) == 1
    await linked.x.delete("/_sandbox/faults")
    assert (await linked.like()).status_code == 200
    assert (await linked.status())["state"] == "active"


@pytest.mark.trust("F35")
async def test_a_suspended_account_keeps_its_link(linked: RunningGateway) -> None:
    """X says so, and may think again: nothing has to be linked again."""
    await linked.fault("POST", "/2/users/*/likes", {"error": "suspended-user"})
    assert (await linked.like()).json()["error"]["reason"] == "x_user_suspended"
    assert (await linked.status())["state"] == "active"
    assert await linked.calls("/2/oauth2/token", **REFRESH) == []
    assert (await linked.like()).status_code == 200


async def test_a_refresh_without_a_new_refresh_token_keeps_the_old_one(linked: RunningGateway) -> None:
    """RFC 6749 §6 lets a server leave it out."""
    reply = {
        "token_type": "bearer",
        "expires_in": 7200,
        "access_token": "new",
        "scope": "like.write tweet.read users.read",
    }
    await linked.advance_x(7_300)
    await linked.fault("POST", "/2/oauth2/token", {"status": 200, "body": reply})
    await linked.like()
    linked.clock.advance(minutes=16)
    assert (await linked.like()).status_code == 200
    assert [call["status"] for call in await linked.calls("/2/oauth2/token")] == [200, 200, 200]


async def test_a_link_without_offline_access_ends_with_its_token(linked: RunningGateway) -> None:
    """X issued no refresh token: the true end is reported."""
    await linked.call("unlink_twitter")
    await linked.link("ada", scopes=["tweet.read", "users.read", "like.write"])
    assert (await linked.like()).status_code == 200
    linked.clock.advance(seconds=7_300)
    await linked.advance_x(7_300)
    assert (await linked.like()).json()["error"]["reason"] == "x_session_expired"
    assert (await linked.status())["state"] == "needs_relink"


@pytest.mark.trust("O12")
async def test_a_link_without_offline_access_serves_until_its_token_ends(linked: RunningGateway) -> None:
    """It cannot be renewed, so the time of renewal does not end it."""
    await linked.call("unlink_twitter")
    await linked.link("ada", scopes=["tweet.read", "users.read", "like.write"])
    linked.clock.advance(seconds=7_100)
    assert [(await linked.like()).status_code for _ in range(5)] == [200] * 5
    assert (await linked.status())["state"] == "active"


@pytest.mark.trust("F33")
async def test_a_401_ends_no_link_that_cannot_be_renewed(linked: RunningGateway) -> None:
    """X's outages look like that, too: the call is refused, and the next one is served."""
    await linked.call("unlink_twitter")
    await linked.link("ada", scopes=["tweet.read", "users.read", "like.write"])
    await linked.fault("POST", "/2/users/*/likes", {"error": "unauthorized"})
    refused = await linked.like()
    assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "x_session_expired")
    assert (await linked.status())["state"] == "active"
    assert (await linked.like()).status_code == 200


async def test_a_lost_scope_is_named(linked: RunningGateway) -> None:
    """The owner unticked like.write: the refusal says which scope to approve, and X is not asked."""
    await linked.call("unlink_twitter")
    await linked.link("ada", scopes=["tweet.read", "users.read", "offline.access"])
    before = len(await linked.calls("/2/users/"))
    error = (await linked.like()).json()["error"]
    assert (error["reason"], "like.write" in error["message"]) == ("x_scope_missing", True)
    assert len(await linked.calls("/2/users/")) == before


async def test_unlinking_ends_the_session_here_and_at_x(linked: RunningGateway) -> None:
    """Both tokens are revoked, each with its hint, and the next like is refused."""
    assert (await linked.call("unlink_twitter")).content == b'{"data":{"linked":false}}'
    assert [call["status"] for call in await linked.calls("/2/oauth2/revoke")] == [200, 200]
    assert (await linked.like()).json()["error"]["reason"] == "x_not_linked"
    assert (await linked.call("unlink_twitter")).content == b'{"data":{"linked":false}}'


async def test_an_unlink_that_x_misses_is_repeated_until_x_hears_it(linked: RunningGateway) -> None:
    """While X is down the link is deleted here immediately; it is revoked at X once X is back."""
    await linked.fault("POST", "/2/oauth2/revoke", {"status": 503}, times=2)
    await linked.call("unlink_twitter")
    assert (await linked.like()).json()["error"]["reason"] == "x_not_linked"
    linked.clock.advance(minutes=1)
    await linked.gateway.links.sweep()
    assert [call["status"] for call in await linked.calls("/2/oauth2/revoke")] == [503, 503, 200, 200]
    linked.clock.advance(days=1)
    await linked.gateway.links.sweep()
    assert len(await linked.calls("/2/oauth2/revoke")) == 4


async def test_tokens_to_be_revoked_before_a_long_stop_are_revoked_after_it(linked: RunningGateway) -> None:
    """Longer than X would be tried for: there is one more try at least."""
    await linked.fault("POST", "/2/oauth2/revoke", {"status": 503}, times=2)
    await linked.call("unlink_twitter")
    linked.clock.advance(days=30)
    await linked.gateway.links.sweep()
    assert [call["status"] for call in await linked.calls("/2/oauth2/revoke")] == [503, 503, 200, 200]


async def test_revoking_a_key_ends_its_session(linked: RunningGateway) -> None:
    """The next call gets 401, and the tokens are revoked at X."""
    await linked.gateway.keys.revoke(linked.key_id)
    assert (await linked.like()).json()["error"]["code"] == "revoked_api_key"
    await linked.gateway.links.sweep()
    assert len(await linked.calls("/2/oauth2/revoke")) == 2


@pytest.mark.parametrize("public", [False, True])
async def test_a_restart_finds_the_link_as_it_was(tmp_path: Path, public: bool) -> None:  # noqa: FBT001 - a parameter
    """A confidential and a public client alike; the ports changed meanwhile."""
    sandbox = create_sandbox()
    async with serving(sandbox_config(sandbox)) as x_url:
        async with (
            contextlib.AsyncExitStack() as stack,
            gateway(tmp_path, sandbox, x_url, stack, public=public) as running,
        ):
            _, raw_key = await running.gateway.keys.create("test", "kept", "free")
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.link("ada")
        async with (
            contextlib.AsyncExitStack() as stack,
            gateway(tmp_path, sandbox, x_url, stack, public=public) as running,
        ):
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.advance_x(7_300)
            assert (await running.like()).content == b'{"data":{"liked":true}}'


async def test_nothing_secret_lies_in_the_database_or_the_log(linked: RunningGateway) -> None:
    """Tokens are sealed, keys hashed, and the log says neither (nor codes, states and verifiers)."""
    redirect = await linked.consent("ada")
    await linked.bare.get(redirect)
    await linked.bare.get(API + f"like_twitter?api_key={linked.raw_key}")
    await linked.like(POST)
    row = (await linked.gateway.links.of_key(linked.key_id)).current
    assert row is not None
    session = await linked.gateway.sessions.open(row)
    vault_key = (linked.directory / "vault.key").read_text().strip()
    code = redirect.partition("code=")[2].partition("&")[0]
    kept = (
        b"".join(path.read_bytes() for path in linked.directory.glob("birdwire.db*")) + linked.log.getvalue().encode()
    )
    for secret in (linked.raw_key, session.access_token, code, vault_key):
        assert secret.encode() not in kept
