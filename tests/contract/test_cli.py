"""The commands that act, manage keys and accounts, and check: what they print, and how they exit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from birdwire.cli import COMMANDS, build, load
from birdwire.cli.gateway import Gateway
from birdwire.cli.say import Stop
from birdwire.operations import OPERATIONS
from birdwire.settings import PREFIX, Settings
from house import POST, House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = {
    "keys": ("create", "list", "rotate", "revoke"),
    "accounts": ("link", "status", "unlink", "list"),
    "vault": ("create",),
}
EVERY_COMMAND: list[tuple[str, ...]] = [
    *((row.name,) for row in COMMANDS if row.name not in FAMILIES),
    *((family, name) for family, names in FAMILIES.items() for name in names),
]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


async def run(*arguments: str, **environment: str | None) -> Outcome:
    """Run a command in a thread of this process, whose loop may be serving the gateway it talks to."""
    given: dict[str, str | None] = {"BIRDWIRE_URL": None, "BIRDWIRE_API_KEY": None, "COLUMNS": "120", "NO_COLOR": "1"}
    result = await asyncio.to_thread(CliRunner().invoke, build(), list(arguments), env={**given, **environment})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[House, dict[str, str]]]:
    """A gateway of this module, linked to ada, and the environment of a person at its machine."""
    async with House.built(tmp_path_factory.mktemp("house"), rpm=1_000_000) as house:
        await house.link("ada")
        yield (
            house,
            {
                "BIRDWIRE_URL": house.settings.base_url,
                "BIRDWIRE_API_KEY": house.raw_key,
                "BIRDWIRE_DATABASE_URL": house.settings.database_url,
                "BIRDWIRE_X_API_URL": house.settings.x_api_url,
            },
        )


Operator = tuple[House, dict[str, str]]


@contextlib.asynccontextmanager
async def gateway_that_answers(raw: bytes) -> AsyncIterator[str]:
    """Something on loopback that reads a request and answers these bytes, then closes; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# The commands that act.


@pytest.mark.parametrize(
    "target",
    [
        POST,
        f"https://x.com/grace/status/{POST}",
        f"https://x.com/grace/status/{POST}?s=20&t=abc#top",
        f"https://twitter.com/grace/status/{POST}",
        f"http://www.twitter.com/grace/statuses/{POST}/",
        f"https://mobile.twitter.com/grace/status/{POST}/photo/1",
        f"https://m.x.com/i/status/{POST}",
        f"https://X.com/i/web/status/{POST}",
        f"x.com/grace/status/{POST}",
    ],
)
async def test_a_post_may_be_named_by_its_id_or_any_of_its_addresses(operator: Operator, target: str) -> None:
    """Each likes the same post and says so in one line."""
    assert await run("like", target, **operator[1]) == Outcome(0, f"{POST}: liked\n", "")


@pytest.mark.parametrize(
    "target",
    [
        "first",
        "",
        "-5",
        "12345678901234567890",
        "١٢٣",
        f"{POST}\n",
        "https://x.com/grace",
        f"https://x.com.example.com/grace/status/{POST}",
        f"https://example.com/grace/status/{POST}",
        f"https://x.com@example.com/grace/status/{POST}",
        f"ftp://x.com/grace/status/{POST}",
        f"https://x.com/grace/status/{POST}/../1",
        "https://[x.com/grace/status/1",
    ],
)
async def test_what_names_no_post_is_refused_before_anything_is_sent(target: str) -> None:
    """Exit 2, though no gateway runs and no key is set: a leading dash after -- is a value like any other."""
    outcome = await run("like", "--", target)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not a post's id or address" in outcome.err


async def test_json_is_the_gateways_answer(operator: Operator) -> None:
    """The documented document, on one line, and nothing else."""
    liked = await run("like", POST, "--json", **operator[1])
    unliked = await run("unlike", POST, "--json", **operator[1])
    assert (liked.code, liked.document, liked.err) == (0, {"data": {"liked": True}}, "")
    assert (unliked.code, unliked.document, unliked.err) == (0, {"data": {"liked": False}}, "")
    assert (await run("unlike", POST, **operator[1])).out == f"{POST}: not liked\n"


async def test_a_refusal_says_why_what_to_do_and_which_request(operator: Operator) -> None:
    """On stderr for people; with --json the gateway's own document on stdout; exit 3."""
    outcome = await run("like", "404", "--json", **operator[1])
    error = outcome.document["error"]
    assert (outcome.code, error["reason"]) == (3, "tweet_not_found")
    assert outcome.err == f"Error: {error['message']}\nFix: {error['fix']}\nRequest: {error['request_id']}\n"


async def test_the_exit_code_tells_whose_turn_it_is(operator: Operator) -> None:
    """4 for the key, 3 for a missing link, 5 for a limit, 6 for X."""
    house, person = operator
    limited, limited_key = await house.gateway.keys.create("test", "limited", "free", 1)
    _, revoked_key = revoked = await house.gateway.keys.create("test", "revoked", "free")
    await house.gateway.keys.revoke(revoked[0].key_id)
    codes = [
        (await run("like", POST, **person | {"BIRDWIRE_API_KEY": key})).code
        for key in (revoked_key, limited_key, limited_key)
    ]
    assert (limited.rpm, codes) == (1, [4, 3, 5])
    await house.fault("POST", "/2/users/*/likes", {"status": 503}, times=None)
    try:
        assert (await run("like", POST, **person)).code == 6
    finally:
        (await house.x.delete("/_sandbox/faults")).raise_for_status()


async def test_a_gateway_that_is_not_there_is_said_plainly() -> None:
    """Exit 6, and how to start one."""
    async with gateway_that_answers(b"") as url:
        pass
    outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert outcome.code == 6
    assert f"No gateway answers at {url}" in outcome.err
    assert "birdwire dev" in outcome.err


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"nonsense\r\n\r\n"],
    ids=["closed", "half an answer", "no HTTP"],
)
async def test_an_answer_that_got_lost_is_an_unknown_outcome(raw: bytes) -> None:
    """The request was sent, so nobody can say that it did nothing: exit 7."""
    async with gateway_that_answers(raw) as url:
        outcome = await run("like", POST, "--json", BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (outcome.code, outcome.document["error"]["code"]) == (7, "unknown")


async def test_an_answer_that_trickles_ends_at_the_deadline() -> None:
    """One deadline for the whole exchange, not one for each read."""

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not writer.is_closing():
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(0.02)  # the pace of the peer, not a wait of the test

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        gateway = Gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", deadline_s=0.2)
        with pytest.raises(Stop) as stopped:
            await asyncio.to_thread(gateway.ask, "GET", "/")
    assert stopped.value.code == 7


async def test_what_is_no_gateway_is_not_believed() -> None:
    """Exit 6, without a word of what it said."""
    raw = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nGo away!!"
    async with gateway_that_answers(raw) as url:
        outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert outcome.code == 6
    assert "answered HTTP 404, but not as Birdwire does" in outcome.err
    assert "Go away" not in outcome.err


async def test_a_gateways_words_cannot_play_with_the_terminal() -> None:
    """Escape sequences and line breaks in a message are shown as blanks, and brackets are no markup."""
    error = {"message": "\x1b[2Jbad\r\nnews [red]now[/red]", "fix": "\x9b31mhide", "request_id": "req_1"}
    body = json.dumps({"error": error}).encode()
    raw = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with gateway_that_answers(raw) as url:
        outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert outcome.err == "Error:  [2Jbad  news [red]now[/red]\nFix:  31mhide\nRequest: req_1\n"


@pytest.mark.parametrize(
    "url",
    [
        "http://birdwire.example.com",
        "http://10.0.0.1:8700",
        "ftp://127.0.0.1",
        "127.0.0.1:8700",
        "https://a@b.example.com",
        "https://b.example.com/x",
        "https://b.example.com:x",
    ],
)
async def test_a_key_is_never_sent_to_a_doubtful_address(url: str) -> None:
    """Plain HTTP to another machine, and what is no plain base URL, is refused before a connection is made."""
    outcome = await run("like", POST, BIRDWIRE_URL=url, BIRDWIRE_API_KEY="bw_test_x")
    assert (outcome.code, outcome.out) == (2, "")
    assert "bw_test_x" not in outcome.err


async def test_the_key_may_come_from_a_file(operator: Operator, tmp_path: Path) -> None:
    """The file goes before the environment; a missing one is said."""
    house, person = operator
    file = tmp_path / "key"
    file.write_text(f"{house.raw_key}\n", "utf-8")
    elsewhere = person | {"BIRDWIRE_API_KEY": "bw_test_wrong"}
    assert (await run("like", POST, "--api-key-file", str(file), **elsewhere)).code == 0
    missing = await run("like", POST, "--api-key-file", str(tmp_path / "none"), **person)
    assert (missing.code, "cannot be read: FileNotFoundError" in missing.err) == (2, True)


@pytest.mark.parametrize("key", ["", "two words", "bw_test_\u00e9", "a\nHost: b"])
async def test_without_a_usable_key_nothing_is_sent(key: str) -> None:
    """Exit 4; what was given is not repeated."""
    outcome = await run("like", POST, BIRDWIRE_API_KEY=key)
    assert outcome.code == 4
    assert not key or key not in outcome.err


# Keys.


async def test_keys_are_made_rotated_and_revoked_beside_a_running_gateway(operator: Operator) -> None:
    """Each holds from the gateway's very next answer on; the vault key is not needed."""
    house, person = operator
    made = (
        await run("keys", "create", "--label", "agent", "--tier", "starter", "--rpm", "90", "--json", **person)
    ).document
    assert list(made) == ["key_id", "api_key", "label", "tier", "rpm"]
    assert (made["label"], made["tier"], made["rpm"], made["api_key"][:8]) == ("agent", "starter", 90, "bw_test_")

    async def asked(raw_key: str) -> str:
        answer = await house.bare.get("/apis/v1/twitter/auth/status", headers={"authorization": f"Bearer {raw_key}"})
        return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

    assert await asked(made["api_key"]) == "ok"
    rotated = (await run("keys", "rotate", made["key_id"], "--json", **person)).document
    assert (rotated["key_id"], rotated["old_key_works_s"]) == (made["key_id"], 86_400)
    assert [await asked(made["api_key"]), await asked(rotated["api_key"])] == ["ok", "ok"]
    again = (await run("keys", "rotate", made["key_id"], "--overlap", "0", "--json", **person)).document
    assert [await asked(key["api_key"]) for key in (made, rotated, again)] == [
        "revoked_api_key",
        "revoked_api_key",
        "ok",
    ]
    revoked = await run("keys", "revoke", made["key_id"], "--json", **person)
    assert (revoked.code, revoked.document["key_id"]) == (0, made["key_id"])
    assert await asked(again["api_key"]) == "revoked_api_key"


async def test_a_new_key_is_alone_on_stdout(operator: Operator) -> None:
    """So that a script can keep it; what a person should know stands beside it."""
    outcome = await run("keys", "create", "--label", "agent", **operator[1])
    assert outcome.out.startswith("bw_test_")
    assert outcome.out.count("\n") == 1
    assert "not shown again" in outcome.err


async def test_the_list_of_keys_shows_no_key(operator: Operator) -> None:
    """Only its last four characters."""
    house, person = operator
    listed = await run("keys", "list", "--json", **person)
    mine = next(key for key in listed.document["keys"] if key["key_id"] == house.key_id)
    assert (mine["label"], mine["mode"], mine["hint"], mine["revoked_at"]) == (
        "test key",
        "test",
        house.raw_key[-4:],
        None,
    )
    text = await run("keys", "list", **person)
    assert house.key_id in text.out
    assert house.raw_key not in listed.out + text.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("create",),
        ("create", "--label", ""),
        ("create", "--label", "a\nb"),
        ("create", "--label", "x", "--tier", "gold"),
        ("create", "--label", "x", "--tier", "custom"),
        ("create", "--label", "x", "--rpm", "0"),
        ("rotate", "key_none"),
        ("rotate", "key_none", "--overlap", "86401"),
        ("revoke", "key_none"),
        ("list", "--data", "nowhere"),
        ("list", "--config", "nowhere.toml"),
    ],
)
async def test_what_cannot_be_asked_of_keys_is_a_usage_error(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Exit 2, nothing on stdout, no traceback."""
    outcome = await run("keys", *arguments, **operator[1])
    assert (outcome.code, outcome.out) == (2, "")
    assert "Error" in outcome.err
    assert "Traceback" not in outcome.err


async def test_every_problem_of_the_settings_is_said_at_once(tmp_path: Path) -> None:
    """Not one at a time."""
    database = f"mysql://{tmp_path}"
    outcome = await run("keys", "list", BIRDWIRE_PORT="many", BIRDWIRE_PROT="1", BIRDWIRE_DATABASE_URL=database)
    assert outcome.code == 2
    assert [line[:14] for line in outcome.err.splitlines() if line.startswith("- ")] == [
        "- BIRDWIRE_POR",
        "- BIRDWIRE_PRO",
    ]


# Accounts.


async def test_accounts_are_linked_looked_at_and_unlinked(operator: Operator) -> None:
    """Over HTTP with the key alone; the operator's list comes from the database."""
    house, person = operator
    key, raw_key = await house.gateway.keys.create("test", "theirs", "free")
    theirs = person | {"BIRDWIRE_API_KEY": raw_key}
    assert "No X account is linked" in (await run("accounts", "status", **theirs)).out
    begun = (await run("accounts", "link", "--no-wait", "--expect", "alan", "--json", **theirs)).document
    assert list(begun) == ["auth_url", "state", "expires_at"]
    decision = {"auth_url": begun["auth_url"], "username": "alan", "action": "allow"}
    redirect_to = (await house.x.post("/_sandbox/consent", json=decision)).json()["redirect_to"]
    assert (await house.bare.get(redirect_to)).status_code == 200
    assert (await run("accounts", "status", **theirs)).out == "This key acts as @alan.\n"
    listed = (await run("accounts", "list", "--json", **theirs)).document["accounts"]
    mine = next(row for row in listed if row["key_id"] == key.key_id)
    assert (mine["label"], mine["username"], mine["state"]) == ("theirs", "alan", "active")
    assert set(mine) == {"key_id", "label", "user_id", "username", "state", "access_expires_at", "linked_at"}
    assert (await run("accounts", "unlink", "--json", **theirs)).document == {"data": {"linked": False}}
    assert (await run("accounts", "status", "--json", **theirs)).document["linked"] is False


async def test_linking_waits_until_the_account_is_there(operator: Operator) -> None:
    """The page is on stderr while it waits; the one document on stdout is the link."""
    house, person = operator
    _, raw_key = await house.gateway.keys.create("test", "theirs", "free")
    environment = person | {"BIRDWIRE_API_KEY": raw_key, "PATH": ""}
    pipe = asyncio.subprocess.PIPE
    arguments = ("-m", "birdwire.cli", "accounts", "link", "--json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=pipe, stderr=pipe, env=environment
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = b""
        while not line.startswith(b"http"):
            line = await asyncio.wait_for(process.stderr.readline(), 30)
        decision = {"auth_url": line.decode().strip(), "username": "grace", "action": "allow"}
        redirect_to = (await house.x.post("/_sandbox/consent", json=decision)).json()["redirect_to"]
        assert (await house.bare.get(redirect_to)).status_code == 200
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, json.loads(out)["username"]) == (0, "grace")


# Before a start.


async def test_check_says_everything_that_is_wrong_and_no_secret(tmp_path: Path) -> None:
    """Client id, vault key and database at once; exit 2."""
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ"
    database = f"sqlite:///{tmp_path}/nowhere/birdwire.db"
    given = {"BIRDWIRE_VAULT_KEY": secret, "BIRDWIRE_X_CLIENT_SECRET": secret, "BIRDWIRE_DATABASE_URL": database}
    outcome = await run("check", "--json", **given)
    problems = outcome.document["problems"]
    assert (outcome.code, outcome.document["ok"], len(problems)) == (2, False, 3)
    assert ["CLIENT_ID" in problems[0], "vault key" in problems[1], "database" in problems[2]] == [True] * 3
    assert secret not in outcome.out + outcome.err


async def test_check_knows_the_right_vault_key(operator: Operator, tmp_path: Path) -> None:
    """With it all is well, live X included; with another one nothing would open."""
    house, person = operator
    right = person | {
        "BIRDWIRE_X_CLIENT_ID": "id",
        "BIRDWIRE_VAULT_KEY_FILE": str(house.settings.vault_key_file),
    }
    assert (await run("check", "--live", **right)).code == 0
    assert (await run("vault", "create", str(tmp_path / "vault.key"))).code == 0
    wrong = await run("check", **right | {"BIRDWIRE_VAULT_KEY_FILE": str(tmp_path / "vault.key")})
    assert (wrong.code, "is not the one that this database was sealed with" in wrong.err) == (2, True)


async def test_check_leaves_no_database_behind(tmp_path: Path) -> None:
    """It only looks, and says that the first start will make it."""
    file = tmp_path / "birdwire.db"
    outcome = await run("check", "--json", BIRDWIRE_DATABASE_URL=f"sqlite:///{file}")
    assert f"the database {file} will be made by the first start" in outcome.document["notes"]
    assert not file.exists()


async def test_the_help_of_check_names_every_setting() -> None:
    """With the sentence that the settings themselves have."""
    out = (await run("check", "--help")).out
    assert [name for name in Settings.model_fields if f"{PREFIX}{name.upper()}: " not in out] == []


async def test_a_vault_key_is_made_once(tmp_path: Path) -> None:
    """For the owner alone, never shown, never overwritten."""
    file = tmp_path / "vault.key"
    outcome = await run("vault", "create", str(file))
    key = file.read_text("ascii").strip()
    assert (outcome.code, stat.S_IMODE(file.stat().st_mode), key in outcome.out) == (0, 0o600, False)
    again = await run("vault", "create", str(file), "--json")
    assert (again.code, again.document["error"]["code"]) == (2, "usage")
    assert file.read_text("ascii").strip() == key


async def test_migrate_makes_a_database_ready(tmp_path: Path) -> None:
    """And finds nothing to do the second time."""
    url = f"sqlite:///{tmp_path}/birdwire.db"
    outcomes = [await run("migrate", "--json", BIRDWIRE_DATABASE_URL=url) for _ in range(2)]
    assert [(one.code, one.document["database"]) for one in outcomes] == [(0, "up to date")] * 2


async def test_serve_refuses_without_an_x_app(tmp_path: Path) -> None:
    """In a sentence, before it listens."""
    outcome = await run("serve", BIRDWIRE_DATABASE_URL=f"sqlite:///{tmp_path}/birdwire.db")
    assert (outcome.code, "BIRDWIRE_X_CLIENT_ID is not set" in outcome.err) == (2, True)


# The whole.


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
async def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    """With what it does, an example where there is something to give, and --json."""
    outcome = await run(*path, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    assert "\x1b" not in outcome.out
    assert path == ("keys", "list") or f"Example: birdwire {' '.join(path)}" in outcome.out


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
async def test_the_list_of_commands_says_what_each_says_of_itself(row: Any) -> None:
    """One sentence, the same in both places."""
    command = load(row.name)
    assert command.help.splitlines()[0] == row.summary
    assert tuple(getattr(command, "commands", ())) == FAMILIES.get(row.name, ())


async def test_every_operation_on_one_post_or_user_is_a_command() -> None:
    """Whatever rows there are."""
    names = {row.name for row in COMMANDS}
    about_one = [row for row in OPERATIONS if set(row.body.model_fields) == {row.target}]
    assert about_one
    assert {row.name.removesuffix("_twitter").replace("_", "-") for row in about_one} <= names


async def test_a_crash_shows_no_values_of_variables() -> None:
    """Typer's own tracebacks print them, and with them keys and tokens."""
    assert build().pretty_exceptions_enable is False


async def test_without_arguments_the_commands_are_listed() -> None:
    """And --version names the version."""
    assert "Begin with: birdwire dev" in (await run()).out
    assert (await run("--version")).out.startswith("birdwire 0.")


async def test_acting_loads_neither_server_nor_database() -> None:
    """So that a command answers at once."""
    code = (
        "import sys; sys.argv = ['birdwire', 'like', 'x']\n"
        "try: __import__('birdwire.cli').cli.main()\n"
        "except SystemExit: print(sorted({'sqlalchemy', 'starlette', 'uvicorn', 'cryptography'} & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert out == b"[]\n"
