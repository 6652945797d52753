"""SDKs of Python and JavaScript, unmodified but for the host they speak to, get along with the sandbox."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
import tweepy  # type: ignore[import-untyped]  # has no types
import xdk  # type: ignore[import-untyped]  # says nothing of its types
from requests.adapters import HTTPAdapter
from xdk.users import models  # type: ignore[import-untyped]  # the same

from birdwire.sandbox.state.seed import DELETED_POST_ID, OTHER_USER_ID, VISIBLE_POST_ID
from harness import javascript

REDIRECT_URI = "http://127.0.0.1:9/callback"
SCOPES = ["tweet.read", "users.read", "tweet.write", "like.write", "follows.write", "bookmark.write", "offline.access"]
HOSTS = ("https://api.twitter.com/", "https://api.x.com/")
ADA = "2244994945"
BOTH_CLIENTS = pytest.mark.parametrize(("client_id", "secret"), [("confidential", "a-secret"), ("public", None)])
NODE_SDKS = javascript.FOLDER / "sdks"
GONE = [400, "This tweet cannot be found."]


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


@BOTH_CLIENTS
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
    """A wrong token and a deleted post, with X's messages."""
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


def by_node(name: str, base: str, client_id: str, secret: str | None) -> Any:
    """What an SDK of Node returned, call by call: its script logs in, renews, and uses what the SDK has."""
    requests.post(f"{base}/_sandbox/config", json={"media_processing_s": 0}, timeout=20).raise_for_status()
    script = NODE_SDKS / f"{name}.js"
    ended = javascript.run(script, SANDBOX_URL=base, CLIENT_ID=client_id, CLIENT_SECRET=secret or "")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def state_of(base: str) -> Any:
    """The state of the sandbox's world."""
    return requests.get(f"{base}/_sandbox/state", timeout=20).json()


@BOTH_CLIENTS
def test_twitter_api_v2_logs_in_refreshes_likes_posts_and_uploads(
    served: str, client_id: str, secret: str | None
) -> None:
    """JSON at the token endpoints, s256, and three chunks of binary without a filename."""
    answers = by_node("twitter_api_v2", served, client_id, secret)
    assert (answers["stateKept"], answers["revoked"], answers["ended"]) == (True, {"revoked": True}, 401)
    assert set(SCOPES) < set(answers["scope"])
    assert answers["me"]["username"] == "ada"
    assert answers["me"]["public_metrics"]["tweet_count"] == 3
    assert (answers["liked"], answers["unliked"]) == ({"liked": True}, {"liked": False})
    assert (answers["missing"], answers["spent"]) == (GONE, [400, "invalid_request"])
    *_, posted, filmed = state_of(served)["posts"]
    assert (posted["id"], posted["text"]) == (answers["posted"]["id"], "By twitter-api-v2.")
    assert (filmed["in_reply_to_tweet_id"], filmed["deleted"]) == (posted["id"], True)
    assert posted["media_ids"] + filmed["media_ids"] == answers["media"]


def acted(base: str, answers: Any) -> Any:
    """The last post at the sandbox, after what the calls that both of X's SDKs have returned is found right."""
    assert answers["state"] == "a-state"
    assert set(SCOPES) < set(answers["scope"])
    assert answers["me"]["username"] == "ada"
    assert (answers["liked"], answers["unliked"]) == ({"liked": True}, {"liked": False})
    assert (answers["reposted"], answers["bookmarked"]) == (True, {"bookmarked": True})
    assert answers["followed"]["following"] is True
    assert (answers["removed"], answers["missing"]) == ({"deleted": True}, GONE)
    state = state_of(base)
    assert state["follows"] == [{"source_user_id": ADA, "target_user_id": OTHER_USER_ID}]
    post = state["posts"][-1]
    assert (post["id"], post["text"], post["deleted"]) == (answers["posted"]["id"], answers["posted"]["text"], True)
    return post


@BOTH_CLIENTS
def test_twitter_api_sdk_logs_in_refreshes_likes_and_posts(served: str, client_id: str, secret: str | None) -> None:
    """X's older SDK for JavaScript sends the token's parameters in the query, and s256. It has no media."""
    answers = by_node("twitter_api_sdk", served, client_id, secret)
    acted(served, answers)
    assert (answers["revoked"], answers["ended"]) == ({"revoked": True}, 401)


@BOTH_CLIENTS
def test_xdk_for_javascript_logs_in_refreshes_likes_posts_and_uploads(
    served: str, client_id: str, secret: str | None
) -> None:
    """X's SDK for JavaScript sends media as base64. It has no revocation."""
    answers = by_node("xdk", served, client_id, secret)
    post = acted(served, answers)
    assert post["media_ids"] == [answers["uploaded"]["id"]]
    assert (answers["uploaded"]["size"], answers["processed"]["state"]) == (264, "succeeded")
