"""The consent page: an app's request and the user's decision. Redirects only to registered URIs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from birdwire.sandbox.api.dispatcher import read_bounded
from birdwire.sandbox.api.errors import Refusal
from birdwire.sandbox.oauth.clients import redirect_uri_known
from birdwire.sandbox.oauth.grants import Ask, digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from birdwire.sandbox.pages import Pages
    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import User

PATH = "/i/oauth2/authorize"
COOKIE = "sandbox_consent"
PENDING_S = 600
PENDING_AT_ONCE = 1000
STATE_LENGTH = 500
# X accepts these in any case, and SDKs send s256.
CHALLENGE_METHODS = {"s256": "S256", "plain": "plain"}
FORM_BYTES = 64 * 1024

SCOPES = {
    "tweet.read": "See all posts that you can see, including posts of protected accounts",
    "tweet.write": "Post, repost and delete posts for you",
    "tweet.moderate.write": "Hide and unhide replies to your posts",
    "users.email": "See your email address",
    "users.read": "See all accounts that you can see, including protected accounts",
    "follows.read": "See whom you follow and who follows you",
    "follows.write": "Follow and unfollow people for you",
    "offline.access": "Stay connected to your account until you revoke access",
    "space.read": "See the Spaces you can see",
    "mute.read": "See whom you have muted",
    "mute.write": "Mute and unmute people for you",
    "like.read": "See the posts that you have liked",
    "like.write": "Like and unlike posts for you",
    "list.read": "See your lists",
    "list.write": "Create and change lists for you",
    "block.read": "See whom you have blocked",
    "block.write": "Block and unblock people for you",
    "bookmark.read": "See your bookmarks",
    "bookmark.write": "Add and remove bookmarks for you",
    "dm.read": "Read your direct messages",
    "dm.write": "Send direct messages for you",
    "media.write": "Upload images and videos for you",
}


class AskError(ValueError):
    """An authorize URL that X answers with "Something went wrong". The message states the cause, which X does not."""


@dataclass(frozen=True)
class _Pending:
    ask: Ask
    cookie_digest: str
    ends_at: datetime


class Consent:
    """The consent page, and the same decision for scripts."""

    def __init__(self, platform: Simulator, pages: Pages) -> None:
        self._platform, self._pages = platform, pages
        self._pending: dict[str, _Pending] = {}

    def routes(self) -> list[Route]:
        """Return the page's routes."""
        return [Route(PATH, self.show, methods=["GET"]), Route(PATH, self.decide, methods=["POST"])]

    def ask(self, query: str) -> Ask:
        """Parse an authorize URL's query; raise AskError if X would not show its consent page."""
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=50, errors="strict")
        except ValueError:
            raise AskError("the query is malformed") from None
        given = dict(pairs)
        if len(given) != len(pairs):
            raise AskError("a parameter is repeated")
        client = self._platform.clients.find(given.get("client_id", ""))
        if client is None:
            raise AskError("client_id is unknown")
        redirect_uri = given.get("redirect_uri", "")
        if not redirect_uri_known(redirect_uri, self._platform.redirect_uris):
            raise AskError("redirect_uri does not exactly match a registered one")
        if given.get("response_type") != "code":
            raise AskError("response_type must be code")
        scopes = tuple(dict.fromkeys(given.get("scope", "").split()))
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if not scopes or unknown:
            raise AskError(f"scope {unknown[0][:50]} is unknown" if unknown else "scope is missing")
        if not 0 < len(given.get("state", "")) <= STATE_LENGTH:
            raise AskError(f"state must have 1 to {STATE_LENGTH} characters")
        challenge, method = self._challenge(given.get("code_challenge", ""), given.get("code_challenge_method", ""))
        return Ask(client.client_id, redirect_uri, scopes, given["state"], challenge, method)

    def _challenge(self, challenge: str, method: str) -> tuple[str, str]:
        if not challenge:
            raise AskError("code_challenge is missing")
        method = CHALLENGE_METHODS.get(method.lower(), "")
        if not method:
            raise AskError("code_challenge_method must be S256 or plain")
        if method == "plain" and not self._platform.config.allow_plain:
            raise AskError("code_challenge_method plain is disabled")
        return challenge[:500], method

    def answer(self, ask: Ask, user: User, *, allow: bool, scopes: Sequence[str]) -> str:
        """Return the redirect after the decision: with a code for these of the requested scopes, or with an error."""
        if not allow:
            return with_query(ask.redirect_uri, {"error": "access_denied", "state": ask.state})
        granted = tuple(scope for scope in ask.scopes if scope in scopes)
        code = self._platform.grants.issue_code(ask, user.id, granted, self._platform.config.code_s)
        return with_query(ask.redirect_uri, {"state": ask.state, "code": code})

    async def show(self, request: Request) -> Response:
        """GET: show the page. It accepts one decision, from the browser that it was shown to."""
        try:
            ask = self.ask(request.url.query)
        except AskError as error:
            return self._wrong(str(error))
        now = self._platform.clock.now()
        self._pending = {key: one for key, one in self._pending.items() if one.ends_at > now}
        if len(self._pending) >= PENDING_AT_ONCE:
            self._pending.pop(next(iter(self._pending)))
        cookie = request.cookies.get(COOKIE, "")
        if not 40 <= len(cookie) <= 60:
            cookie = secrets.token_urlsafe(32)
        token = secrets.token_urlsafe(32)
        self._pending[digest(token)] = _Pending(ask, digest(cookie), now + timedelta(seconds=PENDING_S))
        page = self._pages.page(
            "consent.html",
            form_action=origin_of(ask.redirect_uri),
            app_name=self._platform.app_name,
            redirect_uri=ask.redirect_uri,
            token=token,
            users=list(self._platform.world.users.values()),
            scopes=[(scope, SCOPES[scope]) for scope in ask.scopes],
        )
        page.set_cookie(COOKIE, cookie, path="/i/oauth2", httponly=True, samesite="lax")
        return page

    async def decide(self, request: Request) -> Response:
        """POST: the user's decision."""
        try:
            raw = await read_bounded(request, FORM_BYTES)
            pairs = parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=100, errors="strict")
        except (Refusal, ValueError):
            return self._wrong("the form is malformed")
        form = dict(pairs)
        pending = self._pending.pop(digest(form.get("request", "")), None)
        cookie = request.cookies.get(COOKIE, "")
        if pending is None or pending.ends_at <= self._platform.clock.now():
            return self._wrong("this page has already been used or has expired", 403)
        if not compare_digest(pending.cookie_digest, digest(cookie)):
            return self._wrong("this page was shown to a different browser", 403)
        user = self._platform.world.user_named(form.get("account", ""))
        scopes = [value for name, value in pairs if name == "scope"]
        if user is None or form.get("action") not in {"allow", "deny"}:
            return self._wrong("no account was chosen")
        allow = form["action"] == "allow"
        if allow and not set(scopes) & set(pending.ask.scopes):
            return self._wrong("no permission was selected: select at least one, or cancel")
        target = self.answer(pending.ask, user, allow=allow, scopes=scopes)
        return RedirectResponse(target, 302, {"cache-control": "no-store", "referrer-policy": "no-referrer"})

    def _wrong(self, reason: str, status: int = 400) -> Response:
        return self._pages.page("wrong.html", status, reason=reason)


def with_query(url: str, added: dict[str, str]) -> str:
    """Return the URL with these parameters appended to its own."""
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode(added)) if part)
    return urlunsplit(parts._replace(query=query))


def origin_of(url: str) -> str:
    """Return a URL's origin for a Content-Security-Policy; only the scheme if a policy cannot express the origin."""
    parts = urlsplit(url)
    # A policy cannot contain an IPv6 address.
    nameable = parts.scheme in {"http", "https"} and "[" not in parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if nameable else f"{parts.scheme}:"
