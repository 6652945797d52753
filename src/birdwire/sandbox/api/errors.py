"""How X says no: every refusal X is known to send, by id, and the forms that carry ids. Decides nothing."""

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
    """What X sends back: `body` is JSON (None: no body at all)."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = JSON

    def encoded(self, generation: str) -> bytes:
        """The body's bytes, problem types spelt as that generation of the API does ("mixed": as they are)."""
        if self.body is None:
            return b""
        body = _spelt(self.body, HOSTS[generation]) if generation in HOSTS else self.body
        indent = 2 if self.content_type == PROBLEM else None  # X prints these over several lines
        separators = None if indent else (",", ":")
        return json.dumps(body, ensure_ascii=False, indent=indent, separators=separators).encode()


class Refusal(Exception):  # noqa: N818 - X refuses; nothing went wrong here
    """Raised by an endpoint in place of its answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _spelt(value: Any, host: str) -> Any:
    """The same JSON with the host of every problem type replaced."""
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
    """X's refusals by id, as they were seen on the wire."""

    def __init__(self) -> None:
        text = files(__package__).joinpath("errors.json").read_text(encoding="utf-8")
        self._entries: dict[str, dict[str, Any]] = json.loads(text)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def ids(self) -> list[str]:
        """Every id, sorted."""
        return sorted(self._entries)

    def answer(self, name: str, now_s: int) -> Answer:
        """The refusal as seen; limits that it mentions reset 15 minutes or a day after `now_s`."""
        entry = self._entries[name]
        headers = dict(entry["headers"])
        for header in entry["headers"]:
            if header.endswith("-limit"):
                length_s = DAY_S if "24hour" in header else QUARTER_S
                headers[header.removesuffix("limit") + "reset"] = str(now_s + length_s)
        return Answer(entry["status"], deepcopy(entry["body"]), headers, entry["content_type"])

    def refusal(self, name: str) -> Refusal:
        """The refusal by that id without headers of its own: the endpoint's real ones go along."""
        entry = self._entries[name]
        return Refusal(Answer(entry["status"], deepcopy(entry["body"]), {}, entry["content_type"]))


def invalid(message: str, **parameters: str) -> Refusal:
    """X's 400 for a wrong parameter; `parameters` are the names and values at fault."""
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
    """The entry of `errors` in a 200 about a thing that is not there; `kind` is tweet or user."""
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
    """The entry of `errors` in a 200 about a thing that the asker may not see."""
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
    """The token endpoint's form of an error."""
    return Answer(status, {"error": error, "error_description": description})
