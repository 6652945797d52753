"""docs/mcp.md: its commands and calls are run, its tables are those of the code, and its cures name real reasons."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from birdwire.api.errors import PROBLEMS
from birdwire.gateway.approval_waits import MAX_WAITING
from birdwire.surfaces.mcp.endpoint import MAX_MESSAGE
from birdwire.surfaces.mcp.kernel import MAX_ENVELOPE
from birdwire.surfaces.mcp.tools import MAX_WAIT_S, OUTPUT_SCHEMA, TOOLS
from harness.mcp import STATELESS, headers, message
from harness.pages import FENCE, Reader, blocks, dev_gateway, fits, steps, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = "docs/mcp.md"
MEMBERS: dict[str, Any] = dict[str, Any](OUTPUT_SCHEMA)["properties"]
"""The schema of each member of a result."""

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader at a fresh `birdwire dev`, where ada has approved."""
    with dev_gateway(tmp_path_factory.mktemp("mcp")) as found:
        yield found


def post(reader: Reader, request: dict[str, Any], **more: str) -> httpx2.Response:
    """POST a message to /mcp, with the page's key. Underscores in the names of headers are hyphens."""
    revision = more.pop("revision", "2025-06-18")
    given = headers(reader.real("$BIRDWIRE_API_KEY"), request, revision)
    given |= {name.replace("_", "-"): value for name, value in more.items()}
    return httpx2.post(reader.real("http://127.0.0.1:8700/mcp"), json=request, headers=given, timeout=60)


def called(reader: Reader, call: dict[str, Any]) -> str:
    """Call a tool. Return the text that a model reads."""
    result = post(reader, message("tools/call", call)).raise_for_status().json()["result"]
    text: str = result["content"][0]["text"]
    assert result["structuredContent"].keys() == MEMBERS.keys()
    reader.remember(text)
    return text


@pytest.mark.timeout(120)
def test_the_page_s_commands_and_calls_return_what_the_page_shows(reader: Reader) -> None:
    """From top to bottom; a block of JSON is a tool call, and the text after it is what the model reads."""
    text, calls = "", 0
    for language, body in FENCE.findall(text_of(PAGE)):
        if language == "console":
            for step in steps(body):
                reader.do(step)
        elif language == "json":
            text, calls = called(reader, json.loads(reader.real(body))), calls + 1
        else:
            assert fits(reader.real(body).strip(), text), f"{body}\nis\n{text}"
    assert calls == 5


@pytest.mark.timeout(120)
def test_the_readme_shows_what_an_agent_sees_when_a_post_waits(reader: Reader) -> None:
    """The text of a real result, shortened."""
    page = text_of("README.md")
    chapter = page.split("### From Claude, Cursor, Codex")[1].split("\n## ")[0]
    shown = dict(FENCE.findall(chapter))
    place = ["--data", reader.real(".birdwire")]
    reader.birdwire(["birdwire", "policy", "set", reader.real("KEY_ID"), *place, "--preset", "poster"])
    arguments = {"text": "Read this: https://example.org/birds"}
    text = called(reader, {"name": "create_post", "arguments": arguments})
    # The page breaks lines.
    assert fits(" ".join(shown["text"].split()), " ".join(text.split())), text
    assert page.splitlines().index("### From Claude, Cursor, Codex") < 60


def test_the_table_of_tools_is_the_code_s() -> None:
    """Each tool, its calls, its effect by its annotations, and what it requires."""
    chapter = text_of(PAGE).split("## Tools")[1].split("\n## ")[0]
    shown = {
        name: (re.findall(r"`([^`]+)`", calls), effect, re.findall(r"`(\w+)`", required))
        for name, calls, effect, required in re.findall(
            r"^\| `(\w+)` \| (.*?) \| (\w+) \| (.*?) \|$", chapter, re.MULTILINE
        )
    }
    paths = {"requests": "requests/{request_id}", "dry_run/post_twitter": "dry_run/{operation}"}
    for name, tool in TOOLS.items():
        marks = tool.annotations
        effect = "reads" if marks["readOnlyHint"] else "deletes" if marks["destructiveHint"] else "writes"
        calls = [paths.get(call, call) for call in tool.calls]
        assert shown[name] == (calls, effect, tool.input_schema.get("required", [])), name
    assert shown.keys() == TOOLS.keys()
    assert f"{len(TOOLS)} tools" in text_of("README.md")


def test_the_page_has_every_member_and_limit_of_the_code(reader: Reader) -> None:
    """Members of a result, its states, and the limits."""
    text = text_of(PAGE)
    assert all(f"| `{name}` |" in text for name in MEMBERS)
    assert all(f"`{state}`" in text for state in MEMBERS["state"]["enum"])
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", text.split("## Limits")[1], re.MULTILINE))
    assert rows["a message"] == f"{MAX_MESSAGE // 1024} KiB"
    assert rows["its parameters besides a tool's arguments"] == f"{MAX_ENVELOPE // 1024} KiB"
    assert rows["`wait_s` of `get_request`"] == f"{MAX_WAIT_S} seconds"
    assert rows["answers that one process holds at a time"].startswith(f"{MAX_WAITING},")
    listed = post(reader, message("tools/list", revision=STATELESS), revision=STATELESS).json()["result"]
    assert rows["how long a client may cache the list of tools"] == f"{listed['ttlMs'] // 1000} seconds"


def test_every_symptom_s_reason_exists() -> None:
    """Each row has a symptom, reasons or none, and a cure."""
    chapter = text_of(PAGE).split("## Symptoms and cures")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| ([^|]+) \| ([^|]+) \|$", chapter, re.MULTILINE)[2:]
    assert len(rows) > 20
    for symptom, reasons, cure in rows:
        assert symptom
        assert len(cure) > 20
        assert set(re.findall(r"\w+", reasons)) <= PROBLEMS.keys(), reasons


def test_the_symptoms_that_can_be_shown_have_the_reasons_of_the_page(reader: Reader) -> None:
    """What clients do wrong, and the status and the reason that they get."""
    chapter = text_of(PAGE).split("## Symptoms and cures")[1].split("\n## ")[0]
    url = reader.real("http://127.0.0.1:8700/mcp")
    bearer = {"authorization": f"Bearer {reader.real('$BIRDWIRE_API_KEY')}"}
    typed = {"content-type": "application/json"}
    ping = json.dumps(PING)
    for status, reason, answer in (
        (401, "key_missing", httpx2.post(url, json=PING)),
        (401, "key_malformed", post(reader, PING, authorization="Bearer ${BIRDWIRE_API_KEY}")),
        (404, "route_unknown", httpx2.post(f"{url}/", json=PING, headers=bearer)),
        (405, "method_not_allowed", httpx2.get(url, headers=bearer)),
        (400, "host_not_allowed", post(reader, PING, host="birdwire.example")),
        (403, "origin_not_allowed", post(reader, PING, origin="https://birdwire.example")),
        (413, "body_too_large", httpx2.post(url, content=ping + " " * MAX_MESSAGE, headers=bearer | typed)),
        (415, "unsupported_media_type", httpx2.post(url, content=ping, headers=bearer | {"content-type": "text/xml"})),
    ):
        assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)
        assert f"`{reason}`" in chapter
    number = post(reader, message("tools/call", {"name": "like_post", "arguments": {"tweet_id": 1}})).json()["result"]
    assert (number["isError"], number["structuredContent"]["error"]["reason"]) == (True, "tweet_id_malformed")
    assert "`tweet_id_malformed`" in chapter
    # Clients look for an OAuth server, and must not find a 401 there.
    assert httpx2.get(url.replace("/mcp", "/.well-known/oauth-protected-resource")).status_code == 404


def test_the_messages_that_the_page_quotes_are_those_of_the_bridge() -> None:
    """A person searches the page for what the program prints."""
    quoted = re.findall(r'^\| stdio: "([^"]+)"', text_of(PAGE), re.MULTILINE)
    assert quoted
    assert all(text in text_of("src/birdwire/cli/mcp_bridge.py") for text in quoted)


def test_every_console_block_of_the_page_is_run() -> None:
    """None has a form that the reader skips."""
    assert all(block.startswith("$ birdwire ") for block in blocks(PAGE, "console") if "curl" not in block)
