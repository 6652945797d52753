"""Rows leave the store as dataclasses that agree with their tables, and one table defines every list of states."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic_core import to_json
from sqlalchemy import create_engine, select

from birdwire.cli.explained import MEANINGS, WHYS
from birdwire.outcomes.approval_records import part_of
from birdwire.outcomes.report import report
from birdwire.runtime.metrics import METRICS
from birdwire.store.tables import (
    api_keys,
    approvals,
    capabilities,
    idempotency,
    journal,
    kept_images,
    pauses,
    policies,
    rate_windows,
    vault_keys,
)
from birdwire.store.tables.journal import (
    APPLIED,
    BEGUN,
    NOT_APPLIED,
    RECONCILED,
    RESENDABLE,
    STATES,
    WAITING,
    State,
    Why,
)

if TYPE_CHECKING:
    from sqlalchemy import Table

NOW = datetime(2026, 4, 18, 7, tzinfo=UTC)

ROWS: list[tuple[type, Table]] = [
    (api_keys.KeyRow, api_keys.api_keys),
    (api_keys.SecretRow, api_keys.api_secrets),
    (approvals.ApprovalRow, approvals.approvals),
    (approvals.LinkRow, approvals.approval_links),
    (kept_images.KeptImage, kept_images.kept_images),
    (capabilities.CapabilityRow, capabilities.capabilities),
    (capabilities.RefusalMetRow, capabilities.refusals_met),
    (idempotency.NameRow, idempotency.idempotency),
    (journal.JournalRow, journal.journal),
    (pauses.PauseRow, pauses.pauses),
    (policies.PolicyRow, policies.policies),
    (rate_windows.WindowRow, rate_windows.x_windows),
    (vault_keys.VaultKeyRow, vault_keys.vault_keys),
]


@pytest.mark.parametrize(("row", "table"), ROWS, ids=[table.name for _, table in ROWS])
def test_a_row_has_the_columns_of_its_table_in_their_order(row: type, table: Table) -> None:
    """Rows are built by position, so a column that moved would be read as another one."""
    assert [field.name for field in fields(row)] == [column.name for column in table.columns]
    nullable = {field.name for field in fields(row) if str(field.type).endswith("| None")}
    assert nullable == {column.name for column in table.columns if column.nullable}


def test_a_text_that_no_enum_defines_is_read_as_it_is() -> None:
    """A version that knows more states may have written the row: it must not hide the others from this one."""
    with closing(create_engine("sqlite://").connect()) as connection:
        journal.journal.create(connection)
        row = dict.fromkeys(journal.journal.c.keys(), "") | {"asked": b"", "created_at": NOW, "looks": 0, "reads": 0}
        row |= dict.fromkeys(("data", "words_ct", "cost_microusd", "settled_at", "lost_at", "due_at", "status"))
        row |= dict.fromkeys(("started_at", "spent", "decision", "features_ct", "times"))
        connection.execute(journal.ADD, row | {"state": "paused", "why": "at_rest"})
        [read] = [journal.JournalRow(*found) for found in connection.execute(select(journal.journal))]
    assert (read.state, read.why, f"{read.state}", to_json(read.why)) == ("paused", "at_rest", "paused", b'"at_rest"')
    assert (read.state.value, read.state in STATES, read.state in BEGUN) == ("paused", False, False)
    assert State("found") is State.FOUND


def test_the_table_of_states_defines_every_list_of_states() -> None:
    """A new state must be decided on once, and nowhere be forgotten."""
    assert list(STATES) == list(State)
    assert set(MEANINGS) == set(STATES)
    assert set(WHYS) == set(Why)
    assert set(METRICS["birdwire_lost_posts_total"].starts) == RECONCILED | {State.UNKNOWN}


def test_what_may_have_happened_is_never_final() -> None:
    """A final state states whether X did it; only an open one may leave that unanswered."""
    assert set(STATES) == APPLIED | NOT_APPLIED | BEGUN
    assert len(APPLIED) + len(NOT_APPLIED) + len(BEGUN) == len(STATES)
    assert not any(STATES[state].final for state in BEGUN | WAITING)
    assert WAITING == {State.AWAITING_APPROVAL, State.APPROVED}  # noqa: SIM300 - the constant is what is checked
    assert RESENDABLE == {State.REFUSED, State.NOT_SENT}  # noqa: SIM300 - the constant is what is checked


TABLE_OF_STATES = {
    # state: did X do it?, final?, an approval was its end or it waits for one?, may the same name send it again?
    "awaiting_approval": ("no", False, True, False),
    "approved": ("no", False, True, False),
    "started": ("maybe", False, False, False),
    "confirmed": ("yes", True, False, False),
    "refused": ("no", True, False, True),
    "not_sent": ("no", True, False, True),
    "unknown": ("maybe", False, False, False),
    "found": ("yes", True, False, False),
    "not_found": ("no", True, False, False),
    "denied": ("no", True, True, False),
    "expired": ("no", True, True, False),
    "cancelled": ("no", True, True, False),
}


@pytest.mark.parametrize("state", State)
def test_every_state_means_what_the_table_states(state: State) -> None:
    """A write that waits is neither done nor started; one that was denied is never done again under its name."""
    meaning = STATES[state]
    assert TABLE_OF_STATES[state] == (meaning.applied, meaning.final, meaning.asked, state in RESENDABLE)
    assert (state in APPLIED, state in BEGUN, state in NOT_APPLIED) == (
        meaning.applied == "yes",
        meaning.applied == "maybe",
        meaning.applied == "no",
    )
    assert (state in WAITING) is (meaning.asked and not meaning.final)


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_cost_and_a_part_of_a_person(state: State) -> None:
    """What was not sent costs nothing; what is open costs nobody knows what."""
    columns: dict[str, Any] = dict.fromkeys(journal.journal.c.keys())
    row = journal.JournalRow(**columns | {"state": state, "created_at": NOW})
    costs = {"denied": 0, "expired": 0, "cancelled": 0, "not_sent": 0}
    assert report(row)["cost_usd"] == costs.get(state)
    parts = {"awaiting_approval": "waiting", "denied": "denied", "expired": "expired", "cancelled": "cancelled"}
    assert part_of(row) == ("stale" if state == "not_sent" else parts.get(state, "approved"))
    assert part_of(replace(row, started_at=NOW)) == parts.get(state, "approved")
