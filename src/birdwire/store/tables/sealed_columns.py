"""Every encrypted column of every table, in one list, and the statements that re-encrypt any of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, LargeBinary, bindparam, func, literal, select, tuple_, update

from birdwire.store.tables.approvals import approval_files, approvals
from birdwire.store.tables.destinations import destinations
from birdwire.store.tables.idempotency import idempotency
from birdwire.store.tables.journal import journal
from birdwire.store.tables.kept_images import kept_images
from birdwire.store.tables.link_states import link_states
from birdwire.store.tables.outbox import outbox
from birdwire.store.tables.text_mark_keys import text_mark_keys
from birdwire.store.tables.x_sessions import revocations, x_sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Sealed:
    """A column of encrypted values, and what binds them in addition to the table, row and column.

    `gen` is the column of the generation, if there is one. `bound` lists further columns of the row: with any, values
    are encrypted in form 2, otherwise in form 1. `large`: a value may have some MiB, so few are read at a time.
    """

    column: Column[Any]
    gen: Column[Any] | None = None
    bound: tuple[Column[Any], ...] = ()
    large: bool = False

    @property
    def table(self) -> Table:
        """Return the column's table."""
        return self.column.table

    @property
    def key(self) -> tuple[Column[Any], ...]:
        """Return the columns of the primary key, which identifies the row."""
        return tuple(self.table.primary_key.columns)


@dataclass(frozen=True, slots=True)
class SealedValue:
    """An encrypted value, with the row's primary key, its generation (0: the table has none) and its bound columns."""

    key: tuple[Any, ...]
    bound: tuple[str | None, ...]
    gen: int
    blob: bytes = field(repr=False)


_OWNER = (x_sessions.c.key_id, x_sessions.c.issuer, x_sessions.c.user_id)

SEALED = (
    Sealed(x_sessions.c.access_ct, x_sessions.c.gen, _OWNER),
    Sealed(x_sessions.c.refresh_ct, x_sessions.c.gen, _OWNER),
    Sealed(revocations.c.token_ct),
    Sealed(link_states.c.verifier_ct),
    Sealed(idempotency.c.body),
    Sealed(journal.c.words_ct),
    Sealed(journal.c.features_ct),
    Sealed(text_mark_keys.c.key_ct),
    Sealed(approvals.c.payload_ct),
    Sealed(approvals.c.refusal_ct),
    Sealed(approval_files.c.blob_ct, large=True),
    Sealed(kept_images.c.blob_ct, large=True),
    Sealed(destinations.c.url_ct),
    Sealed(destinations.c.secret_ct),
    Sealed(destinations.c.old_secret_ct),
    Sealed(outbox.c.extra_ct),
)
"""The proofs in `vault_keys` are not listed: each proves its own key and is deleted with it."""


async def count(connection: AsyncConnection, sealed: Sealed, head_bytes: int) -> dict[bytes, int]:
    """Count values by their first bytes, which identify the key that encrypted them."""
    head = func.substr(sealed.column, 1, head_bytes, type_=LargeBinary)
    query = select(head, func.count()).where(sealed.column.is_not(None)).group_by(head)
    return {bytes(row[0]): int(row[1]) for row in await connection.execute(query)}


async def others(
    connection: AsyncConnection, sealed: Sealed, head: bytes, after: Sequence[Any] | None, limit: int
) -> list[SealedValue]:
    """Return the next values, in the order of their primary keys, that do not begin with `head`."""
    gen = literal(0) if sealed.gen is None else sealed.gen
    query = select(*sealed.key, *sealed.bound, gen.label("gen"), sealed.column.label("blob")).where(
        sealed.column.is_not(None), func.substr(sealed.column, 1, len(head), type_=LargeBinary) != head
    )
    if after is not None:
        query = query.where(tuple_(*sealed.key) > tuple_(*_typed(sealed, after)))
    keys, last = len(sealed.key), len(sealed.key) + len(sealed.bound)
    rows = await connection.execute(query.order_by(*sealed.key).limit(limit))
    return [SealedValue(tuple(row[:keys]), tuple(row[keys:last]), row[last], row[last + 1]) for row in rows]


async def replace(connection: AsyncConnection, sealed: Sealed, new: Sequence[tuple[SealedValue, bytes]]) -> None:
    """Replace each value that was read, if the row still holds it in the same generation."""
    same = [column == bindparam(f"key_{column.name}") for column in sealed.key]
    if sealed.gen is not None:
        same.append(sealed.gen == bindparam("old_gen"))
    query = update(sealed.table).where(*same, sealed.column == bindparam("old_blob"))
    rows = [
        {f"key_{column.name}": part for column, part in zip(sealed.key, old.key, strict=True)}
        | ({} if sealed.gen is None else {"old_gen": old.gen})
        | {"old_blob": old.blob, "new_blob": blob}
        for old, blob in new
    ]
    await connection.execute(query.values({sealed.column.name: bindparam("new_blob")}), rows)


def _typed(sealed: Sealed, values: Sequence[Any]) -> list[ColumnElement[Any]]:
    return [literal(value, column.type) for column, value in zip(sealed.key, values, strict=True)]
