"""The relay dialect of older clients: decodes its spellings, encodes its envelope. No other module knows either.

A request whose parsed body has the member `aisa_api_key` uses it, and no other request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from birdwire.api.body import Parsed
from birdwire.api.errors import GatewayError
from birdwire.api.messages import ACCEPTED, Answer
from birdwire.api.paths import API, SHORT_API

if TYPE_CHECKING:
    from birdwire.api.models import Body

KEY_MEMBER = "aisa_api_key"
FILE_PART = "media_files"

_IGNORED = ("callback_url", "type")
_NESTED = {"media_ids": "media", "in_reply_to_tweet_id": "reply"}
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Relay:
    """A request in the relay dialect: its key, and its body in the documented spelling."""

    raw_key: str = field(repr=False)
    parsed: Parsed


def key_in(fields: dict[str, Any]) -> str | None:
    """Return the key in a body of the dialect; None if the body is not in the dialect.

    Raises:
        GatewayError: key_malformed: the member is not a string.
    """
    if KEY_MEMBER not in fields:
        return None
    raw_key = fields[KEY_MEMBER]
    if not isinstance(raw_key, str):
        raise GatewayError("key_malformed")
    return raw_key.strip()


def decode(parsed: Parsed, model: type[Body]) -> Relay | None:
    """Return the request in the documented spelling; None if it is not in the dialect.

    Only members for which `model` has a field are renamed, so that an unknown one is refused as in any request.
    """
    raw_key = key_in(parsed.fields)
    if raw_key is None:
        return None
    known = model.model_fields
    fields = {name: value for name, value in parsed.fields.items() if name not in (KEY_MEMBER, *_IGNORED)}
    if parsed.kind != "json":
        fields = {name: _typed(name, value) for name, value in fields.items() if value != ""}
    if "content" in fields and "text" in known:
        content = fields.pop("content")
        fields["text"] = content or fields.get("text", content)
    for name, place in _NESTED.items():
        if name in fields and place in known:
            value = fields.pop(name)
            if value not in ("", [], None):
                inner = fields.setdefault(place, {})
                if isinstance(inner, dict):
                    inner[name] = value
    return Relay(raw_key, Parsed(parsed.kind, fields, parsed.files))


def encode(answer: Answer) -> Answer:
    """Return a success in the dialect's envelope: 200, with a post's id under both of its names.

    A call that waits for a person is the exception: clients take the code 200 for a call that was carried out.
    """
    value = answer.value
    if answer.status == ACCEPTED:
        return Answer.of({"code": ACCEPTED, "msg": "awaiting approval", **value}, ACCEPTED, answer.headers[1:])
    # The report of a request has `data` among its members, and is passed on whole.
    data = value["data"] if isinstance(value, dict) and list(value) == ["data"] else value
    if isinstance(data, dict) and "id" in data and "text" in data:
        data = {"tweet_id": data["id"], **data}
    return Answer.of({"code": 200, "msg": "ok", "data": data}, headers=answer.headers[1:])


def aliases(path: str) -> tuple[str, ...]:
    """Return a route's paths: its own, and the one without the middle part that older clients use."""
    below = path.removeprefix(f"{API}/")
    return (path,) if below == path else (path, f"{SHORT_API}/{below}")


def _typed(name: str, value: Any) -> Any:
    """Convert a field of a form, which has only texts: `media_ids` becomes a list, `true` and `false` booleans."""
    if name == "media_ids":
        parts = value if isinstance(value, list) else str(value).split(",")
        return [str(part).strip() for part in parts if str(part).strip()]
    return _TRUTH.get(value, value) if isinstance(value, str) and name not in ("text", "content") else value
