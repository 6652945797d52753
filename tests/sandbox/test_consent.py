"""The consent page: what it shows, what it refuses to show, and where it sends people."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from birdwire.sandbox.app import create_sandbox

if TYPE_CHECKING:
    from sandbox.conftest import SandboxClient


def fields(page: str) -> dict[str, Any]:
    """What a browser would send of the consent page before any button is pressed."""
    hidden = re.search(r'name="request" value="([^"]+)"', page)
    assert hidden is not None
    scopes = re.findall(r'name="scope" value="([^"]+)" checked', page)
    return {"request": hidden[1], "account": "ada", "scope": scopes}


async def test_allowing_leads_back_with_state_and_code(x: SandboxClient) -> None:
    """State and code, in the redirect URI's query."""
    page = await x.http.get(x.authorize_url())
    answer = await x.http.post("/i/oauth2/authorize", data=fields(page.text) | {"action": "allow"})
    target = urlsplit(answer.headers["location"])
    assert (answer.status_code, target.netloc, target.path) == (302, "127.0.0.1:9", "/callback")
    assert parse_qs(target.query).keys() == {"state", "code"}
    assert parse_qs(target.query)["state"] == ["a-state"]


async def test_denying_leads_back_with_an_error(x: SandboxClient) -> None:
    """error=access_denied and the state, no code."""
    page = await x.http.get(x.authorize_url())
    answer = await x.http.post("/i/oauth2/authorize", data=fields(page.text) | {"action": "deny"})
    assert answer.headers["location"] == "http://127.0.0.1:9/callback?error=access_denied&state=a-state"


async def test_an_unticked_scope_is_not_granted(x: SandboxClient) -> None:
    """The token answer's scope is what was ticked."""
    page = await x.http.get(x.authorize_url(scope="tweet.read users.read like.write"))
    form = fields(page.text)
    assert form["scope"] == ["tweet.read", "users.read", "like.write"]
    form["scope"].remove("like.write")
    answer = await x.http.post("/i/oauth2/authorize", data=form | {"action": "allow"})
    code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
    tokens = (await x.exchange(code)).json()
    assert tokens["scope"] == "tweet.read users.read"
    assert "refresh_token" not in tokens


async def test_the_account_is_chosen_on_the_page(x: SandboxClient) -> None:
    """The token acts for the chosen person."""
    page = await x.http.get(x.authorize_url())
    answer = await x.http.post("/i/oauth2/authorize", data=fields(page.text) | {"action": "allow", "account": "alan"})
    code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
    token = (await x.exchange(code)).json()["access_token"]
    assert (await x.call(token, "GET", "/2/users/me")).json()["data"]["username"] == "alan"


async def test_an_existing_query_of_the_redirect_uri_is_kept(x: SandboxClient) -> None:
    """RFC 6749 §3.1.2: the redirect URI's own query stays."""
    url = x.authorize_url(redirect_uri="http://localhost:1/cb?a=b")
    answer = await x.control("consent", auth_url=url, username="ada", action="deny")
    assert answer["redirect_to"] == "http://localhost:1/cb?a=b&error=access_denied&state=a-state"


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "nobody"},
        {"client_id": None},
        {"redirect_uri": "https://evil.example/cb"},
        {"redirect_uri": "http://127.0.0.1@evil.example/cb"},
        {"redirect_uri": "http://127.0.0.1/cb#part"},
        {"redirect_uri": None},
        {"scope": None},
        {"scope": "tweet.read fly.high"},
        {"state": None},
        {"state": "s" * 501},
        {"code_challenge": None},
        {"code_challenge_method": None},
        {"code_challenge_method": "S512"},
        {"response_type": "token"},
    ],
)
async def test_a_wrong_request_gets_a_page_and_never_a_redirect(
    x: SandboxClient, changes: dict[str, str | None]
) -> None:
    """X shows its own page, whatever is wrong."""
    answer = await x.http.get(x.authorize_url(**changes))
    assert answer.status_code == 400
    assert "Something went wrong" in answer.text
    assert "location" not in answer.headers


async def test_a_repeated_parameter_gets_the_page(x: SandboxClient) -> None:
    """RFC 6749 §3.1: parameters must not be included more than once."""
    answer = await x.http.get(x.authorize_url() + "&state=another")
    assert answer.status_code == 400


async def test_with_registered_uris_only_an_exact_match_counts() -> None:
    """A loopback URI that is not registered is refused as any other."""
    app = create_sandbox(redirect_uris=["https://app.example/cb"])
    query = "response_type=code&scope=tweet.read&state=s&code_challenge=c&code_challenge_method=plain"
    url = f"/i/oauth2/authorize?{query}&client_id={app.state.clients.client_id}&redirect_uri="
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as http:
        assert (await http.get(url + "https://app.example/cb")).status_code == 200
        for wrong in ("https://app.example/cb/", "https://app.example/cb?x=1", "http://127.0.0.1/cb"):
            assert (await http.get(url + wrong)).status_code == 400


async def test_the_page_cannot_be_answered_twice(x: SandboxClient) -> None:
    """The form's field is good once."""
    page = await x.http.get(x.authorize_url())
    form = fields(page.text) | {"action": "allow"}
    assert (await x.http.post("/i/oauth2/authorize", data=form)).status_code == 302
    assert (await x.http.post("/i/oauth2/authorize", data=form)).status_code == 403


async def test_the_page_cannot_be_answered_by_another_browser(x: SandboxClient) -> None:
    """A forged post lacks the cookie."""
    page = await x.http.get(x.authorize_url())
    x.http.cookies.clear()
    answer = await x.http.post("/i/oauth2/authorize", data=fields(page.text) | {"action": "allow"})
    assert answer.status_code == 403
    assert "location" not in answer.headers


async def test_the_page_is_too_old_after_ten_minutes(x: SandboxClient) -> None:
    """A page left open does not stay an open door."""
    page = await x.http.get(x.authorize_url())
    await x.control("clock", advance_s=601)
    answer = await x.http.post("/i/oauth2/authorize", data=fields(page.text) | {"action": "allow"})
    assert answer.status_code == 403


async def test_everything_shown_is_escaped(x: SandboxClient) -> None:
    """A redirect URI with markup in it stays text."""
    answer = await x.http.get(x.authorize_url(redirect_uri='http://127.0.0.1/"><script>alert(1)</script>'))
    assert "<script" not in answer.text
    assert "<script>alert(1)" in unescape(answer.text)


async def test_the_policy_lets_the_form_lead_to_the_redirect_target_only(x: SandboxClient) -> None:
    """A browser that applies form-action to redirects must not block the way back."""
    page = await x.http.get(x.authorize_url())
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert policy.endswith("form-action 'self' http://127.0.0.1:9")
    assert page.headers["cache-control"] == "no-store"


async def test_plain_challenges_can_be_switched_off(x: SandboxClient) -> None:
    """The challenge is then refused before anyone is asked, in whatever case its method is written."""
    urls = [x.authorize_url(code_challenge="p" * 43, code_challenge_method=one) for one in ("plain", "PLAIN")]
    assert [(await x.http.get(url)).status_code for url in urls] == [200, 200]
    await x.control("config", allow_plain=False)
    assert [(await x.http.get(url)).status_code for url in urls] == [400, 400]


async def test_the_scripted_consent_refuses_what_the_page_would(x: SandboxClient) -> None:
    """Same rules, as a 400 that names the trouble."""
    bodies = [
        {"auth_url": x.authorize_url(client_id="nobody"), "username": "ada", "action": "allow"},
        {"auth_url": x.authorize_url(), "username": "nobody", "action": "allow"},
        {"auth_url": x.authorize_url(), "username": "ada", "action": "perhaps"},
        {"auth_url": x.authorize_url(), "username": "ada", "action": "allow", "scopes": ["dm.read"]},
        {"auth_url": "http://127.0.0.1/connect/1", "username": "ada", "action": "allow"},
        {"auth_url": "http://[", "username": "ada", "action": "allow"},
        {"username": "ada", "action": "allow"},
    ]
    for body in bodies:
        answer = await x.http.post("/_sandbox/consent", json=body)
        assert answer.status_code == 400, body
        assert isinstance(answer.json()["error"], str)
