"""The relay dialect of older clients: its spellings in, its envelope out. Nothing else knows that it exists.

A request whose parsed body has the member `aisa_api_key` speaks it, and only such a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from birdwire.api.body import Parsed
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
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
    """The key that a body carries, if it speaks the dialect.

    Raises:
        GatewayError: key_malformed: the member is there, but is no text.
    """
    if KEY_MEMBER not in fields:
        return None
    raw_key = fields[KEY_MEMBER]
    if not isinstance(raw_key, str):
        raise GatewayError("key_malformed")
    return raw_key.strip()


def hear(parsed: Parsed, model: type[Body]) -> Relay | None:
    """The request in the documented spelling, or None if it does not speak the dialect.

    Only members that `model` has a place for are respelled, so an unknown one is refused as ever.
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


def say(answer: Answer) -> Answer:
    """A success in the dialect's envelope: always 200, and a post's id under both of its names."""
    value = answer.value
    data = value.get("data", value) if isinstance(value, dict) else value
    if isinstance(data, dict) and "id" in data and "text" in data:
        data = {"tweet_id": data["id"], **data}
    return Answer.of({"code": 200, "msg": "ok", "data": data}, headers=answer.headers[1:])


def aliases(path: str) -> tuple[str, ...]:
    """Return a route's paths: its own, and the one without the middle part that older clients use."""
    below = path.removeprefix(f"{API}/")
    return (path,) if below == path else (path, f"{SHORT_API}/{below}")


def _typed(name: str, value: Any) -> Any:
    """A form has only texts: ids in a row are a list, and true and false are themselves."""
    if name == "media_ids":
        parts = value if isinstance(value, list) else str(value).split(",")
        return [str(part).strip() for part in parts if str(part).strip()]
    return _TRUTH.get(value, value) if isinstance(value, str) and name not in ("text", "content") else value
