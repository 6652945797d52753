"""The tables that migrations make are those that the code declares, on both engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import inspect

from birdwire.store.database import Database
from birdwire.store.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

pytestmark = pytest.mark.engines("sqlite", "postgres")

Shape = dict[str, Any]


def declared() -> Shape:
    """Return the shape of each table in the code."""
    return {
        name: {
            "columns": [(column.name, column.nullable) for column in table.columns],
            "key": [column.name for column in table.primary_key.columns],
            "refers": sorted(
                (column.name, key.target_fullname, key.ondelete)
                for column in table.columns
                for key in column.foreign_keys
            ),
            "indexes": sorted((str(index.name), [column.name for column in index.columns]) for index in table.indexes),
        }
        for name, table in metadata.tables.items()
    }


def found(connection: Connection) -> Shape:
    """Return the shape of each table in a database, but for Alembic's own."""
    every = inspect(connection)
    return {
        name: {
            "columns": [(column["name"], column["nullable"]) for column in every.get_columns(name)],
            "key": every.get_pk_constraint(name)["constrained_columns"],
            "refers": sorted(
                (
                    key["constrained_columns"][0],
                    f"{key['referred_table']}.{key['referred_columns'][0]}",
                    key["options"].get("ondelete"),
                )
                for key in every.get_foreign_keys(name)
            ),
            "indexes": sorted(
                (str(index["name"]), index["column_names"])
                for index in every.get_indexes(name)
                if "duplicates_constraint" not in index
            ),
        }
        for name in every.get_table_names()
        if name != "alembic_version"
    }


async def test_migrations_make_what_the_code_declares(engine: str, database_url: str) -> None:
    """Columns in any order, keys, references with their deletion rules, and indexes."""
    database = Database(database_url)
    try:
        await database.prepare(upgrade=False)
        async with database.read() as connection:
            tables = await connection.run_sync(found)
    finally:
        await database.close()
    # On PostgreSQL, the change feed needs no table.
    wanted = {name: shape for name, shape in declared().items() if engine == "sqlite" or name != "changes"}
    for shape in (*tables.values(), *wanted.values()):
        shape["columns"].sort()
    assert tables == wanted
