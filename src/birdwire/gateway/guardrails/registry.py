"""Policies and pauses as the operator changes them: each change and its act in one transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from birdwire.api.models import is_well_formed
from birdwire.gateway.guardrails.pauses import in_force, lift, pause
from birdwire.gateway.guardrails.policy import ACCOUNT_PREFIX, GATEWAY_SCOPE, Policy, PolicyError, account_scope
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.rules import changed, read_rules
from birdwire.keys.registry import Keys
from birdwire.store.tables import acts, api_keys, pauses, policies, x_sessions
from birdwire.store.tables.pauses import PauseRow
from birdwire.store.tables.policies import PolicyRow

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.gateway.guardrails.presets import Preset
    from birdwire.gateway.guardrails.rules import Change
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

OPERATOR: Final = "operator"
"""The author of the policies and pauses that this module changes. Those of an account's owner are never changed."""

KEY_PREFIX = "key_"
"""How the scopes of keys start."""

MAX_WHY_CHARS = 500


@dataclass(frozen=True, slots=True)
class Standing:
    """The operator's policies that apply to a scope: its own, its account's and the gateway's; None where unset."""

    scope: str
    user_id: str | None
    own: PolicyRow | None
    account: PolicyRow | None
    gateway: PolicyRow | None

    def document(self) -> dict[str, Any]:
        """Return the policies as programs read them."""
        by_kind = {"key": self.own, "account": self.account, "gateway": self.gateway}
        if not self.scope.startswith(KEY_PREFIX):
            by_kind["key"] = None
        return {
            "scope": self.scope,
            "enforcement": self.own and self.own.enforcement,
            "preset": self.own and self.own.preset,
            "versions": {kind: row and row.version for kind, row in by_kind.items()},
            "rules": _rules(self.own),
            "account_rules": _rules(self.account),
            "gateway_rules": _rules(self.gateway),
        }

    def read(self) -> list[Policy]:
        """Return the policies, checked, from the scope's own to the gateway's.

        Raises:
            PolicyError: one cannot be read.
        """
        rows = {row.scope: row for row in (self.own, self.account, self.gateway) if row is not None}
        return [read(row) for row in rows.values() if row.rules is not None]


class Policies:
    """The policies and pauses of one database. `by` is the actor that changes them through this object."""

    def __init__(self, database: Database, clock: Clock, by: acts.Actor) -> None:
        self._database = database
        self._clock = clock
        self._by = by

    async def scope_of(self, name: str) -> str:
        """Return the scope that a name stands for: a KEY_ID, the @handle of a linked account, or `gateway`.

        A scope itself is a name, too, so that an account that is no longer linked can be named.

        Raises:
            PolicyError: nothing has this name.
        """
        if name == GATEWAY_SCOPE:
            return name
        if name.startswith(ACCOUNT_PREFIX) and name.removeprefix(ACCOUNT_PREFIX).isdecimal() and name.isascii():
            return name
        async with self._database.read() as connection:
            if name.startswith("@"):
                return await _account(connection, name.removeprefix("@"))
            if await api_keys.get(connection, name) is None:
                raise PolicyError(
                    f"{name[:60]!r} is not a scope: use a KEY_ID of `birdwire keys list`, the @handle of a linked "
                    f"account, or {GATEWAY_SCOPE}."
                )
        return name

    async def show(self, scope: str) -> Standing:
        """Return the policies that apply to a scope."""
        async with self._database.read() as connection:
            return await standing(connection, scope)

    async def set(
        self,
        scope: str,
        changes: Sequence[Change] = (),
        *,
        replace: Mapping[str, Any] | None = None,
        preset: str | None = None,
        enforcement: str | None = None,
        if_version: int | None = None,
    ) -> Standing:
        """Set a scope's policy to its next version, and return the policies that then apply.

        The new rules start from `replace`, else from the preset's, else from the present ones; `changes` are applied
        to them. A preset of a key also sets rules of the key itself.

        Raises:
            PolicyError: a rule is not valid, the policy has another version, or another process changed it meanwhile.
        """
        chosen = None if preset is None else _preset(scope, preset)
        if chosen is not None and chosen.key_rules:
            async with self._database.read() as connection:
                await self._current(connection, scope, if_version)
            await Keys(self._database, self._clock, by=self._by).change(scope, **chosen.key_rules)
        start = replace if replace is not None else None if chosen is None else chosen.rules
        async with self._database.write() as connection:
            await _hold(connection, scope)
            before = await self._current(connection, scope, if_version)
            rules = changed(start if start is not None else _present(before), changes)
            kept = None if before is None else before.preset
            how = enforcement or ("enforce" if before is None else before.enforcement)
            try:
                await self._store(connection, scope, before, how, preset or kept, rules)
            except PolicyError as error:
                if start is None and before is not None and before.rules is not None and not _is_readable(before):
                    raise PolicyError(
                        f"The policy of {scope} cannot be read, also with this change. {error} Upgrade Birdwire, or "
                        f"replace all its rules with `birdwire policy set {scope} -`."
                    ) from None
                raise
            return await standing(connection, scope)

    async def unset(self, scope: str, names: Collection[str] = (), *, if_version: int | None = None) -> Standing:
        """Remove rules of a scope's policy, or the whole policy; return the policies that then apply.

        Raises:
            PolicyError: there is no such rule, or no policy; else as `set`.
        """
        async with self._database.write() as connection:
            await _hold(connection, scope)
            before = await self._current(connection, scope, if_version)
            present = _rules(before)
            absent = [name for name in names if name not in present]
            if before is None or before.rules is None or absent:
                what = f"rule {absent[0][:60]!r}" if absent else "policy"
                raise PolicyError(f"{scope} has no {what}; see `birdwire policy show {scope}`.")
            rules = {name: value for name, value in present.items() if names and name not in names}
            # Without a rule, nothing remains of the policy but its history.
            how = before.enforcement if rules else "enforce"
            await self._store(connection, scope, before, how, before.preset, rules or None, act="policy.unset")
            return await standing(connection, scope)

    async def pause(self, scope: str, why: str, until: datetime | None) -> PauseRow:
        """Pause a scope, or replace the operator's pause of it.

        Raises:
            PolicyError: the reason is empty or too long, the end is not in the future, or the key is revoked.
        """
        now = self._clock.now()
        if not 0 < len(why) <= MAX_WHY_CHARS or not why.isprintable() or not why.strip():
            raise PolicyError(f"why: the reason must be 1 to {MAX_WHY_CHARS} printable characters.")
        if until is not None and until <= now:
            raise PolicyError("until: the end must be in the future.")
        async with self._database.write() as connection:
            await _hold(connection, scope)
            row = PauseRow(scope, OPERATOR, now, until, why, self._by.who)
            await pause(connection, self._by, row)
        return row

    async def resume(self, scope: str) -> tuple[PauseRow | None, list[PauseRow]]:
        """Lift the operator's pause of a scope; return it, if there was one, and the pauses of others that remain."""
        now = self._clock.now()
        async with self._database.write() as connection:
            lifted = await lift(connection, self._by, scope, OPERATOR, now)
            rest = in_force(await pauses.of(connection, [scope]), now)
        return lifted, rest

    async def all(self) -> dict[str, PolicyRow]:
        """Return the operator's policies that are set, by scope."""
        async with self._database.read() as connection:
            rows = await policies.all_latest(connection)
        return {row.scope: row for row in rows if row.author == OPERATOR and row.rules is not None}

    async def unreadable(self) -> list[PolicyRow]:
        """Return the newest policies that this version cannot read; every write to which they apply is refused."""
        async with self._database.read() as connection:
            rows = await policies.all_latest(connection)
        return [row for row in rows if row.rules is not None and not _is_readable(row)]

    async def active_pauses(self) -> list[PauseRow]:
        """Return the pauses that have not ended."""
        async with self._database.read() as connection:
            return in_force(await pauses.all_of(connection), self._clock.now())

    async def _current(self, connection: AsyncConnection, scope: str, if_version: int | None) -> PolicyRow | None:
        """Return the operator's newest policy of a scope, also one that was unset.

        Raises:
            PolicyError: it has another version.
        """
        row = (await _latest(connection, [scope])).get(scope)
        version = 0 if row is None else row.version
        if if_version not in (None, version):
            raise PolicyError(
                f"The policy of {scope} has version {version}, not {if_version}. Somebody changed it: run `birdwire "
                f"policy show {scope}`, then decide again."
            )
        return row

    async def _store(
        self,
        connection: AsyncConnection,
        scope: str,
        before: PolicyRow | None,
        enforcement: str,
        preset: str | None,
        rules: Mapping[str, Any] | None,
        *,
        act: acts.Act = "policy.set",
    ) -> None:
        """Add the next version of a policy, with its act.

        Raises:
            PolicyError: a rule is not valid, or another process added this version first.
        """
        now, version = self._clock.now(), 1 if before is None else before.version + 1
        policy = Policy.read(scope, OPERATOR, version, enforcement, preset, {} if rules is None else dict(rules))
        stored = None if rules is None else dict(policy.rules)
        if not is_well_formed(json.dumps(stored, ensure_ascii=False)):
            raise PolicyError("A rule contains an unpaired surrogate, which no text contains. Write it in UTF-8.")
        # The name is that of a preset only while the rules are the preset's.
        named = preset if preset in PRESETS and read_rules(dict(PRESETS[preset].rules)) == stored else None
        row = PolicyRow(scope, OPERATOR, version, policy.enforcement, named, stored, now, self._by.who)
        if not await policies.append(connection, row):
            raise PolicyError(
                f"Another process changed the policy of {scope} at the same time. Run `birdwire policy show {scope}`, "
                "then decide again."
            )
        was, new = _recorded(before), _recorded(row)
        differing = [name for name in {**was, **new} if was.get(name) != new.get(name)]
        await acts.append(
            connection,
            now,
            self._by,
            act,
            scope,
            before={name: was[name] for name in differing if name in was},
            after={name: new[name] for name in differing if name in new},
        )


async def standing(connection: AsyncConnection, scope: str) -> Standing:
    """Return the operator's policies that apply to a scope."""
    user_id = None
    if scope.startswith(ACCOUNT_PREFIX):
        user_id = scope.removeprefix(ACCOUNT_PREFIX)
    elif scope != GATEWAY_SCOPE:
        user_id = next((account.user_id for account in await x_sessions.accounts_of(connection, scope)), None)
    account = None if user_id is None else account_scope(user_id)
    found = await _latest(connection, [one for one in (scope, account, GATEWAY_SCOPE) if one is not None])
    kept = {name: row for name, row in found.items() if row.rules is not None}
    return Standing(scope, user_id, kept.get(scope), kept.get(account or ""), kept.get(GATEWAY_SCOPE))


def read(row: PolicyRow) -> Policy:
    """Return a stored policy, checked.

    Raises:
        PolicyError: this version cannot read it.
    """
    try:
        return Policy.read(row.scope, row.author, row.version, row.enforcement, row.preset, row.rules)
    except PolicyError as error:
        raise PolicyError(f"The policy of {row.scope} cannot be read. {error}") from None


async def _latest(connection: AsyncConnection, scopes: Collection[str]) -> dict[str, PolicyRow]:
    rows = await policies.latest(connection, scopes)
    return {row.scope: row for row in rows if row.author == OPERATOR}


async def _hold(connection: AsyncConnection, scope: str) -> None:
    """Lock a key whose policy or pause changes.

    Raises:
        PolicyError: the key is unknown or revoked.
    """
    if scope == GATEWAY_SCOPE or scope.startswith(ACCOUNT_PREFIX):
        return
    await api_keys.hold(connection, scope)
    row = await api_keys.get(connection, scope)
    if row is None or row.revoked_at is not None:
        raise PolicyError(f"{scope[:60]} is {'revoked' if row else 'unknown'}; see `birdwire keys list`.")


async def _account(connection: AsyncConnection, username: str) -> str:
    found = await x_sessions.users_named(connection, username)
    if len(found) == 1:
        return account_scope(next(iter(found)))
    if found:
        raise PolicyError(f"Several linked accounts have had the name @{username[:60]}: use {ACCOUNT_PREFIX}USER_ID.")
    raise PolicyError(f"No linked account is named @{username[:60]}; see `birdwire accounts list`.")


def _preset(scope: str, name: str) -> Preset:
    preset = PRESETS.get(name)
    if preset is None:
        raise PolicyError(f"preset: {name[:60]!r} is not one of {', '.join(PRESETS)}.")
    if preset.key_rules and not scope.startswith(KEY_PREFIX):
        raise PolicyError(f"preset: {name} sets rules of a key, so it applies to a KEY_ID only.")
    return preset


def _rules(row: PolicyRow | None) -> dict[str, Any]:
    """Return the rules of a policy as they are stored; empty if they are damaged."""
    return dict(row.rules) if row is not None and isinstance(row.rules, dict) else {}


def _present(row: PolicyRow | None) -> dict[str, Any]:
    """Return the rules that changes start from.

    Raises:
        PolicyError: they are damaged, so nobody knows what would be kept.
    """
    if row is not None and row.rules is not None and not isinstance(row.rules, dict):
        raise PolicyError(
            f"The policy of {row.scope} is damaged. Replace all its rules with `birdwire policy set {row.scope} -`."
        )
    return _rules(row)


def _recorded(row: PolicyRow | None) -> dict[str, Any]:
    """Return a policy as acts record it: each rule is a field."""
    if row is None:
        return {}
    fields = {"version": row.version, "enforcement": row.enforcement, "preset": row.preset}
    return (fields if row.rules is not None else {"version": row.version}) | _rules(row)


def _is_readable(row: PolicyRow) -> bool:
    try:
        read(row)
    except PolicyError:
        return False
    return True
