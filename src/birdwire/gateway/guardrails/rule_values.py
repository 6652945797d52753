"""Reads the values of rules: JSON as it is stored, and the shorthand of the command line. Refuses what is not valid."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NoReturn

from birdwire.gateway.guardrails.decision import PolicyError
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

EVERY: Final = "*"
UPLOAD: Final = "upload_media"
WRITES: Final = tuple(row.name for row in OPERATIONS)
PUBLISHING: Final = tuple(name for name in WRITES if name != UPLOAD)
"""What `*` stands for: every write but upload_media, which shows nothing to anybody."""

MAX_COUNT: Final = 1_000_000
MAX_USD: Final = 1_000_000
MICRO: Final = 1_000_000
"""Millionths in a dollar."""

ASKING: Final = ("approve", "deny")
"""How a value states what follows from a finding."""

_NUMBER = re.compile(r"[0-9]{1,9}")


def refuse(rule: str, wrong: str, cure: str) -> NoReturn:
    """Refuse the value of a rule.

    Raises:
        PolicyError: always; it names the rule, what is wrong, and what to write instead.
    """
    raise PolicyError(f"{rule}: {wrong}. {cure}")


def shown(value: object) -> str:
    """Return a short form of a value that is safe to show."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    # It escapes what is not printable, such as controls of direction.
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def stated(member: str, value: object) -> str:
    """Return what a member of a rule's value is, such as `max is -1` or `max is missing`."""
    return f"{member} is {'missing' if value is None else shown(value)}"


def members(rule: str, value: object, known: Collection[str], cure: str) -> Mapping[str, Any]:
    """Return an object whose members are all known, and that has at least one."""
    if not isinstance(value, dict):
        refuse(rule, f"{shown(value)} is not an object", cure)
    if not value:
        refuse(rule, "it has no member", cure)
    unknown = [name for name in value if name not in known]
    if unknown:
        refuse(rule, f"{shown(unknown[0])} is unknown", f"Known are {', '.join(known)}.")
    return value


def one_of(rule: str, value: object, known: Collection[str], member: str = "") -> str:
    """Return a value that is one of the known texts."""
    if not isinstance(value, str) or value not in known:
        what = stated(member, value) if member else f"{shown(value)} is unknown"
        refuse(rule, what, f"Write {_either(known)}.")
    return value


def _either(known: Collection[str]) -> str:
    *others, last = known
    return f"{', '.join(others)} or {last}" if others else last


def whole(rule: str, value: object, low: int, high: int, member: str = "") -> int:
    """Return a whole number in its bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        what = stated(member, value) if member else f"{shown(value)} is not valid"
        refuse(rule, what, f"Write a whole number from {low} to {high}.")
    return value


def texts(rule: str, value: object, most: int, longest: int, cure: str) -> list[str]:
    """Return a list of different texts that is not empty, each at most `longest` characters."""
    if not isinstance(value, list):
        refuse(rule, "the list is missing" if value is None else f"{shown(value)} is not a list", cure)
    if not value or not all(isinstance(one, str) for one in value):
        refuse(rule, "an entry of the list is not a text" if value else "the list is empty", cure)
    if len(value) > most:
        refuse(rule, f"the list has {len(value)} entries", f"Write at most {most}.")
    for one in value:
        if not 0 < len(one) <= longest:
            refuse(rule, f"{shown(one)} has {len(one)} characters", f"Write 1 to {longest} characters.")
    return list(dict.fromkeys(value))


def micro_usd(rule: str, value: object, member: str) -> int:
    """Return a sum in dollars as millionths."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(rule, stated(member, value), "Write a sum in US dollars, such as 2.50.")
    amount = Decimal(repr(value)) * MICRO
    if not amount.is_finite() or not 0 < amount <= MAX_USD * MICRO or amount != amount.to_integral_value():
        refuse(rule, stated(member, value), f"Write a sum over 0 and up to {MAX_USD}, with at most 6 decimals.")
    return int(amount)


def dollars(micro: int) -> str:
    """Return a sum in millionths of a dollar as people write it, such as `$0.20`."""
    whole_usd, rest = divmod(micro, MICRO)
    return f"${whole_usd}.{f'{rest:06}'.rstrip('0').ljust(2, '0')}"


def counted(number: int, noun: str) -> str:
    """Return a number of things, such as `1 day` or `2 days`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(text: str) -> list[str]:
    """Return the parts of a list in shorthand, `a,b`."""
    return [part for part in (part.strip() for part in text.split(",")) if part]


def number(text: str) -> object:
    """Return a whole number in shorthand; any other text is unchanged, and refused when the value is read."""
    return int(text) if _NUMBER.fullmatch(text) else text


def amount(text: str) -> object:
    """Return a sum in shorthand, such as `2.50`; any other text is unchanged."""
    try:
        value = Decimal(text) if len(text) <= 20 and text.isascii() else None
    except InvalidOperation:
        return text
    if value is None or not value.is_finite() or abs(value) > MAX_USD:
        return text
    return int(value) if value == value.to_integral_value() else float(value)
