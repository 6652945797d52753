"""The probable price of a call at X, by the dated list in prices.json. An estimate for people: it decides nothing."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.post_length import has_link

if TYPE_CHECKING:
    from birdwire.api.models import Body
    from birdwire.x.catalog.operations import Operation


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


def _kind(body: Body) -> str:
    """Return the kind of post that the list has a price for. A link decides first, since it costs the most."""
    if not isinstance(body, PostTwitter):
        return ""
    if body.text is not None and has_link(body.text):
        return " with a link"
    if body.quote_tweet_id is not None:
        return " as a quote"
    return " as a reply" if body.reply is not None else ""
