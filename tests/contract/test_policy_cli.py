"""`birdwire policy`, `pause` and `resume`: what they store, print and record, and how they exit."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner
from ulid import ULID

from birdwire.cli.command_line import build
from birdwire.gateway.guardrails.policy import PolicyError
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.registry import Policies
from birdwire.gateway.guardrails.rehearsal import Rehearsal
from birdwire.gateway.guardrails.rule_values import PUBLISHING
from birdwire.gateway.guardrails.rules import RULES, parse_shorthand, read_rules
from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.encryption.vault import Place, Vault
from birdwire.store.tables import policies
from birdwire.store.tables.acts import Actor
from harness.commands import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Operator:
    """A person at a database, and a key in it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "birdwire.db"
        self.environment: dict[str, str | None] = {
            "BIRDWIRE_DATABASE_URL": f"sqlite:///{self.file}",
            "BIRDWIRE_X_API_URL": "http://127.0.0.1:1",
            "BIRDWIRE_VAULT_KEY_FILE": None,
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }
        made = self.run("keys", "create", "--label", "agent", "--json").document
        self.key_id: str = made["key_id"]

    def run(self, *arguments: str, stdin: str | bytes | None = None) -> Outcome:
        """Run a command."""
        result = CliRunner().invoke(build(), list(arguments), stdin, env=self.environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    def set(self, *rules: str) -> dict[str, Any]:
        """Set rules of the key, and return the document."""
        done = self.run("policy", "set", self.key_id, *rules, "--json")
        assert done.code == 0, done.err
        return dict(done.document)

    def execute(self, statement: str, *values: object) -> None:
        """Change the database behind Birdwire's back."""
        with sqlite3.connect(self.file) as database:
            database.execute(statement, values)

    def acts(self) -> list[dict[str, Any]]:
        """Return the acts, newest first."""
        return list(self.run("log", "--acts", "--json").document["acts"])


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    """A person at a new database."""
    return Operator(tmp_path)


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new database, for what no single command shows."""
    opened = Database(database_url)
    await opened.prepare(upgrade=False)
    yield opened
    await opened.close()


# Show, set, unset.


def test_a_key_without_rules_is_shown_so(operator: Operator) -> None:
    """Every member of the document is there."""
    shown = operator.run("policy", "show", operator.key_id, "--json").document
    assert shown == {
        "scope": operator.key_id,
        "enforcement": None,
        "preset": None,
        "versions": {"key": None, "account": None, "gateway": None},
        "rules": {},
        "account_rules": {},
        "gateway_rules": {},
    }
    assert operator.run("policy", "show", operator.key_id).out == f"{operator.key_id} has no rules of its own.\n"


def test_rules_merge_one_by_one_and_versions_rise(operator: Operator) -> None:
    """A rule that is not named stays; an empty value removes a rule or a member."""
    first = operator.set("caps.post_twitter=3/h,12/d", "links=approve", "words.deny=a b,c")
    assert first["versions"]["key"] == 1
    assert first["rules"] == {
        "caps": {"post_twitter": "3/h 12/d"},
        "links": "approve",
        "words": {"deny": ["a b", "c"]},
    }
    second = operator.set("caps.*=50/d", "words.deny=", "links.only=example.org,else=approve")
    assert second["versions"]["key"] == 2
    assert second["rules"] == {
        "caps": {"post_twitter": "3/h 12/d", "*": "50/d"},
        "links": {"only": ["example.org"], "else": "approve"},
    }
    assert operator.set("caps.*=", "caps.post_twitter=")["rules"] == {"links": second["rules"]["links"]}


def test_the_rules_of_the_gateway_and_of_an_account_are_scopes_of_their_own(operator: Operator) -> None:
    """An account can be named by its scope, too; its handle is known only while it is linked."""
    operator.run("policy", "set", "gateway", "caps.*=500/d")
    account = operator.run("policy", "set", "account:22", "links=deny", "--json").document
    assert (account["scope"], account["rules"], account["account_rules"]) == ("account:22", *[{"links": "deny"}] * 2)
    assert account["versions"] == {"key": None, "account": 1, "gateway": 1}
    shown = operator.run("policy", "show", operator.key_id, "--json").document
    assert (shown["gateway_rules"], shown["account_rules"]) == ({"caps": {"*": "500/d"}}, {})
    unknown = operator.run("policy", "show", "@nobody")
    assert (unknown.code, "No linked account is named @nobody" in unknown.err) == (2, True)


@pytest.mark.parametrize("scope", ["key_none", "everything", "", "@", "account:", "account:x", "\x1b[2J", "account:٢"])
def test_an_unknown_scope_is_refused(operator: Operator, scope: str) -> None:
    """Exit 2, without control characters."""
    done = operator.run("policy", "show", "--", scope)
    assert (done.code, done.out) == (2, "")
    assert "\x1b" not in done.err


def test_all_rules_are_replaced_from_stdin(operator: Operator) -> None:
    """By a JSON object; the preset's name goes with its rules."""
    operator.set("links=approve")
    rules = {"mentions": {"max": 1, "else": "deny"}}
    done = operator.run("policy", "set", operator.key_id, "-", "--json", stdin=json.dumps(rules))
    assert (done.document["rules"], done.document["versions"]["key"]) == (rules, 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"", "JSON"),
        (b"[]", "The input is JSON, but not an object."),
        (b"nonsense", "JSON"),
        (b"\xff", "UTF-8"),
        (b'{"links": "deny", "links": "approve"}', "links"),
        (b'{"links": NaN}', "NaN"),
        (b'{"shout": 1}', "shout"),
        (b'{"words": {"deny": ["\\ud800"]}}', "unpaired surrogate"),
        (b'{"links": 5}', "links"),
        (b'{"caps": {"post_twitter": "0/h"}}', "caps"),
        (b'{"quiet_hours": {"hours": "22:00-07:00", "zone": "Mars/Base"}}', "quiet_hours"),
        (b'{"budget": {"day_usd": 0.001}}', "budget"),
        (b'{"words": {"deny": ' + json.dumps([f"w{n}" for n in range(5_000)]).encode() + b"}}", "words"),
        (b"[" * 5_000, "JSON"),
        (b" " * 65_537, "too long"),
    ],
)
@pytest.mark.trust("#301")
def test_rules_that_are_not_valid_are_refused_by_name(operator: Operator, given: bytes, words: str) -> None:
    """Exit 2, nothing is stored, and nothing is recorded."""
    before = len(operator.acts())
    done = operator.run("policy", "set", operator.key_id, "-", stdin=given)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(operator.acts()) == before
    assert operator.run("policy", "show", operator.key_id, "--json").document["versions"]["key"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-", "links=deny"),
        ("-", "--preset", "poster"),
        ("links",),
        ("shout=1",),
        ("links.shout=1",),
        ("caps=3",),
        ("--preset", "nobody"),
        ("--enforcement", "perhaps"),
        ("links=deny", "--if-version", "-1"),
    ],
)
def test_a_command_that_is_not_understood_changes_nothing(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Exit 2."""
    assert operator.run("policy", "set", operator.key_id, *arguments, stdin="{}").code == 2
    assert operator.run("policy", "show", operator.key_id, "--json").document["versions"]["key"] is None


def test_a_change_can_be_bound_to_a_version(operator: Operator) -> None:
    """Zero stands for no policy yet, and the loser is shown how to go on."""
    bound = ("policy", "set", operator.key_id, "links=deny", "--if-version", "0")
    assert [operator.run(*bound).code for _ in range(2)] == [0, 2]
    late = operator.run("policy", "unset", operator.key_id, "--if-version", "7")
    assert (late.code, "has version 1, not 7" in late.err) == (2, True)


def test_only_the_policy_of_a_key_can_be_in_shadow_mode(operator: Operator) -> None:
    """The rules of accounts and of the gateway are always obeyed."""
    assert operator.set("links=deny", "--enforcement", "shadow")["enforcement"] == "shadow"
    assert operator.set("links=approve")["enforcement"] == "shadow"
    assert operator.set("--enforcement", "enforce")["rules"] == {"links": "approve"}
    assert operator.run("policy", "set", "gateway", "links=deny", "--enforcement", "shadow").code == 2


def test_unset_removes_rules_or_the_whole_policy(operator: Operator) -> None:
    """The next policy goes on with the next version."""
    operator.set("links=deny", "delete=own")
    left = operator.run("policy", "unset", operator.key_id, "links", "--json").document
    assert left["rules"] == {"delete": "own"}
    unset = operator.run("policy", "unset", operator.key_id, "--json").document
    assert (unset["rules"], unset["enforcement"], unset["versions"]["key"]) == ({}, None, None)
    assert operator.run("policy", "unset", operator.key_id).code == 2
    assert operator.run("policy", "unset", operator.key_id, "links").code == 2
    assert operator.set("links=deny")["versions"]["key"] == 4
    assert [one["act"] for one in operator.acts()[:4]] == ["policy.set", "policy.unset", "policy.unset", "policy.set"]


def test_a_preset_is_copied_and_named_while_its_rules_are_unchanged(operator: Operator) -> None:
    """Also where the key is created; one that sets rules of the key changes the key."""
    poster = operator.set("--preset", "poster")
    assert (poster["preset"], poster["rules"]) == ("poster", read_rules(dict(PRESETS["poster"].rules)))
    assert operator.set("caps.post_twitter=1/h")["preset"] is None
    assert operator.run("policy", "set", operator.key_id, "--preset", "read_only").code == 0
    made = operator.run("keys", "create", "--label", "new", "--preset", "poster")
    assert (made.code, made.out.startswith("bw_"), PRESETS["poster"].sentence in made.err) == (0, True, True)
    rows = operator.run("keys", "list", "--json").document["keys"]
    assert [(row["preset"], row["enforcement"]) for row in rows] == [("read_only", "enforce"), ("poster", "enforce")]
    assert rows[0]["rules"]["actions"] == list(PRESETS["read_only"].key_rules["actions"])
    assert "poster" in operator.run("keys", "list").out


@pytest.mark.parametrize("arguments", [("--preset", "nobody"), ("--preset", "read_only", "--actions", "like")])
def test_no_key_is_created_with_a_preset_that_does_not_fit(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Nor with an option that sets the same rule."""
    assert operator.run("keys", "create", "--label", "x", *arguments).code == 2
    assert len(operator.run("keys", "list", "--json").document["keys"]) == 1


def test_a_preset_that_sets_rules_of_a_key_fits_a_key_alone(operator: Operator) -> None:
    """The gateway has no such rules."""
    assert operator.run("policy", "set", "gateway", "--preset", "read_only").code == 2


def test_a_revoked_key_gets_no_rules(operator: Operator) -> None:
    """It can still be shown."""
    operator.run("keys", "revoke", operator.key_id)
    assert operator.run("policy", "set", operator.key_id, "links=deny").code == 2
    assert operator.run("policy", "show", operator.key_id).code == 0


@pytest.mark.trust("#302")
def test_every_change_is_an_act_that_names_the_changed_rules(operator: Operator) -> None:
    """Before and after, by the OS user."""
    operator.set("links=deny", "delete=own")
    operator.set("links=approve")
    newest = operator.acts()[0]
    assert (newest["act"], newest["subject"], newest["via"]) == ("policy.set", operator.key_id, "cli")
    assert (newest["before"], newest["after"]) == ({"version": 1, "links": "deny"}, {"version": 2, "links": "approve"})
    operator.set("words.deny=" + ",".join(f"word{number:04}" for number in range(900)))
    assert operator.acts()[0]["after"]["words"].endswith(" characters")
    assert "version: 2 -> 3" in operator.run("log", "--acts").out


@pytest.mark.engines("sqlite", "postgres")
@pytest.mark.trust("#302")
async def test_of_concurrent_changes_one_wins_and_the_others_get_an_error(database: Database) -> None:
    """With a version, one wins. Without, each change is made on top of the others, or returns an error."""
    registry = Policies(database, Clock(), Actor("grace", "cli"))
    names = [name for name in PUBLISHING if name != "post_twitter"]
    changes = {name: parse_shorthand(f"caps.{name}=5/h") for name in names}
    bound = await asyncio.gather(
        *(registry.set("gateway", one, if_version=0) for one in changes.values()), return_exceptions=True
    )
    assert sum(not isinstance(one, BaseException) for one in bound) == 1
    free = await asyncio.gather(*(registry.set("gateway", one) for one in changes.values()), return_exceptions=True)
    assert {type(one) for one in (*bound, *free) if isinstance(one, BaseException)} <= {PolicyError}
    made = {name for name, one in zip(names, free, strict=True) if not isinstance(one, BaseException)}
    async with database.read() as connection:
        versions = await policies.history(connection, "gateway", 1_000)
    assert sorted(row.version for row in versions) == list(range(1, len(made) + 2))
    final = (await registry.show("gateway")).document()["rules"]["caps"]
    assert made <= set(final)


@pytest.mark.parametrize("damage", ["not JSON", '{"rule_of_a_newer_version": 1}', "[1]", '{"links": 5}'])
@pytest.mark.trust("#303")
def test_a_policy_that_cannot_be_read_is_named_and_can_be_replaced(operator: Operator, damage: str) -> None:
    """By `check`, and by `show`; a change of one rule does not drop the others silently."""
    row = "INSERT INTO policies VALUES (?, 'operator', 1, 'enforce', NULL, ?, 0, 'grace')"
    operator.execute(row, operator.key_id, damage)
    assert f"The policy of {operator.key_id} (version 1) cannot be read" in operator.run("check").out
    assert "cannot be read" in operator.run("policy", "show", operator.key_id).out
    refused = operator.run("policy", "set", operator.key_id, "delete=own")
    assert refused.code == 2
    assert f"`birdwire policy set {operator.key_id} -`" in refused.err
    assert operator.run("policy", "test", operator.key_id, "like", "--body", '{"tweet_id": "1"}').code == 2
    assert operator.run("policy", "set", operator.key_id, "-", stdin='{"delete": "own"}').code == 0
    assert "cannot be read" not in operator.run("check").out


def test_help_lists_every_rule_with_its_shorthand(operator: Operator) -> None:
    """Drawn from RULES, each of whose shorthands is accepted."""
    text = operator.run("policy", "set", "--help").out
    for rule in RULES:
        assert rule.name in text
        assert operator.set(rule.shorthand)["rules"][rule.name]


# Test.


@pytest.mark.parametrize(
    ("rules", "call", "outcome", "code"),
    [
        ("links=deny", ("post_twitter", "--text", "See https://example.org"), "deny", 3),
        ("links=deny", ("post_twitter", "--text", "No link"), "allow", 0),
        ("links=approve", ("post", "--text", "See example.org"), "require_approval", 8),
        ("approve=*", ("like", "--body", '{"tweet_id": "1"}'), "require_approval", 8),
        ("approve=*", ("like", "--body", '{"tweet": "1"}'), "deny", 3),
        ("quiet_hours=22:00-07:00", ("like", "--body", '{"tweet_id":"1"}', "--at", "2026-11-28T23:30Z"), "deny", 3),
        ("quiet_hours=22:00-07:00", ("like", "--body", '{"tweet_id":"1"}', "--at", "2026-11-28T12:00Z"), "allow", 0),
        ("delete=own", ("delete_twitter", "--body", '{"tweet_id": "1"}'), "deny", 3),
    ],
)
@pytest.mark.trust("#304")
def test_a_call_can_be_tried_without_a_gateway(
    operator: Operator, rules: str, call: tuple[str, ...], outcome: str, code: int
) -> None:
    """The exit code is the verdict, in the form of a dry run."""
    operator.set(rules)
    done = operator.run("policy", "test", operator.key_id, *call, "--json")
    would = done.document["would"]
    assert (done.code, would["outcome"]) == (code, outcome)
    assert set(would) == {
        *("outcome", "operation", "account", "refusals", "findings", "payload_sha256", "approve_by", "text"),
        *("cost_usd", "listed_on", "budget", "x", "request", "warnings"),
    }
    assert [set(one) for one in would["findings"]] == [
        {"rule", "outcome", "reason", "message", "scope", "version"} for _ in would["findings"]
    ]
    assert bool(would["refusals"]) == (outcome == "deny")


def test_a_trial_shows_the_text_the_price_and_each_finding(operator: Operator) -> None:
    """The rules of the gateway apply to the key as well; a policy in shadow mode is not obeyed."""
    operator.set("links=deny", "mentions=0,deny")
    operator.run("policy", "set", "gateway", "words.deny=giveaway")
    arguments = ("policy", "test", operator.key_id, "post_twitter", "--text", "@a giveaway at example.org", "--json")
    would = operator.run(*arguments).document["would"]
    found = [(one["rule"], one["scope"]) for one in would["findings"]]
    assert found == [("links", operator.key_id), ("mentions", operator.key_id), ("words", "gateway")]
    assert (would["cost_usd"], would["text"]["links"], would["text"]["mentions"]) == (0.2, ["example.org"], ["a"])
    operator.set("--enforcement", "shadow")
    would = operator.run(*arguments).document["would"]
    assert [one["scope"] for one in would["findings"]] == ["gateway"]
    assert would["warnings"][1].endswith("not obeyed: links (deny), mentions (deny).")


def test_a_trial_shows_the_budget_and_what_it_cannot_judge(operator: Operator) -> None:
    """The tightest budget that is obeyed; repeated texts need the vault key."""
    operator.set("budget.day_usd=2", "duplicate_text=30,account")
    would = operator.run(
        "policy", "test", operator.key_id, "post", "--text", "x", "--at", "2026-11-28T12:00Z", "--json"
    ).document["would"]
    day = {"limit_usd": 2.0, "used_usd": 0.0, "resets_at": "2026-11-29T00:00:00Z"}
    assert would["budget"] == {"currency": "USD", "day": day, "month": None}
    assert would["warnings"][1] == "Without the vault key, the rule duplicate_text was not judged."


def test_a_trial_knows_the_rules_and_the_pauses_of_the_key(operator: Operator) -> None:
    """Each is a refusal of its own."""
    operator.run("keys", "change", operator.key_id, "--actions", "post")
    operator.run("pause", operator.key_id, "--why", "Review")
    would = operator.run("policy", "test", operator.key_id, "like", "--body", '{"tweet_id": "1"}', "--json").document[
        "would"
    ]
    assert [one["reason"] for one in would["refusals"]] == ["key_not_allowed", "paused"]


@pytest.mark.parametrize(
    "arguments",
    [("key_none", "like"), ("KEY", "shout"), ("KEY", "like", "--at", "25:00"), ("KEY", "like", "--body", "{")],
)
def test_a_trial_that_is_not_understood_is_refused(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Exit 2."""
    words = [operator.key_id if word == "KEY" else word for word in arguments]
    assert operator.run("policy", "test", *words).code == 2


# Pause and resume.


@pytest.mark.trust("#305")
def test_a_pause_is_shown_recorded_and_lifted(operator: Operator) -> None:
    """In the documented shapes; `check` names it while it holds."""
    paused = operator.run("pause", "gateway", "--why", "Tricked", "--until", "30m", "--json").document["paused"]
    assert set(paused) == {"scope", "by", "since", "until", "why"}
    assert (paused["scope"], paused["why"]) == ("gateway", "Tricked")
    since, until = (datetime.fromisoformat(paused[name]) for name in ("since", "until"))
    assert until - since == timedelta(minutes=30)
    assert "The gateway has been paused since" in operator.run("check").out
    assert operator.run("resume", "gateway", "--json").document == {"resumed": {"scope": "gateway"}}
    assert "paused" not in operator.run("check").out
    again = operator.run("resume", "gateway")
    assert (again.code, again.out) == (0, "The gateway was not paused by an operator.\n")
    assert [one["act"] for one in operator.acts()[:2]] == ["resumed", "paused"]
    assert operator.acts()[0]["before"]["why"] == "Tricked"


def test_a_pause_replaces_the_earlier_one(operator: Operator) -> None:
    """One of the operator's for each scope."""
    operator.run("pause", operator.key_id, "--why", "First", "--until", "1h")
    operator.run("pause", operator.key_id, "--why", "Second")
    assert operator.run("check").out.count("has been paused since") == 1
    change = operator.acts()[0]
    assert (change["before"]["why"], change["after"]["why"], change["after"]["until"]) == ("First", "Second", None)


@pytest.mark.trust("#305")
def test_the_operator_does_not_lift_the_owners_pause(operator: Operator) -> None:
    """The command reports that it remains."""
    operator.execute("INSERT INTO pauses VALUES ('account:22', 'owner', 0, NULL, 'Not me', '@ada')")
    resumed = operator.run("resume", "account:22")
    assert resumed.code == 0
    assert "The account's owner has also paused it: Not me" in resumed.out
    assert "Not me" in operator.run("check").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("gateway",),
        ("gateway", "--why", ""),
        ("gateway", "--why", " "),
        ("gateway", "--why", "a\nb"),
        ("gateway", "--why", "x" * 501),
        ("gateway", "--why", "x", "--until", "soon"),
        ("gateway", "--why", "x", "--until", "2020-01-01T00:00Z"),
        ("nowhere", "--why", "x"),
        (),
    ],
)
def test_a_pause_that_is_not_understood_is_refused(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Exit 2, and nothing is paused."""
    assert operator.run("pause", *arguments).code == 2
    assert "has been paused" not in operator.run("check").out


# What was published, and what it cost.


def written(operator: Operator, request_id: str, at: datetime, **columns: object) -> None:
    """Add a row of the journal."""
    row: dict[str, object] = {
        "request_id": request_id,
        "key_id": operator.key_id,
        "user_id": "22",
        "operation": "post_twitter",
        "asked": b"",
        "state": "confirmed",
        "created_at": int(at.timestamp() * 1_000_000),
    }
    row |= columns
    names = ", ".join(row)
    operator.execute(f"INSERT INTO journal ({names}) VALUES ({', '.join('?' * len(row))})", *row.values())  # noqa: S608


@pytest.fixture
def author(operator: Operator) -> Operator:
    """A person whose key published three posts and deleted one of them, two hours ago and now."""
    now, old = datetime.now(UTC), datetime.now(UTC) - timedelta(hours=2)
    for number, at in enumerate((old, now, now)):
        request_id = f"req_{ULID.from_datetime(at)}"
        written(operator, request_id, at, x_id=f"10{number}", cost_microusd=15_000, status=201)
    deletion = {"operation": "delete_twitter", "target": "102", "x_id": "102", "cost_microusd": 5_000}
    written(operator, f"req_{ULID.from_datetime(now)}", now, **deletion)
    written(operator, f"req_{ULID.from_datetime(now)}", now, state="refused", cost_microusd=15_000)
    return operator


def test_what_was_published_recently_is_listed_until_it_is_deleted(author: Operator) -> None:
    """By key, account or gateway; with what its deletion would cost."""

    def recent(scope: str, since: str) -> list[str]:
        rows = author.run("recent", scope, "--since", since, "--json").document["requests"]
        assert all(row["delete_cost_usd"] == 0.005 for row in rows)
        return [row["about"] for row in rows]

    assert recent("gateway", "1h") == ["101"]
    assert recent(author.key_id, "1d") == recent("account:22", "1d") == ["101", "100"]
    assert recent("account:33", "1d") == []
    assert author.run("recent", "account:33", "--since", "1d").out == "Nothing was published in this time.\n"
    assert "101" in author.run("recent", "gateway", "--since", "1h").out
    assert [author.run("recent", *wrong).code for wrong in (("gateway",), ("@x", "--since", "1h"))] == [2, 2]


def test_costs_are_added_up_by_key_account_operation_or_day(author: Operator) -> None:
    """Refused writes cost nothing; with --csv as rows."""

    def cost(*arguments: str) -> Any:
        return author.run("cost", *arguments, "--json").document

    total = cost()
    row = {"by": "key", "name": author.key_id, "writes": 4, "reads": 0, "used": 0.05}
    assert (total["currency"], total["used"], total["rows"]) == ("USD", 0.05, [row])
    by_operation = [(one["name"], one["writes"], one["used"]) for one in cost("--by", "operation")["rows"]]
    assert by_operation == [("delete_twitter", 1, 0.005), ("post_twitter", 3, 0.045)]
    assert [one["name"] for one in cost("--by", "account", "--since", "1h")["rows"]] == ["22"]
    assert sum(one["used"] for one in cost("--by", "day")["rows"]) == pytest.approx(0.05)
    shown = author.run("cost", "--csv")
    assert shown.out == f"by,name,writes,reads,used\nkey,{author.key_id},4,0,0.05\n"
    assert [author.run("cost", *wrong).code for wrong in (("--csv", "--json"), ("--by", "mood"))] == [2, 2]
    assert "by X's price list of" in author.run("cost").err


def test_the_log_counts_refused_attempts(author: Operator) -> None:
    """The number is shown only if a row stands for several."""
    assert "TIMES" not in author.run("log").out
    attempt = {"state": "not_sent", "reason": "cap_reached", "status": 429, "user_id": "", "times": 7}
    written(author, f"req_{ULID()}", datetime.now(UTC), **attempt)
    row = author.run("log", "--state", "not_sent", "--json").document["requests"][0]
    assert (row["reason"], row["times"], row["cost_usd"]) == ("cap_reached", 7, 0)
    assert "TIMES" in author.run("log").out


# Report and replay are tested with a gateway's own rows in test_guide.py, too; here with rows of the first version.


def test_a_report_counts_what_shadow_mode_found(operator: Operator) -> None:
    """Each rule with its outcome, the most frequent first, with at most five examples."""
    finding = {"rule": "links", "outcome": "deny", "reason": "policy_denied", "scope": operator.key_id, "version": 1}
    now = datetime.now(UTC)
    for number in range(7):
        found = [finding, finding] if number else [finding, finding | {"rule": "caps"}]
        decision = json.dumps({"versions": {operator.key_id: 1}, "findings": [], "shadow": found})
        written(operator, f"req_{ULID.from_datetime(now)}", now, decision=decision)
    report = operator.run("policy", "report", operator.key_id, "--since", "1h", "--json").document
    assert [(row["rule"], row["outcome"], row["count"]) for row in report["rows"]] == [
        ("links", "deny", 7),
        ("caps", "deny", 1),
    ]
    assert (len(report["rows"][0]["examples"]), report["not_judged"]) == (5, 0)
    shown = operator.run("policy", "report", operator.key_id)
    assert shown.out.splitlines()[1].split()[:3] == ["links", "deny", "7"]
    assert "7 writes since" in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("KEY", "--rules", "-"),
        ("KEY", "--replay", "1h", "--since", "1h"),
        ("KEY", "--replay", "1h", "--rules", "/nowhere/rules.json"),
        ("KEY", "--replay", "1h", "--rules", "-"),
        ("KEY", "--since", "soon"),
        ("key_none",),
    ],
)
def test_a_report_that_is_not_understood_is_refused(operator: Operator, arguments: tuple[str, ...]) -> None:
    """Exit 2."""
    words = [operator.key_id if word == "KEY" else word for word in arguments]
    assert operator.run("policy", "report", *words, stdin='{"shout": 1}').code == 2


@pytest.mark.trust("#304")
async def test_a_replay_counts_what_it_cannot_judge(database: Database, tmp_path: Path) -> None:
    """Posts whose text or features are not there; a like needs neither, and caps are simulated in order."""
    key, _ = await Keys(database, Clock()).create("test", "agent")
    await Policies(database, Clock(), Actor("grace", "cli")).set(key.key_id, parse_shorthand("caps.like_twitter=3/h"))
    start = datetime(2026, 11, 28, 10, tzinfo=UTC)
    with sqlite3.connect(tmp_path / "birdwire.db") as connection:
        for number in range(12):
            at = int((start + timedelta(minutes=10 * number)).timestamp() * 1_000_000)
            operation = "post_twitter" if number == 5 else "like_twitter"
            connection.execute(
                "INSERT INTO journal (request_id, key_id, user_id, operation, target, asked, state, created_at) "
                "VALUES (?, ?, '1', ?, '7', x'00', 'confirmed', ?)",
                (f"req_{number:04}", key.key_id, operation, at),
            )
    report = await Rehearsal(database, None).replay(key.key_id, start - timedelta(days=1))
    assert report.document == {
        "since": "2026-11-27T10:00:00Z",
        "rows": [
            {"rule": "caps", "outcome": "deny", "count": 5, "examples": [f"req_{n:04}" for n in (3, 4, 9, 10, 11)]}
        ],
        "not_judged": 1,
    }
    proposed = await Rehearsal(database, None).replay(key.key_id, start - timedelta(days=1), {"approve": "*"})
    assert [(row["rule"], row["outcome"], row["count"]) for row in proposed.document["rows"]] == [
        ("approve", "require_approval", 11)
    ]
    with pytest.raises(PolicyError, match="shout"):
        await Rehearsal(database, None).replay(key.key_id, start, {"shout": 1})


@pytest.mark.trust("#304")
async def test_a_replay_simulates_whatever_counts_in_the_order_of_the_writes(
    database: Database, tmp_path: Path
) -> None:
    """Repeated texts, gaps, budgets and own deletions; what X refused counts for nothing, and damage is not judged."""
    key, _ = await Keys(database, Clock()).create("test", "agent")
    vault, start = Vault(bytes(32)), datetime(2026, 11, 28, 10, tzinfo=UTC)
    posts = [
        # minute, text, state, price in dollars
        (0, "First", "confirmed", 0.2),
        (1, "Too soon", "confirmed", 0.2),
        (10, "FIRST", "confirmed", 0.2),
        (20, "Second", "refused", 0.2),
        (21, "Third", "unknown", 0.2),
        (40, "Too much", "confirmed", 0.2),
        (60, "Cheap", "confirmed", 0.015),
    ]
    rows: list[tuple[object, ...]] = []
    for number, (minute, text, state, price) in enumerate(posts):
        request_id = f"req_{number:04}"
        words = vault.seal(text, Place("journal", request_id, "words_ct"))
        features = json.dumps({"weight": 9, "kinds": [], "hosts": [], "mentions": 0})
        sealed = vault.seal(features, Place("journal", request_id, "features_ct"))
        at = int((start + timedelta(minutes=minute)).timestamp() * 1_000_000)
        spent = int(price * 1_000_000)
        rows.append((request_id, key.key_id, "post_twitter", f"10{number}", None, state, spent, at, words, sealed))
    last = at
    rows += [
        ("req_0100", key.key_id, "delete_twitter", "100", "100", "confirmed", 5_000, last, None, None),
        ("req_0101", key.key_id, "delete_twitter", "999", "999", "confirmed", 5_000, last, None, None),
        ("req_0102", key.key_id, "post_twitter", "102", None, "confirmed", 15_000, last, b"damaged", rows[0][9]),
    ]
    with sqlite3.connect(tmp_path / "birdwire.db") as connection:
        connection.executemany(
            "INSERT INTO journal (request_id, key_id, user_id, asked, operation, x_id, target, state, cost_microusd, "
            "created_at, words_ct, features_ct) VALUES (?, ?, '22', x'00', ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
    rules = {
        "min_gap_s": {"post_twitter": 300},
        "delete": "own",
        "duplicate_text": {"days": 30, "across": "account"},
        "budget": {"day_usd": 0.5},
    }
    report = await Rehearsal(database, vault).replay(key.key_id, start - timedelta(hours=1), rules)
    found = {row["rule"]: row["examples"] for row in report.document["rows"]}
    assert found == {
        "min_gap_s": ["req_0001"],
        "duplicate_text": ["req_0002"],
        "budget": ["req_0005"],
        "delete": ["req_0101"],
    }
    assert report.document["not_judged"] == 1
    blind = await Rehearsal(database, None).replay(key.key_id, start - timedelta(hours=1), rules)
    assert blind.document["not_judged"] == len(posts) + 1


async def test_a_trial_changes_nothing(database: Database, tmp_path: Path) -> None:
    """Not even the key under which texts are marked is made: the first post that is sent makes it."""
    clock = Clock()
    key, _ = await Keys(database, clock).create("test", "agent")
    await Policies(database, clock, Actor("grace", "cli")).set(key.key_id, parse_shorthand("duplicate_text=30,account"))
    would = await Rehearsal(database, Vault(bytes(32))).test(key.key_id, "post_twitter", {"text": "Hello"}, clock.now())
    assert would["outcome"] == "allow"
    with sqlite3.connect(tmp_path / "birdwire.db") as connection:
        assert connection.execute("SELECT count(*) FROM text_mark_keys").fetchone() == (0,)
