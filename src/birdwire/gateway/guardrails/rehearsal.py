"""Rehearses policies without a gateway: one call as a test, and past writes as a report or a replay.

A replay simulates what counts: caps, gaps, budgets and repeated texts start from zero and follow the writes in their
order. It decides nothing, charges nothing, and sends nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.gateway.admission import check_action
from birdwire.gateway.guardrails.pauses import in_force
from birdwire.gateway.guardrails.pauses import refusal as pause_refusal
from birdwire.gateway.guardrails.policy import (
    Context,
    Decision,
    Guard,
    Policy,
    approve_by,
    charges,
    evaluate,
    needs,
    refusal,
    snapshot_keys,
)
from birdwire.gateway.guardrails.preview import refusal_document
from birdwire.gateway.guardrails.proposal import Proposal, comparable_text, proposal_of_features, propose
from birdwire.gateway.guardrails.registry import read
from birdwire.gateway.guardrails.status import GuardStatus
from birdwire.keys.registry import Keys
from birdwire.outcomes.approval_payload import Payload
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.store.encryption.text_marks import TextMarks
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import journal, pauses, policies, usage, x_sessions
from birdwire.store.tables.journal import NOT_APPLIED, STATES
from birdwire.x.catalog.operations import OPERATIONS_BY_NAME
from birdwire.x.catalog.post_length import LIMIT
from birdwire.x.catalog.prices import Prices, usd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.journal import JournalRow
    from birdwire.store.tables.usage import Charge
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.client.requests import XRequest

Result = TypeVar("Result")
MAX_EXAMPLES, MAX_ROWS = 5, 100_000


@dataclass(slots=True)
class Report:
    """How often each rule found something, with examples; `writes` is the number of rows, judged or not."""

    since: datetime
    writes: int = 0
    not_judged: int = 0
    _found: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, request_id: str, findings: Iterable[tuple[str, str]]) -> None:
        """Count findings, as rule and outcome, of one write; a rule that several policies have counts once."""
        for found in dict.fromkeys(findings):
            self._found[found].append(request_id)

    @property
    def document(self) -> dict[str, Any]:
        """Return the report as programs read it, the most frequent finding first."""
        rows = sorted(self._found.items(), key=lambda one: (-len(one[1]), one[0]))
        return {
            "since": rfc3339(self.since),
            "rows": [
                {"rule": rule, "outcome": outcome, "count": len(ids), "examples": ids[-MAX_EXAMPLES:]}
                for (rule, outcome), ids in rows
            ],
            "not_judged": self.not_judged,
        }


class Counters:
    """Simulated counters of a replay."""

    def __init__(self) -> None:
        self._amounts: dict[tuple[str, str, str], int] = {}
        self._texts: dict[str, dict[str, int]] = defaultdict(dict)

    def context(self, judged: Sequence[Policy], proposal: Proposal, at: datetime) -> Context:
        """Return what an evaluation would know at a moment."""
        amounts = {key: self._amounts.get(key, 0) for key in snapshot_keys(judged, proposal, at)}
        return Context(at, amounts, dict(self._texts.get(_mark(proposal) or "", {})))

    def spend(self, spent: Iterable[Charge]) -> None:
        """Count a write that passed."""
        for charge in spent:
            if charge.kind == "text":
                self._texts[charge.window][charge.scope] = charge.amount
            else:
                key = (charge.scope, charge.measure, charge.window)
                before = self._amounts.get(key, 0) if charge.kind == "add" else 0
                self._amounts[key] = before + charge.amount


class Rehearsal:
    """Rehearses policies on one database. Without a vault, rows whose texts it would have to decrypt are not judged."""

    def __init__(self, database: Database, vault: Vault | None) -> None:
        self._database = database
        self._vault = vault
        self._prices = Prices.load()

    async def report(self, key_id: str, since: datetime) -> Report:
        """Count what the policies found in a key's calls, obeyed or in shadow mode.

        Raises:
            KeyRuleError: the key is unknown.
        """
        await Keys(self._database, Clock()).get(key_id)
        report = Report(since)
        async for row in self._rows(key_id, since):
            report.writes += 1
            decision = row.decision or {}
            found = [*decision.get("shadow", ()), *decision.get("findings", ())]
            report.add(row.request_id, ((str(one.get("rule")), str(one.get("outcome"))) for one in found))
        return report

    async def replay(self, key_id: str, since: datetime, proposed: Mapping[str, Any] | None = None) -> Report:
        """Evaluate a key's writes since a moment against the policies that apply now; `proposed` replaces its own.

        The key's own policy is evaluated as if it were enforced.

        Raises:
            KeyRuleError: the key is unknown.
            PolicyError: a policy cannot be read.
        """
        await Keys(self._database, Clock()).get(key_id)
        report, counters, made = Report(since), Counters(), set[str | None]()
        async with self._database.read() as connection:
            user_id = _user_id(await _account(connection, key_id))
            judged = await self._policies(connection, key_id, user_id, proposed, enforced=True)
        async for row in self._rows(key_id, since):
            # A write that waits for a person, or that nobody approved, was never started.
            if STATES[row.state].asked:
                continue
            report.writes += 1
            proposal = self._proposal(row)
            if proposal is None:
                report.not_judged += 1
                continue
            context = counters.context(judged, proposal, row.created_at)
            if row.operation == "post_twitter":
                made.add(row.x_id)
            elif "own_post" in needs(judged, OPERATIONS_BY_NAME[row.operation]):
                own = row.target in made or await self._made(key_id, row.target)
                context = replace(context, own_post=own)
            decision = evaluate(judged, proposal, context)
            report.add(row.request_id, ((one.rule, one.outcome) for one in decision.findings))
            if decision.outcome == "allow" and row.state not in NOT_APPLIED:
                counters.spend(charges(judged, proposal, row.created_at, _mark(proposal))[0])
        return report

    async def test(self, key_id: str, name: str, fields: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """Return what would become of a call, as a dry run returns it; what only a running gateway knows is null.

        Raises:
            KeyRuleError: the key is unknown.
            PolicyError: a policy cannot be read.
        """
        operation = OPERATIONS_BY_NAME[name]
        key = await Keys(self._database, Clock()).get(key_id)
        async with self._database.read() as connection:
            account = await _account(connection, key_id)
            judged = await self._policies(connection, key_id, _user_id(account))
            paused = await pauses.of(connection, _scopes(key_id, _user_id(account)))
        trial = _Trial(operation, account, dict(fields), approve_by(judged) if judged else None)
        trial.take(lambda: key.check(_At(now), key.mode))
        trial.take(lambda: check_action(key, name))
        for row in in_force(paused, now)[:1]:
            trial.refusals.append(pause_refusal(row))
        body = trial.take(lambda: check(fields, operation.body, {"text_limit": key.rules.text_limit}))
        if body is not None:
            price = self._prices.reserved(operation, body)
            trial.proposal = propose(operation, _user_id(account), body, price)
            context = await self._context(judged, trial.proposal, operation, key_id, now)
            trial.decision = evaluate(judged, trial.proposal, context)
            trial.request = None if account is None else operation.upstream(account.user_id, body)
            trial.blind = self._vault is None and "text_mark" in needs(judged, operation)
        guard = Guard(key_id, _user_id(account), tuple(judged), tuple(paused), ())
        trial.budget = await GuardStatus(self._database, _unguarded, _At(now)).budget(guard)
        return trial.document(self._prices.listed_on, key.rules.text_limit or LIMIT)

    async def _context(
        self, judged: Sequence[Policy], proposal: Proposal, operation: Operation, key_id: str, now: datetime
    ) -> Context:
        """Return what the database knows at a moment about a call."""
        needed, text = needs(judged, operation), comparable_text(proposal)
        mark = None
        if "text_mark" in needed and text is not None and self._vault is not None:
            mark = await TextMarks(self._database, self._vault, Clock()).known_mark(text)
        spent = [one for part in charges(judged, proposal, now, mark) for one in part]
        async with self._database.read() as connection:
            amounts = await usage.amounts(connection, snapshot_keys(judged, proposal, now))
            texts = [(one.scope, one.window) for one in spent if one.kind == "text"]
            found = await usage.marks_at(connection, texts)
        own = await self._made(key_id, proposal.target) if "own_post" in needed else None
        return Context(now, amounts, {scope: at_ms for (scope, _), at_ms in found.items()}, own)

    async def _policies(
        self,
        connection: AsyncConnection,
        key_id: str,
        user_id: str | None,
        proposed: Mapping[str, Any] | None = None,
        *,
        enforced: bool = False,
    ) -> list[Policy]:
        """Return the policies that apply to a key; `proposed` replaces its own, `enforced` ends its shadow mode.

        Raises:
            PolicyError: one cannot be read.
        """
        rows = [row for row in await policies.latest(connection, _scopes(key_id, user_id)) if row.rules is not None]
        judged = [
            read(replace(row, enforcement="enforce") if enforced else row)
            for row in rows
            if proposed is None or row.scope != key_id
        ]
        if proposed is not None:
            judged.append(Policy.read(key_id, "operator", 0, "enforce", None, proposed))
        return judged

    async def _made(self, key_id: str, post_id: str | None) -> bool:
        """Return whether the journal shows that a key made a post."""
        async with self._database.read() as connection:
            return post_id is not None and await journal.made_by(connection, key_id, post_id)

    async def _rows(self, key_id: str, since: datetime) -> AsyncIterator[JournalRow]:
        """Yield a key's writes since a moment, oldest first, at most MAX_ROWS of them."""
        async with self._database.read() as connection:
            async for page in journal.of_key(connection, key_id, since, MAX_ROWS):
                for row in page:
                    yield row

    def _proposal(self, row: JournalRow) -> Proposal | None:
        """Return what a past write asked for; None if it cannot be judged."""
        features = self._unsealed(row.features_ct, row.request_id, "features_ct")
        text = self._unsealed(row.words_ct, row.request_id, "words_ct")
        proposal = proposal_of_features(
            row.operation, row.user_id, None if features is None else json.loads(features), text, row.cost_microusd
        )
        return proposal and replace(proposal, target=row.target)

    def _unsealed(self, blob: bytes | None, request_id: str, column: str) -> str | None:
        if blob is None or self._vault is None:
            return None
        try:
            return self._vault.open(blob, Place("journal", request_id, column))
        except VaultError:
            # It was changed at rest.
            return None


@dataclass(slots=True)
class _Trial:
    """One call that is tried: what is known of it so far, and each refusal that it would meet."""

    operation: Operation
    account: x_sessions.NamedAccount | None
    fields: dict[str, Any]
    approve_by: str | None
    refusals: list[GatewayError] = field(default_factory=list)
    proposal: Proposal | None = None
    decision: Decision | None = None
    request: XRequest | None = None
    budget: dict[str, Any] | None = None
    blind: bool = False

    def take(self, step: Callable[[], Result]) -> Result | None:
        """Run a check, and collect its refusal; return what it returned, or None."""
        try:
            return step()
        except GatewayError as error:
            self.refusals.append(error)
            return None

    def document(self, listed_on: str, limit: int) -> dict[str, Any]:
        """Return the verdict."""
        decision, proposal, account = self.decision, self.proposal, self.account
        outcome = "deny" if self.refusals else "allow" if decision is None else decision.outcome
        findings = [] if decision is None else [one.document() for one in decision.findings]
        denied = decision is not None and decision.outcome == "deny"
        refused = [*self.refusals, *([refusal(decision)] if decision is not None and denied else [])]
        price = None if proposal is None else proposal.price
        return {
            "outcome": outcome,
            "operation": self.operation.name,
            "account": account and {"user_id": account.user_id, "username": account.username},
            "refusals": [refusal_document(error) for error in refused],
            "findings": findings,
            "payload_sha256": account and Payload(self.operation.name, account.user_id, self.fields).sha256,
            "approve_by": self.approve_by,
            "text": None if proposal is None or proposal.weight is None else _text(proposal, limit),
            "cost_usd": usd(price),
            "listed_on": listed_on,
            "budget": self.budget,
            "x": None,
            "request": self.request
            and {"method": self.request.method, "path": self.request.path, "json": self.request.json},
            "warnings": list(self._warnings()),
        }

    def _warnings(self) -> Iterator[str]:
        if self.account is None:
            yield "No X account is linked to this key yet."
        if self.blind:
            yield "Without the vault key, the rule duplicate_text was not judged."
        shadow = () if self.decision is None else self.decision.shadow
        if shadow:
            found = ", ".join(dict.fromkeys(f"{one.rule} ({one.outcome})" for one in shadow))
            yield f"The key's policy is in shadow mode, so these findings are not obeyed: {found}."


def _text(proposal: Proposal, limit: int) -> dict[str, Any]:
    links, mentions = list(proposal.links), list(proposal.mentions)
    return {"weight": proposal.weight, "limit": limit, "links": links, "mentions": mentions}


class _At(Clock):
    """A clock that shows one moment."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def unix_s(self) -> float:
        """Return the moment."""
        return self._moment.timestamp()


def _mark(proposal: Proposal) -> str | None:
    """Return a mark of a post's text for a simulation."""
    text = comparable_text(proposal)
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _scopes(key_id: str, user_id: str | None) -> list[str]:
    return [key_id, *([] if user_id is None else [f"account:{user_id}"]), "gateway"]


async def _unguarded(_: str) -> None:
    """Stand in for the guards of a gateway, which a trial reads itself."""


def _user_id(account: x_sessions.NamedAccount | None) -> str | None:
    return None if account is None else account.user_id


async def _account(connection: AsyncConnection, key_id: str) -> x_sessions.NamedAccount | None:
    return next(iter(await x_sessions.accounts_of(connection, key_id)), None)
