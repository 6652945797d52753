"""One refresh among processes that share a row: which calls X, which waits, which pair is kept, when a link ends."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from birdwire.accounts.refresh import MAX_CONCURRENT, MAX_IN_BACKGROUND
from birdwire.api.errors import GatewayError
from birdwire.store.tables import x_sessions
from birdwire.store.tables.acts import GATEWAY
from birdwire.store.tables.x_sessions import RefreshState
from harness.auth_server import FAILED, LOST, NOT_SENT, REFUSED, SECRET, pair, processes
from harness.fault_scale import record, scaled
from harness.gateway import RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from birdwire.x.client.auth_server import TokenError
    from harness.auth_server import Process
    from harness.gateway import MovableClock

Two = tuple["MovableClock", list["Process"]]
LEASE_S = 31
GENERATIONS = scaled("GENERATIONS", 100, 8_760)


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    """Two processes on one file, and their clock."""
    async with processes(f"sqlite:///{tmp_path / 'birdwire.db'}", 2) as made:
        yield made


async def reason(asking: asyncio.Task[str]) -> str:
    """Why a caller got no token."""
    with pytest.raises(GatewayError) as caught:
        await asyncio.wait_for(asking, 5)
    return caught.value.reason


@pytest.mark.trust("R1")
@pytest.mark.trust("F37")
async def test_a_process_waits_for_what_another_one_asks(two: Two) -> None:
    """The old token is dead; both callers get the one new pair."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    first = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    second = [asyncio.create_task(b.token(key_id)) for _ in range(20)]
    for _ in range(20):  # meanwhile they look at the row, too
        await b.row(key_id)
    a.x.answers.put_nowait(pair(2))
    assert {await first, *await asyncio.gather(*second)} == {f"{SECRET}-at-2"}
    assert (a.x.sent, b.x.sent) == ([f"{SECRET}-rt-ada1"], [])


async def test_a_process_asks_itself_once_the_other_could_not_send(two: Two) -> None:
    """Nothing reached X: the mark is removed, and the next process may try."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    first = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    second = asyncio.create_task(b.token(key_id))
    a.x.answers.put_nowait(NOT_SENT)
    assert await reason(first) == "x_unreachable"
    await b.asked(1)
    b.x.answers.put_nowait(pair(2))
    assert await second == f"{SECRET}-at-2"


async def test_no_caller_waits_for_an_answer_that_is_known_to_be_lost(two: Two) -> None:
    """The lease continues, but callers learn immediately that X did not answer."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    a.x.answers.put_nowait(LOST)
    for process in (a, b):
        assert await reason(asyncio.create_task(process.token(key_id))) == "x_timeout"
    assert (len(a.x.sent), len(b.x.sent)) == (1, 0)


@pytest.mark.trust("F38")
async def test_a_late_pair_never_overwrites_a_newer_one(two: Two) -> None:
    """A process stood still with its claim; another's pair is stored: the late one is dropped."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    late = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    clock.advance(seconds=LEASE_S)
    b.x.answers.put_nowait(pair(2, "b"))
    assert await b.token(key_id) == f"{SECRET}-at-b2"
    a.x.answers.put_nowait(pair(2, "a"))
    assert await late == f"{SECRET}-at-b2"
    assert (await a.row(key_id)).gen == 2
    assert '"outcome":"late"' in a.log.getvalue()


@pytest.mark.trust("F38")
async def test_a_late_pair_saves_a_link_that_was_given_up(two: Two) -> None:
    """The second try was refused because the first was served: its answer comes after all, and is kept."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    late = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    clock.advance(seconds=LEASE_S)
    b.x.answers.put_nowait(REFUSED)
    assert await reason(asyncio.create_task(b.token(key_id))) == "x_session_expired"
    assert ((await b.row(key_id)).state, (await b.row(key_id)).why) == ("needs_relink", "refresh_lost_reply")
    a.x.answers.put_nowait(pair(2))
    assert await late == f"{SECRET}-at-2"
    assert ((await b.row(key_id)).state, (await b.row(key_id)).why) == ("active", None)


@pytest.mark.trust("F43")
@pytest.mark.parametrize("same", [True, False])
async def test_a_new_link_during_a_refresh_wins(two: Two, same: bool) -> None:  # noqa: FBT001 - a parameter
    """The late pair is not stored; of another account it is revoked, of the same it is let go: X might end both."""
    clock, (a, _) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    late = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    row, _ = await a.links.store_pending(key_id, pair(1, "new"), ["like.write"], None if same else "bob")
    await a.links.name(row.session_id, "id of ada" if same else "id of bob", "ada" if same else "bob")
    a.x.answers.put_nowait(pair(2))
    assert await reason(late) == "x_not_linked"
    assert await a.token(key_id) == f"{SECRET}-at-new1"
    await a.links.sweep()
    assert (f"refresh_token {SECRET}-rt-2" in a.x.revoked) is not same
    assert f"refresh_token {SECRET}-rt-new1" not in a.x.revoked


@pytest.mark.trust("F21")
@pytest.mark.parametrize("hours", [3, -3])
async def test_a_clock_that_jumps_costs_one_refresh_and_blocks_none(two: Two, hours: int) -> None:
    """Ahead: the token seems over, so it is renewed once. Back: a mark from the future holds nothing up."""
    clock, (a, b) = two
    key_id = await a.link()
    if hours < 0:
        clock.advance(seconds=7_300)
        a.x.answers.put_nowait(LOST)
        assert await reason(asyncio.create_task(a.token(key_id))) == "x_timeout"
    clock.advance(hours=hours)
    if hours < 0:
        clock.advance(seconds=1)  # still before the token's end: it is in use, and X says 401
    b.x.answers.put_nowait(pair(2))
    row = await b.row(key_id)
    session = await b.sessions.open(row) if hours > 0 else await b.sessions.renew(await b.sessions.open(row), None)
    assert session.access_token == f"{SECRET}-at-2"
    assert [await b.token(key_id) for _ in range(3)] == [f"{SECRET}-at-2"] * 3
    assert len(b.x.sent) == 1


@pytest.mark.trust("G19")
async def test_a_link_lives_through_years_of_renewals(two: Two) -> None:
    """Each token is presented once, in its order, and every pair is the one after the last."""
    clock, (a, b) = two
    key_id = await a.link()
    for number in range(GENERATIONS):
        process = (a, b)[number % 2]
        clock.advance(hours=2)
        process.x.answers.put_nowait(pair(number + 2))
        assert await process.token(key_id) == f"{SECRET}-at-{number + 2}"
    sent = sorted([*a.x.sent, *b.x.sent])
    assert len(set(sent)) == len(sent) == GENERATIONS
    assert (await a.row(key_id)).gen == GENERATIONS + 1
    record("renewals of one link, turn by turn of two processes", runs=GENERATIONS, lost=0)


@pytest.mark.trust("R9")
async def test_an_outage_of_weeks_ends_no_link(two: Two) -> None:
    """However often X did not answer, the next try is minutes away, and mends it."""
    clock, (a, _) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    a.x.answers.put_nowait(LOST)
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_timeout"
    await swap(a, "UPDATE x_sessions SET tries = 5000")
    clock.advance(minutes=7)
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_timeout"
    clock.advance(minutes=2)
    a.x.answers.put_nowait(pair(2))
    assert await a.token(key_id) == f"{SECRET}-at-2"


@pytest.mark.trust("R7")
async def test_writes_alongside_a_refresh_touch_no_token(two: Two) -> None:
    """A name, a limit, another link: each changes its own columns."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    asking = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    await b.keys.change(key_id, rpm=5)
    await b.link("other")
    await b.links.sweep()
    a.x.answers.put_nowait(pair(2))
    assert await asking == f"{SECRET}-at-2"
    assert (await b.token(key_id), (await b.row(key_id)).gen) == (f"{SECRET}-at-2", 2)


@pytest.mark.trust("F38", "G1")
async def test_a_frozen_process_fails_no_caller_in_the_early_window(two: Two) -> None:
    """X refuses the second try, but the old access token lives: it is used, and the late answer mends all."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=6_600)
    assert await a.token(key_id) == f"{SECRET}-at-ada1"
    await a.asked(1)
    clock.advance(seconds=LEASE_S)
    assert await b.token(key_id) == f"{SECRET}-at-ada1"
    await b.asked(1)
    b.x.answers.put_nowait(REFUSED)
    async with asyncio.timeout(20):
        while (await b.row(key_id)).refresh_state != "over":
            assert await b.token(key_id) == f"{SECRET}-at-ada1"
    clock.advance(minutes=3)
    assert await b.token(key_id) == f"{SECRET}-at-ada1"
    assert len(b.x.sent) == 1
    a.x.answers.put_nowait(pair(2))
    async with asyncio.timeout(20):
        while await b.token(key_id) != f"{SECRET}-at-2":
            pass
    assert ((await b.row(key_id)).refresh_state, (await b.row(key_id)).why) == ("idle", None)


async def test_a_lost_reply_ends_the_link_with_its_access_token(two: Two) -> None:
    """The answer is lost: calls work until the token expires, then a new link is required; X gets no third request."""
    clock, (a, _) = two
    key_id = await a.link()
    clock.advance(seconds=6_600)
    a.x.answers.put_nowait(LOST)
    await a.token(key_id)
    await a.asked(1)
    async with asyncio.timeout(20):
        while (await a.row(key_id)).presented_by is not None:
            pass
    clock.advance(seconds=LEASE_S)
    a.x.answers.put_nowait(REFUSED)
    async with asyncio.timeout(20):
        while (await a.row(key_id)).refresh_state != "over":
            assert await a.token(key_id) == f"{SECRET}-at-ada1"
    await a.settled(key_id)
    clock.advance(seconds=600)
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_session_expired"
    assert ((await a.row(key_id)).state, (await a.row(key_id)).why) == ("needs_relink", "refresh_lost_reply")
    assert len(a.x.sent) == 2


async def test_a_refusal_without_a_stored_reason_ends_the_link_without_one(two: Two) -> None:
    """The row says that X refuses the refresh token, and not why: `why` stays null, as auth/status reports it."""
    clock, (a, _) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    row = await a.row(key_id)
    async with a.database.write() as connection:
        assert await x_sessions.change(connection, row.session_id, row.gen, {"refresh_state": RefreshState.OVER})
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_session_expired"
    assert ((await a.row(key_id)).state, (await a.row(key_id)).why) == ("needs_relink", None)


async def test_a_link_in_a_state_that_is_not_known_is_used_and_can_be_ended(two: Two) -> None:
    """A newer version may have written it: calls treat it as active, and to unlink it still revokes its tokens."""
    _, (a, _) = two
    key_id = await a.link()
    row = await a.row(key_id)
    async with a.database.write() as connection:
        assert await x_sessions.change(connection, row.session_id, row.gen, {"state": "paused"})
    assert (await a.token(key_id), (await a.row(key_id)).state) == (f"{SECRET}-at-ada1", "paused")
    assert await a.links.unlink(key_id, GATEWAY)
    assert len(a.x.revoked) == 2


async def test_a_process_takes_back_its_own_mark_only(two: Two) -> None:
    """Another one's claim came meanwhile: it must keep the token to itself."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    late = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    clock.advance(seconds=LEASE_S)
    second = asyncio.create_task(b.token(key_id))
    await b.asked(1)
    a.x.answers.put_nowait(NOT_SENT)
    assert await reason(late) == "x_unreachable"
    assert ((await a.row(key_id)).refresh_state, (await a.row(key_id)).tries) == ("presented", 2)
    b.x.answers.put_nowait(pair(2))
    assert await second == f"{SECRET}-at-2"


@pytest.mark.trust("F4")
@pytest.mark.parametrize("before", [[FAILED], [FAILED, NOT_SENT], [LOST, NOT_SENT], [NOT_SENT]])
async def test_a_refusal_is_named_by_whether_x_may_have_rotated_before(two: Two, before: list[TokenError]) -> None:
    """A 5xx may come after X took the token, as may no reply; a request that was not sent changes nothing."""
    clock, (a, _) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    for answer in [*before, REFUSED]:
        a.x.answers.put_nowait(answer)
        await reason(asyncio.create_task(a.token(key_id)))
        clock.advance(seconds=LEASE_S)
    why = "refused" if before == [NOT_SENT] else "refresh_lost_reply"
    assert ((await a.row(key_id)).state, (await a.row(key_id)).why) == ("needs_relink", why)
    assert len(a.x.sent) == len(before) + 1


async def test_a_failed_renewal_of_one_process_does_not_keep_another_from_trying(two: Two) -> None:
    """The claim is released in the row; the pause is the process's own, and ends when the other has a new pair."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    a.x.answers.put_nowait(FAILED)
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_renewal_failed"
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_renewal_failed"
    b.x.answers.put_nowait(pair(2))
    assert await b.token(key_id) == await a.token(key_id) == f"{SECRET}-at-2"
    assert (len(a.x.sent), len(b.x.sent)) == (1, 1)


async def test_a_pause_that_another_process_made_needless_does_not_lengthen_the_next(two: Two) -> None:
    """X failed for a while hours ago, and the other process renewed since: one more failure counts as the first."""
    clock, (a, b) = two
    key_id = await a.link()
    clock.advance(seconds=7_300)
    pauses: list[int | None] = []

    async def fail() -> None:
        a.x.answers.put_nowait(FAILED)
        with pytest.raises(GatewayError) as caught:
            await a.token(key_id)
        pauses.append(caught.value.retry_after_s)

    for _ in range(4):
        await fail()
        clock.advance(seconds=10)
    assert pauses == [1, 2, 4, 8]
    b.x.answers.put_nowait(pair(2))
    await b.token(key_id)
    clock.advance(seconds=7_300)
    await fail()
    assert pauses[-1] == 1
    assert (len(a.x.sent), len(b.x.sent)) == (5, 1)


async def test_eight_renewals_run_in_the_background_and_leave_room_for_callers(two: Two) -> None:
    """Later calls start the rest; an account whose token has expired does not wait for them."""
    clock, (a, _) = two
    expired = await a.link("expired")
    clock.advance(seconds=6_600)
    key_ids = [await a.link(f"user{number}") for number in range(MAX_IN_BACKGROUND + 4)]
    clock.advance(seconds=6_600)
    for key_id in key_ids:
        await a.token(key_id)
    await a.asked(MAX_IN_BACKGROUND)
    asking = asyncio.create_task(a.token(expired))
    await a.asked(MAX_IN_BACKGROUND + 1)
    for number in range(len(key_ids) + 1):
        a.x.answers.put_nowait(pair(number))
    await asking
    async with asyncio.timeout(20):
        while {(await a.row(key_id)).gen for key_id in key_ids} != {2}:
            for key_id in key_ids:
                await a.token(key_id)
    assert a.x.max_running == MAX_IN_BACKGROUND + 1


@pytest.mark.trust("F36")
async def test_fifty_refreshes_run_concurrently_and_the_rest_wait(two: Two) -> None:
    """A rush at the end of many tokens neither floods X nor loses anybody."""
    clock, (a, _) = two
    key_ids = [await a.link(f"user{number}") for number in range(MAX_CONCURRENT + 30)]
    clock.advance(seconds=7_300)
    asking = [asyncio.create_task(a.token(key_id)) for key_id in key_ids]
    await a.asked(MAX_CONCURRENT)
    for number in range(len(key_ids)):
        a.x.answers.put_nowait(pair(number))
    assert len(set(await asyncio.gather(*asking))) == len(key_ids)
    assert (a.x.max_running, len(set(a.x.sent))) == (MAX_CONCURRENT, len(key_ids))


@pytest.mark.trust("R4")
async def test_while_a_pair_is_not_stored_nothing_is_asked_and_nothing_is_ready(tmp_path: Path) -> None:
    """The store fails between X's answer and the commit: red, no replay, and it heals without help."""
    async with RunningGateway.built(tmp_path) as running:
        await running.link("ada")
        other = sqlite3.connect(tmp_path / "birdwire.db", isolation_level=None, check_same_thread=False)
        await running.advance_x(7_300)
        await running.fault("POST", "/2/oauth2/token", {"delay_s": 0.3})
        liking = asyncio.create_task(running.like())
        with contextlib.closing(other):
            async with asyncio.timeout(20):
                while len(await running.calls("/2/oauth2/token")) < 2:
                    pass
                await asyncio.to_thread(other.execute, "ALTER TABLE x_sessions RENAME TO elsewhere")
                while not running.gateway.sessions.unsaved:  # noqa: ASYNC110 - it happens in the gateway
                    await asyncio.sleep(0)
            assert (await running.bare.get("/readyz")).status_code == 503
            assert (await running.bare.get("/livez")).status_code == 200
            await asyncio.to_thread(other.execute, "ALTER TABLE elsewhere RENAME TO x_sessions")
        assert (await liking).status_code == 200
        assert (await running.bare.get("/readyz")).status_code == 200
        assert len(await running.calls("/2/oauth2/token")) == 2
        assert '"outcome":"persist_failure"' in running.log.getvalue()


async def swap(process: Process, statement: str, *values: object) -> None:
    """Change the file behind everybody's back."""
    async with process.database.write() as connection:
        await connection.exec_driver_sql(statement, values)


@pytest.mark.trust("T7")
async def test_a_token_moved_to_another_row_is_never_used(two: Two) -> None:
    """The pairs of two accounts are swapped: neither acts as the other."""
    _, (a, _) = two
    one, other = await a.link("one"), await a.link("other")
    rows = [await a.row(one), await a.row(other)]
    for row, theirs in zip(rows, reversed(rows), strict=True):
        await swap(a, "UPDATE x_sessions SET access_ct = ? WHERE session_id = ?", theirs.access_ct, row.session_id)
    a.x.answers.put_nowait(pair(2, "one"))
    assert await a.token(one) == f"{SECRET}-at-one2"
    for row, theirs in zip(rows, reversed(rows), strict=True):
        columns = (theirs.access_ct, theirs.refresh_ct, row.session_id)
        await swap(a, "UPDATE x_sessions SET access_ct = ?, refresh_ct = ? WHERE session_id = ?", *columns)
    assert await reason(asyncio.create_task(a.token(other))) == "x_session_expired"
    assert ((await a.row(other)).state, (await a.row(other)).why) == ("needs_relink", "damaged")
    assert a.x.sent == [f"{SECRET}-rt-one1"]


@pytest.mark.trust("T7")
@pytest.mark.trust("R8")
async def test_the_pair_of_an_older_generation_is_never_used(two: Two) -> None:
    """Restored from an old copy, it does not open in the newer generation; nor does one column as the other."""
    clock, (a, _) = two
    key_id = await a.link()
    old = await a.row(key_id)
    clock.advance(seconds=7_300)
    a.x.answers.put_nowait(pair(2))
    await a.token(key_id)
    columns = "UPDATE x_sessions SET access_ct = ?, refresh_ct = ?"
    await swap(a, columns, old.access_ct, old.refresh_ct)
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_session_expired"
    await swap(a, "UPDATE x_sessions SET state = 'active', access_ct = refresh_ct")
    assert await reason(asyncio.create_task(a.token(key_id))) == "x_session_expired"
    assert a.x.sent == [f"{SECRET}-rt-ada1"]


async def test_a_damaged_access_token_is_renewed(two: Two) -> None:
    """The refresh token is intact: a new link is not required."""
    _, (a, _) = two
    key_id = await a.link()
    await swap(a, "UPDATE x_sessions SET access_ct = ?", b"damaged")
    a.x.answers.put_nowait(pair(2))
    assert await a.token(key_id) == f"{SECRET}-at-2"


@pytest.mark.trust("G4")
async def test_a_link_that_ended_while_a_call_waited_no_longer_serves_it(two: Two) -> None:
    """Its key was found before it waited for its turn, or for its body; the link is looked at when it is used."""
    _, (a, b) = two
    key_id = await a.link()
    await remembered(a, key_id)
    assert await b.links.unlink(key_id, GATEWAY)
    assert a.sessions.ready(key_id) is None


@pytest.mark.trust("G4")
@pytest.mark.engines("sqlite", "postgres")
async def test_the_call_after_a_new_link_goes_through_it(database_url: str) -> None:
    """In the process that made the link, immediately, however late the change feed reports it."""
    async with processes(database_url, 1) as (_, (a,)):
        key_id = await a.link()
        await remembered(a, key_id)
        row, _ = await a.links.store_pending(key_id, pair(2, "grace"), ["like.write"], "grace")
        await a.links.name(row.session_id, "id of grace", "grace")
        assert a.sessions.ready(key_id) is None


async def remembered(process: Process, key_id: str) -> None:
    """Use the link until it is remembered."""
    async with asyncio.timeout(10):
        while process.sessions.ready(key_id) is None:
            links = await process.links.of_key(key_id)
            assert links.current is not None
            process.sessions.remember(links, await process.sessions.open(links.current))


@pytest.mark.engines("sqlite", "postgres")
async def test_a_link_that_is_named_while_its_pair_is_renewed_stays_in_use(database_url: str) -> None:
    """X names the account just before the first pair expires: the concurrent renewal must not undo the name."""
    async with processes(database_url, 1) as (clock, (a,)):
        key, _ = await a.keys.create("test", "ada", "free")
        row, _ = await a.links.store_pending(key.key_id, pair(1), ["like.write"], None)
        clock.advance(seconds=7_000)
        await a.sessions.open(row)  # the old token still works, so users/me is asked with it
        await a.asked(1)
        await a.links.name(row.session_id, "id of ada", "ada")
        a.x.answers.put_nowait(pair(2))
        await a.sessions.close()
        links = await a.links.of_key(key.key_id)
        assert links.pending is None
        assert (await a.row(key.key_id)).state == "active"
        assert await a.token(key.key_id) == f"{SECRET}-at-2"


@pytest.mark.engines("sqlite", "postgres")
async def test_a_link_that_is_named_while_x_refuses_its_renewal_is_lost_aloud(database_url: str) -> None:
    """It was in use by then, so its owner is asked to link again; it is not taken away like a pair that never was."""
    async with processes(database_url, 1) as (clock, (a,)):
        key, _ = await a.keys.create("test", "ada", "free")
        row, _ = await a.links.store_pending(key.key_id, pair(1), ["like.write"], None)
        clock.advance(seconds=7_000)
        await a.sessions.open(row)
        await a.asked(1)
        await a.links.name(row.session_id, "id of ada", "ada")
        a.x.answers.put_nowait(REFUSED)
        await a.sessions.close()
        assert (await a.row(key.key_id)).state == "needs_relink"
