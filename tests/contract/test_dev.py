"""`birdwire dev`, `serve` and `sandbox` as real processes: what they print, keep, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pwd
import re
import shlex
import signal
import sqlite3
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio

from birdwire.accounts.tokens import SealedTokens
from birdwire.runtime.clock import Clock
from birdwire.store.encryption.key_files import create_key_file, read_key_file
from birdwire.store.encryption.vault import Vault
from harness.acts import recorded
from harness.gateway import API, bound
from harness.session_rows import session_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

FREE_PORTS = ("--port", "0", "--sandbox-port", "0")
DEADLINE_S = 30

_LOGS = itertools.count()


@dataclass
class Program:
    """A started command; its stderr goes to a file."""

    process: asyncio.subprocess.Process
    folder: Path
    log: Path

    async def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE_S)
        assert line, self.log.read_text()
        return line.decode()

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), DEADLINE_S)

    async def rest(self) -> str:
        """What stdout says until its end."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.read(), DEADLINE_S)).decode()


@contextlib.asynccontextmanager
async def started(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[Program]:
    """Run a command of the command line; killed at the end if it still runs."""
    # Each command has its own file: two in one folder would overwrite each other's lines.
    log = folder / f"stderr-{next(_LOGS)}.txt"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "birdwire.cli",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env={"PATH": "", **environment},
        )
    program = Program(process, folder, log)
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await program.rest()
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Program, dict[str, Any]]]:
    """One running `dev --link ada` for the module, and the line it printed."""
    folder = tmp_path_factory.mktemp("dev")
    async with started(folder, "dev", "--json", "--verbose", "--link", "ada", *FREE_PORTS) as program:
        yield program, json.loads(await program.line())


async def like(offer: dict[str, Any], key: str) -> httpx2.Response:
    """Like the post that the line names."""
    async with httpx2.AsyncClient(base_url=offer["gateway"], headers={"authorization": f"Bearer {key}"}) as client:
        return await client.post(API + "like_twitter", json={"tweet_id": offer["tweet_id"]})


async def pasted(text: str, path: str) -> httpx2.Response:
    """Send what the curl in a text asks for whose URL has this path."""
    commands = re.findall(r"^curl .*", text.replace("\\\n", ""), re.MULTILINE)
    [words] = [shlex.split(found) for found in commands if f"{path} " in found]
    options = list(zip(words[2::2], words[3::2], strict=True))
    headers = dict(value.split(": ", 1) for name, value in options if name == "-H")
    [body] = [value for name, value in options if name == "-d"]
    async with httpx2.AsyncClient() as client:
        return await client.post(words[1], content=body, headers=headers)


async def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, stdout, stderr."""
    async with started(folder, *arguments) as program:
        out = await program.rest()
        return await program.process.wait(), out, program.log.read_text()


async def test_the_printed_line_is_all_that_a_first_like_needs(dev: tuple[Program, dict[str, Any]]) -> None:
    """Its members are the documented ones, and the key likes the post immediately."""
    _, offer = dev
    assert list(offer) == [
        "gateway",
        "sandbox",
        "api_key",
        "unlinked_key",
        "linked",
        "tweet_id",
        "user_id",
        "username",
    ]
    assert offer["linked"] == {"user_id": "2244994945", "username": "ada"}
    answer = await like(offer, offer["api_key"])
    assert (answer.status_code, answer.json()) == (200, {"data": {"liked": True}})


async def test_a_dev_gateways_keys_are_made_by_the_os_user(dev: tuple[Program, dict[str, Any]]) -> None:
    """One act each, however often it is started on the folder."""
    database = dev[0].folder / ".birdwire" / "birdwire.db"
    made = [row for row in await recorded(f"sqlite:///{database}") if row["act"] == "key.created"]
    assert [(row["who"], row["via"]) for row in made] == [(pwd.getpwuid(os.getuid()).pw_name, "cli")] * 2


async def test_the_unlinked_key_is_refused_until_somebody_links_it(dev: tuple[Program, dict[str, Any]]) -> None:
    """It is there to see the refusal that every app must handle."""
    _, offer = dev
    answer = await like(offer, offer["unlinked_key"])
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "x_not_linked")


async def test_no_key_or_token_is_in_clear_in_the_folder_or_the_log(dev: tuple[Program, dict[str, Any]]) -> None:
    """Neither the two API keys nor X's tokens, which the test opens with the vault key to know them."""
    program, offer = dev
    assert (await like(offer, offer["api_key"])).status_code == 200
    data = program.folder / ".birdwire"
    vault = Vault(read_key_file(data / "vault.key"))
    with contextlib.closing(sqlite3.connect(data / "birdwire.db")) as database:
        database.row_factory = sqlite3.Row
        [row] = database.execute("SELECT * FROM x_sessions").fetchall()
    pairs = SealedTokens(vault, Clock())
    session = session_row(**dict(row))
    tokens = [pairs.open(session, "access"), pairs.open(session, "refresh")]
    files = [path for path in program.folder.rglob("*") if path.is_file()]
    assert {"birdwire.db", "sandbox.json", program.log.name} <= {path.name for path in files}
    for secret in (*tokens, offer["api_key"], offer["unlinked_key"]):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


async def test_the_folder_is_the_owners_alone(dev: tuple[Program, dict[str, Any]]) -> None:
    """0700, and ignored by git, since it holds a key."""
    data = dev[0].folder / ".birdwire"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert (data / ".gitignore").read_text() == "*\n"


async def test_a_second_start_in_the_same_folder_is_refused(
    dev: tuple[Program, dict[str, Any]], tmp_path: Path
) -> None:
    """Two would overwrite each other's sandbox."""
    data = str(dev[0].folder / ".birdwire")
    code, out, errors = await command(tmp_path, "dev", "--data", data, *FREE_PORTS)
    assert (code, out) == (2, "")
    assert "Another `birdwire dev` or `birdwire serve` is using" in errors


@pytest.mark.trust("F51")
async def test_serve_stays_off_a_folder_in_which_dev_works(dev: tuple[Program, dict[str, Any]], tmp_path: Path) -> None:
    """One gateway serves one database file, whichever command started it."""
    data = dev[0].folder / ".birdwire"
    settings = {"database_url": f"sqlite:///{data}/birdwire.db", "vault_key_file": f"{data}/vault.key"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in (settings | {"x_client_id": "id"}).items()]
    (tmp_path / "birdwire.toml").write_text("\n".join(lines), "utf-8")
    code, out, errors = await command(tmp_path, "serve", "--port", "0", "--config", "birdwire.toml")
    assert (code, out) == (2, "")
    assert "Another gateway is using the database" in errors


async def test_a_port_in_use_is_reported_plainly(tmp_path: Path) -> None:
    """One sentence, and the option that helps."""
    with bound() as taken:
        port = taken.getsockname()[1]
        code, out, errors = await command(tmp_path, "dev", "--port", str(port), "--sandbox-port", "0")
    assert (code, out) == (2, "")
    assert f"Port {port} on 127.0.0.1 is in use" in errors
    assert "--port 0" in errors
    assert "Traceback" not in errors


async def test_a_user_unknown_to_the_sandbox_cannot_be_linked(tmp_path: Path) -> None:
    """The refusal names users that can."""
    code, out, errors = await command(tmp_path, "dev", "--link", "nobody", *FREE_PORTS)
    assert (code, out) == (3, "")
    assert "ada, grace, alan" in errors


async def test_after_a_kill_the_next_start_goes_on(tmp_path: Path) -> None:
    """Same keys, still linked, on other ports; the limit of the earlier start no longer applies."""
    async with started(tmp_path, "dev", "--json", "--link", "grace", "--rpm", "7", *FREE_PORTS) as first:
        before = json.loads(await first.line())
        answer = await like(before, before["api_key"])
        assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "7")
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
    async with started(tmp_path, "dev", "--json", *FREE_PORTS) as second:
        after = json.loads(await second.line())
        kept = ("api_key", "unlinked_key", "linked")
        assert [after[name] for name in kept] == [before[name] for name in kept]
        answer = await like(after, after["api_key"])
        assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "600")
        assert await second.end(signal.SIGTERM) == 0
        assert (await second.rest(), second.log.read_text()) == ("", "")


async def test_callers_that_wait_for_a_person_do_not_delay_the_end(tmp_path: Path) -> None:
    """An agent that waits, by HTTP or MCP, is answered on Ctrl-C; it could wait for longer than a person would."""
    async with started(tmp_path, "dev", "--json", "--link", "ada", *FREE_PORTS) as program:
        offer = json.loads(await program.line())
        _, out, _ = await command(tmp_path, "keys", "list", "--json", "--data", ".birdwire")
        [key_id] = [key["key_id"] for key in json.loads(out)["keys"] if key["hint"] == offer["api_key"][-4:]]
        approve = ("policy", "set", key_id, "approve=like_twitter", "--data", ".birdwire")
        assert (await command(tmp_path, *approve))[0] == 0
        async with asyncio.timeout(DEADLINE_S):
            # The gateway learns of the policy within a second.
            while (asked := await like(offer, offer["api_key"])).status_code != 202:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        headers = {"authorization": f"Bearer {offer['api_key']}", "prefer": "wait=30"}
        async with httpx2.AsyncClient(base_url=offer["gateway"], headers=headers, timeout=DEADLINE_S) as client:
            held = asyncio.create_task(client.get(f"{API}requests/{asked.headers['x-request-id']}"))
            # The gateway has read the request that waits by the time it answers this one.
            assert (await like(offer, offer["api_key"])).status_code == 202
            program.process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(program.process.wait(), DEADLINE_S / 3) == 0
            assert (await held).json()["state"] == "awaiting_approval"


async def test_people_get_a_page_to_open_and_curls_that_work_when_pasted(tmp_path: Path) -> None:
    """Before the page is approved, it gets the refusal that names the next step; another makes X refuse likes."""
    async with started(tmp_path, "dev", *FREE_PORTS) as program:
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(await program.line())
        text = "".join(lines)
        assert "/i/oauth2/authorize?" in text
        assert "\x1b" not in text
        assert f"\n{Path(sys.executable).with_name('birdwire')} like" in text  # the path is empty: a name would not do
        assert (await pasted(text, "/like_twitter")).json()["error"]["reason"] == "x_not_linked"
        assert (await pasted(text, "/_sandbox/config")).json()["tier"] == "self_serve_2026_04"
        assert await program.end(signal.SIGINT) == 0
        assert program.log.read_text() == ""


@pytest.mark.trust("F51")
async def test_serve_prints_its_address_and_stops_on_sigterm(tmp_path: Path) -> None:
    """One line once it answers; settings from a file; its log is JSON, one object a line."""
    create_key_file(tmp_path / "vault.key")
    (tmp_path / "birdwire.toml").write_text(
        'x_client_id = "id"\nx_api_url = "http://127.0.0.1:9"\nvault_key_file = "vault.key"\n', "utf-8"
    )
    async with started(tmp_path, "serve", "--json", "--port", "0", "--config", "birdwire.toml") as program:
        gateway = json.loads(await program.line())
        assert list(gateway) == ["gateway"]
        code, out, errors = await command(tmp_path, "serve", "--port", "0", "--config", "birdwire.toml")
        assert (code, out) == (2, "")
        assert "Another gateway is using the database" in errors
        async with httpx2.AsyncClient(base_url=gateway["gateway"]) as client:
            assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert await program.end(signal.SIGTERM) == 0
        assert [json.loads(line)["path"] for line in program.log.read_text().splitlines()] == ["/readyz"]


async def test_sandbox_offers_its_credentials_in_one_line(tmp_path: Path) -> None:
    """A gateway elsewhere needs nothing else."""
    async with started(tmp_path, "sandbox", "--json", "--port", "0") as program:
        offer = json.loads(await program.line())
        assert list(offer) == ["sandbox", "client_id", "client_secret", "public_client_id"]
        async with httpx2.AsyncClient(base_url=offer["sandbox"]) as client:
            assert (await client.get("/_sandbox/state")).status_code == 200
        assert await program.end(signal.SIGTERM) == 0


async def test_the_proxy_forwards_until_it_is_stopped(dev: tuple[Program, dict[str, Any]], tmp_path: Path) -> None:
    """One line with where to connect and where to order; the orders are obeyed."""
    gateway = dev[1]["gateway"]
    ports = ("--port", "0", "--control-port", "0")
    async with started(tmp_path, "sandbox", "proxy", "--json", "--to", gateway, *ports) as program:
        offer = json.loads(await program.line())
        assert list(offer) == ["proxy", "control", "to"]
        async with httpx2.AsyncClient() as client:
            through = f"http://{offer['proxy']}/livez"
            assert (await client.get(through, headers={"host": gateway.removeprefix("http://")})).status_code == 200
            assert (await client.post(offer["control"], json={"down": True})).json()["toxics"]["down"] is True
            with pytest.raises(httpx2.ConnectError):
                await client.get(through)
        assert await program.end(signal.SIGTERM) == 0
        assert program.log.read_text() == ""
