"""Makes a gateway's database ready, by its own functions: keys with high limits, each with a linked account."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, String, cast, create_engine, func, insert, literal, select, true
from ulid import ULID

from birdwire.accounts.tokens import Binding, SealedTokens
from birdwire.app import create_app
from birdwire.gateway.notifications.destination import Destinations
from birdwire.keys.rules import MAX_RPM
from birdwire.keys.secrets import mint
from birdwire.runtime.clock import Clock
from birdwire.settings import Settings
from birdwire.startup import open_vault
from birdwire.store.database import Database
from birdwire.store.tables import outbox, policies
from birdwire.store.tables.acts import Actor
from birdwire.store.tables.api_keys import api_keys, api_secrets
from birdwire.store.tables.destinations import OPERATOR
from birdwire.store.tables.journal import journal
from birdwire.store.tables.x_sessions import x_sessions
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.client.auth_server import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Table

    Change = Callable[[Any, Any], Any]

SCOPES = tuple(sorted({scope for row in OPERATIONS for scope in row.scopes} | {"offline.access"}))
USER_ID = "2244994945"
FAR_S = 365 * 86_400
TOKEN = base64.urlsafe_b64encode(b"a token as long as those of X, which has 91 characters, all in all.").decode()


RULES = {"caps": {"*": "1000000/h 1000000/d"}, "budget": {"day_usd": 1_000_000, "month_usd": 1_000_000}}
"""A policy that counts every like four times, and never refuses one."""


def raw_keys(count: int) -> list[str]:
    """New secrets for a gateway whose X is on this machine."""
    return [mint("test") for _ in range(count)]


def vault_key() -> str:
    """A new one, as the settings take it."""
    return base64.b64encode(os.urandom(32)).decode()


def settings(work: Path, port: int, x_url: str, vault: str, **more: str) -> dict[str, str]:
    """A gateway's settings as environment variables: metrics on, many calls a key at once, the rest as it comes."""
    chosen = {
        "port": str(port),
        "database_url": f"sqlite:///{work}/birdwire.db",
        "vault_key": vault,
        "x_client_id": "bench",
        "x_api_url": x_url,
        "x_authorize_url": f"{x_url}/i/oauth2/authorize",
        "metrics_port": "0",
        "max_calls_each": "1000",
        **more,
    }
    return {f"BIRDWIRE_{name.upper()}": value for name, value in chosen.items()}


async def guard(environment: dict[str, str], rules: Mapping[str, Any]) -> None:
    """Set the policy of the whole gateway, on a database that nobody serves."""
    database = Database(environment["BIRDWIRE_DATABASE_URL"])
    row = policies.PolicyRow("gateway", "operator", 1, "enforce", None, dict(rules), datetime.now(UTC), "bench")
    async with database.write() as connection:
        await policies.append(connection, row)
    await database.close()


async def notify(environment: dict[str, str], url: str, waiting: int) -> None:
    """Set the destination of notifications, and let so many wait for it, on a database that nobody serves."""
    given, clock = Settings.load(environment), Clock()
    database, at = Database(given.database_url), clock.now()
    try:
        destination = Destinations(database, open_vault(given), clock, given.outbound_rules)
        await destination.set(url, "standard", Actor("bench", "cli"), with_link=False, with_text=False)
        row: dict[str, Any] = {"destination_id": OPERATOR, "type": "paused", "data": {"scope": "gateway"}}
        row |= {"at": at, "tries": 0, "keep_until": at + outbox.KEPT}
        async with database.write() as connection:
            due = (at - timedelta(milliseconds=number) for number in range(waiting))
            rows = [row | {"event_id": outbox.new_event_id(), "due_at": one} for one in due]
            await connection.execute(insert(outbox.outbox), rows)
    finally:
        await database.close()


async def link(environment: dict[str, str], keys: Sequence[str], *, linked: bool = True) -> None:
    """Create these keys, each linked to an account of its own, with tokens that outlive the run."""
    gateway = create_app(Settings.load(environment), log=io.StringIO(), upgrade=True)
    tokens = Tokens(TOKEN, TOKEN[::-1], FAR_S, None)
    async with gateway.app.router.lifespan_context(gateway.app):
        for number, raw_key in enumerate(keys):
            key, _ = await gateway.keys.create("test", f"bench {number}", "enterprise", MAX_RPM, raw_key)
            if not linked:
                continue
            row, _ = await gateway.links.store_pending(key.key_id, tokens, SCOPES, None)
            await gateway.links.name(row.session_id, str(int(USER_ID) + number), f"bench_{number}")


def grow(environment: dict[str, str], keys: Sequence[str], total: int) -> None:
    """Fill up a SQLite store that has one linked key: these keys, linked too, and others up to `total` in all.

    The rows are copies of the one that is there: `keys` with secrets, accounts and tokens of their own, the others with
    accounts of their own and secrets that nobody has.
    """
    tokens = SealedTokens(open_vault(Settings.load(environment)), Clock())
    with _opened(environment) as connection:
        tables = (api_keys, api_secrets, x_sessions)
        key, secret, session = (dict(connection.execute(select(table)).mappings().one()) for table in tables)
        rows: tuple[list[dict[str, Any]], ...] = ([], [], [])
        for number, raw_key in enumerate(keys):
            key_id, session_id = f"key_bench{number}", f"xs_bench{number}"
            user_id = str(int(USER_ID) + 1 + number)
            bound = Binding(session_id, key_id, session["issuer"], user_id)
            sealed = tokens.seal(bound, session["gen"], Tokens(TOKEN, TOKEN[::-1], FAR_S, None))
            rows[0].append({**key, "key_id": key_id})
            rows[1].append({**secret, "key_id": key_id, "secret_hash": hashlib.sha256(raw_key.encode()).digest()})
            rows[2].append({**session, **sealed, "key_id": key_id, "session_id": session_id, "user_id": user_id})
        for table, found in zip(tables, rows, strict=True):
            if found:
                connection.execute(insert(table), found)
        more = total - len(keys) - 1
        if more > 0:
            other = _named("key_other")
            _copy(connection, api_keys, more, {"key_id": other})
            _copy(connection, api_secrets, more, {"key_id": other, "secret_hash": lambda *_: func.randomblob(32)})
            own = {"key_id": other, "session_id": _named("xs_other"), "user_id": _named("1")}
            _copy(connection, x_sessions, more, own)


def lengthen(environment: dict[str, str], total: int, *, apart_s: float = 1.0) -> None:
    """Fill up a SQLite store's journal to `total` rows: copies of one that is there, each older than the one before."""
    apart = int(apart_s * 1e6)
    newest = time.time_ns() // 1_000

    def older_id(number: int) -> str:
        return f"req_{ULID.from_bytes(((newest - number * apart) // 1_000 << 80 | number).to_bytes(16))}"

    def older(number: Any, column: Any) -> Any:
        return cast(column, BigInteger) - number * apart

    changed: dict[str, Change] = {"request_id": lambda number, _: func.older_id(number)}
    with _opened(environment) as connection:
        connection.connection.driver_connection.create_function("older_id", 1, older_id)  # type: ignore[union-attr]
        known = connection.execute(select(func.count()).select_from(journal)).scalar_one()
        _copy(connection, journal, total - known, changed | {"created_at": older, "settled_at": older})


def older_rows(environment: dict[str, str], older: timedelta) -> int:
    """How many rows of a store's journal are older than this."""
    query = select(func.count()).select_from(journal).where(journal.c.created_at < datetime.now(UTC) - older)
    with _opened(environment) as connection:
        return int(connection.execute(query).scalar_one())


def _named(prefix: str) -> Change:
    return lambda number, _: prefix + cast(number, String)


def _copy(connection: Connection, table: Table, count: int, changed: Mapping[str, Change]) -> None:
    """Copies of a table's first row; the `changed` columns are made from the copy's number and what they were."""
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < count))
    first = select(table).limit(1).subquery()
    columns = [
        changed[column.name](numbers.c.n, first.c[column.name]) if column.name in changed else first.c[column.name]
        for column in table.c
    ]
    copies = select(*columns).select_from(numbers.join(first, true()))
    connection.execute(insert(table).from_select([column.name for column in table.c], copies))


@contextlib.contextmanager
def _opened(environment: dict[str, str]) -> Iterator[Connection]:
    """A transaction on a store that nobody serves. Closing it brings what was written from the log into the file."""
    engine = create_engine(environment["BIRDWIRE_DATABASE_URL"])
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
