"""Deliveries on both engines when processes end, destinations are replaced, and vault keys or databases change."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from sqlalchemy import select

from birdwire.gateway.notifications import deliveries
from birdwire.gateway.notifications.destination import NoDestinationError
from birdwire.gateway.notifications.signatures import signed
from birdwire.outcomes.process_leases import LEASE
from birdwire.runtime.outbound import ForbiddenURLError
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault
from birdwire.store.schema import StorageDownError
from birdwire.store.tables import acts, destinations, outbox
from birdwire.store.transfer import copy_rows
from harness.approval_replicas import SECRET as TEXT
from harness.approval_replicas import Replica
from harness.delivering import ADA, DELIVERED, PAUSED, Deliverer, Post, deliverer, failed, two_deliverers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from birdwire.store.tables.destinations import Kind

pytestmark = pytest.mark.engines("sqlite", "postgres")

INSTANT = timedelta(microseconds=1)
URL = "http://localhost/in?token=canary-url"
LINK = "https://birdwire.example/approve/token1"


@pytest_asyncio.fixture
async def only(database_url: str) -> AsyncIterator[Deliverer]:
    """One process."""
    async with deliverer(database_url) as built:
        await built.replica.new_key()
        yield built


@pytest_asyncio.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Deliverer, Deliverer]]:
    """Two processes. The first one is the one that sends."""
    async with two_deliverers(database_url) as built:
        await built[0].set()
        await built[0].deliveries.round()
        yield built


def signature(post: Post, *secrets: str) -> bool:
    """Return whether exactly these secrets have signed what was sent."""
    headers = signed(secrets, post.event_id, int(post.headers["webhook-timestamp"]), post.body)
    return dict(headers)["webhook-signature"] == post.headers["webhook-signature"]


# The process that sends.


@pytest.mark.trust("#327")
async def test_one_of_two_processes_sends(both: tuple[Deliverer, Deliverer]) -> None:
    """The other one watches, however often it comes first."""
    first, second = both
    await first.happen(20)
    sent = [(await second.round(), await first.round()) for _ in range(3)]
    assert sent == [(0, 16), (0, 4), (0, 0)]
    assert (await first.to()).sender == first.replica.leases.me
    assert second.counted("birdwire_notifications_waiting") == {(): 0}


async def test_of_two_processes_that_start_together_one_becomes_the_sender(database_url: str) -> None:
    """By a compare-and-set on the destination's row."""
    async with two_deliverers(database_url) as (first, second):
        await first.set()
        await first.happen(10)
        await asyncio.gather(first.deliveries.round(), second.deliveries.round())
        await first.settled()
        await asyncio.gather(first.deliveries.round(), second.deliveries.round())
        await first.settled()
        counts = sorted(len(one.outbound.posts) for one in (first, second))
        assert counts == [0, 10]


async def test_a_process_takes_over_once_the_lease_of_the_sender_has_expired(
    both: tuple[Deliverer, Deliverer],
) -> None:
    """Not an instant earlier."""
    first, second = both
    await first.happen()
    first.clock.added += LEASE - INSTANT
    await second.replica.leases.renew()
    assert await second.round() == 0
    first.clock.added += INSTANT
    assert await second.round() == 1
    assert (await second.to()).sender == second.replica.leases.me


async def test_a_process_that_others_may_count_as_dead_sends_nothing(both: tuple[Deliverer, Deliverer]) -> None:
    """It was slow. Once it knows that it is alive, it knows that another process sends."""
    first, second = both
    await first.happen()
    first.clock.added += LEASE
    assert await first.round() == 0
    await second.replica.leases.renew()
    assert await second.round() == 1
    await first.happen()
    await first.replica.leases.renew()
    assert await first.round() == 0
    assert await second.round() == 1


async def test_what_a_killed_process_was_sending_is_sent_again(both: tuple[Deliverer, Deliverer]) -> None:
    """Under the same id, so that the receiver can tell. What the killed one records afterwards has no effect."""
    first, second = both
    (event_id,) = await first.happen()
    first.outbound.open.clear()
    first.outbound.answer(failed())
    await first.deliveries.round()
    await asyncio.sleep(0)
    await first.replica.vanish()
    assert await second.round() == 1
    first.outbound.open.set()
    await first.settled()
    assert {post.event_id for one in both for post in one.outbound.posts} == {event_id}
    row, to = await second.event(event_id), await second.to()
    assert (row.outcome, row.tries, to.error, to.failing_since) == ("delivered", 1, None, None)


async def test_nothing_is_sent_while_the_process_drains(only: Deliverer) -> None:
    """What is in progress ends; what waits is left to another process."""
    await only.set()
    first, *_ = await only.happen()
    only.outbound.open.clear()
    await only.deliveries.round()
    await asyncio.sleep(0)
    only.deliveries.drain()
    await only.happen()
    await only.deliveries.round()
    closing = asyncio.create_task(only.deliveries.close())
    await asyncio.sleep(0)
    assert not closing.done()
    only.outbound.open.set()
    await closing
    assert (await only.event(first)).outcome == "delivered"
    assert len(only.outbound.posts) == 1
    assert len(await only.pending()) == 1


async def test_a_process_that_drains_hands_over(both: tuple[Deliverer, Deliverer]) -> None:
    """Once nothing is in progress there: the other one need not wait until its lease ends."""
    first, second = both
    await first.happen()
    first.outbound.open.clear()
    await first.deliveries.round()
    await asyncio.sleep(0)
    first.deliveries.drain()
    await first.deliveries.round()
    assert await second.round() == 0
    first.outbound.open.set()
    await first.settled()
    await first.happen()
    assert await first.round() == 0
    assert await second.round() == 1
    assert (await second.to()).sender == second.replica.leases.me


async def test_a_shutdown_does_not_wait_for_a_destination_that_hangs(
    both: tuple[Deliverer, Deliverer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery is cancelled, and the next process sends it."""
    first, second = both
    monkeypatch.setattr(deliveries, "CLOSE_S", 0.01)
    (event_id,) = await first.happen()
    first.outbound.open.clear()
    await first.deliveries.round()
    await first.deliveries.close()
    assert first.outbound.running == 0
    await first.replica.leases.close()
    assert await second.round() == 1
    assert (await second.event(event_id)).outcome == "delivered"


# What the operator changes while deliveries run.


async def test_what_a_replaced_destination_answers_changes_nothing_of_the_new_one(only: Deliverer) -> None:
    """Not even if both were set at the same moment; what waited goes to the new one."""
    await only.set(URL)
    (event_id,) = await only.happen()
    only.outbound.answer(failed(410))
    only.outbound.open.clear()
    await only.deliveries.round()
    await asyncio.sleep(0)
    await only.set("http://localhost/other")
    only.outbound.open.set()
    await only.settled()
    to, row = await only.to(), await only.event(event_id)
    assert (to.off_at, to.failing_since, to.tried_at, row.tries) == (None, None, None, 0)
    only.outbound.answer(DELIVERED)
    assert await only.round() == 1
    assert [post.url for post in only.outbound.posts] == [URL, "http://localhost/other"]


async def test_a_new_destination_is_neither_held_nor_probed_for_the_old_one(only: Deliverer) -> None:
    """Its past is not the other's."""
    await only.set()
    only.outbound.answer(failed(503, 3_600.0))
    await only.happen(40)
    await only.round()
    assert await only.round() == 0
    await only.set()
    only.outbound.answer(DELIVERED)
    assert await only.round() == 16


async def test_a_destination_that_ends_during_a_send_fails_nothing(only: Deliverer) -> None:
    """Neither the delivery nor the next round."""
    await only.set()
    await only.happen(3)
    only.outbound.open.clear()
    await only.deliveries.round()
    await asyncio.sleep(0)
    assert await only.destinations.off(ADA)
    only.outbound.open.set()
    await only.settled()
    assert await only.round() == 0
    assert not await only.destinations.off(ADA)
    assert await only.pending() == []
    assert only.logged("crash") == []
    assert [act.act for act in await only.acts()] == ["notify.off", "notify.set"]


async def test_what_adds_an_event_does_not_fail_while_the_destination_is_deleted(only: Deliverer) -> None:
    """Its transaction waits, and then writes no event."""
    await only.set()
    database = only.replica.database
    async with database.write() as connection:
        await destinations.remove(connection)
        adding = asyncio.create_task(only.happen())
        await asyncio.sleep(0.1)
        assert not adding.done()
    assert await adding == []


@pytest.mark.engines("postgres")
async def test_what_adds_an_event_does_not_wait_for_the_result_of_a_delivery(only: Deliverer) -> None:
    """Nor for the operator who sets a destination."""
    await only.set()
    async with only.replica.database.write() as connection:
        held = await destinations.get(connection, hold=True)
        assert held is not None
        await destinations.put(connection, {name: getattr(held, name) for name in held.__slots__})
        async with asyncio.timeout(5):
            assert len(await only.happen()) == 1


async def test_after_a_rotation_both_secrets_sign_until_the_overlap_ends(only: Deliverer) -> None:
    """A second rotation replaces the older of them."""
    first = await only.set()
    second = await only.destinations.rotate(ADA, timedelta(hours=24))
    await only.happen()
    await only.round()
    assert signature(only.outbound.posts[-1], second, first)
    await only.advance(timedelta(hours=24) - INSTANT)
    await only.happen()
    await only.round()
    assert signature(only.outbound.posts[-1], second, first)
    await only.advance(INSTANT)
    await only.happen()
    await only.round()
    assert signature(only.outbound.posts[-1], second)
    third = await only.destinations.rotate(ADA, timedelta(hours=1))
    await only.happen()
    await only.round()
    assert signature(only.outbound.posts[-1], third, second)
    assert [act.act for act in await only.acts()] == ["notify.rotated", "notify.rotated", "notify.set"]
    shown = str(await only.acts())
    assert not any(secret in shown for secret in (first, second, third))


async def test_without_a_destination_there_is_nothing_to_rotate_or_test(only: Deliverer) -> None:
    """And a URL that is not allowed sets none."""
    with pytest.raises(NoDestinationError):
        await only.destinations.rotate(ADA, timedelta())
    with pytest.raises(NoDestinationError):
        await only.destinations.test()
    with pytest.raises(ForbiddenURLError):
        await only.set("http://10.0.0.1/in")
    assert await only.destinations.get() is None
    assert await only.acts() == []


# Extras: the text and the link.


async def ask(only: Deliverer, request_id: str = "req_1") -> str:
    """Let a write wait for a person, and return the id of its event."""
    await only.replica.ask(request_id)
    return (await only.happen(event="approval.requested", request_id=request_id))[-1]


@pytest.mark.parametrize("kind", ["standard", "ntfy", "slack"])
async def test_the_text_and_the_link_are_made_once_and_are_the_same_at_each_try(only: Deliverer, kind: Kind) -> None:
    """They are stored before anything is sent, encrypted, and deleted with the delivery."""
    await only.set(kind=kind, with_link=True, with_text=True)
    only.outbound.answer(failed(), DELIVERED)
    event_id = await ask(only)
    await only.round()
    row = await only.event(event_id)
    assert row.extra_ct is not None
    assert LINK.encode() not in row.extra_ct
    assert TEXT not in str(row)
    await only.advance(timedelta(seconds=5))
    assert await only.round() == 1
    assert [(post.document["text"], post.document["review_url"]) for post in only.outbound.posts] == [(TEXT, LINK)] * 2
    assert only.links == ["req_1"]
    assert (await only.event(event_id)).extra_ct is None


async def test_a_link_fits_into_a_header_field(only: Deliverer) -> None:
    """Whatever characters the gateway's public URL has."""
    there = Deliverer.of(only.replica, address="https://v\u00f6gel.example:8443")
    await there.set(kind="ntfy", with_link=True)
    await ask(there)
    await there.round()
    (post,) = there.outbound.posts
    assert post.document["review_url"].startswith("https://xn--vgel-5qa.example:8443/approve/")


@pytest.mark.parametrize(("with_link", "with_text"), [(False, False), (True, False), (False, True)])
async def test_a_destination_gets_only_what_its_options_state(
    only: Deliverer,
    with_link: bool,  # noqa: FBT001 - a parameter of the test
    with_text: bool,  # noqa: FBT001 - the same
) -> None:
    """Also if it replaces one that got more."""
    await only.set(with_link=True, with_text=True)
    only.outbound.answer(failed(), DELIVERED)
    await ask(only)
    await only.round()
    await only.set(with_link=with_link, with_text=with_text)
    await only.advance(timedelta(seconds=5))
    await only.round()
    document = only.outbound.posts[-1].document
    assert (document["text"], document["review_url"]) == (TEXT if with_text else None, LINK if with_link else None)
    await ask(only, "req_2")
    await only.round()
    document = only.outbound.posts[-1].document
    assert (document["text"] is not None, document["review_url"] is not None) == (with_text, with_link)
    assert only.links == ["req_1"] + ["req_2"] * with_link


async def test_only_a_request_for_approval_has_extras(only: Deliverer) -> None:
    """And only while it waits."""
    await only.set(with_link=True, with_text=True)
    await only.happen()
    event_id = await ask(only)
    await only.replica.approve("req_1")
    assert await only.round() == 2
    assert {(post.document["text"], post.document["review_url"]) for post in only.outbound.posts} == {(None, None)}
    assert only.links == []
    assert (await only.event(event_id)).outcome == "delivered"


async def test_extras_that_cannot_be_stored_are_not_sent(only: Deliverer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next try would make another link. Nothing else of the event is sent either."""
    await only.set(with_link=True)
    event_id = await ask(only)
    real = outbox.add_extra

    async def down(*_: object) -> bool:
        raise StorageDownError("disk full")

    monkeypatch.setattr(outbox, "add_extra", down)
    assert await only.round() == 0
    assert (await only.event(event_id)).tries == 0
    monkeypatch.setattr(outbox, "add_extra", real)
    assert await only.round() == 1
    assert await only.round() == 0


async def test_what_cannot_be_sent_yet_delays_nothing_else(only: Deliverer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that does not know its address makes no link, and 16 such events must not be all that is due."""
    await only.set(with_link=True)
    for number in range(20):
        await only.replica.ask(f"req_{number}")
        await only.happen(event="approval.requested", request_id=f"req_{number}")
    with monkeypatch.context() as unknown:
        unknown.setattr(only.extras, "_address", lambda: None)
        assert await only.round(2) == 0
        await only.happen()
        assert await only.round() == 1
    await only.advance(timedelta(seconds=5))
    assert await only.round(2) == 20
    assert {row.tries for row in await only.pending()} == set()


# Vault keys and databases.


async def test_what_cannot_be_decrypted_is_not_sent_and_is_reported_once(database_url: str) -> None:
    """The destination stays, and so do its events: setting it again sends them."""
    async with deliverer(database_url) as only:
        await only.set()
        await only.happen(3)
        stranger = Deliverer.of(only.replica, vault=Vault(b"\x01" * 32))
        assert await stranger.round(5) == 0
        assert (await only.to()).error == "unreadable"
        assert len(stranger.logged("notifications_unreadable")) == 1
        assert len(await only.pending()) == 3
        await stranger.set()
        assert (await only.to()).error is None
        assert await stranger.round() == 3


async def test_a_rotation_of_the_vault_key_moves_all_that_is_encrypted(only: Deliverer) -> None:
    """The destination, both secrets, and what goes out with an event: the old key is needed no longer."""
    replica, new = only.replica, b"\x02" * 32
    first = await only.set(URL, with_link=True, with_text=True)
    second = await only.destinations.rotate(ADA, timedelta(hours=24))
    only.outbound.answer(failed())
    event_id = await ask(only)
    await only.round()
    await KeyRotation(replica.database, replica.vault, only.clock).enlist()
    rotation = KeyRotation(replica.database, Vault(new, bytes(32)), only.clock)
    await rotation.enlist()
    assert await rotation.reseal(lambda _: None) == 0
    assert len(await rotation.retire()) == 1
    after = Deliverer.of(replica, vault=Vault(new))
    await only.advance(timedelta(seconds=5))
    assert await after.round() == 1
    post = after.outbound.posts[0]
    assert (post.url, post.event_id) == (URL, event_id)
    assert (post.document["text"], post.document["review_url"]) == (TEXT, LINK)
    assert signature(post, second, first)


async def test_a_moved_database_goes_on_delivering(database_url: str, tmp_path: Path) -> None:
    """Sealed values are bound to their row, not to a database; the process that sent there is not alive here."""
    async with deliverer(f"sqlite:///{tmp_path / 'old.db'}") as old, Replica.started(database_url, old.clock) as new:
        await old.replica.new_key()
        secret = await old.set(URL, with_text=True)
        old.outbound.answer(failed())
        event_id = await ask(old)
        await old.round()
        async with old.replica.database.read() as source, new.database.write() as target:
            await copy_rows(source, target, lambda _: None)
        moved = Deliverer.of(new)
        await moved.advance(timedelta(seconds=5))
        assert await moved.round() == 1
        post = moved.outbound.posts[0]
        assert (post.url, post.event_id, post.document["text"]) == (URL, event_id, TEXT)
        assert signature(post, secret)


async def test_no_column_has_a_url_a_secret_or_a_text_in_clear(only: Deliverer) -> None:
    """Nor has an act, a log line or the representation of a row."""
    secret = await only.set(URL, with_link=True, with_text=True)
    only.outbound.answer(failed())
    await ask(only)
    await only.round()
    async with only.replica.database.read() as connection:
        rows = [tuple(row) for row in await connection.execute(select(destinations.destinations))]
        rows += [tuple(row) for row in await connection.execute(select(outbox.outbox))]
        rows += [tuple(row) for row in await connection.execute(select(acts.acts))]
    only.telemetry.flush()
    row = await only.to()
    seen = f"{rows}{row}{only.destinations.open(row)}{only.log.getvalue()}{PAUSED}"
    for canary in ("canary-url", secret, secret.removeprefix("whsec_"), TEXT, "token1"):
        assert canary not in seen
