"""A gateway that is killed under load, again and again: what it acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio

from birdwire.accounts.refresh import LEASE
from harness.fault_scale import LONG, percentile, record, scaled
from harness.gateway import API, POST
from harness.processes import TOKEN, Deployment, GatewayProcess, deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KILLS = scaled("KILLS", 3, 100)
SYNCS = scaled("SYNCS", 100, 2_000)
EXPIRY_PAUSE_S = 0.3
"""Pause of the load between two expiries of the tokens, so that calls also meet valid ones."""

RENEWALS = scaled("RENEWALS", 20, 1_000)
TOKEN_ENDINGS = (b"MToxOmF0OjE", b"MToxOnJ0OjE")
"""How the sandbox's access and refresh tokens end: `1:1:at:1` and `1:1:rt:1` in base64."""

pytestmark = pytest.mark.timeout(120 + 10 * KILLS + SYNCS + RENEWALS)


@pytest_asyncio.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A sandbox and a key; no gateway runs yet."""
    async with deploy(tmp_path) as made:
        yield made


class Load:
    """Callers that record each acknowledged answer; a lost answer counts as none."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.journal: set[str] = set()
        self.links: dict[str, str] = {}  # Authorization header: the user that it acts as
        self.named: dict[str, tuple[int, bytes]] = {}  # Idempotency-Key: what was answered
        self.refused: Counter[str] = Counter()
        self._number = 0

    async def likes(self, at: GatewayProcess) -> None:
        """Like, as the linked account."""
        for header in [f"Bearer {self.deployment.raw_keys[0]}", *list(self.links)[-3:]]:
            answer = await self._post(at, "like_twitter", {"tweet_id": POST}, authorization=header)
            if answer.status_code == 200:
                self.journal.add(answer.headers["x-request-id"])
            else:
                self.refused[answer.json()["error"]["reason"]] += 1

    async def posts(self, at: GatewayProcess) -> None:
        """Post under a name, and once more: the same answer."""
        self._number += 1
        name = f"post-{self._number}"
        body = {"text": f"Number {self._number}"}
        answer = await self._post(at, "post_twitter", body, **{"idempotency-key": name})
        if answer.status_code == 201:
            self.journal.add(answer.headers["x-request-id"])
            self.named[name] = (self._number, answer.content)

    async def keys(self, at: GatewayProcess) -> None:
        """Make a key and link it."""
        raw_key = await self.deployment.key(f"key {len(self.deployment.raw_keys)}")
        header = f"Bearer {raw_key}"
        await self.deployment.link(at, "grace", authorization=header)
        self.links[header] = "grace"

    async def expiries(self, at: GatewayProcess) -> None:
        """Expire every access token at X."""
        await asyncio.sleep(EXPIRY_PAUSE_S)
        await self.deployment.expire()
        del at

    async def run(self, at: GatewayProcess, seconds: float) -> None:
        """Run the whole load concurrently, and kill the gateway after this many seconds."""

        async def again(what: Any) -> None:
            while at.process.poll() is None:
                try:
                    await what(at)
                except (httpx2.HTTPError, json.JSONDecodeError):
                    return

        tasks = [
            asyncio.create_task(again(what)) for what in (self.likes, self.likes, self.posts, self.keys, self.expiries)
        ]
        await asyncio.sleep(seconds)
        await at.kill()
        await asyncio.gather(*tasks)

    async def _post(self, at: GatewayProcess, name: str, body: object, **headers: str) -> httpx2.Response:
        given = {"authorization": f"Bearer {self.deployment.raw_keys[0]}", **headers}
        return await self.deployment.client.post(at.url + API + name, json=body, headers=given)


@pytest.mark.trust("F1", "F2", "G2")
async def test_acknowledged_work_survives_every_kill(deployment: Deployment) -> None:
    """Journal rows, links, keys, named answers; a link is lost only where X's answer to a renewal was, and says so."""
    load, chance = Load(deployment), random.Random(11)  # noqa: S311 - a test's dice
    at = await deployment.serve()
    await deployment.link(at)
    for _ in range(KILLS):
        await load.run(at, chance.uniform(0.05, 0.9))
        deployment.expire_leases()
        at = await deployment.serve()
    # The last gateway stays. Every acknowledged answer is requested again.
    for name, (number, content) in list(load.named.items())[-200:]:
        answer = await deployment.call(at, "post_twitter", {"text": f"Number {number}"}, **{"idempotency-key": name})
        assert answer.content == content
    lost = Counter[str]()
    for header, username in load.links.items():
        status = (await deployment.client.get(f"{at.url}{API}auth/status", headers={"authorization": header})).json()
        assert (status["linked"], status["username"]) in ((True, username), (True, None))  # None: to be named yet
        if status["state"] == "needs_relink":
            lost[status["why"]] += 1
    texts = Counter(post["text"] for post in (await deployment.x.get("/_sandbox/state")).json()["posts"])
    doubled = sum(number > 1 for text, number in texts.items() if text.startswith("Number "))
    await at.kill()
    kept = sqlite3.connect(deployment.directory / "birdwire.db")
    rows = {row[0] for row in kept.execute("SELECT request_id FROM journal WHERE state = 'confirmed'")}
    kept.close()
    missing = len(load.journal - rows)
    record(
        "kill -9 under load",
        runs=KILLS,
        acknowledged_writes=len(load.journal),
        acknowledged_links=len(load.links),
        lost=missing,
        posts_doubled=doubled,
        links_whose_renewal_was_cut=sum(lost.values()),
    )
    assert (missing, doubled) == (0, 0)
    assert set(lost) <= {"refresh_lost_reply"}
    assert load.journal


@pytest.mark.trust("F5", "G2")
async def test_the_time_from_xs_answer_to_the_disk_is_measured(deployment: Deployment) -> None:
    """Each renewal says how long its new pair was in memory only; the long form's report has the figures."""
    at = await deployment.serve()
    await deployment.link(at)
    for _ in range(RENEWALS):
        await deployment.expire()
        assert (await deployment.like(at)).status_code == 200
    await at.kill()
    lines = [json.loads(line) for line in at.log.read_text().splitlines()]
    windows = [float(line["ms"]) for line in lines if line["event"] == "refresh" and line["outcome"] == "success"]
    assert len(windows) == RENEWALS
    record(
        "X's answer to a renewal until it is on the disk (SQLite, ms)",
        runs=RENEWALS,
        p50=percentile(windows, 0.5),
        p99=percentile(windows, 0.99),
        most=max(windows),
    )


async def test_nothing_secret_is_left_behind(deployment: Deployment) -> None:
    """Database, journal of the file, backup and logs of processes that came and went."""
    at = await deployment.serve()
    await deployment.link(at)
    await deployment.expire()
    await deployment.like(at)
    await deployment.call(at, "post_twitter", {"text": "plain"})
    assert (await deployment.command("backup", str(deployment.directory / "copy.db")))[0] == 0
    at_rest = [
        path for path in deployment.directory.iterdir() if path.name.startswith(("birdwire.db", "copy.db", "serve-"))
    ]
    raw = b"".join(path.read_bytes() for path in at_rest)
    secrets = [
        *deployment.raw_keys,
        (deployment.directory / "vault.key").read_text().strip(),
        str(deployment.sandbox.state.clients.client_secret),
    ]
    assert len(at_rest) >= 4
    assert not [secret for secret in secrets if secret.encode() in raw]
    assert not [ending for ending in TOKEN_ENDINGS if ending in raw]


@pytest.mark.skipif(not LONG, reason="takes a minute: make faults")
@pytest.mark.trust("R3", "G1")
@pytest.mark.parametrize(("do", "reason"), [({"delay_s": 35}, None), ({"trickle_bps": 4}, "x_session_expired")])
async def test_an_x_that_is_slower_than_the_lease_is_asked_once_in_each(
    deployment: Deployment, do: dict[str, float], reason: str | None
) -> None:
    """No second send inside a lease. After it one repeat, which saves the link, or names what was lost."""
    at = await deployment.serve()
    await deployment.link(at)
    await deployment.expire()
    await deployment.fault(TOKEN, do)

    async def sent() -> int:  # those that X has not read to their end, too; the first was the link's
        calls = (await deployment.x.get("/_sandbox/calls")).json()["calls"]
        return len([call for call in calls if call["path"] == TOKEN]) - 1

    loop = asyncio.get_running_loop()
    began_at = loop.time()
    while loop.time() < began_at + LEASE.total_seconds() - 2:
        assert (await deployment.like(at)).status_code == 502
        assert await sent() == 1
    answer = await deployment.like(at)
    while answer.status_code == 502 and loop.time() < began_at + 2 * LEASE.total_seconds():
        answer = await deployment.like(at)
    assert (None if answer.status_code == 200 else answer.json()["error"]["reason"]) == reason
    assert await sent() == 2
    record("X slower than the lease", runs=1, sent_inside_a_lease=1, repeated=1, lost_and_named=int(reason is not None))


@pytest.mark.skipif(
    shutil.which("fiu-run") is None and "CI" not in os.environ, reason="needs fiu-run: apt-get install fiu-utils"
)
@pytest.mark.trust("F11")
async def test_syncs_that_fail_lose_nothing_that_was_acknowledged(deployment: Deployment) -> None:
    """Every fifth sync of the disk fails: acknowledged work is present in the end, and the file is intact."""
    failing = "enable_random name=posix/io/sync/*,probability=0.2,failinfo=5"
    clean = await deployment.serve()
    await deployment.link(clean)
    await clean.kill()
    at = None
    while at is None:  # a start needs some syncs, too
        with contextlib.suppress(ChildProcessError):
            at = await deployment.serve("fiu-run", "-x", "-c", failing)
    told: set[str] = set()
    statuses = Counter[int]()
    for _ in range(SYNCS):
        answer = await deployment.like(at)
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            told.add(answer.headers["x-request-id"])
    assert set(statuses) <= {200, 503}
    kept = sqlite3.connect(deployment.directory / "birdwire.db", timeout=30)
    async with asyncio.timeout(60):  # rows that a failed sync held up are written by and by
        while lost := told - {row[0] for row in kept.execute("SELECT request_id FROM journal")}:
            await deployment.client.get(f"{at.url}/livez")
    await at.kill()
    assert kept.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kept.close()
    record("every fifth sync fails", runs=SYNCS, acknowledged=len(told), refused=statuses[503], lost=len(lost))
