"""The rules about how often, when and for how much: caps, gaps, quiet hours, repeated texts, budgets and trips.

What counts is stated once, as the charges of a call: the same charges are spent when the call starts, and compared
with a snapshot of the counters when a policy is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from birdwire.api.models import Empty
from birdwire.gateway.guardrails import rule_values as values
from birdwire.gateway.guardrails import windows
from birdwire.gateway.guardrails.decision import Found
from birdwire.gateway.guardrails.rule_values import ASKING, EVERY, PUBLISHING, WRITES, counted, dollars, refuse
from birdwire.store.tables.usage import Charge
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.prices import Prices

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from birdwire.gateway.guardrails.decision import Context
    from birdwire.gateway.guardrails.proposal import Case, Proposal
    from birdwire.gateway.guardrails.windows import Moment, QuietHours, Unit

MAX_GAP_S: Final = 30 * 86_400
MAX_DAYS: Final = 365
DAY_MS: Final = 86_400_000
SHADOW: Final = "shadow:"
"""Starts the scope of the text marks of a policy in shadow mode, so that no other policy obeys them."""

TRIP_REASONS: Final = ("x_refused", "x_user_suspended")
MAX_TRIP_S: Final = 30 * 86_400
_UNIT_S: Final = {"m": 60, "h": 3_600, "d": 86_400}
_TRIP = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,4})([mhd])")
_CAP = re.compile(r"([0-9]{1,9})/([hd])")
_CAP_UNITS: Final[dict[str, Unit]] = {"h": "hour", "d": "day"}
_BUDGETS: Final[dict[str, Unit]] = {"day_usd": "day", "month_usd": "month"}


class Asked(NamedTuple):
    """For what charges a rule is asked: those of a call, at its policy's scope, now. `mark` is the mark of its text."""

    proposal: Proposal
    scope: str
    now: Moment
    mark: str | None
    shadow: bool = False


def read_caps(value: object) -> dict[str, str]:
    """Return how often each operation may happen."""
    given = _by_operation("caps", value, 'Write an object such as {"post_twitter": "3/h 12/d", "*": "50/d"}.')
    return {name: _cap(name, given[name]) for name in (*WRITES, EVERY) if name in given}


def _cap(name: str, value: object) -> str:
    cure = f"Write how often in a clock hour, a day or both, such as 3/h, 12/d or 3/h 12/d, up to {values.MAX_COUNT}."
    parts = re.split(r"[ ,]+", value.strip()) if isinstance(value, str) and len(value) <= 40 else []
    found: dict[str, int] = {}
    for part in parts:
        written = _CAP.fullmatch(part)
        if written is None or written[2] in found:
            found = {}
            break
        found[written[2]] = int(written[1])
    if not found:
        refuse("caps", f"{name} is {values.shown(value)}", cure)
    if 0 in found.values():
        refuse(
            "caps", f"{name} has a cap of 0", "Write at least 1, or deny the operation with the key's allowed actions."
        )
    if max(found.values()) > values.MAX_COUNT:
        refuse("caps", f"{name} is {values.shown(value)}", cure)
    return " ".join(f"{found[unit]}/{unit}" for unit in _CAP_UNITS if unit in found)


def compile_caps(value: Mapping[str, str]) -> dict[str, tuple[tuple[Unit, int], ...]]:
    """Return the caps of each operation, as units and limits."""
    return {
        name: tuple((_CAP_UNITS[part[-1]], int(part[:-2])) for part in written.split())
        for name, written in value.items()
    }


def charge_caps(value: Mapping[str, tuple[tuple[Unit, int], ...]], asked: Asked) -> Iterator[Charge]:
    """Yield one call more for each window that a cap counts."""
    for name in _names(asked.proposal):
        for unit, limit in value.get(name, ()):
            yield Charge("add", asked.scope, f"writes:{name}", asked.now.windows[unit], 1, limit, "caps")


def describe_caps(value: Mapping[str, str]) -> str:
    """Return the rule in words."""
    return " ".join(f"{_what(name, start=True)}: at most {_often(written)}." for name, written in value.items())


def _often(written: str) -> str:
    words = {"h": "an hour", "d": "a day"}
    return " and ".join(f"{part[:-2]} {words[part[-1]]}" for part in written.split())


def read_min_gap_s(value: object) -> dict[str, int]:
    """Return the least number of seconds between two calls of an operation."""
    given = _by_operation("min_gap_s", value, 'Write an object such as {"post_twitter": 300}.')
    return {
        name: values.whole("min_gap_s", given[name], 1, MAX_GAP_S, name) for name in (*WRITES, EVERY) if name in given
    }


def charge_min_gap_s(value: Mapping[str, int], asked: Asked) -> Iterator[Charge]:
    """Yield the time of this call for each gap that must have passed."""
    for name in _names(asked.proposal):
        if name in value:
            yield Charge("gap", asked.scope, f"gap:{name}", "", asked.now.ms, value[name] * 1_000, "min_gap_s")


def describe_min_gap_s(value: Mapping[str, int]) -> str:
    """Return the rule in words."""
    return " ".join(
        f"{_what(name, start=True)}: at least {counted(gap, 'second')} apart." for name, gap in value.items()
    )


def read_quiet_hours(value: object) -> dict[str, str]:
    """Return the hours, their time zone, and what follows for a write in them."""
    cure = 'Write an object such as {"hours": "22:00-07:00", "zone": "Europe/Berlin", "then": "deny"}.'
    given = values.members("quiet_hours", value, ("hours", "zone", "then"), cure)
    hours, zone = given.get("hours"), given.get("zone", "UTC")
    then = values.one_of("quiet_hours", given.get("then", "deny"), ASKING, "then")
    if not isinstance(zone, str) or windows.zone_named(zone) is None:
        cure = "Write a name of the IANA time zone database, such as Europe/Berlin or UTC."
        refuse("quiet_hours", f"the time zone {values.shown(zone)} does not exist on this machine", cure)
    if not isinstance(hours, str) or windows.QuietHours.read(hours, UTC) is None:
        cure = "Write two different times, such as 22:00-07:00. To stop everything, use `birdwire pause`."
        refuse("quiet_hours", values.stated("hours", hours), cure)
    return {"hours": hours, "zone": zone, "then": then}


def compile_quiet_hours(value: Mapping[str, str]) -> tuple[QuietHours, str, str]:
    """Return the hours with their zone, what follows, and how they are written."""
    zone = windows.zone_named(value["zone"])
    quiet = windows.QuietHours.read(value["hours"], zone) if zone else None
    if quiet is None:
        refuse("quiet_hours", f"{values.shown(value['zone'])} is not available on this machine", "Install tzdata.")
    return quiet, value["then"], _hours(value)


def find_quiet_hours(value: tuple[QuietHours, str, str], case: Case) -> Iterator[Found]:
    """Find a write in the quiet hours. Lookups are allowed in them."""
    quiet, then, written = value
    now = case.context.now
    if case.proposal.is_write and quiet.holds(now):
        yield Found(then, "quiet_hours", f"no writes from {written}", quiet.seconds_left(now))


def describe_quiet_hours(value: Mapping[str, str]) -> str:
    """Return the rule in words."""
    then = "need approval" if value["then"] == "approve" else "are refused"
    return f"Writes {then} from {_hours(value)}."


def _hours(value: Mapping[str, str]) -> str:
    return f"{value['hours'].replace('-', ' to ')} ({value['zone']})"


def read_duplicate_text(value: object) -> dict[str, Any]:
    """Return for how many days a text may not be repeated, and by whom."""
    cure = 'Write an object such as {"days": 30, "across": "account"}.'
    given = values.members("duplicate_text", value, ("days", "across"), cure)
    return {
        "days": values.whole("duplicate_text", given.get("days"), 1, MAX_DAYS, "days"),
        "across": values.one_of("duplicate_text", given.get("across", "account"), ("account", "gateway"), "across"),
    }


def text_scope(value: Mapping[str, Any], user_id: str, *, shadow: bool) -> str:
    """Return the scope at which the mark of a text is kept."""
    scope = "gateway" if value["across"] == "gateway" else f"account:{user_id}"
    return SHADOW + scope if shadow else scope


def charge_duplicate_text(value: Mapping[str, Any], asked: Asked) -> Iterator[Charge]:
    """Yield the mark of a post's text."""
    proposal = asked.proposal
    if asked.mark is not None and proposal.operation == "post_twitter" and proposal.user_id is not None:
        scope = text_scope(value, proposal.user_id, shadow=asked.shadow)
        yield Charge("text", scope, "text", asked.mark, asked.now.ms, value["days"] * DAY_MS, "duplicate_text")


def describe_duplicate_text(value: Mapping[str, Any]) -> str:
    """Return the rule in words."""
    where = "any account of this gateway" if value["across"] == "gateway" else "the account"
    return f"A text may not be posted again by {where} within {counted(value['days'], 'day')}."


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits in millionths of a dollar, and what an unpriced call reserves; or `deny` or `approve` instead."""

    limits: tuple[tuple[Unit, int], ...]
    unpriced: int | str


@cache
def cheapest_write() -> int:
    """Return the price of the cheapest write on X's list, in millionths of a dollar."""
    prices = Prices.load()
    return min(price for row in OPERATIONS if (price := prices.of(row, Empty())))


def read_budget(value: object) -> dict[str, Any]:
    """Return the sums for a day and a month, and what an unpriced call reserves."""
    cure = 'Write an object such as {"day_usd": 2.00, "month_usd": 30.00, "unpriced": "approve"}.'
    given = values.members("budget", value, (*_BUDGETS, "unpriced"), cure)
    sums = {name: values.micro_usd("budget", given[name], name) for name in _BUDGETS if name in given}
    if not sums:
        refuse("budget", "it has neither day_usd nor month_usd", cure)
    for name, limit in sums.items():
        if limit < cheapest_write():
            wrong = f"{name} is {dollars(limit)}, less than the cheapest write ({dollars(cheapest_write())})"
            refuse("budget", wrong, "Write a larger sum. To stop everything, use `birdwire pause`.")
    unpriced = given.get("unpriced", "deny")
    if isinstance(unpriced, str):
        if unpriced not in ASKING:
            refuse("budget", f"unpriced is {values.shown(unpriced)}", "Write deny, approve or a sum in US dollars.")
    elif values.micro_usd("budget", unpriced, "unpriced") > min(sums.values()):
        refuse("budget", "unpriced is larger than the budget", "Write a smaller sum, deny or approve.")
    return {**{name: given[name] for name in sums}, "unpriced": unpriced}


def compile_budget(value: Mapping[str, Any]) -> Budget:
    """Return the budget in millionths of a dollar."""
    limits = tuple(
        (unit, values.micro_usd("budget", value[name], name)) for name, unit in _BUDGETS.items() if name in value
    )
    unpriced = value["unpriced"]
    return Budget(limits, unpriced if isinstance(unpriced, str) else values.micro_usd("budget", unpriced, "unpriced"))


def find_budget(value: Budget, case: Case) -> Iterator[Found]:
    """Find a call without a price that the budget does not provide for."""
    if case.proposal.price is None and isinstance(value.unpriced, str):
        message = f"X's list has no price for {case.proposal.operation}, and the budget provides no sum for it"
        yield Found(value.unpriced, "price_unknown", message)


def charge_budget(value: Budget, asked: Asked) -> Iterator[Charge]:
    """Yield the price of a call for each of the budget's windows."""
    price = asked.proposal.price
    amount = value.unpriced if price is None else price
    if isinstance(amount, int) and amount > 0:
        for unit, limit in value.limits:
            yield Charge("add", asked.scope, "usd", asked.now.windows[unit], amount, limit, "budget")


def describe_budget(value: Mapping[str, Any]) -> str:
    """Return the rule in words."""
    budget = compile_budget(value)
    sums = " and ".join(f"{dollars(limit)} a {unit}" for unit, limit in budget.limits)
    unpriced = {"deny": "are refused", "approve": "need approval"}.get(str(budget.unpriced))
    rest = unpriced or f"count {dollars(int(budget.unpriced))}"
    return f"Calls may cost at most {sums}; calls without a listed price {rest}."


class Trip(NamedTuple):
    """When refusals by X pause a scope: `refusals` of them for a reason within `window_s` seconds."""

    reason: str
    refusals: int
    window_s: int


def read_trip(value: object) -> dict[str, Any]:
    """Return how many refusals by X pause the scope."""
    cure = 'Write an object such as {"x_refused": "3/10m", "x_user_suspended": 1}.'
    given = values.members("trip", value, TRIP_REASONS, cure)
    for reason, written in given.items():
        if isinstance(written, str):
            if not _TRIP.fullmatch(written) or _trip(reason, written).window_s > MAX_TRIP_S:
                cure = "Write a count in a time of up to 30 days, such as 3/10m, 5/2h or 10/1d, or a count."
                refuse("trip", f"{reason} is {values.shown(written)}", cure)
        else:
            values.whole("trip", written, 1, values.MAX_COUNT, reason)
    return {reason: given[reason] for reason in TRIP_REASONS if reason in given}


def _trip(reason: str, written: Any) -> Trip:
    if isinstance(written, int):
        return Trip(reason, written, _UNIT_S["d"])
    count, _, time = written.partition("/")
    return Trip(reason, int(count), int(time[:-1]) * _UNIT_S[time[-1]])


def compile_trip(value: Mapping[str, Any]) -> tuple[Trip, ...]:
    """Return the trips. A count without a time is for one day."""
    return tuple(_trip(reason, written) for reason, written in value.items())


def describe_trip(value: Mapping[str, Any]) -> str:
    """Return the rule in words."""
    trips = (f"{trip.refusals} within {_time(trip.window_s)} ({trip.reason})" for trip in compile_trip(value))
    return f"Refusals by X lead to a pause: {'; '.join(trips)}."


def _time(seconds: int) -> str:
    unit, length = next((unit, length) for unit, length in reversed(_UNIT_S.items()) if seconds % length == 0)
    return counted(seconds // length, {"m": "minute", "h": "hour", "d": "day"}[unit])


def over(charge: Charge, context: Context) -> Found | None:
    """Return what is found if a charge does not pass on the counters of a snapshot; None if it passes."""
    if charge.kind == "text":
        return _repeated(charge, context)
    used = (context.usage or {}).get((charge.scope, charge.measure, charge.window), 0)
    limit = charge.limit or 0
    if charge.kind == "gap":
        left_ms = used + limit - charge.amount
        what = charge.measure.removeprefix("gap:")
        message = f"{_what(what)} must be at least {counted(limit // 1_000, 'second')} apart"
        return Found("deny", "cap_reached", message, -(-left_ms // 1_000)) if left_ms > 0 else None
    if used + charge.amount <= limit:
        return None
    unit = windows.unit_of(charge.window)
    left_s = windows.seconds_left(unit, context.now)
    if charge.measure == "usd":
        message = (
            f"this call costs {dollars(charge.amount)}, and {dollars(used)} of {dollars(limit)} for this {unit} (UTC) "
            "are used"
        )
        return Found("deny", "budget_exhausted", message, left_s)
    what = _what(charge.measure.removeprefix("writes:"))
    return Found("deny", "cap_reached", f"{what} at most {counted(limit, 'time')} in one {unit} (UTC)", left_s)


def _repeated(charge: Charge, context: Context) -> Found | None:
    at_ms = context.texts.get(charge.scope)
    if at_ms is None or at_ms <= charge.amount - (charge.limit or 0):
        return None
    days = counted((charge.limit or 0) // DAY_MS, "day")
    return Found("deny", "duplicate_text", f"the same text was posted within the last {days}")


def _names(proposal: Proposal) -> tuple[str, ...]:
    """Return the names under which rules count a call: its operation, and `*` if it publishes something."""
    if not proposal.is_write:
        return ()
    return (proposal.operation, EVERY) if proposal.operation in PUBLISHING else (proposal.operation,)


def _by_operation(rule: str, value: object, cure: str) -> Mapping[str, Any]:
    return values.members(rule, value, (*WRITES, EVERY), cure)


def _what(name: str, *, start: bool = False) -> str:
    return name if name != EVERY else "Writes" if start else "writes"
