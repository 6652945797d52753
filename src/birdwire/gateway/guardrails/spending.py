"""Judges the calls of guarded keys, and reserves what they may do and spend; nothing else reserves for a call.

The rules that do not count are judged when the call comes. Those that count are judged exactly, by the unit of the
group commit that lets the call pass: if one of them refuses, it writes nothing. A refusal lists every finding, so all
rules are then judged again, those that count by a snapshot of the store.

The unit that records that X did not carry a call out gives back what the call reserved. What a key's own policy counts
in shadow mode is a unit of its own, which nothing obeys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError
from birdwire.gateway.guardrails import policy as rules
from birdwire.gateway.guardrails.counting_rules import over
from birdwire.gateway.guardrails.policy import ACCOUNT_PREFIX, GATEWAY_SCOPE, Context, Decision
from birdwire.gateway.guardrails.proposal import Proposal, comparable_text, propose_lookup
from birdwire.outcomes.journal import ChargeRefused
from birdwire.store.database import StorageDownError
from birdwire.store.tables import journal as journal_rows
from birdwire.store.tables import usage as store
from birdwire.store.tables.usage import Charge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from birdwire.api.messages import Headers
    from birdwire.api.reason_type import Reason
    from birdwire.gateway.guardrails.budget_reports import BudgetReports
    from birdwire.gateway.guardrails.decision import UsageKey
    from birdwire.gateway.guardrails.policy import Guard, Policy
    from birdwire.outcomes.entry import Entry
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database, Part
    from birdwire.store.encryption.text_marks import TextMarks
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.catalog.prices import Prices

COST_HEADER = "x-birdwire-cost-usd"
MAX_STARTS = 3
"""How often a call is tried if the snapshot does not explain its refusal: another call gave back in between."""

_NEEDING = frozenset({"post_twitter", "delete_twitter"})
"""Operations about which a rule asks what the account has posted."""

_REASONS: dict[str, Reason] = {"duplicate_text": "duplicate_text", "budget": "budget_exhausted"}
"""The reasons of rules that count; all others have cap_reached."""


ALLOWED, UNREAD = Decision("allow"), Proposal("", None)
"""What is known of a call until its body is read and judged."""


GuardOf = Callable[[str], Awaitable["Guard | None"]]
"""Returns what holds for a key, by its id; None if nothing does."""


@dataclass(slots=True)
class Judged:
    """A guarded call: what holds for it, what it asks for, and what its policies make of it so far.

    `mark` identifies its text. `charges` let it pass, and `shadow` was counted for the policy in shadow mode.
    `registered`: it counts as running. `shown` are the findings that a person saw who approved it. `label` and
    `username` are those of its key and its account. `short` is the first charge that its budget did not cover at
    the last look.
    """

    guard: Guard
    proposal: Proposal = UNREAD
    own_post: bool | None = None
    mark: str | None = None
    decision: Decision = ALLOWED
    charges: tuple[Charge, ...] = ()
    shadow: tuple[Charge, ...] = ()
    registered: bool = False
    shown: Sequence[Mapping[str, Any]] = ()
    short: Charge | None = None
    label: str = ""
    username: str = ""

    @property
    def obeys(self) -> bool:
        """Whether a policy is obeyed for the call: one that only runs in shadow mode changes nothing."""
        return bool(self.guard.unreadable) or not all(policy.is_shadow for policy in self.guard.policies)

    @property
    def asks(self) -> bool:
        """Whether a person must decide on the call."""
        return self.decision.outcome == "require_approval"

    @property
    def price(self) -> int | None:
        """What the call costs if X carries it out once: its price, or what a budget reserves for an unpriced call."""
        if self.proposal.price is not None:
            return self.proposal.price
        return store.usd_in(store.encode(self.charges)) or None

    def name_of(self, scope: str) -> str:
        """Return one of the call's scopes as a person knows it, as far as the call knows that."""
        if scope == GATEWAY_SCOPE:
            return "the gateway"
        if scope.startswith(ACCOUNT_PREFIX):
            return f"@{self.username}" if self.username else scope
        return self.label or scope

    def header(self, *, times: int = 1, usd: int | None = None) -> Headers:
        """Return the header that states what the call cost, unless no policy is obeyed, or nobody knows the price.

        It is the price multiplied by `times`, or `usd` if the call has no fixed price.
        """
        cost = usd if usd is not None else None if self.price is None else self.price * times
        return ((COST_HEADER, format_usd(cost)),) if self.obeys and cost is not None else ()

    def document(self) -> dict[str, Any]:
        """Return the decision as the journal records it."""
        decision = self.decision
        return {
            "versions": {_name(policy): policy.version for policy in self.guard.policies},
            "findings": [_recorded(finding.document()) for finding in decision.findings],
            "shadow": [_recorded(finding.document()) for finding in decision.shadow],
        }


def _name(policy: Policy) -> str:
    """Return the scope of a policy; an account may have two, of which the owner's is marked."""
    return policy.scope if policy.author == "operator" else f"{policy.scope}:{policy.author}"


def format_usd(amount: int) -> str:
    """Return millionths of a dollar as a decimal number of dollars, such as `0.015`."""
    whole, rest = divmod(amount, 1_000_000)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".") if rest else str(whole)


def check_readable(guard: Guard) -> None:
    """Check that every policy of a guard could be read.

    Raises:
        GatewayError: policy_unreadable: nobody knows what it forbids.
    """
    if guard.unreadable:
        raise GatewayError("policy_unreadable", scope=guard.unreadable[0])


def check_shown(decision: Decision, shown: Sequence[Mapping[str, Any]]) -> None:
    """Check that a call may go on: nothing denies it, and a person saw each finding that asks for approval.

    Raises:
        GatewayError: a policy's refusal; approval_stale: a person would have to be asked about something else.
    """
    stale = rules.stale_finding(decision, shown)
    if decision.outcome == "deny" or stale is not None:
        raise rules.refusal(decision, stale)


class Spending:
    """Judges guarded calls, and counts what passes. `reports`: what is used of budgets is reported."""

    def __init__(
        self,
        database: Database,
        guard_of: GuardOf,
        marks: TextMarks,
        prices: Prices,
        clock: Clock,
        reports: BudgetReports | None = None,
    ) -> None:
        self._database = database
        self._guard_of = guard_of
        self._marks = marks
        self._clock = clock
        self._reports = reports
        self.prices = prices

    def check_pause(self, guard: Guard) -> None:
        """Check that neither the key nor its account nor the gateway is paused.

        Raises:
            GatewayError: paused, paused_by_owner.
        """
        guard.check_pause(self._clock.now())

    async def judge(self, judged: Judged, operation: Operation | None, *, looks: bool = False) -> None:
        """Judge a call of an operation, or a lookup, by the rules that do not count; `check` refuses it.

        `looks`: nothing may be changed, not even the key created under which texts are marked.

        Raises:
            StorageDownError: the database does not answer, and a rule needs it.
        """
        if operation is not None and operation.name in _NEEDING:
            try:
                await self._read_needs(judged, operation, looks=looks)
            except StorageDownError:
                # A policy that nothing obeys must not stop a call.
                if judged.obeys:
                    raise
        context = Context(self._clock.now(), own_post=judged.own_post)
        judged.decision = rules.evaluate(judged.guard.policies, judged.proposal, context)

    async def _read_needs(self, judged: Judged, operation: Operation, *, looks: bool) -> None:
        """Read what the rules ask about the account's posts."""
        proposal, needs = judged.proposal, rules.needs(judged.guard.policies, operation)
        if "own_post" in needs and proposal.target is not None:
            async with self._database.read() as connection:
                judged.own_post = await journal_rows.made_by(connection, judged.guard.key_id, proposal.target)
        text = comparable_text(proposal) if "text_mark" in needs else None
        if text is not None:
            judged.mark = await (self._marks.known_mark(text) if looks else self._marks.mark(text))

    async def check(self, judged: Judged) -> None:
        """Check that a call may go on, by the rules that do not count.

        Raises:
            GatewayError: the refusal, with all findings.
        """
        if judged.guard.unreadable or judged.decision.outcome != "allow":
            try:
                await self.check_by_snapshot(judged)
            except GatewayError as refused:
                # A call that a person must approve is refused here, and makes no charge that could be refused.
                if refused.reason == "budget_exhausted" and judged.short is not None:
                    await self._report_refused(judged.short, judged)
                raise

    async def check_by_snapshot(self, judged: Judged) -> None:
        """Check a call by all rules, those that count by a snapshot of what was counted. Nothing is reserved.

        Raises:
            GatewayError: the refusal, with all findings.
        """
        check_readable(judged.guard)
        await self.look(judged)
        if judged.decision.outcome == "deny":
            raise rules.refusal(judged.decision)

    async def look(self, judged: Judged) -> None:
        """Judge a call again, by all rules."""
        guard, proposal, now = judged.guard, judged.proposal, self._clock.now()
        obeyed, shadow = rules.charges(guard.policies, proposal, now, judged.mark)
        judged.charges = judged.charges or obeyed
        usage: Mapping[UsageKey, int] = {}
        marks: Mapping[tuple[str, str], int] = {}
        # A caller that is refused endlessly costs little, unless a rule counts its calls.
        if obeyed or shadow:
            places = {(one.scope, one.window) for one in (*obeyed, *shadow) if one.kind == "text"}
            async with self._database.read() as connection:
                usage = await store.amounts(connection, rules.snapshot_keys(guard.policies, proposal, now))
                marks = await store.marks_at(connection, places)
        texts = {scope: at_ms for (scope, _), at_ms in marks.items()}
        context = Context(now, usage, texts, judged.own_post)
        judged.decision = rules.evaluate(guard.policies, proposal, context)
        judged.short = next((one for one in obeyed if one.rule == "budget" and over(one, context)), None)

    def judge_again(self, guard: Guard, proposal: Proposal, judged: Judged | None) -> None:
        """Judge a call that has passed by what holds for its key now, without counting it again.

        Raises:
            GatewayError: it may no longer be sent.
        """
        check_readable(guard)
        own_post = None if judged is None else judged.own_post
        decision = rules.evaluate(guard.policies, proposal, Context(self._clock.now(), own_post=own_post))
        check_shown(decision, () if judged is None else judged.shown)

    async def charge(self, judged: Judged, entry: Entry) -> None:
        """Add to a write's entry what its policies found and charge, and the parts that report it.

        What runs in shadow mode is charged now.
        """
        await self._charge(judged, entry.request_id)
        entry.charges, entry.shadow_charges = judged.charges, judged.shadow
        entry.decision = judged.document()
        entry.news = self._news(judged)

    def _news(self, judged: Judged) -> tuple[Part, ...]:
        """Return the parts that report what a call's charges reach."""
        return () if self._reports is None else self._reports.parts(judged.charges, judged.name_of)

    def ordered(self, guard: Guard, proposal: Proposal) -> tuple[Charge, ...]:
        """Return what a call that the operator ordered adds to budgets, which count its price and do not limit it."""
        charges, _ = rules.charges(guard.policies, proposal, self._clock.now(), None)
        return tuple(charge._replace(limit=None) for charge in charges if charge.measure == store.USD)

    async def begin(self, judged: Judged, begin: Callable[[], Awaitable[None]]) -> None:
        """Begin a call by a unit that charges it. If a charge does not pass, refuse the call with all findings.

        Raises:
            GatewayError: a counting rule refuses it, or why it cannot begin. Nothing was written.
        """
        for _ in range(MAX_STARTS):
            try:
                await begin()
            except ChargeRefused as refused:
                charge = judged.charges[refused.index]
            else:
                return
            try:
                await self.check_by_snapshot(judged)
            except GatewayError:
                await self._report_refused(charge, judged)
                raise
        await self._report_refused(charge, judged)
        reason: Reason = _REASONS.get(charge.rule, "cap_reached")
        raise GatewayError(reason, retry_after_s=1, detail="other calls use it up", scope=charge.scope)

    async def _report_refused(self, charge: Charge, judged: Judged) -> None:
        if self._reports is not None:
            await self._reports.exhausted(charge, judged.name_of)

    async def reserve(self, judged: Judged, request_id: str) -> None:
        """Let a lookup pass: reserve the most that it may cost.

        Raises:
            GatewayError: a counting rule refuses it. Nothing was written.
            StorageDownError: the database does not answer, and a policy is obeyed.
        """
        await self._charge(judged, request_id)
        if judged.charges:
            await self.begin(judged, partial(self._reserve, judged.charges, request_id))

    async def _reserve(self, charges: Sequence[Charge], request_id: str) -> None:
        index = await self._database.append_all(store.charging(charges, request_id))
        if index is not None:
            raise ChargeRefused(store.refused_by(charges, index) or 0)

    async def correct(self, judged: Judged, request_id: str, usd: int, count: int) -> None:
        """Correct what a lookup reserved to what X billed, count its reads, and report what budgets have used now.

        If the store is down, the most stays reserved.
        """
        asked, day = judged.proposal, f"{self._clock.now():%Y-%m-%d}"
        parts = []
        for charges in (judged.charges, judged.shadow):
            spent = store.encode(charges)
            parts += store.giving_back(spent, request_id, usd=store.usd_in(spent) - usd, counts=False)
        reads = _reads(judged.guard.key_id, asked.operation, asked.user_id, day, count, usd)
        with contextlib.suppress(StorageDownError):
            await self._database.append_all([*parts, *store.charging(reads, request_id), *self._news(judged)])

    async def add_naming(self, key_id: str, user_id: str) -> None:
        """Count that X named the account of a key.

        Raises:
            StorageDownError: the database does not answer.
        """
        await self._add_reads("users/me", key_id, user_id, posts=0, users=1)

    async def add_search(self, key_id: str, user_id: str, posts: int, users: int) -> None:
        """Count what was read to find a lost write of a key.

        Raises:
            StorageDownError: the database does not answer.
        """
        await self._add_reads("reconcile", key_id, user_id, posts=posts, users=users)

    async def _add_reads(self, name: str, key_id: str, user_id: str, *, posts: int, users: int) -> None:
        """Count reads of a guarded key that no caller asked for. A budget never stops them."""
        guard = await self._guard_of(key_id)
        if guard is None or not guard.policies:
            return
        usd, now = self.prices.of_reads({"post": posts, "user": users}), self._clock.now()
        charged = rules.charges(guard.policies, propose_lookup(name, user_id, usd), now, None)
        free = [charge._replace(limit=None) for charges in charged for charge in charges]
        free += _reads(key_id, name, user_id, f"{now:%Y-%m-%d}", posts + users, usd)
        await self._database.append_all(store.charging(free, name))

    async def give_back(self, judged: Judged, request_id: str) -> None:
        """Give back what was counted in shadow mode for a call that did not start, if the store answers."""
        if judged.shadow:
            with contextlib.suppress(StorageDownError):
                await self._database.append_all(store.giving_back(store.encode(judged.shadow), request_id))

    async def _charge(self, judged: Judged, request_id: str) -> None:
        """Set what lets a call pass, and count it for the policy in shadow mode, whose refusal is only recorded."""
        guard, proposal, now = judged.guard, judged.proposal, self._clock.now()
        judged.charges, shadow = rules.charges(guard.policies, proposal, now, judged.mark)
        if not shadow:
            return
        with contextlib.suppress(StorageDownError):
            if await self._database.append_all(store.charging(shadow, request_id)) is None:
                judged.shadow = shadow
            else:
                await self.look(judged)


def _reads(key_id: str, name: str, user_id: str | None, day: str, count: int, usd: int) -> list[Charge]:
    """Return the charges that count reads of a key, which limit nothing: the costs of a key are listed by them."""
    what = f"{name}:{user_id or ''}"
    both = ((f"reads:{what}", count), (f"reads_usd:{what}", usd))
    return [Charge("add", key_id, measure, day, amount, None) for measure, amount in both if amount]


def _recorded(finding: dict[str, Any]) -> dict[str, Any]:
    """Return a finding without its text, which could quote what the caller sent."""
    return {name: value for name, value in finding.items() if name != "message"}
