"""Acts on keys and links: every command and route that changes one records exactly one act."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from birdwire.cli import COMMANDS, OPERATE, RUN, build, inputs, load
from birdwire.cli.commands.log import change
from birdwire.keys.registry import Keys
from birdwire.keys.rules import KeyRules
from birdwire.store.database import Database
from birdwire.store.tables.acts import GATEWAY, MAX_REPEATED, MAX_VALUE
from birdwire.surfaces.site.documents import DOCUMENTS
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS
from harness.acts import acts_of, recorded
from harness.approvals import desk
from harness.gateway import API, RunningGateway
from harness.guarded_gateway import OPERATOR
from harness.linking import begin, changed, open_callback, press_undo, query_of, reason_of, undo_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "a token for the tests"
ME = pwd.getpwuid(os.getuid()).pw_name

ACTS_OF_COMMANDS: dict[tuple[str, ...], str | None] = {
    ("dev",): "key.created",
    ("serve",): None,
    ("sandbox",): None,
    ("sandbox", "proxy"): None,
    ("check",): None,
    ("migrate",): "database.moved",  # with --from; the schema's own version is in the database
    ("keys", "create"): "key.created",
    ("keys", "change"): "key.changed",
    ("keys", "list"): None,
    ("keys", "rotate"): "key.rotated",
    ("keys", "revoke"): "key.revoked",
    ("vault", "create"): None,  # a file, which no database knows yet
    ("vault", "status"): None,
    ("vault", "rotate"): "vault.rotated",
    ("backup",): None,
    ("restore",): "database.restored",
    ("log",): None,
    ("policy", "show"): None,
    ("policy", "set"): "policy.set",
    ("policy", "unset"): "policy.unset",
    ("policy", "test"): None,
    ("policy", "report"): None,
    ("pause",): "paused",
    ("resume",): "resumed",
    ("recent",): "deletion.ordered",
    ("approvals", "approve"): "approval.approved",
    ("approvals", "deny"): "approval.denied",
    ("approvals", "edit"): "approval.edited",
    ("approvals", "cancel"): "approval.cancelled",
    ("approvals", "link"): "approval.link_made",
    ("approvals", "list"): None,
    ("approvals", "show"): None,
    ("approvals", "watch"): None,
    ("notify", "set"): "notify.set",
    ("notify", "rotate"): "notify.rotated",
    ("notify", "off"): "notify.off",
    ("notify", "test"): None,  # the gateway that delivers it may switch the destination on
    ("notify", "show"): None,
    ("cost",): None,
    ("accounts", "link"): "link.started",
    ("accounts", "confirm"): "link.activated",
    ("accounts", "unlink"): "link.unlinked",
    ("accounts", "list"): None,
}
"""Each command that works on the database, and the act that it leaves: a new command is listed here."""

OVER_HTTP = {("accounts", "status"), ("explain",), ("limits",)}
"""Commands that ask a gateway, whose routes leave the acts; besides them those of the other panels."""

TRIED_ELSEWHERE: dict[tuple[str, ...], str] = {
    ("dev",): "test_dev.py",
    ("migrate",): "conformance/test_moving.py",
    ("accounts", "confirm"): "test_cli.py",
    ("accounts", "unlink"): "test_cli.py",
    ("recent",): "test_approvals_cli.py",
    **{("approvals", name): "test_approvals_cli.py" for name in ("approve", "deny", "edit", "cancel", "link")},
}
"""Commands that need servers, and where a test reads their acts."""

ACTS_OF_ROUTES: dict[str, list[str]] = {
    "POST auth_twitter": ["link.started"],
    "GET oauth_callback": ["link.approved", "link.activated"],
    "POST auth/confirm": ["link.activated"],
    "POST auth/undo": ["link.undone"],
    "POST unlink_twitter": ["link.unlinked"],
    "POST requests/{request_id}/cancel": ["approval.cancelled"],
    "POST /approve/{token}": ["approval.approved", "approval.denied", "approval.edited"],
}
ROUTES_WITHOUT = {
    *(f"POST {row.name}" for row in OPERATIONS),
    *(f"POST dry_run/{row.name}" for row in OPERATIONS),
    *(f"GET {row.name}" for row in LOOKUPS),
    *("GET auth/status", "GET requests/{request_id}", "GET /livez", "GET /readyz"),
    *("GET /approve/{token}", "GET /approve/{token}/media/{number}"),
    # Each tool call is one of the other routes' calls.
    "POST /mcp",
    *(f"GET {path}" for path in DOCUMENTS),
}


def commands() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command of the tree, and the panel that lists it."""
    for row in COMMANDS:
        below = tuple(getattr(load(row.name), "commands", ()))
        if not below or row.name == "sandbox":
            yield (row.name,), row.panel
        yield from (((row.name, name), row.panel) for name in below)


def run(*words: str, **environment: str) -> dict[str, Any]:
    """Run a command; its document."""
    result = CliRunner().invoke(build(), [*words, "--json"], env=environment)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def last(database: str) -> dict[str, Any]:
    """The newest act, as the command line lists it."""
    return dict(run("log", "--acts", "--limit", "1", BIRDWIRE_DATABASE_URL=database)["acts"][0])


def test_every_command_declares_whether_it_records_an_act() -> None:
    """A command that is in no table fails here, and then below for want of a way to try it."""
    local = {path for path, panel in commands() if panel in (RUN, OPERATE) or path[0] == "accounts"} - OVER_HTTP
    assert local == set(ACTS_OF_COMMANDS)


@dataclass
class Operated:
    """A database on which every command that leaves an act was run: the act of each, and whose it should be."""

    database: str
    key_id: str
    acts: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)
    subjects: dict[tuple[str, ...], str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Operated:
    """Run them, one after the other."""
    folder = tmp_path_factory.mktemp("operated")
    old, new, database = folder / "old.key", folder / "new.key", f"sqlite:///{folder / 'birdwire.db'}"
    for file in (old, new):
        run("vault", "create", str(file))
    settings = {
        "BIRDWIRE_DATABASE_URL": database,
        "BIRDWIRE_VAULT_KEY_FILE": str(old),
        "BIRDWIRE_X_CLIENT_ID": "app",
        "BIRDWIRE_PUBLIC_URL": "https://gateway.example.com",
    }
    key_id = run("keys", "create", "--label", "audited", **settings)["key_id"]
    found = Operated(database, key_id, {("keys", "create"): last(database)}, {("keys", "create"): key_id})

    def leave(subject: str, *words: str, path: tuple[str, ...] = (), other: dict[str, str] | None = None) -> None:
        before = last(database)["number"]
        run(*words, **settings | (other or {}))
        act = last(database)
        assert act["number"] > before, words
        found.acts[path or words[:2]] = act
        found.subjects[path or words[:2]] = subject

    leave(key_id, "keys", "change", key_id, "--rpm", "7", "--lift", "actions")
    leave(key_id, "keys", "rotate", key_id)
    leave(key_id, "policy", "set", key_id, "links=deny")
    leave(key_id, "policy", "unset", key_id)
    leave("notifications", "notify", "set", "https://hooks.example.com/audited")
    leave("notifications", "notify", "rotate")
    leave("notifications", "notify", "off")
    leave("gateway", "pause", "gateway", "--why", "Review", path=("pause",))
    leave("gateway", "resume", "gateway", path=("resume",))
    leave(key_id, "accounts", "link", key_id, "--expect", "@ada")
    leave("database", "restore", "--mark", path=("restore",))
    vault_key_id = run("vault", "status", **settings | {"BIRDWIRE_VAULT_KEY_FILE": str(new)})["vault_keys"][0]
    both = {"BIRDWIRE_VAULT_KEY_FILE": str(new), "BIRDWIRE_VAULT_OTHER_KEY_FILES": str(old)}
    leave(vault_key_id["vault_key_id"], "vault", "rotate", other=both)
    leave(key_id, "keys", "revoke", key_id)
    return found


def test_every_command_that_leaves_an_act_is_tried() -> None:
    """Here, or where its servers are."""
    tried = {path for path, act in ACTS_OF_COMMANDS.items() if act is not None}
    assert tried == set(TRIED) | set(TRIED_ELSEWHERE)


TRIED = [path for path, act in ACTS_OF_COMMANDS.items() if act is not None and path not in TRIED_ELSEWHERE]


@pytest.mark.parametrize("path", TRIED, ids=" ".join)
def test_a_command_that_writes_leaves_an_act_of_the_os_user(operated: Operated, path: tuple[str, ...]) -> None:
    """With what it changed, and without any secret."""
    act, subject = operated.acts[path], operated.subjects[path]
    assert (act["act"], act["who"], act["via"], act["subject"]) == (ACTS_OF_COMMANDS[path], ME, "cli", subject)
    assert list(act) == ["number", "at", "who", "via", "act", "subject", "before", "after"]
    assert "bw_" not in json.dumps(act)


def test_an_act_records_the_changed_fields_alone(operated: Operated) -> None:
    """Before and after; a field set to its current value is not a change."""
    assert operated.acts["keys", "create"]["after"] == {"label": "audited", "tier": "free"}
    changed_key = operated.acts["keys", "change"]
    assert (changed_key["before"], changed_key["after"]) == ({"rpm": None}, {"rpm": 7})
    started = operated.acts["accounts", "link"]["after"]
    assert (set(started), started["expected_username"]) == ({"scopes", "expected_username"}, "ada")


def test_sudo_uid_is_believed_from_root_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may claim anything anyway; another user's environment is not believed."""
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setenv("SUDO_UID", str(nobody.pw_uid))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert inputs.os_user() == "nobody"
    monkeypatch.setenv("SUDO_UID", "0")
    monkeypatch.setattr(os, "getuid", lambda: nobody.pw_uid)
    assert inputs.os_user() == "nobody"
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_001)
    assert inputs.os_user() == "uid 2000000001"


# Routes.


async def test_every_route_that_changes_keys_or_links_leaves_its_acts(confirming: RunningGateway) -> None:
    """Each route is in one of the two tables; the key's holder, the owner and the gateway are distinguished."""
    running = confirming
    served = {f"{route.method} {route.path.removeprefix(API)}" for route in running.gateway.routes}
    served = {name for name in served if not name.startswith(("POST /apis", "GET /apis"))}
    assert served == set(ACTS_OF_ROUTES) | ROUTES_WITHOUT
    holder, owner = (running.key_id, "http"), ("@ada", "page")
    url = await running.consent("ada")
    page = await running.bare.get(url, headers={"accept": "text/html"})
    confirmed = await running.call("auth/confirm", {"state": query_of(url)["state"], "username": "ada"})
    assert confirmed.status_code == 200
    assert (await press_undo(running, page)).status_code == 200
    await running.link("ada", {"expected_username": "ada"})
    assert (await running.call("unlink_twitter")).status_code == 200
    assert await acts_of(running) == [
        ("key.created", "birdwire", "gateway"),
        ("link.started", *holder),
        ("link.approved", "account_owner", "page"),
        ("link.named", *owner),
        ("link.activated", *holder),
        ("link.undone", *owner),
        ("link.started", *holder),
        ("link.approved", "account_owner", "page"),
        ("link.activated", *owner),
        ("link.unlinked", *holder),
    ]
    last_act = (await recorded(running.settings.database_url))[-1]
    assert last_act["before"] == {"user_id": "2244994945", "username": "ada", "state": "active"}


async def test_a_call_that_changes_nothing_records_no_act(linked: RunningGateway) -> None:
    """Calls, look-ups, an unlink without a link, a second revocation, a change to what is."""
    await linked.call("unlink_twitter")
    before = await acts_of(linked)
    await linked.status()
    await linked.like()
    await linked.call("unlink_twitter")
    await linked.gateway.keys.change(linked.key_id, label="test key", tier="growth")
    assert await acts_of(linked) == before
    for _ in range(2):
        await linked.gateway.keys.revoke(linked.key_id)
    assert [act for act, *_ in await acts_of(linked)][len(before) :] == ["key.revoked"]


async def test_a_link_that_the_gateway_ends_is_its_act(linked: RunningGateway) -> None:
    """X refuses a renewal; then the key is revoked, and the sweep takes its link away."""
    user_id = (await linked.status())["user_id"]
    await linked.x.post(f"/_sandbox/users/{user_id}/revoke_app")
    linked.clock.advance(seconds=7_300)
    assert reason_of(await linked.like()) == "x_session_expired"
    await linked.gateway.keys.revoke(linked.key_id)
    await linked.gateway.links.sweep()
    rows = (await recorded(linked.settings.database_url))[-3:]
    assert [(row["act"], row["who"], row["after"]) for row in rows if row["act"] != "key.revoked"] == [
        ("link.needs_relink", "birdwire", {"why": "refused"}),
        ("link.unlinked", "birdwire", {"why": "key_revoked"}),
    ]


async def test_the_end_of_a_link_that_was_never_in_use_has_its_cause(confirming: RunningGateway) -> None:
    """The link was not confirmed, or its key lost the action, or its key expired before X named the account."""
    running, whys = confirming, []
    for end in ("lapse", "narrow", "expire"):
        await running.gateway.keys.change(running.key_id, actions=None)
        if end == "expire":
            await running.fault("GET", "/2/users/me", {"status": 503})
            await running.gateway.keys.change(running.key_id, expires_at=running.clock.now() + timedelta(hours=1))
        await running.link("ada")
        if end == "narrow":
            await running.gateway.keys.change(running.key_id, actions=("like_twitter",))
        running.clock.advance(minutes=11, days=2 if end == "expire" else 0)
        await running.gateway.links.sweep()
        newest = (await recorded(running.settings.database_url))[-1]
        whys.append((newest["act"], newest["after"]["why"]))
    assert whys == [("link.expired", why) for why in ("not_confirmed", "key_may_not_link", "key_expired")]


async def test_a_caller_cannot_fill_the_disk_with_acts(running: RunningGateway) -> None:
    """Of links that are only started, some are recorded each ten minutes; the operator's own always are."""
    for _ in range(MAX_REPEATED + 3):
        await begin(running)
    assert [act for act, *_ in await acts_of(running)].count("link.started") == MAX_REPEATED
    running.clock.advance(seconds=601)
    await begin(running)
    assert [act for act, *_ in await acts_of(running)].count("link.started") == MAX_REPEATED + 1


async def test_a_caller_cannot_fill_the_disk_with_acts_on_the_links_of_notifications(running: RunningGateway) -> None:
    """Each request for an approval can have one; those that the operator makes are always recorded."""
    await running.link("ada")
    async with desk(running, {"approve": "*"}) as at:
        for number in range(MAX_REPEATED + 3):
            request_id = (await at.post(f"Question {number}"))["request_id"]
            await at.approvals.make_link(request_id, GATEWAY)
            assert (await at.cancel(request_id)).status_code == 200
        assert [act for act, *_ in await acts_of(running)].count("approval.link_made") == MAX_REPEATED
        await at.approvals.make_link((await at.post())["request_id"], OPERATOR)
    assert [act for act, *_ in await acts_of(running)].count("approval.link_made") == MAX_REPEATED + 1


async def test_a_caller_cannot_fill_the_disk_with_ends_of_pending_links(running: RunningGateway) -> None:
    """A link that was never in use is ended as often as it is started."""
    await running.fault("GET", "/2/users/me", {"status": 503}, times=None)
    for _ in range(MAX_REPEATED + 3):
        await press_undo(running, await running.link("ada"))
    assert [act for act, *_ in await acts_of(running)].count("link.undone") == MAX_REPEATED
    await running.x.delete("/_sandbox/faults")
    assert (await press_undo(running, await running.link("ada"))).status_code == 200
    assert [act for act, *_ in await acts_of(running)].count("link.undone") == MAX_REPEATED + 1


async def test_a_long_field_is_recorded_by_its_length(running: RunningGateway) -> None:
    """A key with a thousand networks leaves a short row."""
    ips = tuple(f"10.{number // 256}.{number % 256}.0/24" for number in range(1_000))
    await running.gateway.keys.create("test", "many", rules=KeyRules(ips=ips))
    row = (await recorded(running.settings.database_url))[-1]
    assert row["after"]["ips"].endswith(" characters")
    assert len(json.dumps(row)) < MAX_VALUE


# What the undo leaves.


async def test_an_undo_shows_for_a_day(running: RunningGateway) -> None:
    """In auth/status, until there is another link."""
    assert (await running.status())["why"] is None
    assert (await press_undo(running, await running.link("ada"))).status_code == 200
    status = await running.status()
    assert (status["linked"], status["why"]) == (False, "undone_by_owner")
    told = {name for name, value in status.items() if value is not None}
    assert told == {"linked", "usable", "why", "last_attempt"}
    person = {"BIRDWIRE_URL": running.settings.base_url, "BIRDWIRE_API_KEY": running.raw_key}
    shown = await asyncio.to_thread(CliRunner().invoke, build(), ["accounts", "status"], env=person)
    assert "the account's owner undid the link" in shown.stdout
    running.clock.advance(seconds=86_398)
    assert (await running.status())["why"] == "undone_by_owner"
    running.clock.advance(seconds=3)
    assert (await running.status())["why"] is None
    assert (await press_undo(running, await running.link("ada"))).status_code == 200
    assert (await running.status())["why"] == "undone_by_owner"
    await running.link("ada")
    assert (await running.status())["why"] is None
    await running.call("unlink_twitter")
    assert (await running.status())["why"] is None


async def test_links_are_counted_by_outcome_from_zero(tmp_path: Path) -> None:
    """Each series is there before its first event."""
    outcomes = ("linked", "undone", "denied", "mismatch", "unlinked", "expired")
    async with RunningGateway.built(tmp_path, metrics_token=SecretStr(TOKEN)) as running:
        counts = dict.fromkeys(outcomes, 0)

        async def rise(*names: str) -> None:
            for name in names:
                counts[name] += 1
            answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
            found = re.findall(r'^birdwire_links_total\{outcome="(\w+)"\} (\d+)\.0$', answer.text, re.MULTILINE)
            assert {outcome: int(times) for outcome, times in found} == counts

        await rise()
        await open_callback(running, await running.consent("ada", "deny"))
        await rise("denied")
        page = await running.link("ada")
        await rise("linked")
        await open_callback(running, await running.consent("grace"))
        await rise("mismatch")
        await press_undo(running, page)
        await rise("undone")
        await press_undo(running, page)
        await rise()
        late = await running.consent("ada")
        running.clock.advance(seconds=601)
        assert reason_of(await open_callback(running, late)) == "state_expired"
        await rise("expired")
        await running.link("ada")
        await running.call("unlink_twitter")
        await rise("linked", "unlinked")


# The log.


async def test_a_gateway_logs_each_act_once_for_every_kind_of_actor(tmp_path: Path) -> None:
    """An undo as a warning; those of other processes, too; never a token, a state or a key."""
    async with RunningGateway.built(tmp_path) as running:
        url = await running.consent("ada")
        page = await running.bare.get(url, headers={"accept": "text/html"})
        await press_undo(running, page)
        await open_callback(running, changed(await running.consent("ada"), code=None, error="access_denied"))
        other = Database(running.settings.database_url)
        await Keys(other, running.clock).rotate(
            (await running.gateway.keys.create("test", "x"))[0].key_id, timedelta(minutes=1)
        )
        await other.close()
        secrets = (query_of(url)["state"], query_of(url)["code"], undo_token(page), running.raw_key)
    events = [event for line in running.log.getvalue().splitlines() if (event := json.loads(line))["event"] == "act"]
    acts = [row for row in await recorded(running.settings.database_url) if row["act"] != "vault.key_added"]
    assert [{name: event[name] for name in acts[0]} for event in events] == acts
    assert {event["act"] for event in events if event["level"] == "warning"} == {"link.undone"}
    assert {"key.rotated", "link.denied"} < {event["act"] for event in events}
    assert not [secret for secret in secrets if secret in json.dumps(events)]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ({"state": "active"}, None, "active -> none"),
        ({"state": "active"}, {"reason": "denied"}, "active -> none"),
        ({"state": ["a", "b"]}, {"state": []}, "a, b -> none"),
        (None, {"state": "active"}, "active"),
    ],
)
def test_a_field_that_an_act_removed_is_not_shown_as_set(
    before: dict[str, Any] | None, after: dict[str, Any] | None, shown: str
) -> None:
    """`state: active` below `link.undone` would be the opposite of what happened."""
    assert change({"before": before, "after": after}, "state") == shown


def test_people_read_acts_in_eighty_columns(operated: Operated) -> None:
    """Newest first, with what was changed; narrowed by key and time; not by what is of writes alone."""
    key_id, database = operated.key_id, operated.database
    shown = CliRunner().invoke(build(), ["log", "--acts"], env={"BIRDWIRE_DATABASE_URL": database}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.splitlines()[0].endswith(f"key.revoked, by {ME} (cli)")
    assert f"  {key_id}; rpm: none -> 7" in shown
    narrowed = run("log", "--acts", "--key", key_id, "--since", "1h", BIRDWIRE_DATABASE_URL=database)["acts"]
    assert {row["subject"] for row in narrowed} == {key_id}
    assert run("log", "--acts", "--key", "key_none", BIRDWIRE_DATABASE_URL=database) == {"acts": []}
    wrong = CliRunner().invoke(build(), ["log", "--acts", "--state", "found"], env={"BIRDWIRE_DATABASE_URL": database})
    assert (wrong.exit_code, "--operation and --state do not apply to --acts." in wrong.stderr) == (2, True)
