"""What agents and their registries find first: llms.txt, SKILL.md, server.json, and what is not there."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

import birdwire
from birdwire.api.paths import API
from birdwire.cli.command_line import COMMANDS
from birdwire.settings import Settings
from birdwire.surfaces.mcp.tools import TOOLS
from birdwire.surfaces.openapi.document import document
from birdwire.surfaces.openapi.endpoints import endpoints
from birdwire.surfaces.site.discovery import MAX_BYTES, llms
from birdwire.surfaces.site.documents import DOCUMENTS
from birdwire.surfaces.skill import skill
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS
from harness.pages import FENCE, ROOT, Reader, text_of

if TYPE_CHECKING:
    from harness.gateway import RunningGateway

PATHS = {endpoint.path for endpoint in endpoints(Settings())} | {"/mcp"}
LLMS = llms(document(Settings()))
FOR_PEOPLE = ("/approve", "oauth_callback", "auth/undo", "/docs", "console")

SERVER = json.loads(text_of("server.json"))
SERVER_MEMBERS: dict[str, dict[str, tuple[type, bool]]] = {
    "server": {
        "$schema": (str, False),
        "name": (str, True),
        "title": (str, False),
        "description": (str, True),
        "repository": (dict, False),
        "version": (str, True),
        "websiteUrl": (str, False),
        "icons": (list, False),
        "packages": (list, False),
        "remotes": (list, False),
        "_meta": (dict, False),
    },
    "package": {
        "registryType": (str, True),
        "registryBaseUrl": (str, False),
        "identifier": (str, True),
        "version": (str, False),
        "fileSha256": (str, False),
        "runtimeHint": (str, False),
        "transport": (dict, True),
        "runtimeArguments": (list, False),
        "packageArguments": (list, False),
        "environmentVariables": (list, False),
    },
    "transport": {"type": (str, True)},
    "argument": {
        "type": (str, True),
        "value": (str, False),
        "valueHint": (str, False),
        "isRepeated": (bool, False),
        "description": (str, False),
        "isRequired": (bool, False),
    },
    "variable": {
        "name": (str, True),
        "description": (str, False),
        "isRequired": (bool, False),
        "format": (str, False),
        "value": (str, False),
        "isSecret": (bool, False),
        "default": (str, False),
        "placeholder": (str, False),
        "choices": (list, False),
        "variables": (dict, False),
    },
}
"""The members of version 2025-12-11 of server.json, as the MCP registry documents them: type, and whether required.

A transport is stdio here, and an argument positional.
"""


def calls_of(text: str) -> set[tuple[str, str]]:
    """Return the calls that a text names, in code: a method, and a path without the prefix of the API."""
    spans = re.findall(r"`(GET|POST) ([^`]+)`", text) + re.findall(r"^- (GET|POST) `([^`]+)`", text, re.MULTILINE)
    found = set()
    for method, named in spans:
        path = named.removeprefix("http://127.0.0.1:8700").removeprefix(f"{API}/")
        path = re.sub(r"dry_run/(NAME|OPERATION)", "dry_run/post_twitter", path)
        found.add((method, path.replace("REQUEST_ID", "{request_id}")))
    return found


def examples(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a text: the language and the body."""
    return FENCE.findall(text)


def test_llms_txt_fits_into_four_kibibytes_and_is_complete() -> None:
    """Every call of a key by its name and what it requires, a dry run, 202, and no page meant for people."""
    assert len(LLMS.encode()) <= MAX_BYTES == 4_096
    assert LLMS.startswith("# Birdwire\n\n> ")
    for row in OPERATIONS:
        required = [name for name, field in row.body.model_fields.items() if field.is_required()]
        [line] = [line for line in LLMS.splitlines() if line.startswith(f"- POST `{row.name}`:")]
        assert all(name in line for name in required)
    assert all(f"- GET `{row.name}`:" in LLMS for row in LOOKUPS)
    assert all(word in LLMS for word in ("202", "dry_run/", "http://127.0.0.1:8700/mcp", "Idempotency-Key"))
    assert "Nothing was published" in LLMS
    assert "Never send a post again" in LLMS
    assert [word for word in FOR_PEOPLE if word in LLMS] == []


def test_every_path_in_the_texts_for_agents_exists() -> None:
    """In llms.txt and SKILL.md, by the route table's own description."""
    known = {(one.method, one.path.removeprefix(f"{API}/")) for one in endpoints(Settings())} | {("POST", "/mcp")}
    for text in (LLMS, skill()):
        named = calls_of(text)
        assert len(named) > 15
        assert named <= known
        absolute = re.findall(r"(?:http://127\.0\.0\.1:8700|\$BIRDWIRE_URL)(/[\w./]*)", text)
        assert absolute
        assert set(absolute) <= PATHS


@pytest.mark.asyncio(loop_scope="module")
async def test_the_example_of_llms_txt_is_answered_as_it_shows(shared_gateway: RunningGateway) -> None:
    """With a real key in place of the variable, and nothing else changed."""
    text = (await shared_gateway.bare.get("/llms.txt")).text
    assert text == llms(document(shared_gateway.settings))
    (kind, command), (_, answer) = examples(text)
    assert kind == "sh"
    words = shlex.split(command.replace("\\\n", " ").replace("$BIRDWIRE_API_KEY", shared_gateway.raw_key))
    assert words[0] == "curl"
    assert await asyncio.to_thread(Reader.curl, words[1:]) == answer.strip()


@pytest.mark.asyncio(loop_scope="module")
async def test_there_are_no_cards_of_other_protocols(shared_gateway: RunningGateway) -> None:
    """No client of this gateway reads them, and one that looks for OAuth must not find a 401."""
    assert [path for path in DOCUMENTS if path.startswith("/.well-known/")] == []
    for name in ("agent.json", "oauth-protected-resource", "oauth-authorization-server"):
        answer = await shared_gateway.bare.get(f"/.well-known/{name}")
        assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "route_unknown")


def test_the_skill_in_the_tree_is_what_the_code_makes() -> None:
    """`make docs` regenerates it."""
    assert text_of("skills/birdwire/SKILL.md") == skill()


def test_the_skill_has_a_head_that_agents_accept_and_every_tool_and_call() -> None:
    """A name, a description of at most 1,024 characters, all tools, all operations, and what never to do."""
    _, head, body = skill().split("---\n", 2)
    members = dict(line.split(": ", 1) for line in head.splitlines())
    assert members.keys() == {"name", "description"}
    assert members["name"] == "birdwire"
    assert 100 < len(members["description"]) <= 1_024
    assert all(f"| `{name}` |" in body for name in TOOLS)
    assert all(f"POST {row.name}`" in body for row in OPERATIONS)
    never = body.split("## Never\n")[1].split("\n## ")[0]
    assert all(word in never for word in ("send a post again", "instructions in posts", "API key", "refusal"))


@pytest.mark.asyncio(loop_scope="module")
async def test_the_skill_s_example_publishes_a_post(shared_gateway: RunningGateway) -> None:
    """An agent without MCP copies it."""
    [(_, command)] = examples(skill())
    given = command.replace("$BIRDWIRE_URL", str(shared_gateway.client.base_url).rstrip("/"))
    words = shlex.split(given.replace("\\\n", " ").replace("$BIRDWIRE_API_KEY", shared_gateway.raw_key))
    answer = json.loads(await asyncio.to_thread(Reader.curl, words[1:]))
    assert answer["data"]["text"] == "Two birds on a wire"


def members(kind: str, value: dict[str, Any]) -> None:
    """Check the members of an object of server.json."""
    allowed = SERVER_MEMBERS[kind]
    assert value.keys() <= allowed.keys()
    assert {name for name, (_, required) in allowed.items() if required} <= value.keys()
    assert all(isinstance(inner, allowed[name][0]) for name, inner in value.items())


def test_server_json_has_the_members_that_the_registry_documents() -> None:
    """And no other; it starts the bridge over stdio, with the two variables that it reads."""
    members("server", SERVER)
    assert SERVER["$schema"] == "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", SERVER["name"])
    assert 3 <= len(SERVER["name"]) <= 200
    assert len(SERVER["title"]) <= 100
    assert len(SERVER["description"]) <= 100
    [package] = SERVER["packages"]
    members("package", package)
    members("transport", package["transport"])
    assert package["transport"] == {"type": "stdio"}
    assert (package["registryType"], package["identifier"]) == ("pypi", "birdwire")
    [argument] = package["packageArguments"]
    members("argument", argument)
    assert argument["type"] == "positional"
    assert argument["value"] in {row.name for row in COMMANDS}
    found = {one["name"]: one for one in package["environmentVariables"]}
    for variable in found.values():
        members("variable", variable)
        assert variable["format"] in {"string", "number", "boolean", "filepath"}
    assert found.keys() == {"BIRDWIRE_URL", "BIRDWIRE_API_KEY"}
    assert {name: one["isSecret"] for name, one in found.items()} == {"BIRDWIRE_URL": False, "BIRDWIRE_API_KEY": True}
    assert all(one["isRequired"] for one in found.values())


def test_server_json_is_about_this_version_of_this_package() -> None:
    """The registry looks for the name in the README of the published package."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    [package] = SERVER["packages"]
    assert SERVER["version"] == package["version"] == project["version"] == birdwire.__version__
    assert package["identifier"] == project["name"]
    assert f"<!-- mcp-name: {SERVER['name']} -->" in (ROOT / project["readme"]).read_text("utf-8")


def test_the_page_for_coding_agents_is_short_and_names_what_exists() -> None:
    """Its commands are targets of the Makefile, its packages are the tree's, and its files exist."""
    text = text_of("AGENTS.md")
    assert len(text.splitlines()) <= 60
    targets = set(re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE))
    commands = re.findall(r"^ {4}make ([a-z-]+)", text, re.MULTILINE)
    assert len(commands) >= 6
    assert set(commands) <= targets
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    source = ROOT / "src" / "birdwire"
    assert named == {path.parent.name for path in source.glob("*/__init__.py")}
    assert [path for path in re.findall(r"`(tests/\w+(?:/\w+\.py)?)`", text) if not (ROOT / path).exists()] == []
    assert all((source / name).exists() for name in re.findall(r"`(\w+\.py)`", text))
