"""Policies and their evaluation: pure, without a clock or a database.

The strictest finding decides: deny, then require_approval, then allow. Policies have no priority and no order, so
another policy or another rule never allows more. The rules of an account and of the gateway count in total for their
scope: an account's cap counts all keys that act for it, and the gateway's budget everything that is spent.

The findings of a policy that the account's owner set are `owner_denied` where the operator's are `policy_denied`;
reasons that a caller can wait out, such as `cap_reached`, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from birdwire.api.errors import PROBLEMS, GatewayError
from birdwire.gateway.guardrails.counting_rules import Asked, Trip, over
from birdwire.gateway.guardrails.decision import Author, Context, Decision, Finding, PolicyError
from birdwire.gateway.guardrails.pauses import in_force
from birdwire.gateway.guardrails.pauses import refusal as paused
from birdwire.gateway.guardrails.proposal import Case
from birdwire.gateway.guardrails.rule_values import EVERY, PUBLISHING
from birdwire.gateway.guardrails.rules import ORDER, RULE_NAMED, Rule, read_rules
from birdwire.gateway.guardrails.windows import Moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from birdwire.gateway.guardrails.decision import Found, UsageKey
    from birdwire.gateway.guardrails.proposal import Proposal
    from birdwire.store.tables.pauses import PauseRow
    from birdwire.store.tables.usage import Charge
    from birdwire.x.catalog.operations import Operation

__all__ = [
    "GATEWAY_SCOPE",
    "Context",
    "Decision",
    "Finding",
    "Guard",
    "Policy",
    "PolicyError",
    "account_scope",
    "approve_by",
    "charges",
    "evaluate",
    "may_ask",
    "needs",
    "refusal",
    "sentences",
    "snapshot_keys",
    "stale_finding",
]

Enforcement = Literal["enforce", "shadow"]

GATEWAY_SCOPE: Final = "gateway"
ACCOUNT_PREFIX: Final = "account:"

_ASKS: Final = "approve"
_STRICTNESS: Final = {"deny": 0, "require_approval": 1}


def account_scope(user_id: str) -> str:
    """Return the scope of an account."""
    return ACCOUNT_PREFIX + user_id


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one author for one scope, in one version. `rules` are JSON values, checked and in their order.

    Use `read` to make one: it completes the values.
    """

    scope: str
    author: Author
    version: int
    enforcement: Enforcement
    preset: str | None
    rules: Mapping[str, Any]
    _compiled: tuple[tuple[Rule, Any], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compiled = []
        for name, value in self.rules.items():
            rule = RULE_NAMED[name]
            compiled.append((rule, rule.compile(value) if rule.compile else value))
        object.__setattr__(self, "_compiled", tuple(compiled))

    @classmethod
    def read(cls, scope: str, author: str, version: int, enforcement: str, preset: str | None, rules: object) -> Policy:
        """Return a policy from what the store or an operator has.

        Raises:
            PolicyError: something in it is unknown or not valid; the text names it and the cure.
        """
        if author not in {"operator", "owner"}:
            raise PolicyError(f"The author is {author!a:.60}. Known are operator and owner.")
        if enforcement not in {"enforce", "shadow"}:
            raise PolicyError(f"The enforcement is {enforcement!a:.60}. Write enforce or shadow.")
        if enforcement == "shadow" and not scope.startswith("key_"):
            raise PolicyError(f"The policy of {scope:.60} cannot be in shadow mode. Write enforce: only a key's can.")
        return cls(scope, cast("Author", author), version, cast("Enforcement", enforcement), preset, read_rules(rules))

    @property
    def is_shadow(self) -> bool:
        """Whether the policy is recorded and counted, but not obeyed."""
        return self.enforcement == "shadow"

    @property
    def trips(self) -> tuple[Trip, ...]:
        """The refusals by X that pause the scope; none in shadow mode."""
        return () if self.is_shadow else next((value for rule, value in self._compiled if rule.name == "trip"), ())

    def charges(self, proposal: Proposal, now: Moment, mark: str | None) -> Iterator[Charge]:
        """Yield what the rules add to counters when a call passes."""
        asked = Asked(proposal, self.scope, now, mark, self.is_shadow)
        for rule, value in self._compiled:
            if rule.charge is not None:
                yield from rule.charge(value, asked)

    def findings(self, case: Case) -> Iterator[Finding]:
        """Yield what the rules have against a call."""
        context = case.context
        asked = Asked(case.proposal, self.scope, case.moment, "", self.is_shadow)
        for rule, value in self._compiled:
            if rule.find is not None:
                for found in rule.find(value, case):
                    yield self._signed(rule, found, case.proposal)
            if rule.charge is not None and context.usage is not None:
                for charge in rule.charge(value, asked):
                    if (counted := over(charge, context)) is not None:
                        yield self._signed(rule, counted, case.proposal)

    def _signed(self, rule: Rule, found: Found, proposal: Proposal) -> Finding:
        # What publishes nothing cannot wait, so a rule that would ask for approval denies.
        asks = found.then == "approve" and proposal.operation in PUBLISHING
        owners = self.author == "owner" and found.reason == "policy_denied"
        return Finding(
            rule.name,
            "require_approval" if asks else "deny",
            "owner_denied" if owners else found.reason,
            found.message,
            self.scope,
            self.version,
            self.author,
            None if asks else found.retry_after_s,
        )


@dataclass(frozen=True, slots=True)
class Guard:
    """What holds for a key: policies, pauses, and the scopes whose policies this version cannot read.

    `user_id` is the account that is linked to the key, if there is one. Pauses include those that have ended. While a
    policy is unreadable, nobody knows what it forbids, so the key's calls are refused.
    """

    key_id: str
    user_id: str | None
    policies: tuple[Policy, ...]
    pauses: tuple[PauseRow, ...]
    unreadable: tuple[str, ...]

    def check_pause(self, now: datetime) -> None:
        """Check that no pause holds.

        Raises:
            GatewayError: paused, paused_by_owner: the operator's pause is reported first.
        """
        if self.pauses:
            for row in in_force(self.pauses, now):
                raise paused(row)


def evaluate(policies: Sequence[Policy], proposal: Proposal, context: Context) -> Decision:
    """Return what policies together decide on a call: all findings, denials first, in the order of RULES.

    Rules that count are judged only if the context has a snapshot of the counters (`snapshot_keys`).
    """
    case = Case(proposal, context)
    findings = _ordered(found for policy in policies if not policy.is_shadow for found in policy.findings(case))
    shadow = _ordered(found for policy in policies if policy.is_shadow for found in policy.findings(case))
    return Decision(findings[0].outcome if findings else "allow", findings, shadow)


def _ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(
        sorted(
            findings,
            key=lambda one: (
                _STRICTNESS[one.outcome],
                ORDER[one.rule],
                one.scope,
                one.author,
                one.version,
                one.message,
            ),
        )
    )


def charges(
    policies: Sequence[Policy], proposal: Proposal, now: datetime, mark: str | None
) -> tuple[tuple[Charge, ...], tuple[Charge, ...]]:
    """Return what a call adds to counters when it passes: for policies that are obeyed, and for those in shadow mode.

    Each counter occurs once, with the largest amount and the lowest limit that any of the policies states.
    """
    at = Moment.of(now)
    obeyed = (charge for policy in policies if not policy.is_shadow for charge in policy.charges(proposal, at, mark))
    shadow = (charge for policy in policies if policy.is_shadow for charge in policy.charges(proposal, at, mark))
    return _merged(obeyed), _merged(shadow)


def _merged(found: Iterable[Charge]) -> tuple[Charge, ...]:
    merged: dict[UsageKey, Charge] = {}
    for charge in found:
        key = (charge.scope, charge.measure, charge.window)
        other = merged.get(key)
        merged[key] = charge if other is None else _stricter(charge, other)
    return tuple(merged[key] for key in sorted(merged))


def _stricter(one: Charge, other: Charge) -> Charge:
    """Return one charge for two of the same counter. A gap and the age of a text are stricter the longer they are."""
    limits = [charge.limit for charge in (one, other) if charge.limit is not None]
    strictest = min if one.kind == "add" else max
    return one._replace(amount=max(one.amount, other.amount), limit=strictest(limits, default=None))


def snapshot_keys(policies: Sequence[Policy], proposal: Proposal, now: datetime) -> tuple[UsageKey, ...]:
    """Return the counters that `evaluate` compares, for the snapshot in its context."""
    at = Moment.of(now)
    every = (charge for policy in policies for charge in policy.charges(proposal, at, None))
    return tuple(sorted({(charge.scope, charge.measure, charge.window) for charge in every}))


def needs(policies: Sequence[Policy], operation: Operation) -> frozenset[str]:
    """Return what else the policies ask about a call of an operation: `own_post`, `text_mark`."""
    rules = [policy.rules for policy in policies]
    asked = {
        "own_post": operation.name == "delete_twitter" and any(one.get("delete") == "own" for one in rules),
        "text_mark": operation.name == "post_twitter" and any("duplicate_text" in one for one in rules),
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def may_ask(policies: Sequence[Policy], operation: str) -> bool:
    """Return whether some call of an operation could need a person's approval. A policy in shadow mode asks nobody."""
    rules = (rule for policy in policies if not policy.is_shadow for rule in policy.rules.items())
    return any(_names(value, operation) if name == "approve" else _can_ask(value) for name, value in rules)


def _names(value: Any, operation: str) -> bool:
    return operation in (PUBLISHING if value == EVERY else value)


def _can_ask(value: object) -> bool:
    """Return whether a rule's value states, itself or in a member, that a person is asked."""
    # The rule on words has its list of words under this name.
    return value == _ASKS or (isinstance(value, dict) and (_ASKS in value or _ASKS in value.values()))


def approve_by(policies: Sequence[Policy]) -> str:
    """Return who may approve: the account's word takes precedence over the key's, and the key's over the gateway's."""

    def precedence(policy: Policy) -> int:
        return 0 if policy.scope.startswith(ACCOUNT_PREFIX) else 2 if policy.scope == GATEWAY_SCOPE else 1

    stated = [policy for policy in sorted(policies, key=precedence) if "approve_by" in policy.rules]
    return str(stated[0].rules["approve_by"]) if stated else "operator"


def stale_finding(decision: Decision, shown: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Return the first finding that asks for approval and was not among those `shown` to the person who approved.

    Two findings are the same if the same rule of the same scope finds the same; its policy may be newer.
    """
    known = {(one.get("rule"), one.get("scope"), one.get("message")) for one in shown}
    asking = (one for one in decision.findings if one.outcome == "require_approval")
    return next((one for one in asking if (one.rule, one.scope, one.message) not in known), None)


def refusal(decision: Decision, stale: Finding | None = None) -> GatewayError:
    """Return the error of a call that policies do not allow.

    The first denial decides, in the order of RULES; one that waiting does not cure takes precedence over one that it
    does. Without a denial, a person would have to be asked, which is no longer possible for this call: about `stale`,
    or the first finding.
    """
    denials = [found for found in decision.findings if found.outcome == "deny"]
    asking = decision.findings[0] if stale is None else stale
    decisive = min(denials, key=lambda one: PROBLEMS[one.reason].retryable, default=asking)
    waits = [one.retry_after_s for one in denials if one.retry_after_s is not None]
    retryable = bool(denials) and PROBLEMS[decisive.reason].retryable
    return GatewayError(
        decisive.reason if denials else "approval_stale",
        retry_after_s=max(waits, default=None) if retryable else None,
        findings=[found.document() for found in decision.findings],
        detail=decisive.message,
        scope=decisive.scope,
    )


def sentences(policies: Sequence[Policy]) -> list[str]:
    """Return what the rules of policies state, in words, for people."""
    return [
        _prefix(policy) + RULE_NAMED[name].describe(value)
        for policy in policies
        for name, value in policy.rules.items()
    ]


def _prefix(policy: Policy) -> str:
    if policy.scope == GATEWAY_SCOPE:
        return "All keys of this gateway: "
    return "The account: " if policy.scope.startswith(ACCOUNT_PREFIX) else ""
