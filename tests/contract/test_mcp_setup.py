"""`birdwire mcp setup`: the key that it creates, and the configurations that it prints, which must work as they are."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import shlex
import textwrap
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from birdwire.cli.command_line import build
from birdwire.cli.commands import mcp as command
from birdwire.cli.mcp_clients import CLIENTS, KEY_FILE
from harness.bridging import bridging, request
from harness.commands import Outcome
from harness.gateway import RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = re.compile(r"bw_test_[0-9A-Za-z]{49}")
REFERENCES = {
    "claude-code": "${BIRDWIRE_API_KEY}",
    "cursor": "${env:BIRDWIRE_API_KEY}",
    "vscode": "${input:birdwire-key}",
}
"""How the configuration of each program refers to the key in a header. Codex has a member for the variable's name."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """Start a gateway of this module."""
    async with RunningGateway.built(tmp_path_factory.mktemp("running")) as built:
        yield built


async def run(running: RunningGateway, *arguments: str, **environment: str | None) -> Outcome:
    """Run a command with the settings of the gateway, as its operator."""
    given = {
        "BIRDWIRE_URL": None,
        "BIRDWIRE_API_KEY": None,
        "BIRDWIRE_DATABASE_URL": running.settings.database_url,
        "BIRDWIRE_PUBLIC_URL": running.settings.base_url,
        "BIRDWIRE_X_API_URL": running.settings.x_api_url,
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    result = await asyncio.to_thread(CliRunner().invoke, build(), list(arguments), env=given | environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def server_of(client: str, printed: Any) -> tuple[str, str]:
    """Return the URL and the Authorization header in a configuration, before the program has replaced anything."""
    if client == "claude-code":
        words = shlex.split(printed)
        assert words[:4] == ["claude", "mcp", "add-json", "birdwire"]
        server = json.loads(words[4])
        assert server["type"] == "http"
    elif client == "codex":
        server = tomllib.loads(printed)["mcp_servers"]["birdwire"]
        assert server["bearer_token_env_var"] == "BIRDWIRE_API_KEY"
        return server["url"], "Bearer ${BIRDWIRE_API_KEY}"
    elif client == "vscode":
        (asked,) = printed["inputs"]
        assert (asked["type"], asked["id"], asked["password"]) == ("promptString", "birdwire-key", True)
        server = printed["servers"]["birdwire"]
        assert server["type"] == "http"
    else:
        server = printed["mcpServers"]["birdwire"]
    assert list(server["headers"]) == ["Authorization"]
    return server["url"], server["headers"]["Authorization"]


async def check(running: RunningGateway, client: str, printed: Any, raw_key: str) -> None:
    """Use a configuration as its program does: with the key in place of what refers to it."""
    url, header = server_of(client, printed)
    assert url == f"{running.settings.base_url}/mcp"
    reference = REFERENCES.get(client, "${BIRDWIRE_API_KEY}")
    assert header == f"Bearer {reference}"
    given = {"authorization": header.replace(reference, raw_key)}
    answer = await running.bare.post(url, json=request("tools/list"), headers=given)
    assert "create_post" in {tool["name"] for tool in answer.json()["result"]["tools"]}


def step(number: int, text: str) -> str:
    """Return what a step has a person copy: its indented lines."""
    found = re.search(rf"^{number}\. .*?(?=^\d\. |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return textwrap.dedent("\n".join(line for line in found[0].splitlines() if line.startswith("       ")))


@pytest.mark.parametrize("client", CLIENTS)
async def test_the_json_of_each_program_works(running: RunningGateway, client: str) -> None:
    """For programs. It has these members, and the configuration does not contain the key."""
    outcome = await run(running, "mcp", "setup", client, "--label", f"agent in {client}", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    document = outcome.document
    form = CLIENTS[client].form
    assert list(document) == ["key_id", "api_key", "client", form]
    assert document["client"] == client
    assert outcome.out.count(document["api_key"]) == 1
    await check(running, client, document[form], document["api_key"])
    (key,) = [key for key, _ in await running.gateway.keys.list() if key.key_id == document["key_id"]]
    assert (key.label, key.mode) == (f"agent in {client}", "test")


@pytest.mark.parametrize("client", CLIENTS)
async def test_the_steps_of_each_program_work(running: RunningGateway, client: str) -> None:
    """For a person. The key is in the first step and nowhere else."""
    outcome = await run(running, "mcp", "setup", client)
    assert outcome.code == 0, outcome.err
    (raw_key,) = SECRET.findall(outcome.out + outcome.err)
    assert re.findall(r"^(\d)\. ", outcome.out, re.MULTILINE) == list("12345")
    printed = step(2, outcome.out)
    await check(running, client, printed if client in {"claude-code", "codex"} else json.loads(printed), raw_key)
    first = step(1, outcome.out).splitlines()
    assert first[0] == raw_key
    assert bool(first[1:]) is not CLIENTS[client].asks
    listed = (await run(running, "keys", "list", "--json")).document["keys"]
    (row,) = [row for row in listed if row["hint"] == raw_key[-4:]]
    assert (row["label"], row["preset"], row["enforcement"]) == (CLIENTS[client].title, "poster", "enforce")
    assert step(4, outcome.out) == f"birdwire accounts link {row['key_id']}"
    assert "has the preset poster" in outcome.err


async def test_the_first_step_keeps_the_key_out_of_arguments_and_history(
    running: RunningGateway, tmp_path: Path
) -> None:
    """A shell runs its commands: the file is private, and the variable holds the key."""
    first = step(1, (await run(running, "mcp", "setup", "codex")).out)
    raw_key, *commands = first.splitlines()
    assert not any(raw_key in line for line in commands)
    script = "\n".join([*commands, 'printf %s "$BIRDWIRE_API_KEY"'])
    shell = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", script),
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await shell.communicate(f"{raw_key}\n".encode())
    assert out.decode() == raw_key
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


async def test_the_record_of_acts_names_the_person_who_set_it_up(running: RunningGateway) -> None:
    """As with `keys create`: the key, and its policy."""
    document = (await run(running, "mcp", "setup", "codex", "--label", "recorded", "--json")).document
    acts = (await run(running, "log", "--acts", "--limit", "2", "--json")).document["acts"]
    assert [act["act"] for act in acts] == ["policy.set", "key.created"]
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(act["who"], act["via"], act["subject"]) for act in acts} == {(user, "cli", document["key_id"])}
    assert document["api_key"] not in json.dumps(acts)


async def test_options_become_rules_of_the_key(running: RunningGateway) -> None:
    """A preset that sets rules of the key itself, and the account."""
    options = ("--preset", "read_only", "--account", "@ada")
    document = (await run(running, "mcp", "setup", "cursor", *options, "--json")).document
    key = await running.gateway.keys.get(document["key_id"])
    assert key.rules.account_username == "ada"
    assert "link" in key.rules.actions
    assert "post_twitter" not in key.rules.actions
    given = {"authorization": f"Bearer {document['api_key']}"}
    answer = await running.bare.post("/mcp", json=request("tools/list"), headers=given)
    assert "create_post" not in {tool["name"] for tool in answer.json()["result"]["tools"]}


async def test_without_a_program_no_key_is_created(running: RunningGateway, tmp_path: Path) -> None:
    """The programs are listed, and what any other needs, which works as printed."""
    before = len(await running.gateway.keys.list())
    outcome = await run(running, "mcp", "setup", HOME=str(tmp_path))
    assert (outcome.code, outcome.err) == (0, "")
    assert all(f"birdwire mcp setup {name} " in outcome.out for name in CLIENTS)
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("    {")]
    server = json.loads(line)["mcpServers"]["birdwire"]
    assert server["command"] == "birdwire"
    (tmp_path / KEY_FILE).write_text(running.raw_key)
    async with bridging(server["env"]["BIRDWIRE_URL"], "", *server["args"][1:]) as bridge:
        assert "result" in await bridge.ask(request("ping"))
    assert (await run(running, "mcp", "setup", "--json")).document == {"clients": list(CLIENTS)}
    assert len(await running.gateway.keys.list()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("netscape",), "netscape is not one of claude-code, cursor, vscode, codex."),
        (("cursor", "--preset", "reckless"), "--preset: reckless is not one of read_only, propose, poster, trusted."),
        (("cursor", "--account", "no such name!"), "'no such name!' is not an X username"),
        (("cursor", "--label", ""), "label"),
    ],
)
async def test_what_cannot_be_set_up_is_a_usage_error(
    running: RunningGateway, arguments: tuple[str, ...], words: str
) -> None:
    """Nothing is created."""
    before = len(await running.gateway.keys.list())
    outcome = await run(running, "mcp", "setup", *arguments, "--json")
    assert outcome.code == 2
    assert words in outcome.document["error"]["message"]
    assert len(await running.gateway.keys.list()) == before


async def test_a_dev_folder_is_set_up_for_the_gateway_that_uses_it(running: RunningGateway) -> None:
    """Its files do not name the gateway's URL, and only the running gateway can link at the sandbox."""
    folder = str(running.directory)
    outcome = await run(
        running, "mcp", "setup", "claude-code", "--data", folder, BIRDWIRE_PUBLIC_URL=None, BIRDWIRE_DATABASE_URL=None
    )
    assert server_of("claude-code", step(2, outcome.out))[0] == "http://127.0.0.1:8700/mcp"
    assert step(4, outcome.out) == "birdwire accounts link"
    assert f"birdwire approvals list --data {folder}" in outcome.out
    assert f"The key is stored in the database {folder}/birdwire.db." in outcome.err.replace("\n", "")
    outcome = await run(
        running, "mcp", "setup", "claude-code", "--data", folder, BIRDWIRE_URL=f"{running.settings.base_url}/"
    )
    (raw_key,) = SECRET.findall(outcome.out)
    await check(running, "claude-code", step(2, outcome.out), raw_key)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
async def test_a_missing_package_is_reported(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch, as_json: tuple[str, ...]
) -> None:
    """On stderr: the key exists, and the gateway may run elsewhere."""
    monkeypatch.setattr(command, "find_spec", lambda _name: None)
    outcome = await run(running, "mcp", "setup", "codex", *as_json)
    assert outcome.code == 0
    assert "birdwire[mcp]" in outcome.err
    assert "birdwire[mcp]" not in outcome.out


async def test_the_bridge_has_a_help_and_runs_from_the_command_line(running: RunningGateway) -> None:
    """A person who asks for help is shown the setup; the command itself needs a key."""
    assert "birdwire mcp setup" in (await run(running, "mcp", "--help")).out
    assert (await run(running, "mcp", "--nonsense", "--json")).code == 2
