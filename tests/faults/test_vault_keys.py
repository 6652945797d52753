"""The change from one vault key to another: alongside a running gateway, interrupted, too early, and complete."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import LargeBinary
from typer.testing import CliRunner

from birdwire.cli.command_line import build
from birdwire.runtime.clock import Clock
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import create_key_file, read_key_file
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault, blob_head
from birdwire.store.schema import metadata
from birdwire.store.tables import sealed_columns as store
from harness.fault_scale import scaled
from harness.gateway import MovableClock, gateway, serving

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gateway import RunningGateway

ROWS = scaled("SEALED_ROWS", 500, 10_000)
HASHES = {"secret_hash", "state_hash", "undo_hash", "token_hash", "asked"}
PROOF = "vault_keys.proof_ct"


def test_every_sealed_column_is_changed_along() -> None:
    """A column of bytes is a hash, or it is in the list: a forgotten one could never be opened again."""
    columns = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary) and column.name not in HASHES
    }
    assert columns - {PROOF} == {f"{sealed.table.name}.{sealed.column.name}" for sealed in store.SEALED}


def multiply(directory: Path, vault: Vault, rows: int) -> None:
    """Add more sealed values to those of the linked account: revocations, due in a year."""
    connection = sqlite3.connect(directory / "birdwire.db")
    with contextlib.closing(connection), connection:
        for number in range(rows):
            place = store.SEALED[2], f"rv_{number:06}"
            blob = vault.seal(f"token {number}", _place(*place))
            connection.execute(
                "INSERT INTO revocations VALUES (?, 'sandbox', ?, 'access_token', 0, 4000000000000000, 0)",
                (place[1], blob),
            )


def _place(sealed: store.Sealed, row: str) -> Any:
    from birdwire.store.encryption.vault import Place  # noqa: PLC0415 - next to its one use

    return Place(sealed.table.name, row, sealed.column.name)


async def rotate(directory: Path, *files: Path) -> list[int]:
    """Seal everything again with the first file's key; what other keys still seal then, and what was unreadable."""
    database = Database(f"sqlite:///{directory / 'birdwire.db'}")
    keyring = KeyRotation(database, Vault(*map(read_key_file, files)), Clock())
    try:
        unreadable = await keyring.reseal(lambda _: None)
        left = sum(count.values for count in await keyring.counts() if not count.seals)
        await keyring.retire()
    finally:
        await database.close()
    return [left, unreadable]


@pytest.mark.trust("F8")
async def test_every_value_is_resealed_while_the_gateway_reads_and_renews(tmp_path: Path) -> None:
    """No read fails, no refresh is lost, and at zero the old key is no longer needed."""
    sandbox, old, new = create_sandbox(), tmp_path / "vault.key", tmp_path / "new.key"
    create_key_file(new)
    async with serving(sandbox_config(sandbox)) as x_url:
        async with contextlib.AsyncExitStack() as stack, gateway(tmp_path, sandbox, x_url, stack) as running:
            _, raw_key = await running.gateway.keys.create("test", "kept", "custom", 1_000_000)
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.link("ada")
            await running.call("auth_twitter")  # a link under way has a sealed value, too
            posted = await running.call("post_twitter", {"text": "once"}, headers={"idempotency-key": "k"})
        multiply(tmp_path, Vault(read_key_file(old)), ROWS)
        async with (
            contextlib.AsyncExitStack() as stack,
            gateway(tmp_path, sandbox, x_url, stack, vault_key_file=new, vault_other_key_files=str(old)) as running,
        ):
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            rotating = asyncio.create_task(rotate(tmp_path, new, old))
            statuses = set()
            while not rotating.done():
                statuses.add((await running.like()).status_code)
                await running.advance_x(7_300)  # so that the next like must renew
            assert (await rotating, statuses) == ([0, 0], {200})
        async with (
            contextlib.AsyncExitStack() as stack,
            gateway(tmp_path, sandbox, x_url, stack, vault_key_file=new) as running,
        ):
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            assert (await running.like()).status_code == 200
            again = await running.call("post_twitter", {"text": "once"}, headers={"idempotency-key": "k"})
            assert (again.content, again.headers["idempotent-replayed"]) == (posted.content, "true")
        await everything_opens(tmp_path, new)


async def everything_opens(directory: Path, file: Path) -> None:
    """Each value opens with this key alone: sealing everything again for a third finds nothing unreadable."""
    third = directory / "third.key"
    create_key_file(third)
    assert await rotate(directory, third, file) == [0, 0]


@pytest.mark.trust("F8")
async def test_a_value_that_changed_since_it_was_read_is_not_overwritten(linked: RunningGateway) -> None:
    """The refresh that came between wins; its row is not touched."""
    database = Database(linked.settings.database_url)
    sealed, other = store.SEALED[0], blob_head("00" * 8)
    try:
        async with database.read() as connection:
            (row,) = await store.others(connection, sealed, other, None, 10)
        await linked.advance_x(7_300)
        assert (await linked.like()).status_code == 200
        async with database.write() as connection:
            await store.replace(connection, sealed, [(row, b"stale")])
            (newer,) = await store.others(connection, sealed, other, None, 10)
            assert newer.gen == row.gen + 1
    finally:
        await database.close()
    assert (await linked.like()).status_code == 200


async def test_an_interrupted_change_goes_on_where_it_was(tmp_path: Path) -> None:
    """Cancelled again and again; each run finds less to do, and none breaks a value."""
    old, new = tmp_path / "vault.key", tmp_path / "new.key"
    vault = Vault(create_key_file(old))
    create_key_file(new)
    database = Database(f"sqlite:///{tmp_path / 'birdwire.db'}")
    await database.prepare(upgrade=False)
    await KeyRotation(database, vault, Clock()).enlist()
    multiply(tmp_path, vault, ROWS)
    keyring = KeyRotation(database, Vault(read_key_file(new), read_key_file(old)), MovableClock())
    lefts = [ROWS]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    while lefts[-1]:
        with contextlib.suppress(KeyboardInterrupt):
            await keyring.reseal(stop)
        lefts.append(sum(count.values for count in await keyring.counts() if not count.seals))
        assert lefts[-1] < lefts[-2]
    await database.close()
    await everything_opens(tmp_path, new)


async def birdwire(*arguments: str, **environment: str) -> tuple[int, Any]:
    """Run a command; its exit code and its JSON document."""
    given = {"BIRDWIRE_X_CLIENT_ID": "id", "BIRDWIRE_X_API_URL": "http://127.0.0.1:9", **environment}
    result = await asyncio.to_thread(CliRunner().invoke, build(), [*arguments, "--json"], env=given)
    return result.exit_code, json.loads(result.stdout)


async def test_the_command_reports_when_the_old_key_can_be_removed(tmp_path: Path) -> None:
    """Not before; and a start without it is refused until then."""
    old, new = tmp_path / "vault.key", tmp_path / "new.key"
    vault = Vault(create_key_file(old))
    create_key_file(new)
    settings = {"BIRDWIRE_DATABASE_URL": f"sqlite:///{tmp_path / 'birdwire.db'}"}
    before = settings | {"BIRDWIRE_VAULT_KEY_FILE": str(old)}
    both = settings | {"BIRDWIRE_VAULT_KEY_FILE": str(new), "BIRDWIRE_VAULT_OTHER_KEY_FILES": str(old)}
    after = settings | {"BIRDWIRE_VAULT_KEY_FILE": str(new)}
    database = Database(settings["BIRDWIRE_DATABASE_URL"])
    await database.prepare(upgrade=False)
    await KeyRotation(database, vault, Clock()).enlist()
    await database.close()
    multiply(tmp_path, vault, 3)
    code, document = await birdwire("vault", "rotate", **after)
    assert (code, "a different vault key" in document["error"]["message"]) == (2, True)
    code, document = await birdwire("vault", "status", **before)
    assert (code, [(row["values"], row["seals"]) for row in document["vault_keys"]]) == (0, [(3, True)])
    code, document = await birdwire("vault", "rotate", **both)
    assert (code, document["retired"], document["left"]) == (0, [vault.key_id], 0)
    assert (await birdwire("check", **after))[0] == 0
    code, document = await birdwire("check", **before)
    assert (code, "a different vault key" in document["problems"][0]) == (2, True)


async def test_a_key_that_is_still_needed_is_asked_for_by_name(tmp_path: Path) -> None:
    """A gateway without the old key does not start, and says which one it lacks."""
    old, new = tmp_path / "vault.key", tmp_path / "new.key"
    vault = Vault(create_key_file(old))
    create_key_file(new)
    database = Database(f"sqlite:///{tmp_path / 'birdwire.db'}")
    await database.prepare(upgrade=False)
    await KeyRotation(database, vault, Clock()).enlist()
    await KeyRotation(database, Vault(read_key_file(new), read_key_file(old)), Clock()).enlist()
    await database.close()
    code, document = await birdwire(
        "check",
        BIRDWIRE_DATABASE_URL=f"sqlite:///{tmp_path / 'birdwire.db'}",
        BIRDWIRE_VAULT_KEY_FILE=str(new),
    )
    assert (code, vault.key_id in document["problems"][0]) == (2, True)


async def test_a_running_gateway_that_lacks_the_new_key_holds_the_change_back(linked: RunningGateway) -> None:
    """What it cannot open must not be sealed; the lock on the file says that it runs."""
    import fcntl  # noqa: PLC0415 - the gateway's own lock, taken as `serve` does

    new = linked.directory / "new.key"
    create_key_file(new)
    environment = {
        "BIRDWIRE_DATABASE_URL": linked.settings.database_url,
        "BIRDWIRE_VAULT_KEY_FILE": str(new),
        "BIRDWIRE_VAULT_OTHER_KEY_FILES": str(linked.directory / "vault.key"),
    }
    with (linked.directory / "birdwire.db.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, document = await birdwire("vault", "rotate", **environment)
    assert (code, "does not know this vault key" in document["error"]["message"]) == (2, True)
    assert (await linked.like()).status_code == 200


async def test_a_command_lists_no_vault_key_that_a_running_gateway_lacks(linked: RunningGateway) -> None:
    """It could not open what that key seals, and would not start again without it. A start lists its own key."""
    new = linked.directory / "new.key"
    create_key_file(new)
    settings = {name: str(getattr(linked.settings, name)) for name in ("database_url", "public_url", "x_authorize_url")}
    environment = {f"BIRDWIRE_{name.upper()}": value for name, value in settings.items()}
    old = str(linked.directory / "vault.key")
    both = {"BIRDWIRE_VAULT_KEY_FILE": str(new), "BIRDWIRE_VAULT_OTHER_KEY_FILES": old}
    code, document = await birdwire("accounts", "link", linked.key_id, **environment | both)
    assert (code, "do not have this vault key" in document["error"]["message"]) == (2, True)
    assert (await birdwire("check", **environment, BIRDWIRE_VAULT_KEY_FILE=old))[0] == 0
    code, _ = await birdwire("accounts", "link", linked.key_id, **environment, BIRDWIRE_VAULT_KEY_FILE=old)
    assert code == 0
