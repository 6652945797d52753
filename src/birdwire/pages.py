"""The few HTML pages a person meets (callback, undo), with their headers. All is escaped; nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

from markupsafe import Markup
from pydantic import Field

from birdwire.body import Body, check, read
from birdwire.call import JSON_TYPE, Answer
from birdwire.errors import GatewayError, describe, render
from birdwire.form import wrong_type
from birdwire.store.db import StorageDownError

if TYPE_CHECKING:
    from jinja2 import Environment

    from birdwire.call import Call, Headers
    from birdwire.oauth import OAuth

_FORM_LIMIT = 1_000
_NOT_LINKED = ("Nothing was linked", "Go back to where you came from, and ask for a new link.")
_NOT_UNDONE = ("Nothing was undone", "To end the access anyway, remove the app at x.com/settings/connected_apps.")
"""What a person reads above and below a refusal's own sentence, whose remedy is for developers."""


class Undo(Body):
    """What ends a link that was not meant."""

    undo_token: str = Field(description="the one-time token of the page after the link")


class Pages:
    """GET oauth_callback and POST auth/undo. Who asks for JSON gets JSON, refusals in the envelope."""

    def __init__(self, oauth: OAuth) -> None:
        self._oauth = oauth

    @cached_property
    def _templates(self) -> Environment:
        import jinja2  # noqa: PLC0415 - 2 MiB, until somebody links an account

        loader = jinja2.PackageLoader("birdwire", "templates")
        templates = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        templates.globals["style"] = Markup(loader.get_source(templates, "style.css")[0])  # noqa: S704 - our own file
        return templates

    @cached_property
    def _headers(self) -> Headers:
        style = str(self._templates.globals["style"])
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        own = f"style-src 'sha256-{digest}'"
        return (
            ("content-type", "text/html; charset=utf-8"),
            (
                "content-security-policy",
                f"default-src 'none'; {own}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            ),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        )

    async def callback(self, call: Call) -> Answer:
        """What X sends the account's owner back to."""
        try:
            linked = await self._oauth.callback(call)
        except GatewayError as error:
            return self._refusal(error, call, *_NOT_LINKED)
        except StorageDownError:
            return self._refusal(GatewayError("storage_unavailable", half="nothing was linked"), call, *_NOT_LINKED)
        if _wants_json(call):
            return Answer.of({"data": {"linked": True, "how": linked.how, "username": linked.username}})
        return self._page("linked.html", linked=linked)

    async def callback_head(self, call: Call) -> Answer:
        """Answer a HEAD without looking at what X sent along: a link preview or a scanner must not use it up."""
        return Answer(200, (("content-type", JSON_TYPE),) if _wants_json(call) else self._headers)

    async def undo(self, call: Call) -> Answer:
        """The "this was not me" of the page after a link."""
        try:
            account = await self._oauth.undo(await _undo_token(call), call.peer)
        except GatewayError as error:
            return self._refusal(error, call, *_NOT_UNDONE)
        except StorageDownError:
            return self._refusal(GatewayError("storage_unavailable", half="nothing was undone"), call, *_NOT_UNDONE)
        if _wants_json(call):
            return Answer.of({"data": {"linked": False}})
        return self._page("undone.html", account=account)

    def _refusal(self, error: GatewayError, call: Call, heading: str, advice: str) -> Answer:
        answer = render(error, call.request_id)
        call.note["reason"] = error.reason
        if _wants_json(call):
            return answer
        message, fix = describe(error)
        headers = tuple(pair for pair in answer.headers if pair[0] != "content-type")
        words = {"heading": heading, "message": message, "advice": advice, "fix": fix, "reason": error.reason}
        page = self._page("problem.html", answer.status, request_id=call.request_id, **words)
        return page.adding(headers)

    def _page(self, template: str, status: int = 200, **values: object) -> Answer:
        return Answer(status, self._headers, self._templates.get_template(template).render(**values).encode())


def _wants_json(call: Call) -> bool:
    accept = (call.header("accept") or "").lower()
    return "application/json" in accept and "text/html" not in accept


async def _undo_token(call: Call) -> str:
    """The one field of the page's form, or of a JSON body."""
    parsed = await read(call, _FORM_LIMIT, _no_files)
    if parsed.kind == "multipart":
        raise _no_form()
    return check(parsed.fields, Undo).undo_token


async def _no_files(_: object) -> NoReturn:
    raise _no_form()


def _no_form() -> GatewayError:
    return wrong_type("a urlencoded form with undo_token, or JSON")
