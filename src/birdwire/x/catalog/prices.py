"""What a call probably costs at X, by the dated list in prices.json. An estimate for people: decides nothing."""

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
    """X's list: `listed_on` is its date. Amounts are in millionths of a US dollar, None where the list says nothing."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.listed_on = str(rows["listed_on"])
        self._rows = rows

    @classmethod
    def load(cls) -> Prices:
        """The list that came with this version."""
        return cls(json.loads(resources.files(__package__).joinpath("prices.json").read_bytes()))

    def of(self, operation: Operation, body: Body) -> int | None:
        """What X bills for a call that it does."""
        amount: int | None = self._rows.get(operation.name + _kind(body))
        return amount


def _kind(body: Body) -> str:
    """A post's line of the list: a link makes it dear, whatever else it is."""
    if not isinstance(body, PostTwitter):
        return ""
    if body.text is not None and has_link(body.text):
        return " with a link"
    if body.quote_tweet_id is not None:
        return " as a quote"
    return " as a reply" if body.reply is not None else ""
