"""The probable price of a call at X, by the dated list in prices.json. It is an estimate: budgets are kept by it."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.post_length import has_link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.api.models import Body
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.client.requests import Resource

UNBILLED = frozenset({"upload_media"})
"""Operations without a row in X's list that a budget counts as 0: an upload alone publishes nothing."""


class Prices:
    """X's price list, as of `listed_on`. Amounts are in millionths of a US dollar, None for what is not listed."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.listed_on = str(rows["listed_on"])
        self._rows = rows

    @classmethod
    def load(cls) -> Prices:
        """Load the list that is part of this version."""
        return cls(json.loads(resources.files(__package__).joinpath("prices.json").read_bytes()))

    def of(self, operation: Operation, body: Body) -> int | None:
        """Return what X bills for a call that it carries out."""
        amount: int | None = self._rows.get(operation.name + _kind(body))
        return amount

    def reserved(self, operation: Operation, body: Body) -> int | None:
        """Return what a budget reserves for a call; None: the list has no price, so the policy decides."""
        return 0 if operation.name in UNBILLED else self.of(operation, body)

    def of_reads(self, counts: Mapping[Resource, int]) -> int:
        """Return what X bills for reading these numbers of posts and users."""
        return sum(int(self._rows[f"{resource} read"]) * count for resource, count in counts.items())


def usd(microusd: int | None) -> float | None:
    """Return millionths of a US dollar in dollars, as JSON states them; None if the amount is not known."""
    return None if microusd is None else round(microusd / 1_000_000, 6)


def _kind(body: Body) -> str:
    """Return the kind of post that the list has a price for. A link decides first, since it costs the most."""
    if not isinstance(body, PostTwitter):
        return ""
    if body.text is not None and has_link(body.text):
        return " with a link"
    if body.quote_tweet_id is not None:
        return " as a quote"
    return " as a reply" if body.reply is not None else ""
