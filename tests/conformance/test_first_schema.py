"""A database of the first schema goes on under today's: nothing that was in it is lost, changed or unreadable."""

from __future__ import annotations

import asyncio
import contextlib
import io
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from sqlalchemy import text

from birdwire.accounts.tokens import SealedTokens
from birdwire.keys.registry import Keys
from birdwire.outcomes.entry import Entry
from birdwire.outcomes.journal import ChargeRefused, Journal
from birdwire.outcomes.process_leases import ProcessLeases
from birdwire.runtime.failpoints import FailpointError, Failpoints
from birdwire.runtime.telemetry import Telemetry
from birdwire.startup import prepare
from birdwire.store.database import Database, StorageDownError
from birdwire.store.encryption.key_files import create_key_file, read_key_file
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault, VaultError
from birdwire.store.tables import acts, x_sessions
from birdwire.store.tables import api_keys as store_keys
from birdwire.store.tables.journal import listed
from birdwire.store.tables.usage import Charge
from harness import first_schema
from harness.approval_replicas import Replica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.engines("sqlite", "postgresql"), pytest.mark.asyncio]

LABELS = {
    *("plain", "every rule", "free tier", "likes only", "unlinked", "same account", "rotated", "rotated at once"),
    *("lapsed", "needs relink", "unlinked later", "revoked", "revoked while stopped"),
}


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> Vault:
    """Return the vault of the old database, whose key file is next to it."""
    first_schema.unpack(tmp_path)
    return Vault(read_key_file(tmp_path / "vault.key"))


@pytest_asyncio.fixture
async def old(engine: str, tmp_path: Path, vault: Vault, empty_url: str) -> AsyncIterator[Database]:
    """The old database."""
    del vault  # it has unpacked the file
    if engine != "sqlite":
        await first_schema.fill(empty_url, tmp_path)
    async with _open(empty_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def database(old: Database, vault: Vault) -> Database:
    """The old database, brought up to date."""
    await prepare(old, vault, first_schema.clock(), upgrade=True)
    return old


@contextlib.asynccontextmanager
async def _open(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def test_every_key_is_there_with_its_rules(database: Database) -> None:
    """Keys keep their labels and rules."""
    keys = Keys(database, first_schema.clock())
    assert {key.label for key, _ in await keys.list()} == LABELS
    ruled = await keys.find(first_schema.KEYS["every rule"]["raw_key"], "test")
    assert ruled.rules.ips == ("127.0.0.0/8", "::1")
    assert ruled.rules.return_to == ("https://app.example.com/linked",)
    assert (ruled.rules.daily_writes, ruled.rules.text_limit) == (50_000, 4_000)


async def test_keys_that_list_their_actions_go_on_managing_their_links(database: Database) -> None:
    """No list restricted that before; a key without a list stays unrestricted, and no key is pinned."""
    rules = {key.label: key.rules for key, _ in await Keys(database, first_schema.clock()).list()}
    listed = {label: rule.actions for label, rule in rules.items() if rule.actions}
    assert listed["likes only"] == ("like_twitter", "link", "unlink")
    assert set(listed) == {"likes only", "every rule"}
    assert len(listed["every rule"]) == len(set(listed["every rule"]))
    assert {"link", "unlink"} <= set(listed["every rule"])
    assert {(rule.account_username, rule.account_user_id) for rule in rules.values()} == {(None, None)}


async def test_every_pair_of_tokens_opens(database: Database, vault: Vault) -> None:
    """Sessions keep their states, and tokens open."""
    pairs = SealedTokens(vault, first_schema.clock())
    async with database.read() as connection:
        rows = await x_sessions.list_all(connection)
    assert sorted(row.state for row in rows) == ["active"] * 7 + ["needs_relink"] + ["pending"] * 3
    assert all(pairs.open(row, "access") and pairs.open(row, "refresh") for row in rows)


async def test_links_end_a_day_after_their_keys(database: Database) -> None:
    """Links of keys that never expire keep the end that they had, if any."""
    async with database.read() as connection:
        rows = await x_sessions.list_all(connection)
        expiries = {row.key_id: row.expires_at for row in await store_keys.list_all(connection)}
    labels = {key["key_id"]: label for label, key in first_schema.KEYS.items()}
    after = {
        labels[row.key_id]: row.over_at - (expiries[row.key_id] or row.created_at)
        for row in rows
        if row.over_at is not None
    }
    assert after == {
        "every rule": timedelta(days=1),
        "lapsed": timedelta(days=1),
        "revoked while stopped": timedelta(0),
        "free tier": timedelta(minutes=10),
        "same account": timedelta(minutes=10),
    }


async def pairs_of(database: Database, vault: Vault) -> tuple[int, int]:
    """How many tokens open, and how many do not."""
    pairs, found = SealedTokens(vault, first_schema.clock()), [0, 0]
    async with database.read() as connection:
        for row in await x_sessions.list_all(connection):
            for kind in ("access", "refresh"):
                try:
                    found[not pairs.open(row, kind)] += 1
                except VaultError:
                    found[1] += 1
    return found[0], found[1]


async def test_a_reseal_that_is_cut_short_goes_on_at_the_next_start(
    old: Database, vault: Vault, empty_url: str
) -> None:
    """What was committed stays, and the rest is done by two processes that start concurrently."""
    clock = first_schema.clock()
    with pytest.raises(FailpointError):
        await prepare(old, vault, clock, upgrade=True, failpoints=Failpoints("rotation=raise*2"))
    assert await pairs_of(old, vault) == (11, 11)
    async with _open(empty_url) as other:
        await asyncio.gather(*(prepare(one, vault, clock, upgrade=False) for one in (old, other)))
    assert await pairs_of(old, vault) == (22, 0)


async def test_an_older_pair_does_not_open_once_all_are_resealed(old: Database, vault: Vault) -> None:
    """Written back from a copy of the database, it is not resealed by the next start either."""
    clock = first_schema.clock()
    await old.prepare(upgrade=True)
    async with old.read() as connection:
        [row, *_] = await x_sessions.list_all(connection)
    await prepare(old, vault, clock, upgrade=False)
    async with old.write() as connection:
        await x_sessions.change(connection, row.session_id, row.gen, {"access_ct": row.access_ct})
    await prepare(old, vault, clock, upgrade=False)
    assert await pairs_of(old, vault) == (21, 1)


async def test_a_pair_that_cannot_be_opened_does_not_block_the_start(old: Database, vault: Vault) -> None:
    """It is counted, and left as it is."""
    await old.prepare(upgrade=True)
    async with old.write() as connection:
        [row, *_] = await x_sessions.list_all(connection)
        damaged = row.access_ct[:-1] + bytes([row.access_ct[-1] ^ 1])
        await x_sessions.change(connection, row.session_id, row.gen, {"access_ct": damaged})
    told: list[tuple[int, int]] = []
    await prepare(old, vault, first_schema.clock(), upgrade=False, progress=lambda *counts: told.append(counts))
    assert (told[-1], await pairs_of(old, vault)) == ((21, 1), (21, 1))


async def test_the_vault_key_can_be_changed_before_the_first_start(old: Database, vault: Vault, tmp_path: Path) -> None:
    """The older version's values are resealed with the new key, and the old key is no longer needed."""
    await old.prepare(upgrade=True)
    new = Vault(create_key_file(tmp_path / "new.key"))
    both = Vault(read_key_file(tmp_path / "new.key"), read_key_file(tmp_path / "vault.key"))
    keyring = KeyRotation(old, both, first_schema.clock())
    await keyring.enlist()
    await keyring.bind()
    assert await keyring.reseal(lambda _: None) == 0
    assert await keyring.retire() == [vault.key_id]
    assert await pairs_of(old, new) == (22, 0)


async def test_acts_are_recorded_from_now_on_and_kept(database: Database) -> None:
    """There are none of the time before; a row that is there stays as it is, whatever is asked of the database."""
    async with database.read() as connection:
        assert await acts.listed(connection, None, None, 10) == []
    key_id = first_schema.KEYS["every rule"]["key_id"]
    await Keys(database, first_schema.clock(), by=acts.Actor("ada", "cli")).change(key_id, rpm=7)
    for change in ("UPDATE acts SET who = 'grace'", "DELETE FROM acts"):
        with pytest.raises(StorageDownError):
            async with database.write() as connection:
                await connection.execute(text(change))
    async with database.read() as connection:
        [row] = await acts.listed(connection, key_id, None, 10)
    assert (row.who, row.act, row.after) == ("ada", "key.changed", {"rpm": 7})


async def test_a_write_can_wait_for_a_person_from_now_on(database: Database, vault: Vault, empty_url: str) -> None:
    """Rows of the time before have no approval, and are purged as before; one that waits is sent from its row."""
    async with Replica.started(empty_url, vault=vault) as replica:
        replica.key_id = first_schema.KEYS["plain"]["key_id"]
        async with database.read() as connection:
            before = await listed(connection, {}, None, 1_000)
        assert before
        assert [await replica.records.find(row.request_id) for row in before] == [None] * len(before)
        payload = await replica.ask("req_new")
        await replica.approve("req_new")
        record = replica.record("req_new", payload)
        await record.begin()
        await record.confirmed(201, {"id": "77"})
        assert (await replica.records.answer("req_new")).status == 201
        await replica.journal.purge(timedelta())
        assert [await replica.journal.find(row.request_id) for row in before] == [None] * len(before)


async def test_a_guarded_write_is_charged_from_now_on(database: Database, vault: Vault) -> None:
    """The tables are there, and rows of the time before have no charges."""
    clock = first_schema.clock()
    journal = Journal(database, vault, ProcessLeases(database, clock), clock, Telemetry(io.StringIO(), clock))
    charge = Charge("add", "gateway", "usd", "2026-11", 15_000, 20_000, "budget")
    first, second = (Entry(f"req_{number}", "key_1", "1", "like_twitter", "2", b"a") for number in (1, 2))
    first.charges = second.charges = (charge,)
    await journal.open(first).begin()
    with pytest.raises(ChargeRefused):
        await journal.open(second).begin()
    async with database.read() as connection:
        rows = await listed(connection, {}, None, 100_000)
    assert {row.request_id for row in rows if row.spent} == {"req_1"}
    assert {(row.started_at, row.decision, row.features_ct, row.times) for row in rows} == {(None,) * 4}


async def test_the_journal_is_whole(database: Database, vault: Vault) -> None:
    """Writes keep their states, and their words open."""
    clock = first_schema.clock()
    journal = Journal(database, vault, ProcessLeases(database, clock), clock, Telemetry(io.StringIO(), clock))
    async with database.read() as connection:
        rows = await listed(connection, {}, None, 100_000)
    states = [row.state for row in rows]
    assert {state: states.count(state) for state in states} == {
        "confirmed": 6_953,
        "refused": 3_035,
        "not_sent": 3,
        "unknown": 10,
    }
    sealed = [row for row in rows if row.words_ct is not None]
    assert len(sealed) > 900
    assert all(journal.unseal(row) for row in sealed)


async def test_every_sealed_value_is_of_the_one_vault_key(database: Database, vault: Vault) -> None:
    """The list of vault keys is as it was."""
    counts = await KeyRotation(database, vault, first_schema.clock()).counts()
    assert [(count.key_id, count.seals, count.known) for count in counts] == [(vault.key_id, True, True)]
