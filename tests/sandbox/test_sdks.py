"""X's official SDK and tweepy, unmodified but for the host they speak to, get along with the sandbox."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
import tweepy  # type: ignore[import-untyped]  # has no types
import xdk  # type: ignore[import-untyped]  # says nothing of its types
from requests.adapters import HTTPAdapter
from xdk.users import models  # type: ignore[import-untyped]  # the same

from birdwire.sandbox.seed import DELETED_POST_ID, OTHER_USER_ID, VISIBLE_POST_ID

REDIRECT_URI = "http://127.0.0.1:9/callback"
SCOPES = ["tweet.read", "users.read", "tweet.write", "like.write", "follows.write", "bookmark.write", "offline.access"]
HOSTS = ("https://api.twitter.com/", "https://api.x.com/")
ADA = "2244994945"


class Detour(HTTPAdapter):
    """Sends what was meant for X to the sandbox."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self._base = base

    def send(self, request: requests.PreparedRequest, *args: Any, **more: Any) -> requests.Response:
        """Send it there."""
        parts = urlsplit(request.url or "")
        request.url = self._base + parts._replace(scheme="", netloc="").geturl()
        return super().send(request, *args, **more)


def through(session: requests.Session, base: str) -> None:
    """Have a session take the detour."""
    for host in HOSTS:
        session.mount(host, Detour(base))


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oauthlib speaks to loopback without TLS, for the test's duration."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


def allow(base: str, url: str) -> str:
    """Where ada's browser is sent back to."""
    body = {"auth_url": url, "username": "ada", "action": "allow"}
    answer: dict[str, str] = requests.post(f"{base}/_sandbox/consent", json=body, timeout=20).json()
    return answer["redirect_to"]


def tweepy_client(base: str, token: str) -> tweepy.Client:
    """Tweepy with a user's OAuth 2.0 token."""
    client = tweepy.Client(bearer_token=token)
    through(client.session, base)
    return client


@pytest.mark.parametrize(("client_id", "secret"), [("confidential", "a-secret"), ("public", None)])
def test_tweepy_links_likes_refreshes_and_unlikes(served: str, client_id: str, secret: str | None) -> None:
    """Both kinds of client, from the authorize URL to an unlike under the refreshed token."""
    handler = tweepy.OAuth2UserHandler(
        client_id=client_id, redirect_uri=REDIRECT_URI, scope=SCOPES, client_secret=secret
    )
    through(handler, served)
    tokens = handler.fetch_token(allow(served, handler.get_authorization_url()))
    client = tweepy_client(served, tokens["access_token"])
    assert client.get_me(user_auth=False).data.username == "ada"
    assert client.like(VISIBLE_POST_ID, user_auth=False).data == {"liked": True}
    url, body = "https://api.twitter.com/2/oauth2/token", f"client_id={client_id}"
    renewed = handler.refresh_token(url, refresh_token=tokens["refresh_token"], auth=handler.auth, body=body)
    client = tweepy_client(served, renewed["access_token"])
    assert client.unlike(VISIBLE_POST_ID, user_auth=False).data == {"liked": False}


def test_tweepy_raises_its_own_errors(served: str) -> None:
    """A wrong token, and a post that is gone, in X's words."""
    with pytest.raises(tweepy.Unauthorized):
        tweepy_client(served, "not-a-token").get_me(user_auth=False)
    handler = tweepy.OAuth2UserHandler(client_id="public", redirect_uri=REDIRECT_URI, scope=SCOPES)
    through(handler, served)
    tokens = handler.fetch_token(allow(served, handler.get_authorization_url()))
    with pytest.raises(tweepy.BadRequest, match=r"This tweet cannot be found\."):
        tweepy_client(served, tokens["access_token"]).like(DELETED_POST_ID, user_auth=False)


def test_xdk_links_acts_and_refreshes(served: str) -> None:
    """X's own SDK parses every answer with strict models."""
    client = xdk.Client(
        base_url=served,
        authorization_base_url=f"{served}/i",
        client_id="confidential",
        client_secret="a-secret",
        redirect_uri=REDIRECT_URI,
        scope=" ".join(SCOPES),
    )
    back = allow(served, client.get_authorization_url(state="a-state"))
    client.exchange_code(dict(parse_qsl(urlsplit(back).query))["code"])
    assert client.refresh_token()["access_token"]
    users = client.users
    like = models.LikePostRequest(tweet_id=VISIBLE_POST_ID)
    assert users.get_me().data.username == "ada"
    answers = [
        (users.like_post(ADA, body=like), "liked", True),
        (users.unlike_post(ADA, VISIBLE_POST_ID), "liked", False),
        (users.repost_post(ADA, body=models.RepostPostRequest(tweet_id=VISIBLE_POST_ID)), "retweeted", True),
        (users.unrepost_post(ADA, VISIBLE_POST_ID), "retweeted", False),
        (users.follow_user(ADA, body=models.FollowUserRequest(target_user_id=OTHER_USER_ID)), "following", True),
        (users.unfollow_user(ADA, OTHER_USER_ID), "following", False),
    ]
    for answer, name, value in answers:
        data: Any = answer.data
        assert (data.get(name) if isinstance(data, dict) else getattr(data, name)) is value


def test_xdk_raises_its_own_error(served: str) -> None:
    """A wrong token."""
    with pytest.raises(requests.HTTPError):
        xdk.Client(base_url=served, access_token="not-a-token").users.get_me()
