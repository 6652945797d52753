"""Finds out what became of lost posts: reads the account's own timeline, and tells the journal. Never sends a post.

A post is lost when X's answer to it was, or when its process died. It is looked for after 2, 10, 30 and 60 seconds. One
match: X has it. None, in two readings of which one came after a minute: X does not. Otherwise nobody knows; the row
says why, and it is looked for more and more rarely until a day has gone by.
"""

from __future__ import annotations

import asyncio
import html
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError
from birdwire.outcomes.journal import FIRST_LOOK
from birdwire.outcomes.leases import LEASE
from birdwire.store.database import StorageDownError
from birdwire.store.database import now as shared_now
from birdwire.store.tables import journal as store
from birdwire.store.tables import reconciliations
from birdwire.x.catalog.timeline import Sought, TimelinePage, TimelinePost, request
from birdwire.x.client.requests import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import RowMapping

    from birdwire.accounts.client import AccountClient, AccountClients
    from birdwire.accounts.sessions import Sessions
    from birdwire.outcomes.journal import Journal, Why
    from birdwire.outcomes.leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.x.client.api import X

LOOKS_S = (2, 10, 30, 60, 300, 900, 3_600, 6 * 3_600, 24 * 3_600)
SURE_AFTER = timedelta(seconds=60)
SURE_READS = 2
BEFORE, AFTER = timedelta(seconds=5), timedelta(seconds=60)
UNKNOWN_SKEW, SAME_SKEW = timedelta(minutes=15), timedelta(seconds=2)
SCOPES = frozenset({"tweet.read", "users.read"})
READ_S, CLAIM = 30.0, timedelta(seconds=60)
PAUSE, LATER_PAUSE = timedelta(seconds=1), timedelta(seconds=30)
MOST_ROWS, MOST_PAGES, MOST_KEYS, AT_ONCE = 1_000, 20, 3, 8


@dataclass(frozen=True, slots=True)
class Lost:
    """A post that is looked for: its row, how it is told, and between which moments of X's clock it was made."""

    row: RowMapping
    sought: Sought
    since: datetime
    until: datetime


@dataclass(slots=True)
class Read:
    """What was read of a timeline: the posts that no row has yet, back to `since`; or why nothing was.

    `skew`: how far X's clock was taken to be before ours.
    """

    skew: timedelta | None = None
    posts: list[TimelinePost] = field(default_factory=list)
    since: datetime | None = None
    why: Why | None = None
    wait_s: float = 0.0

    def window(self, row: RowMapping) -> tuple[datetime, datetime]:
        """Between which moments of X's clock a lost post was made, if it was."""
        slow = -UNKNOWN_SKEW if self.skew is None else min(self.skew, timedelta())
        fast = UNKNOWN_SKEW if self.skew is None else max(self.skew, timedelta())
        ends_at = row["lost_at"] + AFTER + fast if row["lost_at"] else datetime.max.replace(tzinfo=UTC)  # it still runs
        return row["created_at"] - BEFORE + slow, ends_at


class Reconciler:
    """The looking after of one database's journal."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        presence: ProcessLeases,
        sessions: Sessions,
        x: X,
        clients: AccountClients,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._journal = journal
        self._presence = presence
        self._sessions = sessions
        self._x = x
        self._clients = clients
        self._clock = clock
        self._telemetry = telemetry
        self._round = asyncio.Lock()

    async def recover(self) -> None:
        """At start: what a process that is gone had begun is unknown.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.write() as connection:
            await store.hasten(connection, self._clock.now())
            await reconciliations.forget(connection, self._clock.now() - timedelta(seconds=LOOKS_S[-1]))
        await self._mark(await self._due())

    async def round(self) -> None:
        """Look after what is due; every second. Who asks for one while another runs waits for that first.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._round:
            rows = await self._due()
            if rows:
                await self._mark(rows)
                await self._look_at(dict.fromkeys(row["user_id"] for row in rows if row["state"] == "unknown"))

    async def _look_at(self, accounts: Iterable[str]) -> None:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(user_id: str) -> None:
            async with turns:
                try:
                    await self._look(user_id)
                except Exception as error:  # noqa: BLE001 - one account's trouble must not end the looks at others
                    self._telemetry.crash("reconcile", error)

        async with asyncio.TaskGroup() as group:
            for user_id in accounts:
                group.create_task(one(user_id))

    async def _due(self) -> Sequence[RowMapping]:
        async with self._database.read() as connection:
            return await store.due(connection, self._clock.now(), MOST_ROWS)

    async def _mark(self, rows: Sequence[RowMapping]) -> None:
        """Of what was begun and has not ended: what no living process runs is unknown from now on."""
        count, now = 0, self._clock.now()
        for row in rows:
            if row["state"] != "started":
                continue
            async with self._database.write() as connection:
                if await self._presence.runs(connection, row["owner"], row["request_id"]):
                    values: dict[str, Any] = {"due_at": now + LEASE}
                else:
                    values = {"state": "unknown", "status": 502, "reason": "outcome_unknown"}
                    values |= {"lost_at": row["created_at"], "why": "looking", "due_at": row["created_at"] + FIRST_LOOK}
                    if row["words_ct"] is None:
                        upload = row["operation"] == "upload_media"
                        values |= {"why": "upload" if upload else "not_in_timeline", "due_at": None}
                changed = await store.change(connection, row["request_id"], values, while_in=["started"])
            count += changed and "state" in values
        if count:
            self._telemetry.event("warning", "outcomes_unknown", count=count)

    # One account: claim it, read its timeline, compare, write down.

    async def _look(self, user_id: str) -> None:
        async with self._database.write() as connection:
            at = await shared_now(connection, self._clock)
            if not await reconciliations.claim(connection, user_id, at, at + CLAIM):
                return
        now = self._clock.now()
        try:
            async with self._database.read() as connection:
                rows = await store.open_of(connection, user_id, MOST_ROWS)
            due = [row for row in rows if row["state"] == "unknown" and row["due_at"] <= now]
            if due:
                read = await self._read(user_id, due)
                # Whatever X shows was begun before it was read, so it has a row by now: its own, not a lost one's. In
                # this order: a post that is answered between these two questions is known by the second.
                async with self._database.read() as connection:
                    rows = await store.open_of(connection, user_id, MOST_ROWS)
                    known = await store.made(connection, [post.id for post in read.posts])
                read.posts = [post for post in read.posts if post.id not in known]
                await self._judge(rows, {row["request_id"] for row in due}, read)
            fresh = any(row["lost_at"] and row["lost_at"] > now - SURE_AFTER - LATER_PAUSE for row in rows)
        except StorageDownError:
            return  # the claim runs out by itself
        async with self._database.write() as connection:
            at = await shared_now(connection, self._clock)
            await reconciliations.release(connection, user_id, at + (PAUSE if fresh else LATER_PAUSE))

    async def _read(self, user_id: str, due: Sequence[RowMapping]) -> Read:
        """The account's posts since the oldest that is due; every page, up to MOST_PAGES."""
        read = Read(self._x.skew())
        try:
            line = await self._line(user_id, due)
            if line is None:
                return Read(why="not_linked")
            async with asyncio.timeout(READ_S):
                await self._pages(line, due, read)
                skew = self._x.skew()
                if skew is not None and read.skew is not None and skew < read.skew - SAME_SKEW:
                    read = Read(skew)  # X's clock is further behind than was thought: the reading began too late
                    await self._pages(line, due, read)
        except (GatewayError, TimeoutError) as error:
            return Read(why="no_read", wait_s=getattr(error, "retry_after_s", None) or 0.0)
        return read

    async def _line(self, user_id: str, due: Sequence[RowMapping]) -> AccountClient | None:
        """A way to X through a link of a key that asked for one of these posts."""
        for key_id in list(dict.fromkeys(row["key_id"] for row in due))[:MOST_KEYS]:
            current = (await self._sessions.links(key_id)).current
            if current is None or current["user_id"] != user_id or current["state"] != "active":
                continue
            session = await self._sessions.open(current)
            if session.scopes >= SCOPES:
                return self._clients.open(session)
        return None

    async def _pages(self, line: AccountClient, due: Sequence[RowMapping], read: Read) -> None:
        page, until = None, None
        read.since = min(read.window(row)[0] for row in due)
        last = max(read.window(row)[1] for row in due)
        if last < self._clock.now() - AFTER:
            until = last
        for _ in range(MOST_PAGES):
            asked = request(line.user_id, read.since, until, page)
            answer = await line.ask(asked, Reading(TimelinePage, about="user", whole=True))
            found = TimelinePage.model_validate(answer)
            read.posts += found.data
            page = found.next_token
            if page is None:
                break
        else:
            read.since, read.why = min(post.at for post in read.posts), "too_many_posts"

    async def _judge(self, rows: Sequence[RowMapping], due: set[str], read: Read) -> None:
        lost = []
        for row in rows:
            words = self._journal.words(row)
            if words is not None:
                lost.append(Lost(row, Sought.read(words), *read.window(row)))
        matches = match(lost, read.posts) if read.since is not None else {}
        for one in lost:
            if one.row["state"] != "unknown":
                continue  # it only stands for its own post
            request_id = one.row["request_id"]
            post = matches.get(request_id)
            if isinstance(post, TimelinePost):
                await self._found(one.row, post)
            elif request_id in due:
                covered = read.since is not None and read.since <= one.since
                why = ("several_match" if request_id in matches else "looking") if covered else (read.why or "no_read")
                await self._not_found(one.row, why, read, covered=covered)

    async def _found(self, row: RowMapping, post: TimelinePost) -> None:
        values = {
            "state": "found",
            "status": 201,
            "reason": None,
            "why": None,
            "data": {"id": post.id},
            "x_id": post.id,
            "words_ct": self._journal.sealed(row["request_id"], html.unescape(post.text)),
            "settled_at": self._clock.now(),
            "due_at": None,
        }
        await self._change(row, values)

    async def _not_found(self, row: RowMapping, why: Why, read: Read, *, covered: bool) -> None:
        """It was not told apart in a reading, or there was none: that was the last word, or there is another look."""
        now, reads = self._clock.now(), row["reads"] + covered
        ends_at = row["lost_at"] + timedelta(seconds=LOOKS_S[-1])
        values: dict[str, Any] = {"looks": row["looks"] + 1, "reads": reads, "why": why}
        if why == "looking" and reads >= SURE_READS and now >= row["lost_at"] + SURE_AFTER:
            values |= {"state": "not_found", "reason": "not_applied", "why": None, "settled_at": now}
            values |= {"words_ct": None, "due_at": None}
        elif now >= ends_at:
            values |= {"words_ct": None, "due_at": None}
        else:
            later = (row["lost_at"] + timedelta(seconds=after_s) for after_s in LOOKS_S)
            due_at = min((at for at in later if at > now), default=ends_at)
            if why == "looking" and now >= row["lost_at"] + SURE_AFTER:
                due_at = now + PAUSE  # one more reading is all that lacks
            values["due_at"] = max(due_at, now + timedelta(seconds=read.wait_s))
        await self._change(row, values)

    async def _change(self, row: RowMapping, values: dict[str, Any]) -> None:
        async with self._database.write() as connection:
            changed = await store.change(connection, row["request_id"], values, while_in=["unknown"])
        if changed and values["due_at"] is None:
            state, seconds = values.get("state", "unknown"), (self._clock.now() - row["lost_at"]).total_seconds()
            self._telemetry.metrics.add("birdwire_lost_posts_total", state)
            self._telemetry.event(
                "info", "outcome", request_id=row["request_id"], state=state, seconds=round(seconds, 1)
            )


def match(lost: Sequence[Lost], posts: Sequence[TimelinePost]) -> dict[str, TimelinePost | None]:
    """Which post is which lost one's, by request; None where several could be. Without a match there is no entry.

    Posts that are told alike go to their rows in the order of time, if there are as many of the one as of the other.
    """
    could = {
        one.row["request_id"]: [
            post for post in posts if one.since <= post.at <= one.until and one.sought.is_like(post)
        ]
        for one in lost
    }
    verdicts: dict[str, TimelinePost | None] = {}
    for alike in dict.fromkeys(one.sought for one in lost):
        rows = [one.row for one in lost if one.sought == alike and could[one.row["request_id"]]]
        rows.sort(key=lambda row: row["created_at"])
        theirs = {post.id: post for row in rows for post in could[row["request_id"]]}
        ordered = sorted(theirs.values(), key=lambda post: int(post.id))
        for place, row in enumerate(rows):
            alone = len(ordered) == len(rows) and ordered[place] in could[row["request_id"]]
            verdicts[row["request_id"]] = ordered[place] if alone else None
    return verdicts
