"""Describes the outcome of a write in sentences, from the document of GET requests/{request_id}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.cli.output import meaning, remedy
from birdwire.cli.printable import printable
from birdwire.store.tables.journal import STATES, WAITING, State, Why

if TYPE_CHECKING:
    from collections.abc import Iterator

MEANINGS: dict[State, tuple[str, str]] = {
    State.AWAITING_APPROVAL: (
        "The call waits for a person's approval. Nothing was sent to X.",
        "Check again later. The operator decides with: birdwire approvals show {request_id}",
    ),
    State.APPROVED: (
        "A person approved the call, and Birdwire is about to send it.",
        "Check again in a minute. If it cannot be sent within 10 minutes of the decision, it expires.",
    ),
    State.STARTED: ("The call is still running, or its process has just crashed.", "Check again in 30 seconds."),
    State.CONFIRMED: ("X confirmed the call.", ""),
    State.REFUSED: ("X refused the call. Nothing was changed.", ""),
    State.NOT_SENT: ("Nothing was sent to X.", "You can send it again."),
    State.UNKNOWN: ("X's response was lost, so X may or may not have carried out the call.", ""),
    State.FOUND: (
        "X's response was lost, but X carried out the call: the post is in the account's timeline.",
        "Do not send it again.",
    ),
    State.NOT_FOUND: (
        "X's response was lost, and X did not carry out the call: the post is not in the account's timeline.",
        "You can send it again, with a new Idempotency-Key.",
    ),
    State.DENIED: (
        "A person denied the call. Nothing was sent to X.",
        "Change what you ask for. For 24 hours, the same call by this key is refused without asking again.",
    ),
    State.EXPIRED: (
        "The time to decide on the call, or to send it, is over. Nothing was sent to X.",
        "Send it again, with a new Idempotency-Key, if you still want it.",
    ),
    State.CANCELLED: (
        "The call was cancelled before it was sent. Nothing was sent to X.",
        "Send it again, with a new Idempotency-Key, if you still want it.",
    ),
}
"""What each state means, and what to do next. `{request_id}` stands for the id of the call."""

SAID = "See the fix in the original response, or look up the reason in docs/errors.md."
"""The advice for a refusal whose fix depends on values that only the original response contains."""
WHYS: dict[Why, tuple[str, str]] = {
    Why.LOOKING: (
        "Birdwire is searching the account's timeline for the post.",
        "Check again in a minute. Do not send it again yet.",
    ),
    Why.NO_READ: (
        "Birdwire has not been able to read the account's timeline yet.",
        "Check the account on x.com, or run this command again later.",
    ),
    Why.SEVERAL_MATCH: ("Several posts in the account's timeline match this one.", "Check the account on x.com."),
    Why.TOO_MANY_POSTS: (
        "The account has published too many posts since then for Birdwire to search.",
        "Check the account on x.com.",
    ),
    Why.NOT_LINKED: (
        "The account is no longer linked, so Birdwire cannot search its timeline.",
        "Check the account on x.com.",
    ),
    Why.NOT_IN_TIMELINE: (
        "Posts of this kind do not appear in timelines, so Birdwire cannot search for it.",
        "Check on x.com before you send it again.",
    ),
    Why.UPLOAD: ("X deletes uploads that no post uses, so a lost upload does no harm.", "Upload the file again."),
}


def explained(document: dict[str, Any]) -> list[str]:
    """Describe the outcome in a few sentences: the request, the outcome, the decision, the cause, the next step."""
    outcome, advice = outcome_of(document)
    lines = [
        f"{printable(document.get('operation'), 60)}, requested at {printable(document.get('created_at'), 40)}",
        *outcome,
        *_decision(document),
    ]
    found = document.get("data")
    if isinstance(found, dict):
        lines += [f"{printable(name, 40)}: {printable(value)}" for name, value in found.items()]
    if isinstance(document.get("cost_usd"), float) and document["cost_usd"]:
        lines.append(f"Estimated cost at X: ${document['cost_usd']:.3f}")
    return [*lines, advice] if advice else lines


def outcome_of(document: dict[str, Any]) -> tuple[list[str], str]:
    """Return what happened, with its cause if that is known, and what to do next."""
    state, why, reason = (str(document.get(name)) for name in ("state", "why", "reason"))
    happened, advice = MEANINGS[State(state)] if state in STATES else (f"Its state is {printable(state, 60)}.", "")
    lines = [happened]
    if state == State.UNKNOWN and why in WHYS:
        cause, advice = WHYS[Why(why)]
        lines.append(cause)
    elif document.get("reason") and state not in _CLEAR:
        lines.append(meaning(reason))
        if state == State.NOT_SENT:
            advice = remedy(reason) or SAID
        elif state == State.EXPIRED:
            advice = remedy(reason) or advice
    return lines, advice.replace("{request_id}", printable(document.get("request_id"), 60))


_CLEAR = frozenset({State.NOT_FOUND, State.DENIED, State.CANCELLED})
"""The sentence of these states includes all that their reason adds."""


def _decision(document: dict[str, Any]) -> Iterator[str]:
    """Describe the decision on a call that waited, or until when it waits."""
    approval = document.get("approval")
    if not isinstance(approval, dict):
        return
    if approval.get("edited_from"):
        yield "A person has edited its text."
    if approval.get("decided_at"):
        by = printable(approval.get("decided_by"), 100)
        verdict = "Denied" if document.get("state") == State.DENIED else "Approved"
        yield f"{verdict} by {by} at {printable(approval['decided_at'], 40)}"
    if approval.get("note"):
        yield f"Note: {printable(approval['note'])}"
    if document.get("state") in WAITING:
        yield f"Expires at {printable(approval.get('expires_at'), 40)}"
