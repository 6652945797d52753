"""Reconciles lost posts: reads the account's own timeline and records in the journal what X did. Never sends a post.

A post is lost if X's answer to it was lost, or if its process died. It is searched for after 2, 10, 30 and 60 seconds.
One match: X has it. No match in two readings, the later one more than a minute after the post was lost: X does not have
it. Otherwise the outcome stays unknown, the row states why, and the search is repeated less and less often for a day.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError
from birdwire.outcomes import settlement
from birdwire.outcomes.journal import FIRST_CHECK_AFTER
from birdwire.outcomes.journal_rows import why_lost
from birdwire.outcomes.post_matching import LostPost, Signature, match
from birdwire.outcomes.process_leases import LEASE
from birdwire.store.database import StorageDownError
from birdwire.store.database import now as shared_now
from birdwire.store.tables import api_keys, approvals, outbox, reconciliations, x_sessions
from birdwire.store.tables import journal as store
from birdwire.store.tables.journal import RECONCILED, JournalRow, State, Why
from birdwire.x.catalog.timeline import TimelinePage, TimelinePost, request
from birdwire.x.client.requests import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.retrying_client import AccountClient, AccountClients
    from birdwire.accounts.sessions import Sessions
    from birdwire.outcomes.journal import Journal
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.x.client.api import X

CHECKS_AFTER_S = (2, 10, 30, 60, 300, 900, 3_600, 6 * 3_600, 24 * 3_600)
"""When a lost post is searched for, in seconds after it was lost."""

CERTAIN_AFTER, MIN_READS = timedelta(seconds=60), 2
"""A post that is in no timeline is not found after this time and this number of complete readings."""

MARGIN_BEFORE, MARGIN_AFTER = timedelta(seconds=5), timedelta(seconds=60)
"""How far before the call, and after the loss, X may have created a post."""

UNKNOWN_SKEW, MAX_SKEW_CHANGE = timedelta(minutes=15), timedelta(seconds=2)
SCOPES = frozenset({"tweet.read", "users.read"})
MAX_READ_S, CLAIM = 30.0, timedelta(seconds=60)
PAUSE, LATER_PAUSE = timedelta(seconds=1), timedelta(seconds=30)
MAX_ROWS, MAX_PAGES, MAX_KEYS, MAX_CONCURRENT = 1_000, 20, 3, 8


OnRead = Callable[[str, str, int, int], Awaitable[None]]
"""Called with a key, an account, and how many posts and users X returned in a reading for writes of that key.

X bills each of them, whatever they are read for.
"""


@dataclass(slots=True)
class Read:
    """What was read of a timeline: the posts that no row has yet, back to `since`; or why nothing was read.

    `skew`: how far X's clock was assumed to be ahead of this one. `billed`: how many posts X returned.
    """

    skew: timedelta | None = None
    posts: list[TimelinePost] = field(default_factory=list)
    since: datetime | None = None
    why: Why | None = None
    wait_s: float = 0.0
    billed: int = 0

    def window(self, row: JournalRow) -> tuple[datetime, datetime]:
        """Return the moments of X's clock between which X created a lost post, if it did."""
        slow = -UNKNOWN_SKEW if self.skew is None else min(self.skew, timedelta())
        fast = UNKNOWN_SKEW if self.skew is None else max(self.skew, timedelta())
        # A call without `lost_at` still runs.
        ends_at = row.lost_at + MARGIN_AFTER + fast if row.lost_at else datetime.max.replace(tzinfo=UTC)
        return row.start - MARGIN_BEFORE + slow, ends_at


class Reconciler:
    """Reconciles the open rows of one database's journal with what X did."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        leases: ProcessLeases,
        sessions: Sessions,
        x: X,
        clients: AccountClients,
        clock: Clock,
        telemetry: Telemetry,
        on_read: OnRead | None = None,
    ) -> None:
        self._database = database
        self._journal = journal
        self._leases = leases
        self._sessions = sessions
        self._x = x
        self._clients = clients
        self._clock = clock
        self._telemetry = telemetry
        self._on_read = on_read
        self._round = asyncio.Lock()

    async def recover(self) -> None:
        """Mark, at start, what a dead process had started as unknown.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.write() as connection:
            await store.expedite_started(connection, self._clock.now())
            await reconciliations.purge(connection, self._clock.now() - timedelta(seconds=CHECKS_AFTER_S[-1]))
        await self._mark(await self._due())

    async def round(self) -> None:
        """Check the rows that are due; due every second. A round that is requested while one runs waits for it.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._round:
            rows = await self._due()
            if rows:
                await self._mark(rows)
                await self._check_all(dict.fromkeys(row.user_id for row in rows if row.state is State.UNKNOWN))

    async def _check_all(self, accounts: Iterable[str]) -> None:
        limit = asyncio.Semaphore(MAX_CONCURRENT)

        async def one(user_id: str) -> None:
            async with limit:
                try:
                    await self._check(user_id)
                except Exception as error:  # noqa: BLE001 - one account's failure must not stop the checks of others
                    self._telemetry.crash("reconcile", error)

        async with asyncio.TaskGroup() as group:
            for user_id in accounts:
                group.create_task(one(user_id))

    async def _due(self) -> Sequence[JournalRow]:
        async with self._database.read() as connection:
            return await store.due(connection, self._clock.now(), MAX_ROWS)

    async def _mark(self, rows: Sequence[JournalRow]) -> None:
        """Mark as unknown what was started, has not ended, and is run by no live process."""
        count, now = 0, self._clock.now()
        for row in rows:
            if row.state is not State.STARTED:
                continue
            async with self._database.write() as connection:
                if await self._leases.runs(connection, row.owner, row.request_id):
                    values: dict[str, Any] = {"due_at": now + LEASE}
                else:
                    why = why_lost(row.operation, searchable=row.words_ct is not None)
                    due_at = row.start + FIRST_CHECK_AFTER if why is Why.LOOKING else None
                    values = {"state": State.UNKNOWN, "status": 502, "reason": "outcome_unknown"}
                    values |= {"lost_at": row.start, "why": why, "due_at": due_at}
                changed = await store.change(connection, row.request_id, values, while_in=State.STARTED)
                # It had waited for a person: its approval ends with it, and a gateway reports that.
                if changed and "state" in values and row.started_at is not None:
                    await approvals.close(connection, row.request_id, now, report_at=now)
            count += changed and "state" in values
        if count:
            self._telemetry.event("warning", "outcomes_unknown", count=count)

    # One account: claim it, read its timeline, compare, record.

    async def _check(self, user_id: str) -> None:
        async with self._database.write() as connection:
            at = await shared_now(connection, self._clock)
            if not await reconciliations.claim(connection, user_id, at, at + CLAIM):
                return
        now = self._clock.now()
        try:
            async with self._database.read() as connection:
                rows = await store.open_of(connection, user_id, MAX_ROWS)
            due = [row for row in rows if row.state is State.UNKNOWN and row.due_at is not None and row.due_at <= now]
            if due:
                read = await self._read(user_id, due)
                # A post that X shows was started before the timeline was read, so by now it has a row, with the post's
                # id if X's answer arrived. The open rows are read first: if an answer arrives between the two queries,
                # the second one finds its id.
                async with self._database.read() as connection:
                    rows = await store.open_of(connection, user_id, MAX_ROWS)
                    known = await store.made(connection, [post.id for post in read.posts])
                read.posts = [post for post in read.posts if post.id not in known]
                await self._judge(rows, {row.request_id for row in due}, read)
            recent = any(row.lost_at and row.lost_at > now - CERTAIN_AFTER - LATER_PAUSE for row in rows)
        except StorageDownError:
            # The claim expires by itself.
            return
        async with self._database.write() as connection:
            at = await shared_now(connection, self._clock)
            await reconciliations.release(connection, user_id, at + (PAUSE if recent else LATER_PAUSE))

    async def _read(self, user_id: str, due: Sequence[JournalRow]) -> Read:
        """Read the account's posts since the oldest that is due: every page, up to MAX_PAGES."""
        read = Read(self._x.skew())
        try:
            client = await self._client(user_id, due)
            if client is None:
                return Read(why=Why.NOT_LINKED)
            async with asyncio.timeout(MAX_READ_S):
                await self._read_pages(client, due, read)
                skew = self._x.skew()
                if skew is not None and read.skew is not None and skew < read.skew - MAX_SKEW_CHANGE:
                    # X's clock is further behind than was assumed: the reading started too late.
                    read = Read(skew, billed=read.billed)
                    await self._read_pages(client, due, read)
        except (GatewayError, TimeoutError) as error:
            return Read(why=Why.NO_READ, wait_s=getattr(error, "retry_after_s", None) or 0.0)
        finally:
            await self._bill(user_id, due, read.billed)
        return read

    async def _bill(self, user_id: str, due: Sequence[JournalRow], posts: int) -> None:
        """Report a reading for the first charged write that it was made for, if there is one."""
        charged = next((row for row in due if row.spent), None)
        if self._on_read is not None and charged is not None and posts:
            # The reading stays valid, and the next one is reported again.
            with contextlib.suppress(StorageDownError):
                await self._on_read(charged.key_id, user_id, posts, 0)

    async def _client(self, user_id: str, due: Sequence[JournalRow]) -> AccountClient | None:
        """Return a client of the account, through a link of a key that asked for one of these posts."""
        for key_id in list(dict.fromkeys(row.key_id for row in due))[:MAX_KEYS]:
            session = await self._sessions.acting_as(key_id, user_id)
            if session is not None and session.scopes >= SCOPES:
                return self._clients.open(session)
        return None

    async def _read_pages(self, client: AccountClient, due: Sequence[JournalRow], read: Read) -> None:
        page, until = None, None
        read.since = min(read.window(row)[0] for row in due)
        last = max(read.window(row)[1] for row in due)
        if last < self._clock.now() - MARGIN_AFTER:
            until = last
        for _ in range(MAX_PAGES):
            asked = request(client.user_id, read.since, until, page)
            answer = await client.ask(asked, Reading(TimelinePage, about="user", whole=True))
            found = TimelinePage.model_validate(answer)
            read.posts += found.data
            read.billed += len(found.data)
            page = found.next_token
            if page is None:
                break
        else:
            read.since, read.why = min(post.at for post in read.posts), Why.TOO_MANY_POSTS

    async def _judge(self, rows: Sequence[JournalRow], due: set[str], read: Read) -> None:
        lost = []
        for row in rows:
            text = self._journal.unseal(row)
            if text is not None:
                lost.append(LostPost(row, Signature.decode(text), *read.window(row)))
        matches = match(lost, read.posts) if read.since is not None else {}
        for one in lost:
            # A row that is not unknown takes part only to claim its own post.
            if one.row.state is not State.UNKNOWN:
                continue
            request_id = one.row.request_id
            post = matches.get(request_id)
            if isinstance(post, TimelinePost):
                await self._found(one.row, post)
            elif request_id in due:
                why, covered = read.why or Why.NO_READ, read.since is not None and read.since <= one.since
                if covered:
                    why = Why.SEVERAL_MATCH if request_id in matches else Why.LOOKING
                await self._not_found(one.row, why, read, covered=covered)

    async def _found(self, row: JournalRow, post: TimelinePost) -> None:
        values = {
            "state": State.FOUND,
            "status": 201,
            "reason": None,
            "why": None,
            "data": {"id": post.id},
            "x_id": post.id,
            "words_ct": self._journal.seal(row.request_id, html.unescape(post.text)),
            "settled_at": self._clock.now(),
            "due_at": None,
        }
        await self._change(row, values)

    async def _not_found(self, row: JournalRow, why: Why, read: Read, *, covered: bool) -> None:
        """Record a reading without a match, or its failure: settle the row, end the search, or schedule a check."""
        now, reads, lost_at = self._clock.now(), row.reads + covered, row.lost_at or row.start
        ends_at = lost_at + timedelta(seconds=CHECKS_AFTER_S[-1])
        certain = why is Why.LOOKING and now >= lost_at + CERTAIN_AFTER
        values: dict[str, Any] = {"looks": row.looks + 1, "reads": reads, "why": why}
        if certain and reads >= MIN_READS:
            values |= {"state": State.NOT_FOUND, "reason": "not_applied", "why": None, "settled_at": now}
            values |= {"words_ct": None, "due_at": None}
        elif now >= ends_at:
            values |= {"words_ct": None, "due_at": None}
        else:
            later = (lost_at + timedelta(seconds=after_s) for after_s in CHECKS_AFTER_S)
            due_at = min((at for at in later if at > now), default=ends_at)
            # Only one more reading is missing.
            if certain:
                due_at = now + PAUSE
            values["due_at"] = max(due_at, now + timedelta(seconds=read.wait_s))
        await self._change(row, values)

    async def _change(self, row: JournalRow, values: dict[str, Any]) -> None:
        values, back = settlement.judged(row, values)
        async with self._database.write() as connection:
            changed = await store.change(connection, row.request_id, values, while_in=State.UNKNOWN)
            for part in back if changed else ():
                await connection.execute(part.statement, part.row)
            # The request answers for its Idempotency-Keys until a day after the verdict.
            if changed and "settled_at" in values and row.started_at is not None:
                await approvals.change(connection, row.request_id, {"ended_at": values["settled_at"]})
            if changed and values.get("state") in RECONCILED:
                await _notify(connection, row, values)
        if changed and values["due_at"] is None:
            state = values.get("state", State.UNKNOWN)
            seconds = (self._clock.now() - (row.lost_at or row.start)).total_seconds()
            self._telemetry.metrics.add("birdwire_lost_posts_total", state)
            self._telemetry.event("info", "outcome", request_id=row.request_id, state=state, seconds=round(seconds, 1))


async def _notify(connection: AsyncConnection, row: JournalRow, values: Mapping[str, Any]) -> None:
    """Write the event of a verdict in the transaction that records it."""
    data = {
        "request_id": row.request_id,
        "operation": row.operation,
        "account": await x_sessions.named(connection, row.user_id),
        "key": await api_keys.named(connection, row.key_id),
        "outcome": values["state"],
        "post_id": values.get("x_id"),
    }
    await outbox.add(connection, "request.settled", values["settled_at"], data)
