"""Proposals and policies as data, and what each policy finds in each proposal: one table for every surface.

The bodies are valid JSON bodies of their operations. The counters are unused, and the account's owner is not known to
have posted anything before.
"""

from __future__ import annotations

from typing import Any, Final

POST: Final = "post_twitter"
POST_ID: Final = "1346889436626259968"
USER_ID: Final = "2244994945"


def _post(text: str | None = None, **members: Any) -> tuple[str, dict[str, Any]]:
    return POST, {**({} if text is None else {"text": text}), **members}


_TARGET: Final = {"tweet_id": POST_ID}
_POLL: Final = {"options": ["Yes", "No"], "duration_minutes": 60}

PROPOSALS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    # Operations other than a post.
    "like": ("like_twitter", _TARGET),
    "unlike": ("unlike_twitter", _TARGET),
    "follow": ("follow_twitter", {"target_user_id": USER_ID}),
    "unfollow": ("unfollow_twitter", {"target_user_id": USER_ID}),
    "delete": ("delete_twitter", _TARGET),
    "repost": ("retweet_twitter", _TARGET),
    "undo repost": ("unretweet_twitter", _TARGET),
    "bookmark": ("bookmark_twitter", _TARGET),
    "remove bookmark": ("unbookmark_twitter", _TARGET),
    # Kinds of posts, each member of the body.
    "plain": _post("Good morning"),
    "reply": _post("I agree", reply={"in_reply_to_tweet_id": POST_ID}),
    "quote": _post("Read this", quote_tweet_id=POST_ID),
    "quote without text": _post(quote_tweet_id=POST_ID),
    "quote by a link": _post(f"Read this https://x.com/ada/status/{POST_ID}"),
    "quote by an older link": _post(f"Read this twitter.com/ada/status/{POST_ID}?s=20"),
    "poll": _post("Which one?", poll=_POLL),
    "poll with a word": _post("Which one?", poll={"options": ["Giveaway", "No"], "duration_minutes": 60}),
    "poll with a link": _post("Which one?", poll={"options": ["evil.com", "No"], "duration_minutes": 60}),
    "media": _post("Look", media={"media_ids": [POST_ID]}),
    "media without text": _post(media={"media_ids": [POST_ID]}),
    "media that tags": _post("Look", media={"media_ids": [POST_ID], "tagged_user_ids": [USER_ID, POST_ID]}),
    "edit": _post("Good morning, all", edit_options={"previous_post_id": POST_ID}),
    "community": _post("Hello, members", community_id=POST_ID),
    "paid partnership": _post("I like this coffee", paid_partnership=True),
    "no paid partnership": _post("I like this tea", paid_partnership=False),
    "nullcast": _post("For some", nullcast=True),
    "card": _post("See", card_uri="https://evil.com/card"),
    "card without a host": _post("See", card_uri="card://1346889436626259968"),
    "deep link": _post("Write", direct_message_deep_link="https://x.com/messages/compose?recipient_id=2244994945"),
    "place": _post("Here", geo={"place_id": "5a110d312052166f"}),
    "audience": _post("For followers", reply_settings="following"),
    "made with AI": _post("Drawn", made_with_ai=True),
    # Links.
    "allowed host": _post("See https://example.org/a"),
    "allowed subdomain": _post("See https://www.example.org/a?b=c#d"),
    "allowed bare host": _post("See example.org for more"),
    "host that only ends alike": _post("See https://notexample.org"),
    "host that only starts alike": _post("See https://example.org.evil.com/"),
    "other host": _post("See https://evil.com/a"),
    "bare host": _post("Go to evil.com now"),
    "host in capitals": _post("See HTTPS://EXAMPLE.ORG/A"),
    "host in full-width letters": _post("See https://\uff45xample.org/"),
    "host with a look-alike": _post("See https://ex\u0430mple.org/"),
    "host in punycode": _post("See https://xn--exmple-4nf.org/"),
    # X does not show this as a link.
    "host before an at sign": _post("See https://example.org@evil.com/"),
    "shortened link": _post("See https://t.co/abcdefghij"),
    "no host": _post("Bread and butter.Nothing else. Version 1.2.3"),
    # Mentions.
    "one mention": _post("Thanks, @ada"),
    "two mentions": _post("Thanks, @ada and @bob"),
    "one user twice": _post("@ada thanks, @ADA"),
    "full-width mention": _post("Thanks, \uff20ada and @bob"),
    "an address": _post("Write to ada@example"),
    # Words.
    "word": _post("A giveaway, today only"),
    "word in capitals": _post("GIVEAWAY!"),
    "word in full-width letters": _post("\uff27iveaway"),
    "word with a zero-width space": _post("give\u200baway"),
    "word with a look-alike": _post("giv\u0435\u0430way"),
    "word as a part of another": _post("giveaways are fine"),
    "phrase": _post("It is FREE   money, friends"),
    "word without spaces around it": _post("今天有抽奖活动"),
    "two lists": _post("The price of this giveaway"),
}
"""An operation and its body, by name."""

POLICIES: Final[dict[str, dict[str, Any]]] = {
    "propose": {"approve": "*"},
    "poster": {
        "approve": ["like_twitter", "follow_twitter"],
        "caps": {POST: "3/h 12/d"},
        "kinds": {"reply": "approve", "quote": "approve"},
        "delete": "own",
        "links": "approve",
        "mentions": {"max": 1, "else": "approve"},
        "duplicate_text": {"days": 30, "across": "account"},
        "budget": {"day_usd": 1, "unpriced": "approve"},
    },
    "links": {"links": {"only": ["example.org"], "else": "deny"}, "mentions": {"max": 0, "else": "approve"}},
    "words": {"words": {"deny": ["giveaway", "free money", "抽奖"], "approve": ["price"]}},
    "kinds": {
        "kinds": {
            "reply": "approve",
            "quote": "deny",
            "poll": "approve",
            "media": "approve",
            "edit": "deny",
            "community": "deny",
            "paid_partnership": "approve",
            "nullcast": "deny",
        },
        "delete": "any",
    },
    "budget": {"budget": {"day_usd": 0.1, "unpriced": "deny"}, "min_gap_s": {"*": 1}, "caps": {"*": "1000/d"}},
}
"""The rules of a policy, by name."""

_LINKS: Final = (
    *("quote", "quote without text", "quote by a link", "quote by an older link", "poll with a link", "card"),
    *("card without a host", "deep link", "host that only ends alike", "host that only starts alike", "other host"),
    *("bare host", "host with a look-alike", "host in punycode", "shortened link"),
)
_ALLOWED: Final = (
    *("allowed host", "allowed subdomain", "allowed bare host", "host in capitals", "host in full-width letters"),
)

_QUOTES: Final = ("quote", "quote without text", "quote by a link", "quote by an older link")
_LINKED_TEXTS: Final = (
    *("quote by a link", "quote by an older link", *_ALLOWED),
    *("host that only ends alike", "host that only starts alike", "other host", "bare host", "host with a look-alike"),
    *("host in punycode", "shortened link"),
)

EXPECTED: Final[dict[str, dict[str, str]]] = {
    "propose": dict.fromkeys(PROPOSALS, "ask:approve"),
    "poster": {
        "like": "ask:approve",
        "follow": "ask:approve",
        "delete": "deny:delete",
        "reply": "ask:kinds",
        **dict.fromkeys((*_LINKS, *_ALLOWED), "ask:links"),
        **dict.fromkeys(("quote by a link", "quote by an older link"), "ask:kinds ask:links"),
        **dict.fromkeys(("quote", "quote without text"), "ask:kinds ask:links ask:budget"),
        **dict.fromkeys(("two mentions", "full-width mention", "media that tags"), "ask:mentions"),
    },
    "links": {
        **dict.fromkeys(_LINKS, "deny:links"),
        **dict.fromkeys(
            ("one mention", "two mentions", "one user twice", "full-width mention", "media that tags"), "ask:mentions"
        ),
    },
    "words": {
        **dict.fromkeys(
            (
                *("poll with a word", "word", "word in capitals", "word in full-width letters"),
                *("word with a zero-width space", "word with a look-alike", "phrase", "word without spaces around it"),
            ),
            "deny:words",
        ),
        "two lists": "deny:words ask:words",
    },
    "kinds": {
        **dict.fromkeys(("poll", "poll with a word", "poll with a link", "reply", "paid partnership"), "ask:kinds"),
        **dict.fromkeys(("media", "media without text", "media that tags"), "ask:kinds"),
        **dict.fromkeys((*_QUOTES, "edit", "community", "nullcast"), "deny:kinds"),
    },
    "budget": dict.fromkeys((*_LINKED_TEXTS, "quote", "quote without text"), "deny:budget"),
}
"""What each policy finds: `deny` or `ask`, and the rule, in the order of the findings. What is missing is allowed."""
