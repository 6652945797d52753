"""The state machine of a link, and the lists of states and scopes that derive from it or from the operations."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import pytest

from birdwire.accounts.links import TRANSITIONS, IllegalTransitionError, check_transition
from birdwire.keys.permissions import SCOPES
from birdwire.store.tables.acts import ActRow, acts
from birdwire.store.tables.link_states import StateRow, link_states
from birdwire.store.tables.x_sessions import (
    STATE_AFTER_SAVE,
    LinkState,
    RevocationRow,
    SessionRow,
    revocations,
    x_sessions,
)
from birdwire.surfaces.openapi.responses import LinkStatus
from birdwire.x.client.auth_server import ALWAYS_SCOPES, DEFAULT_SCOPES

if TYPE_CHECKING:
    from sqlalchemy import Table

LEGAL = {
    ("pending", "active"),
    ("pending", "ended"),
    ("active", "needs_relink"),
    ("active", "ended"),
    ("needs_relink", "active"),
    ("needs_relink", "ended"),
}


@pytest.mark.parametrize(("before", "after"), list(product(LinkState, LinkState)))
def test_a_link_changes_state_by_the_table_alone(before: LinkState, after: LinkState) -> None:
    """An ended link stays ended, and no link becomes pending again."""
    if (before, after) in LEGAL:
        check_transition(before, after)
    else:
        with pytest.raises(IllegalTransitionError):
            check_transition(before, after)


def test_every_state_has_its_row_and_a_stored_pair_makes_a_legal_transition() -> None:
    """SAVE changes states in SQL, outside of the table's owner."""
    assert set(TRANSITIONS) == set(LinkState)
    for before, after in STATE_AFTER_SAVE.items():
        check_transition(before, after)


def test_the_api_names_every_state_that_is_stored() -> None:
    """The OpenAPI document lists the states by hand, as their order is part of it."""
    (states, _) = get_args(LinkStatus.model_fields["state"].annotation)
    assert set(get_args(states)) == set(LinkState) - {LinkState.ENDED}


def test_a_link_asks_for_exactly_the_scopes_of_the_operations_and_look_ups() -> None:
    """Fewer would refuse calls; more would ask the account's owner for what nothing uses."""
    needed = {scope for scopes in SCOPES.values() for scope in scopes}
    assert set(DEFAULT_SCOPES) == needed | set(ALWAYS_SCOPES)


@pytest.mark.parametrize(
    ("row", "table"),
    [(SessionRow, x_sessions), (RevocationRow, revocations), (StateRow, link_states), (ActRow, acts)],
)
def test_a_row_has_the_columns_of_its_table_in_their_order(row: Any, table: Table) -> None:
    """Rows are made by position."""
    assert [field.name for field in fields(row)] == [column.name for column in table.columns]
