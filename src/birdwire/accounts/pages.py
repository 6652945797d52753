"""The HTML pages of a link (callback, undo) with their headers. Every value is escaped; no page loads anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from birdwire.accounts import undo_cookie
from birdwire.accounts.bodies import Undo
from birdwire.accounts.linking import Undone
from birdwire.api.body import check, read
from birdwire.api.errors import GatewayError, describe, render
from birdwire.api.forms import wrong_type
from birdwire.api.messages import JSON_TYPE, Answer
from birdwire.api.paths import AUTH_UNDO, OAUTH_CALLBACK
from birdwire.api.web_page import OwnSite, WebPages, wants_json
from birdwire.store.database import StorageDownError

if TYPE_CHECKING:
    from birdwire.accounts.linking import Linking
    from birdwire.api.messages import Call

_FORM_LIMIT = 1_000
PATHS = (OAUTH_CALLBACK, AUTH_UNDO)
Words = tuple[str, str, str]
"""A page's heading, its explanation, and the next step. `{message}` and the refusal's values are filled in."""

_NOT_LINKED = ("Nothing was linked", "{message}", "Go back to where you got the link, and ask for a new one.")
_NOT_UNDONE = (
    "Nothing was undone",
    "{message}",
    "To end the access anyway, remove the app at x.com/settings/connected_apps.",
)
_END = (
    "The app can no longer act through this link: a newer link replaced it, the people who run the app ended it, or it "
    "never became active."
)
_NEWER = (
    "If you approved a newer link, the app can still act for you. To end that, remove the app at "
    "x.com/settings/connected_apps."
)
_OPENED = (
    "Nothing was undone",
    'This address works only through the button "This was not me: undo".',
    "To end the access, press it within 10 minutes of linking, or remove the app at x.com/settings/connected_apps.",
)
_TICK = (
    "On X's page, leave the boxes for seeing posts and accounts ticked: without them, X does not report which account "
    "this is. Ask for a new link, or remove the app at x.com/settings/connected_apps."
)
_BY_REASON: dict[str, Words] = {
    "account_mismatch": (
        "Nothing was linked",
        "You approved as @{username}; the app asked for {expected}.",
        "Switch to {expected} on X, then ask for a new link.",
    ),
    "callback_malformed": (
        "Nothing was linked",
        "This address is incomplete.",
        "Open the link again from where you got it.",
    ),
    "x_scope_missing": ("This link cannot be used", "You unticked a required permission: {permissions}.", _TICK),
}
"""What an account's owner reads on the callback page where a refusal's own sentence is for developers."""

_X_FAILED = (
    "Nothing was linked",
    "X is having a problem at the moment.",
    "Wait a minute. Then go back to where you got the link, and ask for a new one.",
)
_PERMISSIONS = {"users.read": "see accounts", "tweet.read": "see posts"}
"""Scopes without which no link works, as an account's owner understands them."""


class Pages:
    """GET oauth_callback and POST auth/undo. A client that asks for JSON gets JSON, with refusals in the envelope."""

    def __init__(self, linking: Linking, base_url: str) -> None:
        self._linking = linking
        self._site = OwnSite(base_url)
        self._pages = WebPages("birdwire.accounts")

    async def callback(self, call: Call) -> Answer:
        """Answer X's redirect of the account's owner, with a page or JSON."""
        try:
            linked = await self._linking.callback(call)
        except GatewayError as error:
            if "undone" in error.values and not wants_json(call):
                return self._pages.render("undone.html", undone=Undone(error.values["undone"], again=True))
            return self._refusal(error, call, _words(error))
        except StorageDownError:
            return self._refusal(GatewayError("storage_unavailable", half="nothing was linked"), call, _NOT_LINKED)
        if wants_json(call):
            return Answer.of({"data": {"linked": True, "how": linked.how, "username": linked.username}})
        page = self._pages.render(
            "linked.html", linked=linked, undo_path=AUTH_UNDO, forms=linked.undo_token is not None
        )
        if linked.undo_token is None or linked.undo_token in undo_cookie.tokens_for(call, linked.state_hash):
            return page
        cookie = undo_cookie.write(linked.state_hash, linked.undo_token, PATHS, secure=self._site.secure)
        return page.adding(cookie)

    async def callback_head(self, call: Call) -> Answer:
        """Answer a HEAD without reading its parameters: a link preview or a scanner must not use up the state."""
        return Answer(200, (("content-type", JSON_TYPE),) if wants_json(call) else self._pages.headers())

    async def undo(self, call: Call) -> Answer:
        """Process the page's button "This was not me: undo"."""
        try:
            self._site.check(call)
            undone = await self._linking.undo(await _undo_token(call), call)
        except GatewayError as error:
            words = ("Nothing left to undo", _END, _NEWER) if "ended" in error.values else _NOT_UNDONE
            return self._refusal(error, call, words)
        except StorageDownError:
            return self._refusal(GatewayError("storage_unavailable", half="nothing was undone"), call, _NOT_UNDONE)
        if wants_json(call):
            return Answer.of({"data": {"linked": False}})
        return self._pages.render("undone.html", undone=undone)

    def undo_opened(self, error: GatewayError, call: Call) -> Answer:
        """Explain the undo to a person who opened its address: a restored tab, or a typed URL.

        Raises:
            GatewayError: the refusal itself, to a client that does not ask for a page.
        """
        if "text/html" not in (call.header("accept") or "").lower():
            raise error
        return self._refusal(error, call, _OPENED)

    def _refusal(self, error: GatewayError, call: Call, words: Words) -> Answer:
        answer = render(error, call.request_id)
        call.note["reason"] = error.reason
        if wants_json(call):
            return answer
        message, fix = describe(error)
        headers = tuple(pair for pair in answer.headers if pair[0] != "content-type")
        values = {**error.values, "message": message}
        heading, text, advice = (template.format(**values) for template in words)
        shown: dict[str, Any] = {"heading": heading, "message": text, "advice": advice, "fix": fix}
        page = self._pages.render(
            "problem.html", answer.status, reason=error.reason, request_id=call.request_id, **shown
        )
        return page.adding(headers)


def _words(error: GatewayError) -> Words:
    """Return the text with which the callback page explains a refusal."""
    if "ended" in error.values:
        return ("This link has ended", _END, _NEWER)
    # Each of these refusals precedes the first token from X.
    if error.problem.whose == "x_outage":
        return _X_FAILED
    if error.reason == "x_scope_missing":
        scopes = error.values["scope"].split()
        error.values["permissions"] = " and ".join(_PERMISSIONS.get(scope, scope) for scope in scopes)
    return _BY_REASON.get(error.reason, _NOT_LINKED)


async def _undo_token(call: Call) -> str:
    """Return the one field of the page's form, or of a JSON body."""
    parsed = await read(call, _FORM_LIMIT, _no_files)
    if parsed.kind == "multipart":
        raise _no_form()
    return check(parsed.fields, Undo).undo_token


async def _no_files(_: object) -> NoReturn:
    raise _no_form()


def _no_form() -> GatewayError:
    return wrong_type("a urlencoded form with undo_token, or JSON")
