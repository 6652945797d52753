"""examples/agent.py: run as its page shows, with a person who approves, and with one who denies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

from harness.pages import ROOT, Reader, blocks, dev_gateway, fits, steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.gateway import RunningGateway

PAGE = "examples/README.md"
WAITS = re.compile(r"Waiting for a person: birdwire approvals approve (req_\w+)\n")
TEXT = "Thank you for this."
DEADLINE_S = 40


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A gateway at which each post of the key waits, as the page sets it up."""
    with dev_gateway(tmp_path_factory.mktemp("agent")) as found:
        for block in blocks(PAGE, "console"):
            for step in steps(block):
                found.do(step)
        yield found


def agent(url: str, api_key: str, *words: str) -> subprocess.Popen[str]:
    """Start the agent."""
    environment = {"PATH": os.environ.get("PATH", ""), "BIRDWIRE_URL": url, "BIRDWIRE_API_KEY": api_key}
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, str(ROOT / "examples" / "agent.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(reader: Reader, *words: str) -> subprocess.Popen[str]:
    """Start the agent with the page's key."""
    return agent(reader.real("http://127.0.0.1:8700"), reader.real("$BIRDWIRE_API_KEY"), *words)


def until_it_waits(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read what the agent prints until it waits. Return that, and the id of the request."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := WAITS.fullmatch(line):
            return "".join(lines), found[1]
    raise AssertionError((lines, process.communicate()))


def published(reader: Reader) -> list[str]:
    """Return the texts of ada's replies at the sandbox."""
    posts = httpx2.get(reader.real("http://127.0.0.1:8701/_sandbox/state")).json()["posts"]
    return [post["text"] for post in posts if post["text"].endswith(TEXT)]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of the agent. Return its exit code, and the rest of what it printed."""
    assert process.stdout is not None
    assert process.stderr is not None
    # communicate() would lose what was read ahead with the line that the test waited for.
    output, errors = process.stdout.read(), process.stderr.read()
    return process.wait(DEADLINE_S), output, errors


def decide(reader: Reader, request_id: str, *decision: str) -> None:
    """Decide as the operator, at the command line."""
    data = ("--data", reader.real(".birdwire"))
    verb, *options = decision
    if verb == "approve":
        shown = json.loads(reader.birdwire(["birdwire", "approvals", "show", request_id, *data, "--json"]))
        options += ["--payload", shown["payload_sha256"]]
    reader.birdwire(["birdwire", "approvals", verb, request_id, *options, *data])


def test_a_person_approves_and_the_agent_reports_the_post(reader: Reader) -> None:
    """It prints what the page shows; before the decision nothing is published, after it the post, once."""
    proposes, ends = blocks(PAGE, "text")
    [step] = steps(proposes)
    before = len(published(reader))
    with started(reader, "grace", TEXT) as process:
        printed, request_id = until_it_waits(process)
        assert fits(step.answer.replace("REQUEST_ID", request_id), printed.strip())
        assert len(published(reader)) == before
        decide(reader, request_id, "approve")
        code, output, errors = ended(process)
    assert (code, errors) == (0, "")
    assert fits(ends.splitlines()[0], output.strip())
    assert len(published(reader)) == before + 1


def test_a_person_denies_and_the_agent_reports_that(reader: Reader) -> None:
    """With the person's note; nothing is published."""
    before = published(reader)
    with started(reader, "grace", f"Indeed! {TEXT}") as process:
        _, request_id = until_it_waits(process)
        decide(reader, request_id, "deny", "--note", "Not our tone")
        code, output, errors = ended(process)
    assert (code, errors) == (1, "")
    assert output.strip() == blocks(PAGE, "text")[1].splitlines()[1]
    assert published(reader) == before


def test_nobody_decides_and_the_agent_does_not_send_it_again(reader: Reader) -> None:
    """Its patience ends before the request does."""
    with started(reader, "grace", f"Well. {TEXT}", "--patience", "0") as process:
        _, request_id = until_it_waits(process)
        code, output, _ = ended(process)
    assert (code, output.strip()) == (1, f"Not known yet: ask again about {request_id}")


async def test_without_a_link_the_agent_asks_the_account_s_owner(running: RunningGateway) -> None:
    """It prints the URL that the owner opens."""
    url = str(running.client.base_url)
    with agent(url, running.raw_key, "grace", TEXT) as process:
        code, output, errors = await asyncio.to_thread(ended, process)
    assert (code, output) == (1, "")
    assert re.fullmatch(r"Open http://\S+ and approve\.\n", errors)


async def test_a_wrong_key_ends_the_agent_with_the_fix(running: RunningGateway) -> None:
    """It prints neither the key nor a traceback."""
    wrong = "bw_test_" + "A" * 20
    url = str(running.client.base_url)
    with agent(url, wrong, "grace", TEXT) as process:
        code, output, errors = await asyncio.to_thread(ended, process)
    assert (code, output) == (1, "")
    assert errors.startswith("The API key is malformed.")
    assert wrong not in errors
