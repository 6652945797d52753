"""The title and the sentences of each event, as a table. A sentence is left out if one of its values is not known."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from string import Formatter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from birdwire.api.errors import PROBLEMS
from birdwire.x.catalog.visible_text import marked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.gateway.notifications.news import News

LOW, DEFAULT, HIGH = 2, 3, 4
"""Priorities, as ntfy counts them."""

MAX_NAME_CHARS: Final = 100
MAX_REASON_CHARS: Final = 500
MAX_TITLE_LABEL: Final = 40
"""The longest label of a key that a title names; a sentence names any label."""


class Words(NamedTuple):
    """How an event is worded: a title, sentences, the short code of an emoji, and a priority.

    The braces are the values that `_values` returns. A title has only those that are ASCII.
    """

    title: str
    sentences: tuple[str, ...]
    emoji: str
    priority: int = DEFAULT


class Worded(NamedTuple):
    """An event in words. The title is one line of ASCII; nothing in the sentences is hidden."""

    title: str
    sentences: tuple[str, ...]
    emoji: str
    priority: int


_LOST = "X's response to a call of the key {key} was lost."
_ASKED = "The key {key} asked to {do} as {account}."

WORDS: Final[Mapping[tuple[str, object], Words]] = {
    ("approval.requested", None): Words(
        "{account}: {thing} waits for you",
        ("The key {key} asks to {do} as {account}.", "It expires {expires}.", "Price: {cost}."),
        "bell",
        HIGH,
    ),
    ("approval.decided", "approved"): Words(
        "{account}: {thing} was approved",
        (_ASKED, "{decided_by} approved it, and Birdwire sends it now."),
        "+1",
    ),
    ("approval.decided", "denied"): Words(
        "{account}: {thing} was denied", (_ASKED, "{decided_by} denied it. Nothing was sent to X."), "-1"
    ),
    ("approval.decided", "cancelled"): Words(
        "{account}: {thing} was cancelled",
        (_ASKED, "The request was cancelled.", "Nothing was sent to X."),
        "heavy_multiplication_x",
    ),
    ("approval.decided", "expired"): Words(
        "{account}: {thing} has expired", (_ASKED, "The request has expired.", "Nothing was sent to X."), "hourglass"
    ),
    ("request.settled", "found"): Words(
        "{account}: a lost post was published",
        (_LOST, "Birdwire has found the post in the timeline of {account}.", "{post_url}"),
        "mag",
    ),
    ("request.settled", "not_found"): Words(
        "{account}: a lost post was not published",
        (_LOST, "The post is not in the timeline of {account}.", "The caller may post it again."),
        "mag",
    ),
    ("account.linked", None): Words("{account} is linked", ("The key {key} can now act as {account}.",), "link", LOW),
    ("account.needs_relink", None): Words(
        "{account} must be linked again",
        (
            "The key {key} can no longer act as {account}.",
            "Reason: {reason}.",
            "To link the account again, run: birdwire accounts link {key_id}",
        ),
        "warning",
        HIGH,
    ),
    ("account.recovered", None): Words(
        "{account} works again",
        ("X has accepted the tokens of {account}. The key {key} can act as the account again.",),
        "white_check_mark",
    ),
    ("account.undone", None): Words(
        "{account}: the link was undone",
        (
            "The account's owner has undone the link of {account} to the key {key}.",
            "Ask the owner, and review the key.",
        ),
        "leftwards_arrow_with_hook",
    ),
    ("budget.reached", 80): Words(
        "{subject}: 80 % of a budget is spent",
        ("{Scope} has spent 80 % of the budget of {limit} for the {unit} {window} (UTC).",),
        "moneybag",
    ),
    ("budget.reached", 100): Words(
        "{subject}: a budget is used up",
        (
            "{Scope} has used up the budget of {limit} for the {unit} {window} (UTC).",
            "Until the next {unit}, Birdwire refuses the calls that it does not cover.",
        ),
        "moneybag",
        HIGH,
    ),
    ("paused", None): Words(
        "{subject} is paused",
        (
            "{Scope} is paused.",
            "Reason: {why}.",
            "Paused by {by}.",
            "The pause ends {until}.",
            "To end the pause, run: birdwire resume {scope_id}",
        ),
        "pause_button",
    ),
    ("resumed", None): Words(
        "{subject} is no longer paused",
        ("{Scope} is no longer paused.", "Resumed by {by}."),
        "arrow_forward",
        LOW,
    ),
    ("x.changed", False): Words(
        "X no longer allows Birdwire to {do}",
        ("X has refused {operation}.", "Reason: {reason}.", "For all that X allowed, run: birdwire check --live"),
        "no_entry",
    ),
    ("x.changed", True): Words(
        "X now allows Birdwire to {do}", ("X has carried out {operation}.",), "white_check_mark"
    ),
    ("notification.test", None): Words(
        "Birdwire can reach you", ("This is a test. It was sent by: birdwire notify test",), "bird"
    ),
}
"""The words of each event, by its type and by the value of its VARIANTS that decides on the words."""

VARIANTS: Final[Mapping[str, str]] = {
    "approval.decided": "decision",
    "request.settled": "outcome",
    "budget.reached": "percent",
    "x.changed": "allowed",
}
"""The member of the data that distinguishes the rows of a type."""

_UNKNOWN: Final = Words("Birdwire: {type}", ("This version of Birdwire has no words for the event.",), "bird")

OPERATION_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "post_twitter": ("a post", "publish a post"),
    "delete_twitter": ("a deletion", "delete a post"),
    "like_twitter": ("a like", "like a post"),
    "unlike_twitter": ("the removal of a like", "remove a like"),
    "follow_twitter": ("a follow", "follow a user"),
    "unfollow_twitter": ("an unfollow", "unfollow a user"),
    "retweet_twitter": ("a repost", "repost a post"),
    "unretweet_twitter": ("the removal of a repost", "remove a repost"),
    "bookmark_twitter": ("a bookmark", "bookmark a post"),
    "unbookmark_twitter": ("the removal of a bookmark", "remove a bookmark"),
    "upload_media": ("an upload", "upload media"),
}
"""What an operation is, and what it does."""

_LINK: Final = "notification"
"""Whose name a decision by the link of a notification is recorded under."""

_USERNAME: Final = re.compile(r"[A-Za-z0-9_]{1,20}")


def worded(news: News) -> Worded:
    """Return the title and the sentences of an event, also of one that lacks some of its facts."""
    words = WORDS.get((news.type, news.data.get(VARIANTS.get(news.type, ""))), _UNKNOWN)
    values = _values(news)
    known = {name: value for name, value in values.items() if value}
    sentences = tuple(one.format_map(known) for one in words.sentences if _names(one) <= known.keys())
    return Worded(_ascii(words.title.format_map(values)), sentences, words.emoji, words.priority)


def _names(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def _values(news: News) -> dict[str, str]:
    """Return every value that a row of WORDS can contain; an empty one is not known."""
    data = news.data
    account, key = _member(data, "account"), _member(data, "key")
    operation, scope = _line(data.get("operation")) or "(unknown)", _line(data.get("scope"))
    thing, do = OPERATION_WORDS.get(operation, ("a call", f"call {operation}"))
    subject, called = _scope(scope, _line(data.get("name")) or scope)
    return {
        "type": news.type,
        "account": _account(account),
        "key": _quoted(_line(key.get("label"))) or _line(key.get("key_id")) or "(unknown)",
        "key_id": _line(key.get("key_id")),
        "operation": operation,
        "thing": thing,
        "do": do,
        "expires": _when(data.get("expires_at"), news.at),
        "cost": _dollars(data.get("cost_usd")),
        "decided_by": _decided_by(_line(data.get("decided_by"))),
        "post_url": _post_url(account, data.get("post_id")),
        "reason": _reason(_line(data.get("reason"))),
        "subject": subject,
        "Scope": called[:1].upper() + called[1:],
        "scope_id": scope,
        "limit": _dollars(data.get("limit_usd")),
        "unit": _line(data.get("unit")),
        "window": _line(data.get("window")),
        "why": _line(data.get("why"), MAX_REASON_CHARS).rstrip(" ."),
        "by": _line(data.get("by")),
        "until": _when(data.get("until"), news.at),
    }


def _member(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _account(account: Mapping[str, Any]) -> str:
    """Return the name of an account in ASCII: its username, or its id if X has not named it."""
    username = str(account.get("username") or "")
    if _USERNAME.fullmatch(username):
        return f"@{username}"
    user_id = _ascii(_line(account.get("user_id")))
    return f"account {user_id}" if user_id else "an account"


def _scope(scope: str, name: str) -> tuple[str, str]:
    """Return how a title names a scope, in ASCII, and how a sentence does. Without a name of its own, it has its id."""
    is_named = name != scope
    if scope.startswith("key_"):
        shown = is_named and len(name) <= MAX_TITLE_LABEL and _ascii(name) == name
        return f"Key {name}" if shown else "A key", f"the key {_quoted(name) if is_named else name}"
    if scope.startswith("account:"):
        if _USERNAME.fullmatch(name.removeprefix("@")):
            return name, name
        return "An account", name if is_named else f"the account {scope.removeprefix('account:')}"
    return ("The gateway", "the gateway") if scope == "gateway" else ("Something", f"the scope {scope}")


def _line(value: object, length: int = MAX_NAME_CHARS) -> str:
    """Return a value as one line in which nothing is hidden."""
    text = "" if value is None else str(value)
    shown = marked(text[:length].replace("\n", " "))
    return shown if len(text) <= length else f"{shown}…"


def _decided_by(who: str) -> str:
    """Return who decided. Nobody knows who holds the link that a notification contains."""
    return "Somebody with the link" if who == _LINK else who or "Somebody"


def _reason(name: str) -> str:
    """Return a reason with its meaning, if that needs no values of the refusal."""
    message = PROBLEMS[name].message if name in PROBLEMS else ""
    return f"{message.rstrip('.')} ({name})" if message and "{" not in message else name


def _quoted(label: str) -> str:
    return f"“{label}”" if label else ""


def _dollars(amount: object) -> str:
    """Return an amount of dollars with at least two decimals."""
    if not isinstance(amount, int | float):
        return ""
    dollars, cents = f"{amount:.6f}".split(".")
    return f"${int(dollars):,}.{cents.rstrip('0').ljust(2, '0')}"


def _when(moment: object, at: datetime) -> str:
    """Return when something is to happen: a time, and its date if that is not the day of the event; in UTC."""
    try:
        found = datetime.fromisoformat(str(moment)).astimezone(UTC)
    except ValueError:
        return ""
    day = "" if found.date() == at.astimezone(UTC).date() else f"on {found.day} {found:%B %Y} "
    return f"{day}at {found:%H:%M} UTC"


def _post_url(account: Mapping[str, Any], post_id: object) -> str:
    found = re.fullmatch(r"[0-9]{1,19}", str(post_id))
    username = _account(account).removeprefix("@")
    return f"https://x.com/{username if _USERNAME.fullmatch(username) else 'i'}/status/{post_id}" if found else ""


def _ascii(text: str) -> str:
    """Return text as one line of printable ASCII."""
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
