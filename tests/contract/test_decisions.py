"""One decision everywhere: each proposal meets each policy over HTTP, the relay dialect, MCP, the CLI and dry runs.

FAULTS_DECISIONS sets how many pairs of a proposal and a policy are tried.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import delete
from typer.testing import CliRunner

from birdwire.api.body import check
from birdwire.cli.command_line import build, name_of
from birdwire.cli.commands.post import FIELDS
from birdwire.gateway.guardrails.policy import Context, Policy, evaluate
from birdwire.gateway.guardrails.proposal import propose
from birdwire.gateway.guardrails.rules import RULES
from birdwire.store.database import Database
from birdwire.store.tables.journal import WAITING, journal
from birdwire.store.tables.usage import text_marks, usage
from birdwire.surfaces.mcp.tools import TOOLS
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.prices import Prices
from harness.fault_scale import scaled
from harness.gateway import API, PNG, POST, RunningGateway
from harness.guarded_gateway import ADA, set_rules
from harness.guardrails import POLICIES, PROPOSALS
from harness.mcp import call_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import httpx2

MORE_PROPOSALS: dict[str, tuple[str, dict[str, Any]]] = {
    "upload": ("upload_media", {}),
    "super followers": ("post_twitter", {"text": "For a few", "for_super_followers_only": True}),
    "shared": ("post_twitter", {"text": "To all", "community_id": POST, "share_with_followers": True}),
    "poll for some": (
        "post_twitter",
        {"text": "Tea?", "poll": {"options": ["Yes", "No"], "duration_minutes": 5, "reply_settings": "following"}},
    ),
}
"""What the table of the rules' own tests leaves out: an operation, and members of a post."""

_HOUR = datetime.now(UTC).hour
MORE_POLICIES: dict[str, dict[str, Any]] = {
    "quiet": {
        "approve_by": "operator",
        "quiet_hours": {"hours": f"{_HOUR:02}:00-{(_HOUR + 6) % 24:02}:00", "zone": "UTC", "then": "deny"},
        "trip": {"x_refused": "1000/1m"},
    },
}
"""Rules that no other policy has: the quiet hours began before this run, and end after it."""

ALL_PROPOSALS, ALL_POLICIES = PROPOSALS | MORE_PROPOSALS, POLICIES | MORE_POLICIES
PAIRS = list(product(ALL_PROPOSALS, ALL_POLICIES))
SAMPLE = scaled("DECISIONS", 40, len(PAIRS))
UNBOUND = dict.fromkeys(("likes_per_15m", "likes_per_24h", "posts_per_15m", "posts_per_24h"), 1_000_000)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
TOOL_OF = {name: (tool.name, at) for tool in TOOLS.values() if tool.writes for at, name in enumerate(tool.calls)}
"""The tool of each operation, and whether it is the one that `undo` means."""

pytestmark = pytest.mark.timeout(120 + 2 * SAMPLE)


@dataclass(frozen=True)
class Told:
    """What a caller gets: the outcome, the reason of the refusal, and all findings."""

    outcome: str
    reason: str | None = None
    status: int | None = None
    findings: tuple[str, ...] = ()


ALLOWED = Told("allow")


def told_by_error(error: Mapping[str, Any], status: int | None) -> Told:
    """Return what a refusal states. X's own counts as allowed: the gateway sent the call."""
    if error.get("upstream"):
        return ALLOWED
    return Told("deny", error["reason"], status, findings(error.get("findings", ())))


def told_by_question(document: Mapping[str, Any]) -> Told:
    """Return what the answer states of a call that waits for a person."""
    return Told("require_approval", findings=findings(document["approval"]["findings"]))


def told_by_dry_run(would: Mapping[str, Any]) -> Told:
    """Return what a dry run states."""
    refusals = would["refusals"]
    if not refusals:
        return Told(would["outcome"], findings=findings(would["findings"]))
    return Told(would["outcome"], refusals[0]["reason"], refusals[0]["status"], findings(would["findings"]))


def told_by_tool(content: Mapping[str, Any]) -> Told:
    """Return what the structured content of a tool call states. There is no status."""
    if content["state"] == "awaiting_approval":
        return told_by_question(content)
    return ALLOWED if content["ok"] else told_by_error(content["error"], None)


def findings(found: Any) -> tuple[str, ...]:
    """Return findings in their order, as texts that compare whole."""
    return tuple(json.dumps(one, sort_keys=True) for one in found)


@dataclass
class Place:
    """A gateway, its database, and a person with a shell at its machine."""

    running: RunningGateway
    database: Database
    folder: Path

    async def forget(self) -> None:
        """Delete what earlier calls have used and asked, so that each surface decides from the same state."""
        async with self.database.write() as connection:
            await connection.execute(delete(journal).where(journal.c.state.in_(WAITING)))
            await connection.execute(delete(usage))
            await connection.execute(delete(text_marks))

    async def http(self, operation: str, body: dict[str, Any]) -> Told:
        """Make the call over HTTP."""
        return _of(await self.send(operation, body))

    async def relay(self, operation: str, body: dict[str, Any]) -> Told:
        """Make the call in the dialect of older clients, whose key is in the body."""
        return _of(await self.send(operation, body, {"aisa_api_key": self.running.raw_key}))

    async def dry_run(self, operation: str, body: dict[str, Any]) -> Told:
        """Try the call."""
        answer = await self.send(f"dry_run/{operation}", body)
        assert answer.status_code == 200, answer.text
        return told_by_dry_run(answer.json()["would"])

    async def tool(self, operation: str, body: dict[str, Any]) -> Told:
        """Make the call by MCP. Fields that the tool does not show a model are the same as over HTTP."""
        name, undo = TOOL_OF[operation]
        return told_by_tool(await self._call_tool(name, body | ({"undo": True} if undo else {})))

    async def tool_preview(self, operation: str, body: dict[str, Any]) -> Told:
        """Try the call by MCP."""
        content = await self._call_tool("preview", {"operation": operation, "arguments": body})
        assert content["ok"], content
        return told_by_dry_run(content["data"]["would"])

    async def _call_tool(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result = await call_tool("", self.running.raw_key, name, arguments, client=self.running.bare)
        assert result["isError"] is not result["structuredContent"]["ok"]
        return dict(result["structuredContent"])

    async def command(self, operation: str, body: dict[str, Any]) -> Told:
        """Make the call by the command line."""
        code, document = await self._run(operation, body)
        if code == 0:
            return ALLOWED
        return told_by_question(document) if code == 8 else told_by_error(document["error"], None)

    async def command_dry_run(self, operation: str, body: dict[str, Any]) -> Told:
        """Try the call by the command line."""
        code, document = await self._run(operation, body, "--dry-run")
        would = document["would"]
        assert code == {"allow": 0, "deny": 3, "require_approval": 8}[would["outcome"]]
        return told_by_dry_run(would)

    async def send(self, path: str, body: dict[str, Any], more: dict[str, str] | None = None) -> httpx2.Response:
        """Send a call, with members that only the relay dialect has."""
        more = more or {}
        client = self.running.bare if more else self.running.client
        if path.endswith("upload_media"):
            files = {"media_files": ("bird.png", PNG, "image/png")}
            return await client.post(API + path, data=more, files=files)
        return await client.post(API + path, json=body | more)

    async def _run(self, operation: str, body: dict[str, Any], *options: str) -> tuple[int, dict[str, Any]]:
        words = [*self._words(operation, body, ["--json", *options])]
        environment = {
            "BIRDWIRE_URL": self.running.settings.base_url,
            "BIRDWIRE_API_KEY": self.running.raw_key,
            "NO_COLOR": "1",
        }
        result = await asyncio.to_thread(CliRunner().invoke, build(), words, env=environment)
        return result.exit_code, json.loads(result.stdout)

    def _words(self, operation: str, body: dict[str, Any], options: list[str]) -> list[str]:
        """Return the command for a call."""
        if operation == "upload_media":
            file = self.folder / "bird.png"
            file.write_bytes(PNG)
            return ["upload", *options, str(file)]
        if operation != "post_twitter":
            return [name_of(BY_NAME[operation]), *options, body[BY_NAME[operation].target]]
        for field in FIELDS:
            value: Any = body
            for part in field.place.split("."):
                value = None if value is None else value.get(part)
            options += _option(field.row.flag, field.place, value)
        return ["post", *options, *(["--", body["text"]] if "text" in body else [])]


def _option(flag: str, place: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if place == "poll.options":
        return [flag, "|".join(value)]
    if isinstance(value, list):
        return [word for one in value for word in (flag, one)]
    return [flag, str(value)]


def _of(answer: httpx2.Response) -> Told:
    if answer.status_code == 202:
        return told_by_question(answer.json())
    return ALLOWED if answer.is_success else told_by_error(answer.json()["error"], answer.status_code)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A linked gateway for all pairs."""
    folder = tmp_path_factory.mktemp("decisions")
    async with RunningGateway.built(folder, rpm=1_000_000) as running:
        await running.configure(**UNBOUND)
        await running.link("ada")
        database = Database(running.settings.database_url)
        yield Place(running, database, folder)
        await database.close()


def expected(place: Place, rules: Mapping[str, Any], version: int, operation: str, body: dict[str, Any]) -> Told:
    """Return the decision of the pure evaluation, from which every surface must not differ."""
    row = BY_NAME[operation]
    read = check(body, row.body)
    proposal = propose(row, ADA, read, Prices.load().reserved(row, read))
    policy = Policy.read(place.running.key_id, "operator", version, "enforce", None, rules)
    decision = evaluate([policy], proposal, Context(datetime.now(UTC), {}, {}, own_post=False))
    return Told(decision.outcome, None, None, findings([one.document() for one in decision.findings]))


@pytest.mark.trust("#311", "#336")
@pytest.mark.asyncio(loop_scope="module")
async def test_every_surface_tells_the_same_decision(place: Place) -> None:
    """No difference between the surfaces, nor between them and the evaluation: outcome, reason, status, findings."""
    step = max(1, len(PAIRS) // SAMPLE)
    seen = set()
    for proposal, policy in PAIRS[::step][:SAMPLE]:
        operation, body = ALL_PROPOSALS[proposal]
        version = await set_rules(place.database, place.running.key_id, ALL_POLICIES[policy])
        wanted = expected(place, ALL_POLICIES[policy], version, operation, body)
        first = None
        surfaces = [place.dry_run, place.http, place.relay, place.command_dry_run, place.command]
        # A model sends no files.
        surfaces += [place.tool, place.tool_preview] if operation in TOOL_OF else []
        for surface in surfaces:
            await place.forget()
            told = await surface(operation, dict(body))
            where = (surface.__name__, policy, proposal)
            assert (told.outcome, told.findings) == (wanted.outcome, wanted.findings), where
            first = first or told
            assert told.reason == first.reason, where
            assert told.status in (first.status, None), where
        seen.add(wanted.outcome)
    assert seen == {"allow", "deny", "require_approval"}


def test_the_proposals_have_every_field_and_the_policies_every_rule() -> None:
    """Sixty proposals and six policies, or more; no field of a post and no rule is left out."""
    assert len(PROPOSALS) >= 60
    assert len(POLICIES) >= 6
    posts = [body for operation, body in ALL_PROPOSALS.values() if operation == "post_twitter"]
    assert {name for body in posts for name in body} == set(PostTwitter.model_fields)
    assert {operation for operation, _ in ALL_PROPOSALS.values()} == set(BY_NAME)
    assert {name for rules in ALL_POLICIES.values() for name in rules} == {rule.name for rule in RULES}


VOLATILE = (
    "request_id",
    "id",
    "expires_at",
    "rest_id",
    "edit_history_post_ids",
    "edit_history_tweet_ids",
    "media_id",
    "media_key",
)
"""Members of an answer that differ between any two calls."""


@pytest.mark.trust("#312")
@pytest.mark.asyncio(loop_scope="module")
async def test_a_policy_in_shadow_mode_changes_no_answer(place: Place) -> None:
    """Status, headers and body are those of a key without a policy, whatever the policy would have done."""
    step = max(1, len(PAIRS) // SAMPLE)
    for proposal, policy in PAIRS[::step][:SAMPLE]:
        operation, body = ALL_PROPOSALS[proposal]
        answers = []
        for rules in (None, ALL_POLICIES[policy]):
            await place.running.x.post("/_sandbox/reset", json={})
            await place.running.configure(**UNBOUND)
            await set_rules(place.database, place.running.key_id, rules, enforcement="shadow")
            await place.forget()
            answers.append(_stable(await place.send(operation, dict(body))))
        assert answers[0] == answers[1], (proposal, policy)


def _stable(answer: httpx2.Response) -> tuple[int, list[str], Any]:
    """Return a status, the names of the headers, and a body without what differs between any two calls."""
    return answer.status_code, sorted(answer.headers), _without(answer.json())


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: None if name in VOLATILE else _without(member) for name, member in value.items()}
    return value
