"""The operation or lookup that calls each of X's endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.x.catalog import media
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

CALLED_BY: Mapping[str, str] = {
    **{row.endpoint: row.name for row in OPERATIONS},
    **dict.fromkeys(media.ENDPOINTS, "upload_media"),
    **{endpoint: row.name for row in LOOKUPS for endpoint in row.endpoints},
}
"""The name of an operation or lookup, by endpoint."""
