"""The rules about what a call does: operations, kinds of posts, deletions, links, mentions and words.

For each rule: `read_` checks its value and returns it complete, `find_` returns what it has against a call, `describe_`
puts it into words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from birdwire.api.errors import excerpt
from birdwire.gateway.guardrails import rule_values as values
from birdwire.gateway.guardrails.decision import Found
from birdwire.gateway.guardrails.proposal import KINDS
from birdwire.gateway.guardrails.rule_values import ASKING, EVERY, PUBLISHING, UPLOAD, counted, refuse
from birdwire.gateway.guardrails.word_matching import WordList, has_content
from birdwire.x.catalog.link_hosts import UNKNOWN_HOST, ascii_host, comparable_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from birdwire.gateway.guardrails.proposal import Case

APPROVERS: Final = ("operator", "owner", "either")
MAX_WORDS: Final = 1_000
MAX_WORD_CHARS: Final = 100
MAX_HOSTS: Final = 100
MAX_HOST_CHARS: Final = 253
MAX_MENTIONS: Final = 1_000
_MAX_SHOWN: Final = 3

_HOST = re.compile(r"[^\s/:?#@\\*.]{1,63}(?:\.[^\s/:?#@\\*.]{1,63})+")
_PHRASES: Final = {"approve": "need approval", "deny": "are refused"}


def read_approve(value: object) -> Any:
    """Return `*` or the names of operations that need a person's approval."""
    cure = f'Write "*" or a list of operations: {", ".join(PUBLISHING)}.'
    if value == EVERY:
        return EVERY
    names = values.texts("approve", value, len(PUBLISHING), 100, cure)
    for name in names:
        if name == UPLOAD:
            refuse("approve", "upload_media cannot wait for approval, since it publishes nothing", "Remove it.")
        if name not in PUBLISHING:
            refuse("approve", f"{values.shown(name)} is not an operation that can wait for approval", cure)
    return [name for name in PUBLISHING if name in names]


def find_approve(value: Any, case: Case) -> Iterator[Found]:
    """Find an operation that needs approval."""
    operation = case.proposal.operation
    if operation in PUBLISHING and (value == EVERY or operation in value):
        yield Found("approve", "policy_denied", f"{operation} needs a person's approval")


def describe_approve(value: Any) -> str:
    """Return the rule in words."""
    return f"Approval is needed for{' every write' if value == EVERY else ': ' + ', '.join(value)}."


def read_approve_by(value: object) -> str:
    """Return who may approve."""
    if value in APPROVERS[1:]:
        refuse("approve_by", f"{value} is not possible yet, since account owners have no page", "Write operator.")
    return values.one_of("approve_by", value, APPROVERS[:1])


def describe_approve_by(value: Any) -> str:
    """Return the rule in words."""
    return f"The {value} approves what needs approval."


def read_kinds(value: object) -> dict[str, str]:
    """Return what follows for each kind of post."""
    cure = 'Write an object such as {"reply": "approve", "quote": "deny"}.'
    given = values.members("kinds", value, KINDS, cure)
    return {kind: values.one_of("kinds", given[kind], ASKING, kind) for kind in KINDS if kind in given}


def find_kinds(value: Mapping[str, str], case: Case) -> Iterator[Found]:
    """Find the kinds of a post that need approval or are denied."""
    kinds = case.proposal.kinds
    for kind, then in value.items() if kinds else ():
        if kind in kinds:
            yield Found(then, "policy_denied", f"a post of the kind {kind} {_singular(then)}")


def describe_kinds(value: Mapping[str, str]) -> str:
    """Return the rule in words."""
    parts = {then: [kind for kind in value if value[kind] == then] for then in ("deny", "approve")}
    return " ".join(
        f"Posts of the kind {' or '.join(kinds)} {_PHRASES[then]}." for then, kinds in parts.items() if kinds
    )


def read_delete(value: object) -> str:
    """Return which posts may be deleted."""
    return values.one_of("delete", value, ("own", "any"))


def find_delete(value: str, case: Case) -> Iterator[Found]:
    """Find the deletion of a post that the key is not known to have made."""
    if value == "own" and case.proposal.operation == "delete_twitter" and case.context.own_post is not True:
        yield Found("deny", "policy_denied", "only posts that this key made through this gateway may be deleted")


def describe_delete(value: str) -> str:
    """Return the rule in words."""
    return "Only posts that the key itself made may be deleted." if value == "own" else "Any post may be deleted."


@dataclass(frozen=True, slots=True)
class LinkRule:
    """The hosts that links may lead to, with their subdomains, and what follows for any other."""

    only: frozenset[str]
    then: str

    def allows(self, host: str) -> bool:
        """Return whether a link to a host is allowed: to a listed host, or to a subdomain of one."""
        parts = host.split(".")
        return any(".".join(parts[at:]) in self.only for at in range(len(parts)))


def read_links(value: object) -> Any:
    """Return `deny`, `approve`, or the allowed hosts and what follows for any other."""
    cure = 'Write "deny", "approve" or {"only": ["example.org"], "else": "approve"}.'
    if not isinstance(value, dict):
        if not isinstance(value, str) or value not in ASKING:
            refuse("links", f"{values.shown(value)} is not valid", cure)
        return value
    given = values.members("links", value, ("only", "else"), cure)
    hosts = values.texts("links", given.get("only"), MAX_HOSTS, MAX_HOST_CHARS, cure)
    return {
        "only": list(dict.fromkeys(map(_host, hosts))),
        "else": values.one_of("links", given.get("else", "deny"), ASKING, "else"),
    }


def _host(written: str) -> str:
    host = comparable_host(written.strip())
    if not _HOST.fullmatch(host):
        cure = "Write a host such as example.org, without protocol, port or path; its subdomains are included."
        refuse("links", f"{values.shown(written)} is not a host", cure)
    return host


def compile_links(value: Any) -> LinkRule:
    """Return the rule, ready to be applied."""
    return LinkRule(frozenset(), value) if isinstance(value, str) else LinkRule(frozenset(value["only"]), value["else"])


def find_links(value: LinkRule, case: Case) -> Iterator[Found]:
    """Find links to hosts that are not allowed."""
    others = [host for host in case.proposal.links if not value.allows(host)]
    if others:
        yield Found(value.then, "policy_denied", f"a link to {_hosts(others)} {_singular(value.then)}")


def _hosts(hosts: Sequence[str]) -> str:
    named = ["an unknown host" if host == UNKNOWN_HOST else excerpt(ascii_host(host), 60) for host in hosts]
    more = f" and {len(named) - _MAX_SHOWN} more" if len(named) > _MAX_SHOWN else ""
    return ", ".join(named[:_MAX_SHOWN]) + more


def describe_links(value: Any) -> str:
    """Return the rule in words."""
    if isinstance(value, str):
        return f"Links {_PHRASES[value]}."
    return f"Links to hosts other than {', '.join(map(ascii_host, value['only']))} {_PHRASES[value['else']]}."


def read_mentions(value: object) -> dict[str, Any]:
    """Return how many users a post may mention, and what follows for more."""
    given = values.members("mentions", value, ("max", "else"), 'Write an object such as {"max": 1, "else": "approve"}.')
    return {
        "max": values.whole("mentions", given.get("max"), 0, MAX_MENTIONS, "max"),
        "else": values.one_of("mentions", given.get("else", "deny"), ASKING, "else"),
    }


def find_mentions(value: Mapping[str, Any], case: Case) -> Iterator[Found]:
    """Find more mentions than allowed."""
    count = len(case.proposal.mentions)
    if count > value["max"]:
        message = (
            f"the post mentions or tags {counted(count, 'user')}, and more than {value['max']} {_plural(value['else'])}"
        )
        yield Found(value["else"], "policy_denied", message)


def describe_mentions(value: Mapping[str, Any]) -> str:
    """Return the rule in words."""
    return f"Posts that mention or tag more than {counted(value['max'], 'user')} {_PHRASES[value['else']]}."


def read_words(value: object) -> dict[str, list[str]]:
    """Return the words that are denied and those that need approval."""
    cure = 'Write an object such as {"deny": ["giveaway"], "approve": ["price"]}.'
    given = values.members("words", value, ("deny", "approve"), cure)
    lists = {
        then: values.texts("words", given[then], MAX_WORDS, MAX_WORD_CHARS, cure)
        for then in ("deny", "approve")
        if then in given
    }
    if sum(map(len, lists.values())) > MAX_WORDS:
        refuse("words", "the lists are too long", f"Write at most {MAX_WORDS} words.")
    for word in (word for words in lists.values() for word in words):
        if not has_content(word):
            refuse(
                "words", f"{values.shown(word)} has nothing to compare", "Write a word with letters, digits or signs."
            )
    return lists


def compile_words(value: Mapping[str, list[str]]) -> tuple[tuple[str, WordList], ...]:
    """Return the lists, ready to be found in texts."""
    return tuple((then, WordList.of(words)) for then, words in value.items())


def find_words(value: tuple[tuple[str, WordList], ...], case: Case) -> Iterator[Found]:
    """Find the first word of each list."""
    for then, words in value if case.proposal.texts else ():
        word = words.find(case.read_texts)
        if word is not None:
            yield Found(then, "policy_denied", f"a text with the word {values.shown(word)} {_singular(then)}")


def describe_words(value: Mapping[str, list[str]]) -> str:
    """Return the rule in words. The words themselves are not listed."""
    return " ".join(
        f"Texts with one of {counted(len(words), 'listed word')} {_PHRASES[then]}." for then, words in value.items()
    )


def _singular(then: str) -> str:
    return "needs approval" if then == "approve" else "is not allowed"


def _plural(then: str) -> str:
    return "need approval" if then == "approve" else "are not allowed"
