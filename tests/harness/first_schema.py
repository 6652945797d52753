"""A database of the first schema, as a gateway of that version wrote it, on either engine and at its own time."""

from __future__ import annotations

import json
import lzma
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from birdwire import store
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from sqlalchemy import Connection

DATA = Path(__file__).parent.parent / "data" / "first_schema"
FILES = json.loads((DATA / "keys.json").read_text())
MADE_AT = datetime.fromisoformat(FILES["made_at"])
KEYS: dict[str, dict[str, str]] = FILES["keys"]
"""`key_id` and `raw_key` by the key's label."""


def clock() -> MovableClock:
    """Return a clock at the time the database was written: later, half of its rows would have expired."""
    moved = MovableClock()
    moved.added = MADE_AT - datetime.now(UTC)
    return moved


def unpack(directory: Path) -> Path:
    """Unpack the database and, next to it, its vault key `vault.key`; return the database's path."""
    path = directory / "birdwire.db"
    path.write_bytes(lzma.decompress((DATA / "birdwire.db.xz").read_bytes()))
    path.chmod(0o600)
    shutil.copyfile(DATA / "vault.key", directory / "vault.key")
    (directory / "vault.key").chmod(0o600)
    return path


async def fill(url: str, directory: Path) -> None:
    """Write the same rows, under their own schema, to an empty PostgreSQL database."""
    source = sa.create_engine(f"sqlite:///{unpack(directory)}")
    target = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with target.begin() as connection:
            await connection.run_sync(_first_schema)
            await connection.run_sync(_copy, source)
    finally:
        source.dispose()
        await target.dispose()


async def make(url: str) -> None:
    """Create the tables of that schema in an empty PostgreSQL database, without rows."""
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_first_schema)
    finally:
        await engine.dispose()


def _first_schema(connection: Connection) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(store.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "0001")


def _copy(connection: Connection, source: sa.Engine) -> None:
    """Copy every row of every shared table, referenced tables first."""
    found = sa.MetaData()
    found.reflect(connection)
    with source.connect() as reading:
        for table in found.sorted_tables:
            if table.name == "alembic_version":
                continue
            columns = [sa.column(column.name, column.type) for column in table.columns]
            rows: list[dict[str, Any]] = [
                dict(row) for row in reading.execute(sa.select(*columns).select_from(sa.table(table.name))).mappings()
            ]
            if rows:
                connection.execute(sa.insert(table), rows)
