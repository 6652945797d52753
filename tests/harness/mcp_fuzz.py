"""Mutated JSON-RPC messages of both eras of MCP, and what every answer to one must look like."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any, Final, NamedTuple

from birdwire.api.errors import PROBLEMS
from birdwire.surfaces.mcp.tools import TOOLS
from harness.gateway import GRACE, POST
from harness.mcp import REVISIONS, STATELESS, headers, message

INTERNAL_ERROR: Final = -32603
"""The code that a bug has: nothing that a client sends may lead to it."""

_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "create_post": {"text": "Fuzz", "once": "name", "reply": {"in_reply_to_tweet_id": POST}},
    "follow_user": {"target_user_id": GRACE, "undo": True},
    "get_account": {},
    "get_request": {"request_id": f"req_{'0' * 26}", "wait_s": 0},
    "get_user": {"userName": "grace"},
    "get_user_posts": {"userName": "grace", "cursor": "a"},
    "link_account": {"expected_username": "ada"},
    "preview": {"operation": "post_twitter", "arguments": {"text": "Fuzz", "poll": {"options": ["a", "b"]}}},
    "search_users": {"query": "grace"},
}
_OTHERS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("initialize", {}),
    ("notifications/initialized", {}),
    ("notifications/cancelled", {"requestId": 1}),
    ("ping", {}),
    ("tools/list", {}),
    ("server/discover", {}),
    ("resources/list", {}),
    ("logging/setLevel", {"level": "debug"}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "a"}, "argument": {"name": "a", "value": "b"}}),
    ("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
)
_ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 2**63, 2**64, -(2**70), 10**400, "", " ", "\0", "\ud800", "\u202e\u200b"),
    *(
        "\r\n\r\n",
        "x" * 5_000,
        "\U0001f426",
        [],
        {},
        [[]],
        [None],
        {"": ""},
        {"a": {"b": []}},
        {"jsonrpc": "2.0"},
        POST,
    ),
    *("2026-07-28", "2025-06-18", "1900-01-01", "tools/call", "create_post", "post_twitter", ["a"] * 500),
)
_BYTES: Final = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u", b"\xff", b"\xed\xa0\x80", b"NaN", b"\xef\xbb\xbf"),
    *(b"9" * 400, b"9" * 5_000),
)
_HEADER_NAMES: Final = (
    *("mcp-protocol-version", "mcp-method", "mcp-name", "mcp-session-id", "mcp-param-text", "last-event-id"),
    *("prefer", "idempotency-key", "accept", "content-type", "content-encoding", "x-forwarded-for", "origin"),
)
_HEADER_VALUES: Final = (
    *(
        "",
        "2025-06-18",
        "2026-07-28",
        "1900-01-01",
        "tools/call",
        "tools/list",
        "create_post",
        "\xe9",
        "a,b",
        "wait=30",
    ),
    *(
        "application/json",
        "text/event-stream",
        "application/json; charset=utf-16",
        "gzip",
        "x" * 300,
        "=?base64?eA==?=",
    ),
)


class Message(NamedTuple):
    """A POST's body, and its headers but the key."""

    body: bytes
    headers: list[tuple[str, str]]


class Fuzzer:
    """Makes messages, always the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def next(self) -> Message:
        """Return the next message: a good one, of which some members, bytes and headers were changed."""
        dice = self._random
        revision = dice.choice(REVISIONS) if dice.random() < 0.5 else STATELESS
        method, params = self._call() if dice.random() < 0.6 else dice.choice(_OTHERS)
        request_id: str | int = "a" if dice.random() < 0.5 else 1
        sent: Any = deepcopy(message(method, params, revision, request_id))
        if method.startswith("notifications/"):
            del sent["id"]
        given = [(name, value) for name, value in headers("", sent, revision).items() if name != "authorization"]
        # Most mutations are those of a tool's arguments: the rest of an envelope is small.
        for _ in range(dice.choice([0, 1, 1, 2, 3])):
            inner = sent.get("params") if isinstance(sent, dict) else None
            if isinstance(inner, dict) and "arguments" in inner and dice.random() < 0.8:
                inner["arguments"] = self._mutated(inner["arguments"])
            else:
                sent = self._mutated(sent)
        # Everything that is not ASCII may be escaped or not.
        body = json.dumps(sent, ensure_ascii=dice.random() < 0.8).encode("utf-8", "surrogatepass")
        if dice.random() < 0.2:
            body = self._broken(body)
        if dice.random() < 0.2:
            given = self._other_headers(given)
        if not any(name == "content-type" for name, _ in given):
            given.append(("content-type", "application/json"))
        return Message(body, given)

    def _call(self) -> tuple[str, dict[str, Any]]:
        name = self._random.choice(sorted(TOOLS))
        return "tools/call", {"name": name, "arguments": _ARGUMENTS.get(name, {"tweet_id": POST, "undo": False})}

    def _mutated(self, value: Any) -> Any:
        """Return a value in which one member somewhere is another, is missing, is new, or is nested."""
        dice = self._random
        if not isinstance(value, dict) or dice.random() < 0.05:
            return self._odd(value)
        if not value:
            return {dice.choice(("text", "undo", "", "_meta")): self._odd(value)}
        name = dice.choice(list(value))
        what = dice.random()
        if isinstance(value[name], dict) and what < 0.7:
            value[name] = self._mutated(value[name])
        elif what < 0.8:
            value[name] = self._odd(value[name])
        elif what < 0.9:
            del value[name]
        else:
            value[str(dice.choice(("id", "_meta", "extra", "\ud800", "", "text", "undo")))] = self._odd(value[name])
        return value

    def _odd(self, value: Any) -> Any:
        dice = self._random
        if dice.random() < 0.1:
            for _ in range(dice.choice((2, 10, 31, 40, 200))):
                value = [value] if dice.random() < 0.5 else {"a": value}
            return value
        # A later mutation may change a member of it.
        return deepcopy(dice.choice(_ODD))

    def _broken(self, body: bytes) -> bytes:
        """Return a body with some bytes changed, inserted, repeated or cut off."""
        dice = self._random
        raw = bytearray(body)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(raw) + 1)
            inserted = dice.choice((*_BYTES, bytes([dice.randrange(256)]), raw[at : at + dice.randrange(40)]))
            raw[at : at + dice.choice((0, 0, 1, 5))] = inserted
            if dice.random() < 0.1:
                del raw[at:]
        return bytes(raw)

    def _other_headers(self, given: list[tuple[str, str]]) -> list[tuple[str, str]]:
        dice = self._random
        found = [pair for pair in given if dice.random() < 0.8]
        for _ in range(dice.randint(1, 2)):
            found.insert(dice.randrange(len(found) + 1), (dice.choice(_HEADER_NAMES), dice.choice(_HEADER_VALUES)))
        return found


def check_answer(status: int, body: bytes) -> str:
    """Check the form of an answer to any message; return its kind."""
    assert status < 500, (status, body[:500])
    if status == 202:
        assert body == b""
        return "accepted"
    document = json.loads(body)
    if document.get("jsonrpc") != "2.0":
        assert set(document) == {"error"}
        assert document["error"]["reason"] in PROBLEMS
        assert PROBLEMS[document["error"]["reason"]].status == status
        return "refused"
    assert isinstance(document["id"], str | int | None)
    assert not isinstance(document["id"], bool)
    if "error" in document:
        assert set(document) == {"jsonrpc", "id", "error"}
        assert isinstance(document["error"]["message"], str)
        assert document["error"]["code"] != INTERNAL_ERROR, body[:500]
        return "error"
    assert set(document) == {"jsonrpc", "id", "result"}
    assert status == 200
    content = document["result"].get("structuredContent")
    if content is None:
        return "result"
    assert document["result"]["isError"] is not content["ok"]
    return f"tool {content['state']}"
