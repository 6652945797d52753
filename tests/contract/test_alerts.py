"""The alerts that we publish: each fires on its first event, by Prometheus's own reading of a gateway."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from birdwire.runtime.metrics import METRICS
from birdwire.store.database import Database
from harness.gateway import RunningGateway
from harness.notifying import Notifier
from harness.webhook_receiver import GONE, receiving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
}
TOKEN = "a token for the tests"
REFRESH = "/2/oauth2/token"
DAY_S = 86_400
HELD_S = 29.5
STALL_S = 1.3
"""A stall of the event loop above the alert's threshold of one second."""


@contextlib.contextmanager
def file_of(running: RunningGateway) -> Iterator[sqlite3.Connection]:
    """Open the gateway's database directly."""
    file = running.directory / "birdwire.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as connection:
        yield connection


@contextlib.contextmanager
def holding() -> Iterator[asyncio.Event]:
    """Make the sandbox, which runs in this process, answer calls delayed by HELD_S once the event is set."""
    release, sleep = asyncio.Event(), asyncio.sleep

    async def held(delay: float, result: Any = None) -> Any:
        return await (release.wait() if delay == HELD_S else sleep(delay, result))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", held)
        yield release


async def renew(running: RunningGateway, **refusal: Any) -> None:
    """Cause a token renewal that X refuses."""
    await running.link("ada")
    await running.advance_x(7_300)
    await running.fault("POST", REFRESH, refusal)
    assert (await running.like()).status_code in (403, 502)


async def lose_a_link(running: RunningGateway) -> None:
    """Make X refuse the refresh token."""
    body = {"error": "invalid_request", "error_description": "Value passed for the token was invalid."}
    await renew(running, status=400, body=body)


async def refuse_the_app(running: RunningGateway) -> None:
    """Make X refuse the client id or secret."""
    await renew(running, status=401, body={"error": "unauthorized_client"})


async def store_no_tokens(running: RunningGateway) -> None:
    """Make the table of X sessions unavailable when X's answer arrives."""
    await running.link("ada")
    await running.advance_x(7_300)
    await running.fault("POST", REFRESH, {"delay_s": HELD_S})
    with holding() as release, file_of(running) as database:
        async with asyncio.timeout(20):
            liking = asyncio.create_task(running.like())
            while len(await running.calls(REFRESH)) < 2:
                pass
            await asyncio.to_thread(database.execute, "ALTER TABLE x_sessions RENAME TO elsewhere")
            release.set()
            while not running.gateway.sessions.unsaved:  # noqa: ASYNC110 - it happens in the gateway
                await asyncio.sleep(0)
            await asyncio.to_thread(database.execute, "ALTER TABLE elsewhere RENAME TO x_sessions")
            await liking


async def take_no_writes(running: RunningGateway) -> None:
    """Make the table of the journal unavailable."""
    await running.link("ada")
    with file_of(running) as database:
        database.execute("ALTER TABLE journal RENAME TO elsewhere")
        assert (await running.call("post_twitter", {"text": "Hello"})).status_code == 503
        database.execute("ALTER TABLE elsewhere RENAME TO journal")


async def refuse_a_row(running: RunningGateway) -> None:
    """The database refuses one row, and would for ever."""
    await running.link("ada")
    with file_of(running) as database:
        database.execute("CREATE TRIGGER no BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'no'); END")
        assert (await running.like()).status_code == 200
        database.execute("DROP TRIGGER no")


async def leave_a_post_unknown(running: RunningGateway) -> None:
    """X's answer is lost, and the timeline cannot be read for a day."""
    await running.link("ada")
    await running.fault("GET", "/2/users/*/tweets", {"status": 503}, times=None)
    await running.fault("POST", "/2/tweets", {"drop": "before_apply"})
    assert (await running.call("post_twitter", {"text": "Lost?"})).status_code == 502
    async with asyncio.timeout(20):
        while '"event":"outcome"' not in running.log.getvalue():
            running.clock.advance(seconds=DAY_S)
            await running.gateway.reconciler.round()


async def fail_at_x(running: RunningGateway) -> None:
    """One call fails at X, and its retry does not."""
    await running.link("ada")
    await running.fault("POST", "/2/users/*/likes", {"status": 503})
    assert (await running.like()).status_code == 200


async def fail_for_all(running: RunningGateway) -> None:
    """X fails for two accounts again and again."""
    await running.link("ada")
    _, other = await running.gateway.keys.create("test", "other", "growth")
    theirs = {"authorization": f"Bearer {other}"}
    auth_url = (await running.call("auth_twitter", headers=theirs)).json()["auth_url"]
    consent = {"auth_url": auth_url, "username": "alan", "action": "allow"}
    redirect_to = (await running.x.post("/_sandbox/consent", json=consent)).json()["redirect_to"]
    (await running.bare.get(redirect_to)).raise_for_status()
    await running.fault("POST", "/2/users/*/likes", {"status": 503}, times=None)
    async with asyncio.timeout(20):
        while '"event":"breaker"' not in running.log.getvalue() or '"accounts":"all"' not in running.log.getvalue():
            await running.like()
            await running.call("like_twitter", {"tweet_id": "1"}, headers=theirs)


async def use_a_limit_up(running: RunningGateway) -> None:
    """X allows one like; the second is not sent."""
    await running.link("ada")
    await running.configure(likes_per_15m=1)
    assert [(await running.like()).status_code for _ in range(2)] == [200, 429]


async def meet_a_bug(running: RunningGateway) -> None:
    """Write a row that no version of Birdwire writes."""

    def write() -> None:
        with file_of(running) as database:
            database.execute("UPDATE api_keys SET ips = '[1.5]'")

    # The gateway runs in this thread's loop, and may be in the middle of a transaction.
    await asyncio.to_thread(write)
    assert (await running.like()).json()["error"]["reason"] == "internal"


async def count_alone(running: RunningGateway) -> None:
    """Call a gateway whose Redis is unreachable."""
    assert (await running.like()).headers["x-ratelimit-degraded"] == "local"


async def stand_still(running: RunningGateway) -> None:
    """Block the event loop."""
    del running
    time.sleep(STALL_S)  # noqa: ASYNC251 - blocking the loop is what is tested


async def be_full(running: RunningGateway) -> None:
    """Run one call, so that there is no place for another."""
    await running.link("ada")
    await running.fault("POST", "/2/users/*/likes", {"delay_s": HELD_S})
    with holding() as release:
        async with asyncio.timeout(20):
            first = asyncio.create_task(running.like())
            while (await running.x.get("/_sandbox/faults")).json()["faults"]:
                pass
            assert (await running.like()).status_code == 503
            release.set()
            await first


async def lose_the_log(running: RunningGateway) -> None:
    """Close the stream that takes the log's lines."""
    running.log.close()
    await running.bare.get("/livez")
    await asyncio.sleep(0)


async def lose_the_receiver(running: RunningGateway) -> None:
    """Set a destination that no longer exists, and let something happen."""
    database = Database(running.settings.database_url)
    async with receiving() as receiver:
        receiver.answer(GONE)
        await Notifier.of(database, running.settings, running.clock).set(receiver.url)
        await database.close()
        await running.link("ada")
        async with asyncio.timeout(20):
            while not (await scrape(running))["birdwire_notifications_off{}"]:  # noqa: ASYNC110 - it happens in the gateway
                await asyncio.sleep(0.05)


EVENTS: dict[str, Callable[[RunningGateway], Awaitable[None]]] = {
    "BirdwireLinkLost": lose_a_link,
    "BirdwireTokensNotStored": store_no_tokens,
    "BirdwireAppCredentialsWrong": refuse_the_app,
    "BirdwireStorageUnavailable": take_no_writes,
    "BirdwireJournalRowRefused": refuse_a_row,
    "BirdwirePostUnknown": leave_a_post_unknown,
    "BirdwireXFails": fail_at_x,
    "BirdwireXPaused": fail_for_all,
    "BirdwireXLimitReached": use_a_limit_up,
    "BirdwireNotificationsOff": lose_the_receiver,
    "BirdwireBug": meet_a_bug,
    "BirdwireLimitsDegraded": count_alone,
    "BirdwireStalled": stand_still,
    "BirdwireAtCapacity": be_full,
    "BirdwireLogLinesDropped": lose_the_log,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "BirdwireLimitsDegraded": {"redis_url": SecretStr("redis://127.0.0.1:1")},
    "BirdwireAtCapacity": {"max_calls": 1, "max_calls_queued": 0},
}


async def scrape(running: RunningGateway) -> dict[str, float]:
    """Return every series of Birdwire by its name and labels, as Prometheus writes them."""
    answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    found = {}
    for family in text_string_to_metric_families(answer.raise_for_status().text):
        for sample in family.samples:
            if sample.name in METRICS:
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def promtool(directory: Path, alert: str, before: dict[str, float], after: dict[str, float]) -> str:
    """What Prometheus says against this: the alert fires with the second scrape, and not before. Empty: nothing."""
    if shutil.which("promtool") is None and not os.environ.get("CI"):
        pytest.skip("NOT RUN: there is no promtool; install the package prometheus")
    series = [
        {"series": name, "values": f"{'_x3' if name not in before else f'{before[name]}+0x3'} {after[name]}+0x8"}
        for name in after
    ]
    fires = f'group(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series,
                "promql_expr_test": [
                    {"expr": fires, "eval_time": "45s", "exp_samples": []},
                    {"expr": fires, "eval_time": "75s", "exp_samples": [{"labels": "{}", "value": 1}]},
                ],
            }
        ],
    }
    file = directory / "test.yml"
    file.write_text(yaml.safe_dump(test, width=10_000), "utf-8")
    done = subprocess.run(  # noqa: S603 - Debian's program, and a file of ours
        ["promtool", "test", "rules", str(file)],  # noqa: S607 - wherever it is
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
async def test_an_alert_fires_on_its_first_event(tmp_path: Path, alert: str) -> None:
    """A gateway is scraped before the event and after it; what the alert rests on exists before."""
    settings = {"metrics_token": SecretStr(TOKEN)} | SETTINGS.get(alert, {})
    async with RunningGateway.built(tmp_path, rpm=1_000, **settings) as running:
        before = await scrape(running)
        await EVENTS[alert](running)
        after = await scrape(running)
    assert promtool(tmp_path, alert, before, after) == ""


def test_the_guide_has_the_alerts_of_the_rules_file() -> None:
    """Each with what it means and what to do, in the file's words and order."""
    chapter = (ROOT / "docs" / "operating.md").read_text("utf-8").split("## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(Birdwire\w+)` \| (.+) \| (.+) \|$", chapter, re.MULTILINE)
    notes = {alert: rule["annotations"] for alert, rule in ALERTS.items()}
    assert rows == [(alert, note["summary"], note["description"]) for alert, note in notes.items()]


def test_counters_used_by_alerts_exist_from_the_start() -> None:
    """A labelled counter with no series at 0 would hide its first event."""
    named = {name for rule in ALERTS.values() for name in re.findall(r"birdwire_\w+", rule["expr"])}
    assert named <= METRICS.keys()
    for name in named:
        row = METRICS[name]
        assert not row.labels or row.starts or row.watched, name


def test_the_guide_names_events_and_metrics_that_there_are() -> None:
    """And every event that the gateway logs."""
    text = (ROOT / "docs" / "operating.md").read_text("utf-8")
    assert set(re.findall(r"`(birdwire_[a-z_]+)", text)) <= METRICS.keys()
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "src" / "birdwire").rglob("*.py")]
    logged = {name for tree in trees for name in _events(tree)} | {"request"}
    table = text.split("| Event | What to do |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == logged


def test_the_guide_names_every_background_task() -> None:
    """As the event chore_failed names them, in the order of app.py."""
    tree = ast.parse((ROOT / "src" / "birdwire" / "app.py").read_text("utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    (tasks,) = (call.args[1:] for call in calls if call.func.id == "BackgroundTasks")  # type: ignore[attr-defined]
    named = [ast.literal_eval(task.elts[0]) for task in tasks if isinstance(task, ast.Tuple)]
    text = (ROOT / "docs" / "operating.md").read_text("utf-8")
    table = text.split("| `chore` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == named


def _events(tree: ast.AST) -> Iterator[str]:
    """The names in a module's calls of Telemetry.event."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "event":
            name = call.args[1]
            assert isinstance(name, ast.Constant)
            yield str(name.value)
