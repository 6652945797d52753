"""RULES: one row for each rule of a policy. Forms, help, documents and `auth/status` are drawn from this table.

A rule that judges a call by itself has `find`; one that counts has `charge`, and is judged by the counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from birdwire.gateway.guardrails import content_rules as content
from birdwire.gateway.guardrails import counting_rules as counting
from birdwire.gateway.guardrails.decision import PolicyError
from birdwire.gateway.guardrails.rule_values import amount, listed, number, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from birdwire.gateway.guardrails.counting_rules import Asked
    from birdwire.gateway.guardrails.decision import Found
    from birdwire.gateway.guardrails.proposal import Case
    from birdwire.store.tables.usage import Charge

MAX_CHANGE_CHARS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its name, one sentence, an example of its value as JSON and in shorthand, and what it does.

    `read` checks a JSON value and completes it. `describe` puts a value into words. `parse` reads `RULE=TEXT`, and
    `parse_member` reads `RULE.MEMBER=TEXT`; a rule without one of them has no such shorthand. `compile` prepares a
    value for `find` and `charge`.
    """

    name: str
    sentence: str
    form: str
    shorthand: str
    read: Callable[[object], Any]
    describe: Callable[[Any], str]
    parse: Callable[[str], Any] | None = None
    parse_member: Callable[[str, str], Any] | None = None
    compile: Callable[[Any], Any] | None = None
    find: Callable[[Any, Case], Iterator[Found]] | None = None
    charge: Callable[[Any, Asked], Iterator[Charge]] | None = None


class Change(NamedTuple):
    """One change of a policy's rules: of a whole rule, or of one of its members. The value None removes it."""

    rule: str
    member: str | None
    value: Any


def _text(_member: str, text: str) -> Any:
    return text


def _number(_member: str, text: str) -> Any:
    return number(text)


def _operations(text: str) -> Any:
    return text if text == "*" else listed(text)


def _cap(_member: str, text: str) -> Any:
    return " ".join(listed(text))


def _amount(member: str, text: str) -> Any:
    return text if member == "unpriced" and text in {"deny", "approve"} else amount(text)


def _words(_member: str, text: str) -> Any:
    return listed(text)


def _quiet_hours(text: str) -> Any:
    time, _, then = text.partition(",")
    hours, _, zone = time.partition("@")
    return {"hours": hours, **({"zone": zone} if zone else {}), **({"then": then} if then else {})}


def _mentions(text: str) -> Any:
    most, _, then = text.partition(",")
    return {"max": number(most), **({"else": then} if then else {})}


def _links(member: str, text: str) -> Any:
    return listed(text) if member == "only" else text


def _duplicate_text(text: str) -> Any:
    days, _, across = text.partition(",")
    return {"days": number(days), **({"across": across} if across else {})}


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="approve",
        sentence="Operations that need a person's approval; * stands for every write but upload_media.",
        form='["post_twitter", "delete_twitter"] or "*"',
        shorthand="approve=post_twitter,delete_twitter",
        read=content.read_approve,
        describe=content.describe_approve,
        parse=_operations,
        find=content.find_approve,
    ),
    Rule(
        name="approve_by",
        sentence="Who may approve. The account's policy takes precedence over the key's, the key's over the gateway's.",
        form='"operator"',
        shorthand="approve_by=operator",
        read=content.read_approve_by,
        describe=content.describe_approve_by,
        parse=str,
    ),
    Rule(
        name="caps",
        sentence="How often an operation may happen in a clock hour (h) or a day (d), by UTC; * counts every write but "
        "upload_media.",
        form='{"post_twitter": "3/h 12/d", "*": "50/d"}',
        shorthand="caps.post_twitter=3/h,12/d",
        read=counting.read_caps,
        describe=counting.describe_caps,
        parse_member=_cap,
        compile=counting.compile_caps,
        charge=counting.charge_caps,
    ),
    Rule(
        name="min_gap_s",
        sentence="The minimum number of seconds between two calls of an operation.",
        form='{"post_twitter": 300}',
        shorthand="min_gap_s.post_twitter=300",
        read=counting.read_min_gap_s,
        describe=counting.describe_min_gap_s,
        parse_member=_number,
        charge=counting.charge_min_gap_s,
    ),
    Rule(
        name="quiet_hours",
        sentence="A time of day, by the clock of a time zone, in which writes are denied or need approval.",
        form='{"hours": "22:00-07:00", "zone": "Europe/Berlin", "then": "deny"}',
        shorthand="quiet_hours=22:00-07:00@Europe/Berlin,deny",
        read=counting.read_quiet_hours,
        describe=counting.describe_quiet_hours,
        parse=_quiet_hours,
        parse_member=_text,
        compile=counting.compile_quiet_hours,
        find=counting.find_quiet_hours,
    ),
    Rule(
        name="kinds",
        sentence="Kinds of posts that are denied or need approval: reply, quote, poll, media, edit, community, "
        "paid_partnership, nullcast.",
        form='{"reply": "approve", "quote": "deny"}',
        shorthand="kinds.reply=approve",
        read=content.read_kinds,
        describe=content.describe_kinds,
        parse_member=_text,
        find=content.find_kinds,
    ),
    Rule(
        name="delete",
        sentence="Which posts may be deleted: own (those that the key made through this gateway) or any.",
        form='"own"',
        shorthand="delete=own",
        read=content.read_delete,
        describe=content.describe_delete,
        parse=str,
        find=content.find_delete,
    ),
    Rule(
        name="links",
        sentence="Whether posts may contain links: all are denied or need approval, or those to other hosts than the "
        "listed ones and their subdomains.",
        form='"deny", "approve" or {"only": ["example.org"], "else": "approve"}',
        shorthand="links.only=example.org,else=approve",
        read=content.read_links,
        describe=content.describe_links,
        parse=str,
        parse_member=_links,
        compile=content.compile_links,
        find=content.find_links,
    ),
    Rule(
        name="mentions",
        sentence="How many users a post may mention or tag, and what follows for more.",
        form='{"max": 1, "else": "approve"}',
        shorthand="mentions=1,approve",
        read=content.read_mentions,
        describe=content.describe_mentions,
        parse=_mentions,
        parse_member=lambda member, text: number(text) if member == "max" else text,
        find=content.find_mentions,
    ),
    Rule(
        name="words",
        sentence="Words and phrases that are denied or need approval, compared as whole words without case or accents.",
        form='{"deny": ["giveaway"], "approve": ["price"]}',
        shorthand="words.deny=giveaway,airdrop",
        read=content.read_words,
        describe=content.describe_words,
        parse_member=_words,
        compile=content.compile_words,
        find=content.find_words,
    ),
    Rule(
        name="duplicate_text",
        sentence="For how many days a text may not be posted again by the same account, or by any account of the "
        "gateway.",
        form='{"days": 30, "across": "account"}',
        shorthand="duplicate_text=30,account",
        read=counting.read_duplicate_text,
        describe=counting.describe_duplicate_text,
        parse=_duplicate_text,
        parse_member=lambda member, text: number(text) if member == "days" else text,
        charge=counting.charge_duplicate_text,
    ),
    Rule(
        name="budget",
        sentence="What calls may cost in a day and a month (UTC) by X's price list, in US dollars; a call without a "
        "listed price is denied, needs approval, or counts as a sum.",
        form='{"day_usd": 2.00, "month_usd": 30.00, "unpriced": "approve"}',
        shorthand="budget.day_usd=2",
        read=counting.read_budget,
        describe=counting.describe_budget,
        parse_member=_amount,
        compile=counting.compile_budget,
        find=counting.find_budget,
        charge=counting.charge_budget,
    ),
    Rule(
        name="trip",
        sentence="How many refusals by X in a time pause the key or the account.",
        form='{"x_refused": "3/10m", "x_user_suspended": 1}',
        shorthand="trip.x_refused=3/10m",
        read=counting.read_trip,
        describe=counting.describe_trip,
        parse_member=_number,
        compile=counting.compile_trip,
    ),
)
"""Every rule, in the order in which findings are reported."""

RULE_NAMED: Final = {rule.name: rule for rule in RULES}
ORDER: Final = {rule.name: place for place, rule in enumerate(RULES)}


def read_rules(rules: object) -> dict[str, Any]:
    """Return the rules of a policy, checked and complete, in the order of RULES.

    Raises:
        PolicyError: a rule is unknown or its value is not valid; the text names the rule and the cure.
    """
    if not isinstance(rules, dict):
        raise PolicyError('The rules are not a JSON object. Write an object such as {"links": "approve"}.')
    unknown = [name for name in rules if name not in RULE_NAMED]
    if unknown:
        refuse(f"{ascii(unknown[0])[:60]}", "there is no such rule", f"Rules: {', '.join(RULE_NAMED)}.")
    return {rule.name: rule.read(rules[rule.name]) for rule in RULES if rule.name in rules}


def parse_shorthand(text: str) -> tuple[Change, ...]:
    """Return the changes that `RULE=VALUE` or `RULE.MEMBER=VALUE` stands for. An empty value removes.

    Several members may follow each other, as in `links.only=example.org,else=approve`.

    Raises:
        PolicyError: the rule is unknown or has no such shorthand. The values are checked when the policy is read.
    """
    place, equals, value = text.strip().partition("=")
    name, dot, member = place.strip().partition(".")
    rule = RULE_NAMED.get(name)
    if rule is None:
        refuse(f"{ascii(name)[:60]}", "there is no such rule", f"Rules: {', '.join(RULE_NAMED)}.")
    if len(text) > MAX_CHANGE_CHARS:
        refuse(name, "the value is too long", "Send it as JSON on standard input.")
    if not equals or (dot and not member):
        refuse(name, "the value is missing", f"Write, for example, {rule.shorthand}.")
    value = value.strip()
    if not dot:
        if not value:
            return (Change(name, None, None),)
        if rule.parse is None:
            refuse(name, "its members are set one by one", f"Write, for example, {rule.shorthand}.")
        return (Change(name, None, rule.parse(value)),)
    if rule.parse_member is None:
        refuse(name, "it has no members", f"Write, for example, {rule.shorthand}.")
    return tuple(
        Change(name, one, rule.parse_member(one, part) if part else None) for one, part in _members(name, member, value)
    )


def _members(name: str, member: str, value: str) -> Iterator[tuple[str, str]]:
    """Yield the members in a value such as `example.org,else=approve`, the first of which is `member`.

    Only the rule on links has two members that are set together; a word may contain an equals sign.
    """
    if name != "links":
        yield member, value
        return
    parts: list[str] = []
    for part in value.split(","):
        following, equals, rest = part.partition("=")
        if equals:
            yield member, ",".join(parts)
            member, parts = following.strip(), [rest.strip()]
        else:
            parts.append(part)
    yield member, ",".join(parts)


def changed(rules: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """Return rules after changes, in their order, not checked yet. A rule whose last member is removed is removed."""
    after = dict(rules)
    for rule, member, value in changes:
        before = after.get(rule)
        after[rule] = value if member is None else _with_member(before, member, value)
    return {name: value for name, value in after.items() if value is not None}


def _with_member(before: object, member: str, value: object) -> dict[str, Any] | None:
    members = {**(before if isinstance(before, dict) else {}), member: value}
    return {name: kept for name, kept in members.items() if kept is not None} or None
