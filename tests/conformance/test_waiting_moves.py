"""Writes that wait for a person survive another vault key and another database, and end with a restored backup."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from birdwire.api.errors import GatewayError
from birdwire.outcomes.claims import ClaimLostError
from birdwire.store.backup import mark_restored
from birdwire.store.database import Database
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables import approvals, kept_images, sealed_columns
from birdwire.store.tables.journal import State
from birdwire.store.transfer import copy_rows
from harness.approval_replicas import IMAGE, SECRET, Replica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.engines("sqlite", "postgres")

OLD, NEW = bytes(32), bytes(range(32))


@pytest_asyncio.fixture
async def old(database_url: str) -> AsyncIterator[Replica]:
    """A process with the old vault key."""
    async with Replica.started(database_url, vault=Vault(OLD)) as replica:
        await replica.new_key()
        yield replica


async def fill(replica: Replica) -> None:
    """Leave writes in every state that keeps something: waiting, approved, started, and refused by X."""
    for number, operation in enumerate(("post_twitter", "post_twitter", "like_twitter", "post_twitter")):
        payload = await replica.ask(f"req_{number}", operation, images=[IMAGE + bytes([count]) for count in range(12)])
        if number:
            await replica.approve(f"req_{number}")
        if number >= 2:
            record = replica.record(f"req_{number}", payload, operation)
            await record.begin()
    async with replica.database.write() as connection:
        await approvals.close(connection, "req_3", replica.clock.now(), refusal_ct=_refusal(replica))
        await approvals.add_link(connection, b"hash", "req_0", "ada", replica.clock.now())
        for number in range(6):
            await kept_images.add(connection, _uploaded(replica, f"{number}"))


def _uploaded(replica: Replica, media_id: str) -> dict[str, object]:
    """Return an image that the key uploaded before."""
    row = {"key_id": replica.key_id, "media_id": media_id, "media_type": "image/png", "size": len(IMAGE), "sha256": ""}
    blob = replica.records.seal_upload(replica.key_id, media_id, IMAGE)
    return row | {"blob_ct": blob, "until": replica.clock.now() + timedelta(days=1)}


async def uploads(replica: Replica, key_id: str) -> list[str]:
    """Return the media ids of the uploaded images that open."""
    async with replica.database.read() as connection:
        rows = await kept_images.of_key(connection, key_id, [f"{number}" for number in range(6)], replica.clock.now())
    return sorted(one for one, row in rows.items() if replica.records.open_upload(key_id, one, row.blob_ct) == IMAGE)


def _refusal(replica: Replica) -> bytes:
    sealed = replica.records.seal_refusal("req_3", GatewayError("x_refused", message=SECRET, edits=""))
    assert sealed is not None
    return sealed


async def opened(replica: Replica) -> tuple[list[str | None], list[int], str]:
    """Return what opens: the hashes of the payloads, the numbers of the images, and the refusal's message."""
    found = [await replica.records.find(f"req_{number}") for number in range(4)]
    hashes = [None if one.payload is None else one.payload.sha256 for one in found if one is not None]
    images = [number for number in range(12) if await replica.records.file("req_0", number) == IMAGE + bytes([number])]
    async with replica.database.write() as connection:
        await connection.exec_driver_sql("UPDATE journal SET state = 'refused' WHERE request_id = 'req_3'")
    answer = await replica.records.answer("req_3")
    return hashes, images, str(answer.value["error"]["message"])


async def test_a_key_rotation_reseals_payloads_images_and_refusals(old: Replica, database_url: str) -> None:
    """Afterwards the old key opens nothing that is needed, and it can be removed."""
    await fill(old)
    before = await opened(old)
    assert (len([one for one in before[0] if one]), before[1]) == (3, list(range(12)))
    assert SECRET in before[2]
    keyring = KeyRotation(old.database, Vault(OLD), old.clock)
    await keyring.enlist()
    rotation = KeyRotation(old.database, Vault(NEW, OLD), old.clock)
    await rotation.enlist()
    assert await rotation.reseal(lambda _: None) == 0
    assert await rotation.retire() == [Vault(OLD).key_id]
    async with Replica.started(database_url, old.clock, Vault(NEW)) as new:
        assert await opened(new) == before
        assert await uploads(new, old.key_id) == list("012345")
        assert (await new.records.file("req_0", 99)) is None
    async with old.database.read() as connection:
        for sealed in sealed_columns.SEALED:
            heads = await sealed_columns.count(connection, sealed, 9)
            assert all(head[1:].hex() == Vault(NEW).key_id for head in heads), sealed.column


async def test_a_value_that_was_moved_to_another_row_does_not_open(old: Replica) -> None:
    """A payload or an image is bound to its request."""
    await fill(old)
    async with old.database.write() as connection:
        await connection.exec_driver_sql(
            "UPDATE approvals SET payload_ct = (SELECT payload_ct FROM approvals WHERE request_id = 'req_1')"
            " WHERE request_id = 'req_0'"
        )
        await connection.exec_driver_sql(
            "UPDATE approval_files SET blob_ct = (SELECT blob_ct FROM approval_files"
            " WHERE request_id = 'req_0' AND number = 1) WHERE request_id = 'req_0' AND number = 0"
        )
        await connection.exec_driver_sql(
            "UPDATE kept_images SET blob_ct = (SELECT blob_ct FROM kept_images WHERE media_id = '1')"
            " WHERE media_id = '0'"
        )
    found = await old.records.find("req_0")
    assert found is not None
    assert found.payload is None
    assert await uploads(old, old.key_id) == list("12345")
    assert await old.records.file("req_0", 0) is None
    assert await old.records.file("req_0", 1) == IMAGE + b"\x01"


async def test_another_database_gets_what_waits(database_url: str, tmp_path: Path) -> None:
    """Each goes on waiting there, with its images and links, and what is approved can be sent."""
    async with contextlib.AsyncExitStack() as stack:
        old = await stack.enter_async_context(Replica.started(f"sqlite:///{tmp_path / 'old.db'}"))
        await old.new_key()
        await fill(old)
        before = await opened(old)
        moved = await stack.enter_async_context(Replica.started(database_url, old.clock, old.vault))
        moved.key_id = old.key_id
        async with old.database.read() as source, moved.database.write() as target:
            assert await copy_rows(source, target, lambda _: None) > 0
        assert await opened(moved) == before
        assert await uploads(moved, old.key_id) == list("012345")
        async with moved.database.read() as connection:
            assert set(await approvals.links(connection, [b"hash"])) == {b"hash"}
        found = await moved.records.find("req_1")
        assert found is not None
        assert found.payload is not None
        await moved.record("req_1", found.payload).begin()


async def test_a_restored_backup_sends_nothing_that_waited(old: Replica, database_url: str) -> None:
    """It may have been sent after the backup: whatever waited ends, and no process starts it."""
    await fill(old)
    payloads = [await old.records.find(f"req_{number}") for number in range(3)]
    names = old.named("req_9", name="waits")
    async with old.once.attempt(names) as attempt:
        await old.ask("req_9", held_by="req_9")
        attempt.answer = await old.records.answer("req_9")
    lost = (await old.row("req_2")).start
    async with contextlib.AsyncExitStack() as stack:
        database = Database(database_url)
        stack.push_async_callback(database.close)
        async with database.write() as connection:
            marked = await mark_restored(connection, old.clock.now())
        assert (marked.approvals, marked.sessions) == (4, 0)
    await old.vanish()
    async with Replica.started(database_url, old.clock, old.vault) as restored:
        restored.key_id = old.key_id
        rows = [await restored.row(f"req_{number}") for number in (0, 1, 9)]
        assert {(row.state, row.reason, row.status, row.due_at) for row in rows} == {
            ("expired", "restored_backup", 409, None)
        }
        assert all(row.settled_at is not None for row in rows)
        like = await restored.row("req_2")
        assert (like.state, like.why, like.lost_at, like.reason) == (
            "unknown",
            "not_in_timeline",
            lost,
            "outcome_unknown",
        )
        for number in (0, 1, 2, 9):
            approval = await restored.approval(f"req_{number}")
            assert (approval.payload_ct, approval.due_at) == (None, None)
            assert approval.ended_at is not None
            assert await restored.images(f"req_{number}") == 0
        async with restored.database.read() as connection:
            assert await approvals.due(connection, old.clock.now() + timedelta(days=9), 100) == []
            assert await approvals.waiting(connection, 10) == []
        for waiting in payloads:
            assert waiting is not None
            assert waiting.payload is not None
            with pytest.raises(ClaimLostError):
                await restored.record(waiting.row.request_id, waiting.payload, waiting.row.operation).begin()
        replay = await restored.once.begin(restored.named("req_10", name="waits"))
        assert replay is not None
        assert (replay.answer.status, replay.answer.value["error"]["reason"]) == (409, "restored_backup")
        # A post that was being sent is searched for, as after any crash.
        post = await restored.row("req_3")
        assert post.state is State.STARTED
        assert post.due_at is not None
