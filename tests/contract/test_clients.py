"""Clients generated from /openapi.json act through a running gateway, and linters find nothing in the document."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.store.database import Database
from harness import javascript
from harness.gateway import API, PNG, POST
from harness.guarded_gateway import set_rules

if TYPE_CHECKING:
    from harness.gateway import RunningGateway

pytestmark = pytest.mark.timeout(240)

LIMIT_S = 100.0
"""A generator or a linter has seconds of work, and neighbours."""

TESTS = Path(__file__).parents[1]
GENERATOR = Path(sys.prefix) / "generator" / "bin"
"""The environment of openapi-python-client, which `make setup-dev` makes."""

PYTHON_CONFIG: dict[str, list[str]] = {"post_hooks": []}
"""People do not read this client: its code need not be formatted."""

REPORTED = ("Unsupported content_type application/yaml", "Unsupported content_type image/jpeg")
"""All that openapi-python-client leaves out: two answers of types that it does not know, a document and an image."""

REFUSAL = {"status": 404, "reason": "tweet_not_found", "whose": "caller", "retryable": False}


async def document_of(running: RunningGateway, directory: Path) -> Path:
    """Save the document as the gateway serves it."""
    path = directory / "openapi.json"
    path.write_bytes((await running.bare.get("/openapi.json")).raise_for_status().content)
    return path


async def run(program: Path, *arguments: str, directory: Path, **environment: str) -> str:
    """Run a program of the generator's environment to its end and return its output."""

    def ended() -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - the lock's own programs
            [str(program), *arguments],
            cwd=directory,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )

    done = await asyncio.to_thread(ended)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def node(script: str, *arguments: str, **environment: str) -> str:
    """Run a program of the npm packages, or a script, and return its output."""
    path = javascript.PACKAGES / script  # or the script itself, if that is a whole path
    done = await asyncio.to_thread(javascript.run, path, *arguments, limit_s=LIMIT_S, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def check(running: RunningGateway, printed: str) -> None:
    """Compare what a client read in the typed answers with what X has."""
    said: dict[str, Any] = json.loads(printed)
    assert said["liked"] is True
    assert {"user_id": "2244994945", "tweet_id": POST} in (await running.state())["likes"]
    post = await running.post_of(said["post_id"])
    assert (post["text"], post["media_ids"]) == ("Generated", [said["media_id"]])
    assert said["text"] == "Generated"
    assert said["waits"] == "awaiting_approval"
    assert (await running.client.get(f"{API}requests/{said['waiting_id']}")).json()["operation"] == "retweet_twitter"
    assert (await running.state())["retweets"] == []
    assert REFUSAL.items() <= said.items()
    assert said["fix"]


async def given(running: RunningGateway) -> str:
    """What a client needs to know. It travels in the environment, as a key should. Reposts need a person's approval."""
    database = Database(running.settings.database_url)
    try:
        await set_rules(database, running.key_id, {"approve": ["retweet_twitter"]})
    finally:
        await database.close()
    return json.dumps(
        {"url": running.settings.base_url, "key": running.raw_key, "tweet_id": POST, "image": PNG.hex()},
    )


async def test_a_python_client_is_generated_and_acts(linked: RunningGateway, tmp_path: Path) -> None:
    """openapi-python-client leaves nothing out that a caller needs, and makes one type of error."""
    program = GENERATOR / "openapi-python-client"
    assert program.exists(), "The generator is not installed. Run make setup-dev"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PYTHON_CONFIG))
    path = await document_of(linked, tmp_path)
    options = ("--path", str(path), "--config", str(config), "--output-path", str(tmp_path / "made"), "--meta", "none")
    printed = await run(program, "generate", *options, directory=tmp_path)
    assert (printed.count("WARNING"), *map(printed.count, REPORTED)) == (2, 1, 1), printed
    (tmp_path / "made").rename(tmp_path / "birdwire_client")
    models = {model.stem for model in (tmp_path / "birdwire_client" / "models").glob("*.py")}
    assert not [model for model in models if "response_4" in model or "response_5" in model]
    printed = await run(
        GENERATOR / "python",
        str(TESTS / "clients" / "generated.py"),
        directory=tmp_path,
        PYTHONPATH=str(tmp_path),
        GENERATED=await given(linked),
    )
    await check(linked, printed)


async def test_a_typescript_client_is_generated_and_acts(linked: RunningGateway, tmp_path: Path) -> None:
    """Under `tsc --strict`; a field of the wrong type is an error there."""
    javascript.require_node()
    path = await document_of(linked, tmp_path)
    await node("openapi-typescript/bin/cli.js", str(path), "--output", str(tmp_path / "birdwire.d.ts"))
    (tmp_path / "node_modules").symlink_to(javascript.PACKAGES)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for name in ("generated.mts", "tsconfig.json"):
        shutil.copy(javascript.FOLDER / name, tmp_path)
    await node("typescript/bin/tsc", "--project", str(tmp_path))
    printed = await node(str(tmp_path / "generated.mjs"), GENERATED=await given(linked))
    assert json.loads(printed)["mistyped"] == "text_malformed"
    await check(linked, printed)


@pytest.mark.parametrize(
    "command",
    [
        ("@redocly/cli/bin/cli.js", "lint", "--extends", "recommended", "--format", "json"),
        ("@stoplight/spectral-cli/dist/index.js", "lint", "--fail-severity", "hint", "--format", "json", "--quiet"),
    ],
    ids=["redocly", "spectral"],
)
async def test_linters_find_nothing(running: RunningGateway, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Neither an error nor a warning, under the rules that each recommends."""
    javascript.require_node()
    path = await document_of(running, tmp_path)
    program, *options = command
    if "spectral" in program:
        ruleset = tmp_path / "spectral.yaml"
        ruleset.write_text("extends: spectral:oas\n")
        options += ["--ruleset", str(ruleset)]
    found = json.loads(await node(program, *options, str(path)))
    problems = found["problems"] if isinstance(found, dict) else found
    assert problems == []
