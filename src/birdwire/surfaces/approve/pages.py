"""The handlers of a signed link: GET and HEAD show, POST alone decides. No answer has a script, and none is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from birdwire.api.errors import GatewayError, describe, refuse
from birdwire.api.messages import JSON_TYPE, Answer
from birdwire.api.web_page import OwnSite, WebPages, is_prefetch, wants_json
from birdwire.gateway.guardrails.opened_link import MAX_NOTE_CHARS
from birdwire.outcomes.states import STATES
from birdwire.runtime.clock import rfc3339
from birdwire.surfaces.approve import request_view
from birdwire.surfaces.approve.decision_form import FORM_LIMIT, read_decision
from birdwire.x.catalog.visible_text import runs

if TYPE_CHECKING:
    from birdwire.api.messages import Call
    from birdwire.gateway.guardrails.opened_link import LinkDecision, Links, Opened
    from birdwire.outcomes.approval_payload import Payload
    from birdwire.runtime.clock import Clock

_HIDDEN = (("x-robots-tag", "noindex"),)
_IMAGES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"}
"""The types of images that a page shows, and the ends of their names."""

_ROOM = 512
"""Bytes of a form in addition to its text."""

_IMAGE_HEADERS = (
    ("content-security-policy", "default-src 'none'; sandbox"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    *_HIDDEN,
)


class ApprovePages:
    """GET, HEAD and POST approve/{token}. A client that asks for JSON gets JSON, with refusals in the envelope."""

    def __init__(self, links: Links, clock: Clock, base_url: str) -> None:
        self._links = links
        self._clock = clock
        self._site = OwnSite(base_url)
        self._pages = WebPages("birdwire.surfaces.approve", {"visible": visible, "isolated": isolated})

    async def show(self, call: Call) -> Answer:
        """Show the request of a link, or what became of it. Changes nothing."""
        try:
            return await self._shown(await self._open(call), call)
        except GatewayError as error:
            return self._refusal(error, call)

    async def head(self, call: Call) -> Answer:
        """Answer a HEAD, the same for every token, without looking it up."""
        if wants_json(call):
            return Answer(200, (("content-type", JSON_TYPE), *_HIDDEN))
        return Answer(200, (*self._pages.headers(forms=True, images=True), *_HIDDEN))

    async def decide(self, call: Call) -> Answer:
        """Carry out the decision in the page's form, then send the browser back to the page."""
        decision: LinkDecision | None = None
        try:
            self._site.check(call)
            if is_prefetch(call):
                raise GatewayError("prefetch")
            decision = await read_decision(call)
            await self._links.decide(await self._open(call), decision)
            if wants_json(call):
                return await self._shown(await self._open(call), call)
        except GatewayError as error:
            return await self._undecided(error, decision, call)
        return Answer(303, (("location", call.path), ("referrer-policy", "no-referrer"), *_HIDDEN))

    async def image(self, call: Call) -> Answer:
        """Return an image of the request, as it was uploaded."""
        try:
            opened = await self._open(call)
            payload, number = opened.waiting.payload, call.path.rsplit("/", 1)[-1]
            index = int(number) if number.isascii() and number.isdecimal() and len(number) < 4 else -1
            image = await self._links.image(opened, index)
            media_type = "" if image is None or payload is None else str(payload.media[index].get("type"))
            if image is None or media_type not in _IMAGES:
                raise GatewayError("route_unknown")
        except GatewayError as error:
            return self._refusal(error, call)
        name = f'inline; filename="image-{index + 1}.{_IMAGES[media_type]}"'
        return Answer(200, (("content-type", media_type), ("content-disposition", name), *_IMAGE_HEADERS), image)

    async def _open(self, call: Call) -> Opened:
        opened = await self._links.open(call.path.split("/")[2], call.peer)
        call.note["key_id"] = opened.waiting.row.key_id
        return opened

    async def _shown(self, opened: Opened, call: Call) -> Answer:
        """Return the page or the document of a request."""
        row, entry, now = opened.waiting.row, opened.waiting.entry, self._clock.now()
        if wants_json(call):
            asked = {"request_id": row.request_id, "state": entry.state, "payload_sha256": row.payload_sha256}
            return Answer.of({"approval": {**asked, "expires_at": rfc3339(row.expires_at)}}, headers=_HIDDEN)
        if (payload := opened.waiting.payload) is not None and request_view.is_open(opened, now):
            return self._question(opened, payload, call)
        refusal = await self._links.refusal(opened) if STATES[entry.state].applied != "yes" else None
        ending = request_view.ending(opened, refusal, now)
        page = self._pages.render("ending.html", ending=ending, path=call.path, request_id=row.request_id)
        # An element of the page that refreshes it fails accessibility checks, so a header does it.
        refresh = [("refresh", str(ending.refresh_s))] if ending.refresh_s is not None else []
        return page.adding((*refresh, *_HIDDEN))

    def _question(
        self, opened: Opened, payload: Payload, call: Call, status: int = 200, problem: dict[str, Any] | None = None
    ) -> Answer:
        shown = request_view.question(opened, payload, self._clock.now())
        # In the worst case, each byte of the text takes three in the form.
        editable = shown.text is not None and 3 * len(shown.text.encode()) <= FORM_LIMIT - _ROOM
        values = {"path": call.path, "asked": shown, "max_note": MAX_NOTE_CHARS, "editable": editable}
        page = self._pages.render(
            "question.html", status, forms=True, images=bool(shown.pictures), **values, problem=problem
        )
        return page.adding(_HIDDEN)

    async def _undecided(self, error: GatewayError, decision: LinkDecision | None, call: Call) -> Answer:
        """Report why nothing was decided; if the request still waits, with the question and what the person typed."""
        answer = self._refusal(error, call)
        if decision is None or wants_json(call) or error.reason in ("request_not_found", "auth_failures"):
            return answer
        try:
            opened = await self._open(call)
        except GatewayError:
            return answer
        payload = opened.waiting.payload
        if payload is None or not request_view.is_open(opened, self._clock.now()):
            page = await self._shown(opened, call)
            return Answer(answer.status, page.headers, page.body)
        message, fix = describe(error)
        problem = {"message": message, "fix": fix, "typed": decision.text}
        return self._question(opened, payload, call, answer.status, problem)

    def _refusal(self, error: GatewayError, call: Call) -> Answer:
        # An unknown token gets the same answer as any other unknown path.
        error = GatewayError("route_unknown") if error.reason == "request_not_found" else error
        answer = refuse(error, call).adding(_HIDDEN)
        if wants_json(call):
            return answer
        message, fix = describe(error)
        heading = "There is nothing here" if error.reason == "route_unknown" else "Nothing was decided"
        shown: dict[str, Any] = {"heading": heading, "message": message, "fix": fix, "reason": error.reason}
        page = self._pages.render("refusal.html", answer.status, **shown, request_id=call.request_id)
        return page.adding(pair for pair in answer.headers if pair[0] != "content-type")


def visible(text: str) -> Markup:
    """Return a text as HTML in which every code point that a person could not see is a marker."""
    # Each run is escaped.
    return Markup("").join(
        Markup('<span class="cp">{}</span>').format(run) if is_marker else escape(run) for run, is_marker in runs(text)
    )


def isolated(text: str) -> Markup:
    """Return a text as `visible` does, so that its direction does not reorder what surrounds it."""
    return Markup('<bdi class="sent">{}</bdi>').format(visible(text))
