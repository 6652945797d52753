"""The first sentence of each result, which names what was done. None quotes what other people wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Sentence = Callable[[Mapping[str, Any], str | None], str]

WAITS: Final = (
    "Nothing was published. A person must approve it first: {where}. Do not send it again: Birdwire sends it once it "
    "is approved. Call get_request with {request_id} later to see the outcome."
)

_VERDICTS: Final = {
    "allow": "It would be sent immediately.",
    "require_approval": "A person would have to approve it first.",
    "deny": "It would be refused.",
}


def _posted(data: Mapping[str, Any], username: str | None) -> str:
    by = "" if username is None else f" as @{username}"
    return f"Posted{by}: https://x.com/{username or 'i'}/status/{data['id']}"


def _followed(data: Mapping[str, Any], _: str | None) -> str:
    return "Asked to follow: the user must accept first." if data.get("pending_follow") else "Following."


def _posts(data: Mapping[str, Any], _: str | None) -> str:
    more = " There are more: pass next_cursor as cursor." if data["has_next_page"] else ""
    return f"Posts: {len(data['tweets'])}, newest first.{more}"


def _users(data: Mapping[str, Any], _: str | None) -> str:
    return f"Users found: {len(data['users'])}."


def _previewed(data: Mapping[str, Any], _: str | None) -> str:
    would = data["would"]
    refusals = [refusal["message"] for refusal in would["refusals"]]
    return " ".join(["This is a preview: nothing was sent.", _VERDICTS[would["outcome"]], *refusals])


def _account(data: Mapping[str, Any], _: str | None) -> str:
    if data["usable"]:
        first = f"@{data['username']} is linked."
    elif data["linked"]:
        first = f"The link to @{data['username']} cannot be used: its state is {data['state']}. Call link_account."
    else:
        first = "No account is linked. Call link_account to link one."
    paused = ["Its calls to X are paused."] if data["paused"] else []
    waiting = (data["rules"] or {}).get("waiting", 0)
    waits = [f"Requests that wait for a person's approval: {waiting}."] if waiting else []
    return " ".join([first, *paused, *waits])


def _constant(sentence: str) -> Sentence:
    return lambda _data, _username: sentence


SENTENCES: Final[dict[str, Sentence]] = {
    "post_twitter": _posted,
    "delete_twitter": _constant("Deleted."),
    "like_twitter": _constant("Liked."),
    "unlike_twitter": _constant("No longer liked."),
    "retweet_twitter": _constant("Reposted."),
    "unretweet_twitter": _constant("No longer reposted."),
    "follow_twitter": _followed,
    "unfollow_twitter": _constant("No longer followed."),
    "bookmark_twitter": _constant("Bookmarked."),
    "unbookmark_twitter": _constant("No longer bookmarked."),
    "user/info": _constant("The user exists."),
    "user/last_tweets": _posts,
    "user/search": _users,
    "dry_run": _previewed,
    "auth/status": _account,
    "auth_twitter": _constant(
        "Show auth_url to the account's owner, who opens it within 10 minutes and approves. Then call get_account "
        "until an account is linked."
    ),
    "awaiting_approval": _constant("it waits for a person's approval, and nothing was published. Ask again later."),
    "approved": _constant("a person approved it, and Birdwire is about to send it. Ask again later."),
    "started": _constant("it is being sent. Ask again in some seconds."),
    "confirmed": _constant("X did it."),
    "refused": _constant("X refused it."),
    "not_sent": _constant("it was not sent to X."),
    "unknown": _constant("it is not known whether X did it. Do not send it again; ask again later."),
    "found": _constant("X did it; its response was lost, and the post was found."),
    "not_found": _constant("X did not do it: the post was not found."),
    "denied": _constant("a person denied it, and nothing was published. Report that before you propose anything else."),
    "expired": _constant("nobody approved it in time, and nothing was published."),
    "cancelled": _constant("it was cancelled, and nothing was published."),
}
"""A sentence for each HTTP call behind a tool, from its data and the account's username if that is known; and one
for each state of an earlier request.
"""
