"""A proposal: everything that a policy may ask about a call, read once from its checked body.

Links are all that X may show as one: those of the texts, found as the length of a post finds them, the host of a card
and of a direct message link, and x.com for a quoted post. A host is compared in Unicode, in lower case and in
compatibility form, as a browser would resolve it; one that cannot be known is UNKNOWN_HOST. Where a redirect or a
shortened link leads, and a host that X does not link, such as `evil[.]com` or a bare host in Cyrillic, are not covered.

Mentions are names behind @ or its full-width form where X finds them, and the users whom the media tag. A name is
counted once, and also where X finds none because of what follows it. The author of the post that a reply answers is
notified by X, and not counted.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from birdwire.gateway.guardrails.windows import Moment
from birdwire.gateway.guardrails.word_matching import ALIKE, ReadText
from birdwire.x.catalog.link_hosts import UNKNOWN_HOST, host_of
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.post_length import links_of, weighted_length
from birdwire.x.catalog.unicode_nfc import fold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from birdwire.api.models import Body
    from birdwire.gateway.guardrails.decision import Context
    from birdwire.x.catalog.operations import Operation

KINDS: Final = ("reply", "quote", "poll", "media", "edit", "community", "paid_partnership", "nullcast")
"""The kinds of a post that a policy may name. A post may be of several."""

MAX_HOSTS_KEPT: Final = 50

_X_HOST = re.compile(r"(?:.+\.)?(?:x|twitter)\.com")
_STATUS = re.compile(r"/status(?:es)?/+[0-9]", re.IGNORECASE)
# As twitter-text finds a mention, except that what follows the name does not decide: a name too many is counted rather
# than one too few.
_MENTION = re.compile(
    r"(?:(?<![A-Za-z0-9_!#$%&*@\uFF20])|(?<=\b[Rr][Tt])|(?<=\b[Rr][Tt]:))[@\uFF20]([A-Za-z0-9_]{1,20})"
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a call asks for. `links` are hosts, `kinds` names of KINDS; `price` is in millionths of a dollar.

    `target` is the id of the post or user acted on. `weight` is the weighted length of the text, None without one.
    """

    operation: str
    user_id: str | None
    kinds: frozenset[str] = frozenset()
    texts: tuple[str, ...] = field(default=(), repr=False)
    links: tuple[str, ...] = field(default=(), repr=False)
    mentions: tuple[str, ...] = field(default=(), repr=False)
    price: int | None = None
    target: str | None = None
    weight: int | None = None
    is_write: bool = True


@dataclass(frozen=True)
class Case:
    """One call that is judged: the proposal and the context, and what several rules derive from them."""

    proposal: Proposal
    context: Context

    @cached_property
    def moment(self) -> Moment:
        """The time, as rules count it."""
        return Moment.of(self.context.now)

    @cached_property
    def read_texts(self) -> tuple[ReadText, ...]:
        """The texts, as words are compared."""
        return tuple(map(ReadText.of, self.proposal.texts))


def propose(operation: Operation, user_id: str | None, body: Body, price: int | None) -> Proposal:
    """Return what a call of an operation asks for. The files of a post count as media of its body."""
    if not isinstance(body, PostTwitter):
        target = getattr(body, operation.target, None)
        return Proposal(operation.name, user_id, price=price, target=target)
    texts = tuple(_texts(body))
    found = [link for text in texts for link in links_of(text)]
    return Proposal(
        operation.name,
        user_id,
        kinds=frozenset(_kinds(body, found)),
        texts=texts,
        links=tuple(dict.fromkeys([*map(host_of, found), *_other_hosts(body)])),
        mentions=tuple(dict.fromkeys(_mentions(body, texts))),
        price=price,
        weight=None if body.text is None else weighted_length(body.text),
    )


def propose_lookup(lookup_name: str, user_id: str | None, price: int | None) -> Proposal:
    """Return what a lookup asks for."""
    return Proposal(lookup_name, user_id, price=price, is_write=False)


def comparable_text(proposal: Proposal) -> str | None:
    """Return the text of a post for comparing with earlier ones; None if it has no text.

    Case, runs of white space, accents, invisible code points, forms of the same letter and letters that look like a
    Latin one make no difference.
    """
    if proposal.operation != "post_twitter" or proposal.weight is None or not proposal.texts:
        return None
    return " ".join(fold(proposal.texts[0]).translate(ALIKE).split()) or None


def features_of(proposal: Proposal) -> dict[str, Any]:
    """Return what is kept of a post, as JSON, to judge it again later by another policy. It holds no text."""
    hosts = list(proposal.links[:MAX_HOSTS_KEPT])
    if len(proposal.links) > MAX_HOSTS_KEPT:
        hosts[-1] = UNKNOWN_HOST
    return {
        "weight": proposal.weight,
        "kinds": sorted(proposal.kinds),
        "hosts": hosts,
        "mentions": len(proposal.mentions),
    }


def proposal_of_features(
    operation: str, user_id: str | None, features: object, text: str | None, price: int | None
) -> Proposal | None:
    """Return the proposal of an earlier call; None if it cannot be judged.

    `text` is the text as X stored it, with links shortened and &, < and > escaped. The options of a poll are not kept.
    """
    if operation != "post_twitter":
        return Proposal(operation, user_id, price=price)
    if not isinstance(features, dict):
        return None
    match features:
        case {"weight": int() | None as weight, "kinds": list(kinds), "hosts": list(hosts), "mentions": int(mentions)}:
            pass
        case _:
            return None
    if weight and text is None:
        return None
    return Proposal(
        operation,
        user_id,
        kinds=frozenset(map(str, kinds)),
        texts=(html.unescape(text),) if weight and text is not None else (),
        links=tuple(map(str, hosts)),
        mentions=tuple(map(str, range(mentions))),
        price=price,
        weight=weight,
    )


def _texts(body: PostTwitter) -> Iterator[str]:
    """Yield the texts of a post: its own first, then the options of its poll."""
    if body.text is not None:
        yield body.text
    if body.poll is not None:
        yield from body.poll.options


def _kinds(body: PostTwitter, links: list[str]) -> Iterator[str]:
    """Yield the kinds of a post. A link to a post also quotes it, since X shows it so."""
    set_members = {
        "reply": body.reply,
        "quote": body.quote_tweet_id or any(map(_is_status, links)),
        "poll": body.poll,
        "media": body.media,
        "edit": body.edit_options,
        "community": body.community_id,
        "paid_partnership": body.paid_partnership,
        "nullcast": body.nullcast,
    }
    yield from (kind for kind, value in set_members.items() if value)


def _is_status(link: str) -> bool:
    """Return whether a link leads to a post on X."""
    return _STATUS.search(unquote(link)) is not None and _X_HOST.fullmatch(host_of(link)) is not None


def _other_hosts(body: PostTwitter) -> Iterator[str]:
    """Yield the hosts of a post's links outside its texts."""
    for link in (body.card_uri, body.direct_message_deep_link):
        if link is not None:
            yield host_of(link) if link.lower().startswith(("https://", "http://")) else UNKNOWN_HOST
    if body.quote_tweet_id is not None:
        yield "x.com"


def _mentions(body: PostTwitter, texts: tuple[str, ...]) -> Iterator[str]:
    """Yield whom a post mentions: names in lower case, and the ids of users that its media tag."""
    for text in texts:
        # The pattern takes as long as all the rest of a proposal, and most texts mention nobody.
        if "@" not in text and "\uff20" not in text:
            continue
        yield from (name.lower() for name in _MENTION.findall(text))
    if body.media is not None:
        yield from body.media.tagged_user_ids or ()
