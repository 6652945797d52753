"""The form by which a person decides: urlencoded, each field once, none unknown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn, cast

from birdwire.api.body import read
from birdwire.api.errors import GatewayError, excerpt
from birdwire.api.forms import broken, wrong_type
from birdwire.api.messages import JSON_TYPE
from birdwire.gateway.guardrails.opened_link import MAX_NOTE_CHARS, LinkDecision

if TYPE_CHECKING:
    from birdwire.api.messages import Call

FORM_LIMIT = 16_384
"""Maximum size of the form in bytes."""

_FIELDS = {"approve": (), "deny": ("note",), "edit": ("text",)}
"""The verdicts, and the further field that each may have."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


async def read_decision(call: Call) -> LinkDecision:
    """Return the decision in a form.

    Raises:
        GatewayError: unsupported_media_type, body_too_large, form_malformed, duplicate_field, unknown_field.
    """
    declared = (call.header("content-type") or "").partition(";")[0]
    # JSON is refused as what it is, and not for what is wrong in it.
    if declared.strip().lower() == JSON_TYPE:
        raise _no_form()
    parsed = await read(call, FORM_LIMIT, _no_files)
    if parsed.kind != "form":
        raise _no_form()
    fields: dict[str, Any] = parsed.fields
    for name, value in fields.items():
        if not isinstance(value, str):
            raise GatewayError("duplicate_field", field=excerpt(name))
    verdict, sha256 = fields.get("verdict"), fields.get("payload_sha256", "")
    if verdict not in _FIELDS:
        raise broken("verdict must be approve, deny or edit")
    if not _SHA256.fullmatch(sha256):
        raise broken("payload_sha256 must be the hash that the page showed")
    known = ("verdict", "payload_sha256", *_FIELDS[verdict])
    if unknown := fields.keys() - set(known):
        raise GatewayError("unknown_field", field=excerpt(min(unknown)), known=", ".join(known))
    note = fields.get("note", "").strip()
    if len(note) > MAX_NOTE_CHARS:
        raise broken(f"note must have at most {MAX_NOTE_CHARS} characters")
    # A browser sends every line break of a text as CRLF.
    text = fields["text"].replace("\r\n", "\n") if "text" in fields else None
    if verdict == "edit" and text is None:
        raise broken("an edit must have a text")
    return LinkDecision(cast("Any", verdict), sha256, note or None, text)


async def _no_files(_: object) -> NoReturn:
    raise _no_form()


def _no_form() -> GatewayError:
    return wrong_type("a urlencoded form", "Press the button on Birdwire's own page")
