"""X's refusals: the catalogue of every refusal that X is known to send, by id, and the forms that contain ids."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from birdwire.sandbox.state.rate_limits import DAY_S, QUARTER_S

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = "application/json; charset=utf-8"
PROBLEM = "application/problem+json"
HOSTS = {"2.166": "https://api.twitter.com/2/problems/", "2.167": "https://api.x.com/2/problems/"}


@dataclass(frozen=True)
class Answer:
    """X's answer. `body` is JSON, or None for an empty body."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = JSON

    def encoded(self, generation: str) -> bytes:
        """Encode the body, with problem types in that API generation's spelling ("mixed" keeps them as they are)."""
        if self.body is None:
            return b""
        body = _spelt(self.body, HOSTS[generation]) if generation in HOSTS else self.body
        # X prints problem documents over several lines.
        indent = 2 if self.content_type == PROBLEM else None
        separators = None if indent else (",", ":")
        return json.dumps(body, ensure_ascii=False, indent=indent, separators=separators).encode()


class Refusal(Exception):  # noqa: N818 - X refuses; nothing went wrong here
    """Raised by an endpoint to refuse the call."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _spelt(value: Any, host: str) -> Any:
    """Return the JSON with the host of every problem type replaced."""
    if isinstance(value, list):
        return [_spelt(entry, host) for entry in value]
    if not isinstance(value, dict):
        return value
    spelt = {name: _spelt(entry, host) for name, entry in value.items()}
    kind = spelt.get("type")
    if isinstance(kind, str):
        for known in HOSTS.values():
            if kind.startswith(known):
                spelt["type"] = host + kind.removeprefix(known)
    return spelt


class Catalogue:
    """X's refusals by id, as recorded from X."""

    def __init__(self) -> None:
        text = files(__package__).joinpath("errors.json").read_text(encoding="utf-8")
        self._entries: dict[str, dict[str, Any]] = json.loads(text)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def ids(self) -> list[str]:
        """Return every id, sorted."""
        return sorted(self._entries)

    def answer(self, name: str, now_s: int) -> Answer:
        """Return the refusal as recorded. Its rate limits reset 15 minutes or a day after `now_s`."""
        entry = self._entries[name]
        headers = dict(entry["headers"])
        for header in entry["headers"]:
            if header.endswith("-limit"):
                length_s = DAY_S if "24hour" in header else QUARTER_S
                headers[header.removesuffix("limit") + "reset"] = str(now_s + length_s)
        return Answer(entry["status"], deepcopy(entry["body"]), headers, entry["content_type"])

    def refusal(self, name: str) -> Refusal:
        """Return the refusal without its recorded headers, because the endpoint adds its real ones."""
        entry = self._entries[name]
        return Refusal(Answer(entry["status"], deepcopy(entry["body"]), {}, entry["content_type"]))


def invalid(message: str, **parameters: str) -> Refusal:
    """Return X's 400 for a wrong parameter; `parameters` are the invalid names and values."""
    error: dict[str, Any] = (
        {"parameters": {name: [value[:100]] for name, value in parameters.items()}} if parameters else {}
    )
    return Refusal(
        Answer(
            400,
            {
                "errors": [{**error, "message": message}],
                "title": "Invalid Request",
                "detail": "One or more parameters to your request was invalid.",
                "type": "https://api.x.com/2/problems/invalid-request",
            },
        ),
    )


def not_found(kind: str, value: str, parameter: str) -> dict[str, str]:
    """Return the entry of `errors` in a 200 for a missing resource; `kind` is tweet or user."""
    return {
        "value": value,
        "detail": f"Could not find {kind} with {parameter}: [{value}].",
        "title": "Not Found Error",
        "resource_type": kind,
        "parameter": parameter,
        "resource_id": value,
        "type": "https://api.x.com/2/problems/resource-not-found",
    }


def not_authorized(kind: str, value: str, parameter: str) -> dict[str, str]:
    """Return the entry of `errors` in a 200 for a resource that the caller may not see."""
    return {
        "value": value,
        "detail": f"Sorry, you are not authorized to see the {kind.capitalize()} with {parameter}: [{value}].",
        "title": "Authorization Error",
        "resource_type": kind,
        "parameter": parameter,
        "resource_id": value,
        "section": "data",
        "type": "https://api.x.com/2/problems/not-authorized-for-resource",
    }


def oauth_error(error: str, description: str, status: int = 400) -> Answer:
    """Return an error in the token endpoint's format."""
    return Answer(status, {"error": error, "error_description": description})
