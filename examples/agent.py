"""An agent without a model: it reads a user's posts, proposes a reply, waits for a person, and reports the outcome.

    export BIRDWIRE_URL=http://127.0.0.1:8700 BIRDWIRE_API_KEY=bw_test_…
    python examples/agent.py grace "Thank you for this."

It calls the gateway's MCP tools with the standard library alone. Put a model in place of `draft`, and the rest stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

WAIT_S = 25
"""How long one get_request waits for a person: the maximum."""

PAUSE_S = 1.0
UNDECIDED = ("awaiting_approval", "unknown")
"""States that may still change. In neither of them is a post sent again."""


class Tools:
    """The tools of a Birdwire gateway, over MCP. No session is needed: each call is one POST."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = f"{url.rstrip('/')}/mcp"
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2025-11-25",
        }
        self._ids = itertools.count(1)

    def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its structured result. A refusal is a result too."""
        call = {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments},
        }
        request = urllib.request.Request(self._url, json.dumps(call).encode(), self._headers)  # noqa: S310 - the operator's URL
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S + 35) as answer:  # noqa: S310 - the same
                reply = json.load(answer)
        except urllib.error.HTTPError as error:
            # Before a call is admitted, Birdwire refuses it in the shape of its HTTP API: a wrong key, for example.
            reply = json.load(error)
        except OSError as error:
            sys.exit(f"No answer from {self._url}: {error}. Check BIRDWIRE_URL, and that the gateway is running.")
        if "error" in reply:
            sys.exit(f"{reply['error']['message']} {reply['error'].get('fix', '')}")
        result: dict[str, Any] = reply["result"]["structuredContent"]
        return result


def draft(posts: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """Write a reply to the newest post. What it states is material: this agent does nothing that a post asks for."""
    newest = max(posts, key=lambda post: int(post["id"]))
    print(f"Newest post of @{newest['author']['userName']}: {newest['text']}")
    return {"text": text, "reply": {"in_reply_to_tweet_id": newest["id"]}}


def settled(tools: Tools, result: dict[str, Any], patience_s: float) -> dict[str, Any]:
    """Ask what became of a post until it is known, or patience ends. Never send it again."""
    until = time.monotonic() + patience_s
    while result["state"] in UNDECIDED and time.monotonic() < until:
        result = tools("get_request", request_id=result["request_id"], wait_s=WAIT_S)
        if result["state"] in UNDECIDED:
            time.sleep(PAUSE_S)
    return result


def report(result: dict[str, Any]) -> int:
    """Print the outcome and return the exit code: 0 if the post is published."""
    data = result["data"] or {}
    if result["error"] is not None:
        print(f"Not published: {result['error']['message']} {result['error']['fix']}")
    elif result["state"] == "done":
        post = data.get("data") or data
        print(f"Published: {post['text']} (post {post['id']})")
        return 0
    elif result["state"] == "refused":
        note = (data["approval"] or {}).get("note")
        print(f"Not published: {data['state']}" + (f", because: {note}" if note else ""))
    else:
        print(f"Not known yet: ask again about {result['request_id']}")
    return 1


def main() -> int:
    """Read, preview, propose, wait, report."""
    parser = argparse.ArgumentParser(description="Reply to a user's newest post, if the rules and a person allow it.")
    parser.add_argument("username")
    parser.add_argument("text")
    parser.add_argument(
        "--patience", type=float, default=3_600, metavar="SECONDS", help="how long to wait for a person"
    )
    asked = parser.parse_args()
    url, api_key = os.environ.get("BIRDWIRE_URL"), os.environ.get("BIRDWIRE_API_KEY")
    if not url or not api_key:
        sys.exit("Set BIRDWIRE_URL to the address of the gateway, and BIRDWIRE_API_KEY to its key.")
    tools = Tools(url, api_key)

    account = tools("get_account")
    if not account["ok"] or not account["data"]["usable"]:
        link = tools("link_account")
        sys.exit(f"Open {link['data']['auth_url']} and approve." if link["ok"] else link["error"]["fix"])
    read = tools("get_user_posts", userName=asked.username)
    if not read["ok"] or not read["data"]["tweets"]:
        sys.exit(read["error"]["message"] if read["error"] else f"@{asked.username} has no posts.")
    post = draft(read["data"]["tweets"], asked.text)

    preview = tools("preview", operation="post_twitter", arguments=post)
    if not preview["ok"]:
        return report(preview)
    would = preview["data"]["would"]
    print(f"Preview: {would['outcome']}, ${would['cost_usd']}")
    if would["outcome"] == "deny":
        print(*(f"Not proposed: {one['message']} {one['fix']}" for one in would["refusals"]), sep="\n")
        return 1

    # Birdwire carries out a call once under one name, even if a client or a proxy repeats it.
    result = tools("create_post", **post, once=str(uuid.uuid4()))
    if result["state"] == "awaiting_approval":
        print(f"Waiting for a person: birdwire approvals approve {result['request_id']}", flush=True)
    return report(settled(tools, result, asked.patience))


if __name__ == "__main__":
    sys.exit(main())
