"""Dry runs: they ask nothing of X, change no row, and say what the call does when it is made right after.

FAULTS_DRY_PAIRS sets how many random calls are tried and then made.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.store.database import Database
from birdwire.x.catalog.operations import OPERATIONS
from harness.fault_scale import record, scaled
from harness.gateway import API, GRACE, PNG, POST, RunningGateway
from harness.guarded_gateway import ACCOUNT, GATEWAY, contents, pause, resume, set_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

PAIRS = scaled("DRY_PAIRS", 60, 1_000)
BODIES: dict[str, dict[str, Any]] = {
    "follow_twitter": {"target_user_id": GRACE},
    "unfollow_twitter": {"target_user_id": GRACE},
    "post_twitter": {"text": "Only a rehearsal"},
    "upload_media": {},
}
TRUE_DOMAIN, OTHER_DOMAIN = "example.org", "example.com"
PLENTY = 1_000_000
UNBOUND: dict[str, Any] = {
    **dict.fromkeys(("likes_per_15m", "likes_per_24h", "posts_per_15m", "posts_per_24h"), PLENTY),
    "limits": dict.fromkeys(
        (
            "POST /2/users/{id}/following",
            "POST /2/users/{id}/retweets",
            "POST /2/users/{id}/bookmarks",
            "DELETE /2/users/{id}/likes/{tweet_id}",
            "DELETE /2/tweets/{id}",
        ),
        PLENTY,
    ),
}
"""Limits of X that no random call reaches: they are checked before rules that count, whose refusal a dry run names."""

pytestmark = pytest.mark.timeout(120 + PAIRS)


@pytest.fixture
async def database(linked: RunningGateway) -> AsyncIterator[Database]:
    """The database of the gateway, as the command line opens it."""
    opened = Database(linked.settings.database_url)
    yield opened
    await opened.close()


def body_of(operation: str) -> dict[str, Any]:
    """Return a body that X takes."""
    return BODIES.get(operation, {"tweet_id": POST})


async def dry_run(running: RunningGateway, operation: str, body: object) -> httpx2.Response:
    """Try an operation; a file is a part of a form."""
    if operation == "upload_media":
        files = {"media_files": ("bird.png", PNG, "image/png")}
        return await running.client.post(f"{API}dry_run/{operation}", files=files)
    return await running.call(f"dry_run/{operation}", body)


RULES: dict[str, dict[str, Any] | None] = {
    "no policy": None,
    "every counting rule": {
        "caps": {"*": "500/h"},
        "min_gap_s": {"post_twitter": 60},
        "duplicate_text": {"days": 30, "across": "account"},
        "budget": {"day_usd": 100, "unpriced": "deny"},
    },
    "denials": {"words": {"deny": ["rehearsal"]}, "links": "deny", "delete": "own", "caps": {"like_twitter": "1/h"}},
    "a person decides": {"approve": "*"},
}


@pytest.mark.trust("#310")
@pytest.mark.parametrize("rules", RULES)
async def test_a_dry_run_asks_nothing_of_x_and_changes_no_row(
    linked: RunningGateway, database: Database, rules: str
) -> None:
    """Each operation, twice, at an account whose token has expired meanwhile."""
    await set_rules(database, linked.key_id, RULES[rules])
    await linked.status()
    linked.clock.advance(hours=3)
    await linked.advance_x(3 * 3_600)
    # The first call writes the gateway's own periodic rows, if any are due.
    await linked.client.get(API + "auth/status")
    before, calls = await contents(database), await linked.calls()
    for operation in OPERATIONS:
        for _ in range(2):
            answer = await dry_run(linked, operation.name, body_of(operation.name))
            assert answer.status_code == 200, (operation.name, answer.text)
            assert answer.json()["would"]["operation"] == operation.name
    assert await linked.calls() == calls
    after = await contents(database)
    assert {name: rows for name, rows in after.items() if rows != before[name]} == {}


async def test_a_dry_run_is_answered_while_everything_is_paused(linked: RunningGateway, database: Database) -> None:
    """It names the pause, and the pause still holds."""
    await pause(database, GATEWAY)
    would = (await dry_run(linked, "post_twitter", body_of("post_twitter"))).json()["would"]
    assert (would["outcome"], [refusal["reason"] for refusal in would["refusals"]]) == ("deny", ["paused"])
    await resume(database, GATEWAY)
    would = (await dry_run(linked, "post_twitter", body_of("post_twitter"))).json()["would"]
    assert (would["outcome"], would["refusals"]) == ("allow", [])


class Dice:
    """Random policies and calls."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._number = 0

    def scope(self, key_id: str) -> str:
        """Return a scope that holds for the key."""
        return self._random.choice([key_id, key_id, ACCOUNT, GATEWAY])

    def rules(self) -> dict[str, Any]:
        """Return up to four rules."""
        chosen = self._random.sample(sorted(VALUES), self._random.randint(0, 4))
        return {name: self._random.choice(VALUES[name]) for name in chosen}

    def call(self) -> tuple[str, dict[str, Any]]:
        """Return an operation and its body; X takes all of them."""
        operation = self._random.choice([*["post_twitter"] * 6, *CALLED])
        if operation != "post_twitter":
            return operation, dict(body_of(operation))
        body: dict[str, Any] = {"text": self._text()}
        for name, value in self._random.sample(sorted(MEMBERS.items()), self._random.choice([0, 0, 1, 2])):
            body |= {name: value}
        if "poll" in body and "quote_tweet_id" in body:
            del body["poll"]
        return operation, body

    def _text(self) -> str:
        self._number += self._random.choice([1, 1, 1, 0])
        words = self._random.sample(WORDS, self._random.randint(1, 3))
        return " ".join([f"Note {self._number}", *words])


VALUES: dict[str, list[Any]] = {
    "approve": [["post_twitter"], ["like_twitter", "follow_twitter"], "*"],
    "caps": [{"post_twitter": "3/h 12/d"}, {"*": "20/h"}, {"like_twitter": "1/h"}],
    "min_gap_s": [{"post_twitter": 3_600}, {"like_twitter": 60}],
    "quiet_hours": [
        {"hours": "00:00-23:59", "zone": "UTC", "then": "deny"},
        {"hours": "00:00-23:59", "zone": "Europe/Berlin", "then": "approve"},
    ],
    "kinds": [{"reply": "approve", "quote": "deny"}, {"poll": "deny", "nullcast": "approve"}],
    "delete": ["own", "any"],
    "links": ["deny", "approve", {"only": [TRUE_DOMAIN], "else": "approve"}],
    "mentions": [{"max": 0, "else": "deny"}, {"max": 1, "else": "approve"}],
    "words": [{"deny": ["giveaway"], "approve": ["price"]}],
    "duplicate_text": [{"days": 30, "across": "account"}, {"days": 1, "across": "gateway"}],
    "budget": [{"day_usd": 1.0}, {"day_usd": 0.5, "unpriced": "approve"}, {"day_usd": 5, "unpriced": 0.01}],
}
WORDS = (
    "giveaway",
    "price",
    f"https://{TRUE_DOMAIN}/a",
    OTHER_DOMAIN,
    "@grace",
    "@alan",
    "birds",
    "\uff47\uff49\uff56\uff45\uff41\uff57\uff41\uff59",
)
MEMBERS: dict[str, Any] = {
    "reply": {"in_reply_to_tweet_id": POST},
    "quote_tweet_id": POST,
    "poll": {"options": ["Yes", "a price"], "duration_minutes": 60},
    "nullcast": True,
    "paid_partnership": True,
    "made_with_ai": True,
}
CALLED = ("like_twitter", "unlike_twitter", "follow_twitter", "retweet_twitter", "bookmark_twitter", "delete_twitter")


@pytest.mark.trust("#310")
async def test_a_dry_run_says_what_the_call_does(linked: RunningGateway, database: Database) -> None:
    """Random policies at every scope, and random calls: outcome, reason, status and findings are the same."""
    await linked.configure(**UNBOUND)
    dice, outcomes = Dice(PAIRS), Counter[str]()
    scopes = (linked.key_id, ACCOUNT, GATEWAY)
    for number in range(PAIRS):
        if number % 5 == 0:
            for scope in scopes:
                await set_rules(database, scope, None)
            for _ in range(2):
                await set_rules(database, dice.scope(linked.key_id), dice.rules())
        operation, body = dice.call()
        would = (await dry_run(linked, operation, body)).raise_for_status().json()["would"]
        answer = await linked.call(operation, body)
        assert outcome_of(answer) == told(would), (operation, body, answer.text, would)
        outcomes[would["outcome"]] += 1
        if answer.status_code == 202:
            # At most 20 may wait; the rest of the run is about other calls, too.
            (await linked.client.post(f"{answer.headers['location']}/cancel")).raise_for_status()
    record("calls tried, then made", runs=PAIRS, different=0, **outcomes)
    assert set(outcomes) == {"allow", "deny", "require_approval"}


def told(would: dict[str, Any]) -> tuple[str, Any, Any]:
    """Return what a dry run states of the call: the outcome, the first refusal, and the findings."""
    if not would["refusals"]:
        return would["outcome"], None, would["findings"]
    first = would["refusals"][0]
    return would["outcome"], (first["reason"], first["status"], first["message"]), would["findings"]


def outcome_of(answer: httpx2.Response) -> tuple[str, Any, Any]:
    """Return the same of a call that was made. X's own refusal counts as allowed: the gateway sent the call."""
    if answer.status_code == 202:
        return "require_approval", None, answer.json()["approval"]["findings"]
    if answer.is_success or answer.json()["error"].get("upstream"):
        return "allow", None, []
    error = answer.json()["error"]
    return "deny", (error["reason"], answer.status_code, error["message"]), error.get("findings", [])
