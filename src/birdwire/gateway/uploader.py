"""MediaUploader: sends the files of a write to X, each within its deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError
from birdwire.x.catalog import media
from birdwire.x.catalog.media import Attached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from birdwire.accounts.retrying_client import AccountClient
    from birdwire.api.forms import Part
    from birdwire.runtime.clock import Clock


class MediaUploader:
    """Uploads files for one account at a time. One file takes at most `deadline_s`."""

    def __init__(self, clock: Clock, deadline_s: float) -> None:
        self._clock = clock
        self._deadline_s = deadline_s

    async def upload(self, file: Part, client: AccountClient) -> dict[str, Any]:
        """Upload one file; return X's answer as upload_media passes it on.

        Raises:
            GatewayError: why there is no usable medium.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                return await media.upload(file, client.ask, self._clock)
        except TimeoutError:
            raise GatewayError("x_timeout", outcome="unknown") from None

    async def attach(self, files: Sequence[Part], client: AccountClient) -> list[Attached]:
        """Upload the files of a post; return their media ids, and until when X keeps them.

        Raises:
            GatewayError: an upload failed, so the post itself was not sent.
        """
        try:
            return [Attached.of(await self.upload(file, client)) for file in files]
        except GatewayError as error:
            error.outcome = "not_sent"
            raise
