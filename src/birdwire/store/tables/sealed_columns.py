"""Every sealed column of every table, in one list, and the few statements that work on all of them alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, LargeBinary, bindparam, func, literal, select, tuple_, update

from birdwire.store.tables.idempotency import idempotency
from birdwire.store.tables.journal import journal
from birdwire.store.tables.link_states import link_states
from birdwire.store.tables.x_sessions import revocations, x_sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, RowMapping, Table
    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Sealed:
    """A column that holds sealed values, and what binds them beside the table, row and column.

    `gen` is the column of the generation, if there is one. `bound` are further columns of the row: with any, values are
    sealed in form 2, else in form 1.
    """

    column: Column[Any]
    gen: Column[Any] | None = None
    bound: tuple[Column[Any], ...] = ()

    @property
    def table(self) -> Table:
        """Where it is."""
        return self.column.table

    @property
    def key(self) -> tuple[Column[Any], ...]:
        """The primary key, which names the row."""
        return tuple(self.table.primary_key.columns)


_OWNER = (x_sessions.c.key_id, x_sessions.c.issuer, x_sessions.c.user_id)

SEALED = (
    Sealed(x_sessions.c.access_ct, x_sessions.c.gen, _OWNER),
    Sealed(x_sessions.c.refresh_ct, x_sessions.c.gen, _OWNER),
    Sealed(revocations.c.token_ct),
    Sealed(link_states.c.verifier_ct),
    Sealed(idempotency.c.body),
    Sealed(journal.c.words_ct),
)
"""The proofs in `vault_keys` are not here: each shows its own key, and goes with it."""


async def count(connection: AsyncConnection, sealed: Sealed, head_bytes: int) -> dict[bytes, int]:
    """How many values there are by their first bytes, which say which key sealed them."""
    head = func.substr(sealed.column, 1, head_bytes, type_=LargeBinary)
    query = select(head, func.count()).where(sealed.column.is_not(None)).group_by(head)
    return {bytes(row[0]): int(row[1]) for row in await connection.execute(query)}


async def others(
    connection: AsyncConnection, sealed: Sealed, head: bytes, after: Sequence[Any] | None, limit: int
) -> Sequence[RowMapping]:
    """Return the next rows, in the order of their keys, whose value does not begin with `head`.

    Each has the columns of the key and of the binding, `gen` and `blob`.
    """
    gen = literal(0) if sealed.gen is None else sealed.gen
    query = select(*sealed.key, *sealed.bound, gen.label("gen"), sealed.column.label("blob")).where(
        sealed.column.is_not(None), func.substr(sealed.column, 1, len(head), type_=LargeBinary) != head
    )
    if after is not None:
        query = query.where(tuple_(*sealed.key) > tuple_(*_typed(sealed, after)))
    return (await connection.execute(query.order_by(*sealed.key).limit(limit))).mappings().all()


async def replace(connection: AsyncConnection, sealed: Sealed, new: Sequence[tuple[RowMapping, bytes]]) -> None:
    """Put a blob in the place of each one that was read, wherever it still is, and of the same generation."""
    same = [column == bindparam(f"key_{column.name}") for column in sealed.key]
    if sealed.gen is not None:
        same.append(sealed.gen == bindparam("old_gen"))
    query = update(sealed.table).where(*same, sealed.column == bindparam("old_blob"))
    rows = [
        {f"key_{column.name}": row[column.name] for column in sealed.key}
        | ({} if sealed.gen is None else {"old_gen": row["gen"]})
        | {"old_blob": row["blob"], "new_blob": blob}
        for row, blob in new
    ]
    await connection.execute(query.values({sealed.column.name: bindparam("new_blob")}), rows)


def _typed(sealed: Sealed, values: Sequence[Any]) -> list[ColumnElement[Any]]:
    return [literal(value, column.type) for column, value in zip(sealed.key, values, strict=True)]
