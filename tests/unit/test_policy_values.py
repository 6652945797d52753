"""The values of rules: what is refused, with the rule's name and the cure, and the shorthand of the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.gateway.guardrails.counting_rules import cheapest_write
from birdwire.gateway.guardrails.decision import PolicyError
from birdwire.gateway.guardrails.policy import Policy
from birdwire.gateway.guardrails.rule_values import dollars
from birdwire.gateway.guardrails.rules import RULES, Change, changed, parse_shorthand, read_rules

REFUSED: dict[str, tuple[object, str]] = {
    "no object": ([], "The rules are not a JSON object. Write an object such as"),
    "an unknown rule": ({"link": "deny"}, "'link': there is no such rule. Rules: approve, approve_by, caps,"),
    "a rule of the key": ({"daily_writes": 5}, "'daily_writes': there is no such rule."),
    # approve
    "approve: a text": ({"approve": "post_twitter"}, "approve: 'post_twitter' is not a list. Write \"*\" or"),
    "approve: nothing": ({"approve": []}, "approve: the list is empty. Write"),
    "approve: a number": ({"approve": [1]}, "approve: an entry of the list is not a text. Write"),
    "approve: an upload": ({"approve": ["upload_media"]}, "approve: upload_media cannot wait for approval"),
    "approve: a lookup": ({"approve": ["user/info"]}, "approve: 'user/info' is not an operation that can wait"),
    "approve: a star in a list": ({"approve": ["*"]}, "approve: '*' is not an operation"),
    "approve: too many": ({"approve": ["like_twitter"] * 11}, "approve: the list has 11 entries. Write at most 10."),
    "approve: true": ({"approve": True}, "approve: true is not a list."),
    # approve_by
    "approve_by: anybody": ({"approve_by": "me"}, "approve_by: 'me' is unknown. Write operator."),
    "approve_by: the owner": ({"approve_by": "owner"}, "approve_by: owner is not possible yet"),
    "approve_by: either": ({"approve_by": "either"}, "approve_by: either is not possible yet"),
    "approve_by: null": ({"approve_by": None}, "approve_by: null is unknown."),
    # caps
    "caps: a text": ({"caps": "3/h"}, "caps: '3/h' is not an object. Write an object such as"),
    "caps: nothing": ({"caps": {}}, "caps: it has no member."),
    "caps: a lookup": ({"caps": {"user/info": "3/h"}}, "caps: 'user/info' is unknown. Known are like_twitter,"),
    "caps: a number": ({"caps": {"*": 3}}, "caps: * is 3. Write how often in a clock hour, a day or both, such as"),
    "caps: 0": ({"caps": {"*": "3/h 0/d"}}, "caps: * has a cap of 0. Write at least 1, or deny the operation"),
    "caps: negative": ({"caps": {"*": "-1/h"}}, "caps: * is '-1/h'."),
    "caps: a month": ({"caps": {"*": "3/m"}}, "caps: * is '3/m'."),
    "caps: an hour twice": ({"caps": {"*": "3/h 4/h"}}, "caps: * is '3/h 4/h'."),
    "caps: too many": ({"caps": {"*": "1000001/d"}}, "caps: * is '1000001/d'."),
    "caps: empty": ({"caps": {"like_twitter": ""}}, "caps: like_twitter is ''."),
    "caps: other digits": ({"caps": {"*": "\u0663/h"}}, "caps: * is '\u0663/h'."),
    "caps: long": ({"caps": {"*": "1/h " * 11}}, "caps: * is '1/h 1/h"),
    # min_gap_s
    "min_gap_s: a number": ({"min_gap_s": 5}, "min_gap_s: 5 is not an object."),
    "min_gap_s: 0": ({"min_gap_s": {"*": 0}}, "min_gap_s: * is 0. Write a whole number from 1 to 2592000."),
    "min_gap_s: a fraction": ({"min_gap_s": {"*": 1.5}}, "min_gap_s: * is 1.5."),
    "min_gap_s: true": ({"min_gap_s": {"*": True}}, "min_gap_s: * is true."),
    "min_gap_s: over a month": ({"min_gap_s": {"*": 2_592_001}}, "min_gap_s: * is 2592001."),
    # quiet_hours
    "quiet_hours: a text": ({"quiet_hours": "22:00-07:00"}, "quiet_hours: '22:00-07:00' is not an object."),
    "quiet_hours: no hours": (
        {"quiet_hours": {"zone": "UTC"}},
        "quiet_hours: hours is missing. Write two different times",
    ),
    "quiet_hours: no length": ({"quiet_hours": {"hours": "07:00-07:00"}}, "quiet_hours: hours is '07:00-07:00'."),
    "quiet_hours: 24:00": ({"quiet_hours": {"hours": "22:00-24:00"}}, "quiet_hours: hours is '22:00-24:00'."),
    "quiet_hours: 7:00": ({"quiet_hours": {"hours": "22:00-7:00"}}, "quiet_hours: hours is '22:00-7:00'."),
    "quiet_hours: a line": ({"quiet_hours": {"hours": "22:00-07:00\n"}}, "quiet_hours: hours is '22:00-07:00\\n'."),
    "quiet_hours: no such zone": (
        {"quiet_hours": {"hours": "22:00-07:00", "zone": "Europe/Bonn"}},
        "quiet_hours: the time zone 'Europe/Bonn' does not exist on this machine. Write a name of the IANA",
    ),
    "quiet_hours: a path": (
        {"quiet_hours": {"hours": "22:00-07:00", "zone": "../etc/passwd"}},
        "quiet_hours: the time zone '../etc/passwd' does not exist",
    ),
    "quiet_hours: a folder": (
        {"quiet_hours": {"hours": "22:00-07:00", "zone": "Europe"}},
        "quiet_hours: the time zone",
    ),
    "quiet_hours: a number": ({"quiet_hours": {"hours": "22:00-07:00", "zone": 1}}, "quiet_hours: the time zone 1 "),
    "quiet_hours: then": (
        {"quiet_hours": {"hours": "22:00-07:00", "then": "wait"}},
        "quiet_hours: then is 'wait'. Write approve or deny.",
    ),
    # kinds
    "kinds: unknown": (
        {"kinds": {"thread": "deny"}},
        "kinds: 'thread' is unknown. Known are reply, quote, poll, media,",
    ),
    "kinds: allow": ({"kinds": {"reply": "allow"}}, "kinds: reply is 'allow'. Write approve or deny."),
    "kinds: a list": ({"kinds": ["reply"]}, "kinds: a list is not an object."),
    # delete
    "delete: none": ({"delete": "none"}, "delete: 'none' is unknown. Write own or any."),
    "delete: a list": ({"delete": ["own"]}, "delete: a list is unknown."),
    # links
    "links: allow": ({"links": "allow"}, 'links: \'allow\' is not valid. Write "deny", "approve" or {"only":'),
    "links: null": ({"links": None}, "links: null is not valid."),
    "links: no host": ({"links": {"only": []}}, "links: the list is empty."),
    "links: only else": ({"links": {"else": "deny"}}, "links: the list is missing."),
    "links: a protocol": ({"links": {"only": ["https://example.org"]}}, "links: 'https://example.org' is not a host."),
    "links: a wildcard": ({"links": {"only": ["*.example.org"]}}, "links: '*.example.org' is not a host. Write a host"),
    "links: a path": ({"links": {"only": ["example.org/a"]}}, "links: 'example.org/a' is not a host."),
    "links: a port": ({"links": {"only": ["example.org:80"]}}, "links: 'example.org:80' is not a host."),
    "links: one label": ({"links": {"only": ["org"]}}, "links: 'org' is not a host."),
    "links: an empty label": ({"links": {"only": ["example..org"]}}, "links: 'example..org' is not a host."),
    "links: a long label": ({"links": {"only": ["a" * 64 + ".org"]}}, "links: 'aaaa"),
    "links: a long host": ({"links": {"only": ["a." * 126 + "org"]}}, "links: 'a.a."),
    "links: empty": ({"links": {"only": [""]}}, "links: '' has 0 characters. Write 1 to 253 characters."),
    "links: too many": (
        {"links": {"only": ["example.org"] * 101}},
        "links: the list has 101 entries. Write at most 100.",
    ),
    "links: else": ({"links": {"only": ["example.org"], "else": "allow"}}, "links: else is 'allow'."),
    "links: a member": ({"links": {"only": ["example.org"], "then": "deny"}}, "links: 'then' is unknown."),
    # mentions
    "mentions: a number": ({"mentions": 1}, "mentions: 1 is not an object."),
    "mentions: negative": ({"mentions": {"max": -1}}, "mentions: max is -1. Write a whole number from 0 to 1000."),
    "mentions: none": ({"mentions": {"else": "deny"}}, "mentions: max is missing."),
    "mentions: else": ({"mentions": {"max": 1, "else": "ask"}}, "mentions: else is 'ask'."),
    # words
    "words: a list": ({"words": ["a"]}, "words: a list is not an object."),
    "words: a text": ({"words": {"deny": "giveaway"}}, "words: 'giveaway' is not a list."),
    "words: nothing": ({"words": {"deny": []}}, "words: the list is empty."),
    "words: 10,000": ({"words": {"deny": [f"w{n}" for n in range(10_000)]}}, "words: the list has 10000 entries."),
    "words: 1,001 in two lists": (
        {"words": {"deny": [f"w{n}" for n in range(501)], "approve": [f"v{n}" for n in range(500)]}},
        "words: the lists are too long. Write at most 1000 words.",
    ),
    "words: long": ({"words": {"deny": ["w" * 101]}}, "words: 'wwww"),
    "words: blank": ({"words": {"deny": [" "]}}, "words: ' ' has nothing to compare. Write a word"),
    "words: invisible": ({"words": {"deny": ["\u200b\u0301"]}}, "words: '\\u200b\u0301' has nothing to compare."),
    # duplicate_text
    "duplicate_text: a number": ({"duplicate_text": 30}, "duplicate_text: 30 is not an object."),
    "duplicate_text: 0 days": (
        {"duplicate_text": {"days": 0}},
        "duplicate_text: days is 0. Write a whole number from 1",
    ),
    "duplicate_text: years": ({"duplicate_text": {"days": 366}}, "duplicate_text: days is 366."),
    "duplicate_text: across": (
        {"duplicate_text": {"days": 1, "across": "key"}},
        "duplicate_text: across is 'key'. Write account or gateway.",
    ),
    # budget
    "budget: a number": ({"budget": 2}, "budget: 2 is not an object."),
    "budget: only unpriced": ({"budget": {"unpriced": "deny"}}, "budget: it has neither day_usd nor month_usd."),
    "budget: a text": (
        {"budget": {"day_usd": "2"}},
        "budget: day_usd is '2'. Write a sum in US dollars, such as 2.50.",
    ),
    "budget: true": ({"budget": {"day_usd": True}}, "budget: day_usd is true."),
    "budget: 0": ({"budget": {"day_usd": 0}}, "budget: day_usd is 0. Write a sum over 0 and up to 1000000,"),
    "budget: negative": ({"budget": {"day_usd": -1}}, "budget: day_usd is -1."),
    "budget: not a number": ({"budget": {"day_usd": float("nan")}}, "budget: day_usd is nan."),
    "budget: infinite": ({"budget": {"day_usd": float("inf")}}, "budget: day_usd is inf."),
    "budget: too much": ({"budget": {"day_usd": 1_000_000.01}}, "budget: day_usd is 1000000.01."),
    "budget: seven decimals": ({"budget": {"day_usd": 1.0000001}}, "budget: day_usd is 1.0000001."),
    "budget: below the cheapest write": (
        {"budget": {"month_usd": 30, "day_usd": 0.004999}},
        "budget: day_usd is $0.004999, less than the cheapest write ($0.005). Write a larger sum.",
    ),
    "budget: unpriced": (
        {"budget": {"day_usd": 2, "unpriced": "free"}},
        "budget: unpriced is 'free'. Write deny, approve",
    ),
    "budget: a sum in words": ({"budget": {"day_usd": 2, "unpriced": "a sum"}}, "budget: unpriced is 'a sum'."),
    "budget: unpriced 0": ({"budget": {"day_usd": 2, "unpriced": 0}}, "budget: unpriced is 0."),
    "budget: unpriced null": ({"budget": {"day_usd": 2, "unpriced": None}}, "budget: unpriced is missing."),
    "budget: unpriced too much": (
        {"budget": {"day_usd": 2, "month_usd": 30, "unpriced": 2.01}},
        "budget: unpriced is larger than the budget. Write a smaller sum, deny or approve.",
    ),
    # trip
    "trip: a text": ({"trip": "3/10m"}, "trip: '3/10m' is not an object."),
    "trip: unknown": ({"trip": {"x_5xx": 1}}, "trip: 'x_5xx' is unknown. Known are x_refused, x_user_suspended."),
    "trip: 0": ({"trip": {"x_refused": 0}}, "trip: x_refused is 0. Write a whole number from 1"),
    "trip: 0 in a time": ({"trip": {"x_refused": "0/10m"}}, "trip: x_refused is '0/10m'. Write a count in a time"),
    "trip: no time": ({"trip": {"x_refused": "3/0m"}}, "trip: x_refused is '3/0m'."),
    "trip: seconds": ({"trip": {"x_refused": "3/10s"}}, "trip: x_refused is '3/10s'."),
    "trip: too long": ({"trip": {"x_refused": "3/31d"}}, "trip: x_refused is '3/31d'."),
    "trip: null": ({"trip": {"x_refused": None}}, "trip: x_refused is missing."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_value_is_refused_with_its_rule_and_the_cure(name: str) -> None:
    """In one or two short sentences."""
    rules, text = REFUSED[name]
    with pytest.raises(PolicyError) as caught:
        Policy.read("key_1", "operator", 1, "enforce", None, rules)
    assert str(caught.value).startswith(text), str(caught.value)
    assert ". " in str(caught.value).removesuffix(".")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


LIMITS: dict[str, dict[str, Any]] = {
    "approve": {"approve": ["bookmark_twitter", "like_twitter"]},
    "approve_by": {"approve_by": "operator"},
    "caps": {"caps": {"upload_media": "1/h 1000000/d"}},
    "min_gap_s": {"min_gap_s": {"upload_media": 1, "*": 2_592_000}},
    "quiet_hours": {"quiet_hours": {"hours": "00:00-23:59", "zone": "America/Argentina/Buenos_Aires", "then": "deny"}},
    "kinds": {"kinds": {"nullcast": "deny"}},
    "delete": {"delete": "any"},
    "links": {"links": {"only": [f"h{n}.example.org" for n in range(99)] + ["a" * 63 + ".org"], "else": "deny"}},
    "mentions": {"mentions": {"max": 0, "else": "approve"}},
    "words": {"words": {"deny": [f"w{n}" for n in range(999)], "approve": ["w" * 100]}},
    "duplicate_text": {"duplicate_text": {"days": 365, "across": "gateway"}},
    "budget": {"budget": {"day_usd": 0.005, "month_usd": 1_000_000, "unpriced": 0.000001}},
    "trip": {"trip": {"x_refused": "999999/30d", "x_user_suspended": 1_000_000}},
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_value_at_its_limits_is_accepted_as_it_is(name: str) -> None:
    """Approved operations are sorted as OPERATIONS are."""
    rules = LIMITS[name]
    expected = {"approve": ["like_twitter", "bookmark_twitter"]} if name == "approve" else rules
    assert read_rules(rules) == expected
    assert read_rules(json.loads(json.dumps(expected))) == expected
    assert list(LIMITS) == [rule.name for rule in RULES]


def test_spellings_of_a_value_are_made_equal() -> None:
    """Duplicates are dropped, hosts compared as the DNS compares them."""
    hosts = ["Example.ORG", "example.org.", " example.org", "b\u00fccher.example", "xn--bcher-kva.example"]
    assert read_rules({"links": {"only": hosts}})["links"]["only"] == ["example.org", "b\u00fccher.example"]
    assert read_rules({"caps": {"*": "12/d,3/h"}}) == {"caps": {"*": "3/h 12/d"}}
    assert read_rules({"caps": {"*": " 007/h"}}) == {"caps": {"*": "7/h"}}
    assert read_rules({"words": {"approve": ["b"], "deny": ["a", "a"]}}) == {"words": {"deny": ["a"], "approve": ["b"]}}
    assert list(read_rules({"caps": {"*": "1/h", "like_twitter": "1/h"}})["caps"]) == ["like_twitter", "*"]


@given(
    st.dictionaries(
        st.sampled_from([rule.name for rule in RULES]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=9)
            | st.sampled_from(["deny", "*"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["*", "only", "else", "max", "deny", "days", "hours", "day_usd", "x_refused", "reply"]
                    ),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=6,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_json_is_read_or_refused_with_the_name_of_a_rule(rules: dict[str, Any]) -> None:
    """What was read once is read again as the same."""
    try:
        read = read_rules(rules)
    except PolicyError as error:
        refused: PolicyError | None = error
    else:
        refused = None
        assert read_rules(read) == read
        assert Policy.read("key_1", "operator", 1, "enforce", None, read).rules == read
    assert refused is None or str(refused).split(":")[0] in {rule.name for rule in RULES}


def test_each_rule_states_its_forms_as_they_are_read() -> None:
    """The example as JSON, all of its alternatives, and the shorthand."""
    for rule in RULES:
        for form in rule.form.replace(', "approve" or', ' or "approve" or').split(" or "):
            read = rule.read(json.loads(form))
            assert rule.read(read) == read, rule.name
            assert rule.describe(read).endswith("."), rule.name
        rules = changed({}, parse_shorthand(rule.shorthand))
        assert read_rules(rules), rule.name
        assert rule.sentence.endswith(".")


SHORTHAND: dict[str, Any] = {
    "approve=post_twitter,delete_twitter": {"approve": ["post_twitter", "delete_twitter"]},
    "approve=*": {"approve": "*"},
    "approve_by=operator": {"approve_by": "operator"},
    "caps.post_twitter=3/h,12/d": {"caps": {"post_twitter": "3/h 12/d"}},
    "caps.*=50/d": {"caps": {"*": "50/d"}},
    "min_gap_s.post_twitter=300": {"min_gap_s": {"post_twitter": 300}},
    "quiet_hours=22:00-07:00@Europe/Berlin,deny": {
        "quiet_hours": {"hours": "22:00-07:00", "zone": "Europe/Berlin", "then": "deny"}
    },
    "quiet_hours=22:00-07:00@Europe/Berlin": {"quiet_hours": {"hours": "22:00-07:00", "zone": "Europe/Berlin"}},
    "quiet_hours=22:00-07:00,approve": {"quiet_hours": {"hours": "22:00-07:00", "then": "approve"}},
    "quiet_hours=22:00-07:00": {"quiet_hours": {"hours": "22:00-07:00"}},
    "kinds.reply=approve": {"kinds": {"reply": "approve"}},
    "delete=own": {"delete": "own"},
    "links=approve": {"links": "approve"},
    "links.only=example.org,else=approve": {"links": {"only": ["example.org"], "else": "approve"}},
    "links.only=example.org, example.com": {"links": {"only": ["example.org", "example.com"]}},
    "links.else=deny,only=example.org,example.com": {"links": {"else": "deny", "only": ["example.org", "example.com"]}},
    "mentions=1,approve": {"mentions": {"max": 1, "else": "approve"}},
    "mentions=1": {"mentions": {"max": 1}},
    "mentions.max=2": {"mentions": {"max": 2}},
    "mentions.else=deny": {"mentions": {"else": "deny"}},
    "words.deny=a, free money ,a=b": {"words": {"deny": ["a", "free money", "a=b"]}},
    "duplicate_text=30": {"duplicate_text": {"days": 30}},
    "duplicate_text=30,gateway": {"duplicate_text": {"days": 30, "across": "gateway"}},
    "duplicate_text.days=7": {"duplicate_text": {"days": 7}},
    "duplicate_text.across=account": {"duplicate_text": {"across": "account"}},
    "budget.day_usd=2": {"budget": {"day_usd": 2}},
    "budget.month_usd=30.50": {"budget": {"month_usd": 30.5}},
    "budget.unpriced=approve": {"budget": {"unpriced": "approve"}},
    "budget.unpriced=0.2": {"budget": {"unpriced": 0.2}},
    "budget.day_usd=deny": {"budget": {"day_usd": "deny"}},
    "budget.day_usd=1e400": {"budget": {"day_usd": "1e400"}},
    "budget.day_usd=Infinity": {"budget": {"day_usd": "Infinity"}},
    "budget.day_usd=2 dollars": {"budget": {"day_usd": "2 dollars"}},
    "trip.x_refused=3/10m": {"trip": {"x_refused": "3/10m"}},
    "trip.x_user_suspended=1": {"trip": {"x_user_suspended": 1}},
    " mentions = 1 ": {"mentions": {"max": 1}},
    "mentions=one": {"mentions": {"max": "one"}},
    # An empty value removes.
    "links=": {},
    "kinds.reply=": {},
}


@pytest.mark.parametrize("text", SHORTHAND)
def test_the_shorthand_stands_for_json(text: str) -> None:
    """Its values are checked when the policy is read, like any others."""
    assert changed({}, parse_shorthand(text)) == SHORTHAND[text]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("link=deny", "'link': there is no such rule. Rules: approve,"),
        ("", "'': there is no such rule."),
        ("links", "links: the value is missing. Write, for example, links.only=example.org,else=approve."),
        ("links.=deny", "links: the value is missing."),
        ("caps=3/h", "caps: its members are set one by one. Write, for example, caps.post_twitter=3/h,12/d."),
        ("budget=2", "budget: its members are set one by one. Write, for example, budget.day_usd=2."),
        (
            "approve.post_twitter=1",
            "approve: it has no members. Write, for example, approve=post_twitter,delete_twitter.",
        ),
        ("words.deny=" + "a" * 65_536, "words: the value is too long. Send it as JSON on standard input."),
    ],
)
def test_a_wrong_shorthand_is_refused_with_an_example(text: str, error: str) -> None:
    """It names the rule."""
    with pytest.raises(PolicyError) as caught:
        parse_shorthand(text)
    assert str(caught.value).startswith(error), str(caught.value)


def test_changes_are_merged_member_by_member() -> None:
    """Other rules and members stay; a rule loses its last member with itself."""
    rules = {"links": "deny", "caps": {"*": "5/d"}, "kinds": {"reply": "deny"}, "delete": "own"}
    before = json.dumps(rules)
    texts = ["links.only=example.org", "caps.like_twitter=1/h", "kinds.reply=", "delete=", "mentions=1"]
    after = changed(rules, [change for text in texts for change in parse_shorthand(text)])
    assert after == {
        "links": {"only": ["example.org"]},
        "caps": {"*": "5/d", "like_twitter": "1/h"},
        "mentions": {"max": 1},
    }
    assert json.dumps(rules) == before
    assert changed(rules, [Change("links", None, "approve")])["links"] == "approve"
    assert changed(rules, [Change("trip", "x_refused", None)]) == rules


@pytest.mark.parametrize(
    ("micro", "text"), [(0, "$0.00"), (5_000, "$0.005"), (200_000, "$0.20"), (1, "$0.000001"), (12_340_000, "$12.34")]
)
def test_a_sum_is_written_in_dollars(micro: int, text: str) -> None:
    """With two decimals at least."""
    assert dollars(micro) == text


def test_the_cheapest_write_is_one_that_x_bills() -> None:
    """An upload is free."""
    assert cheapest_write() == 5_000
