"""UploadLimits: limits concurrent uploads, in total and per key, and the bytes of their bodies. It only counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.runtime.metrics import Metrics


class UploadLimits:
    """Allows `max_total` concurrent uploads, `max_each` of one key, whose bodies take up at most `max_bytes` together.

    Space is reserved as bytes arrive, so that a slow sender occupies only as much as it has sent.
    """

    def __init__(self, *, max_total: int, max_each: int, max_bytes: int, metrics: Metrics) -> None:
        self._max_total = max_total
        self._max_each = max_each
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._each: dict[str, int] = {}
        self.running = 0
        self.bytes = 0

    def start(self, key_id: str, announced: int) -> Upload:
        """Start an upload whose Content-Length is `announced`, or 0 if it has none. It must be closed.

        Raises:
            GatewayError: concurrency_exceeded; overloaded, also if the announced bytes do not fit now.
        """
        of_key = self._each.get(key_id, 0)
        if of_key >= self._max_each:
            self._metrics.add("birdwire_calls_shed_total", "key")
            raise GatewayError("concurrency_exceeded", detail=f"at most {self._max_each} may send files at a time")
        if self.running >= self._max_total or self.bytes + announced > self._max_bytes:
            raise self._shed()
        self._each[key_id] = of_key + 1
        self.running += 1
        return Upload(self, key_id)

    def reserve(self, size: int) -> None:
        """Reserve space for bytes that have arrived.

        Raises:
            GatewayError: overloaded.
        """
        if self.bytes + size > self._max_bytes:
            raise self._shed()
        self.bytes += size

    def end(self, key_id: str, size: int) -> None:
        """End an upload that reserved `size` bytes."""
        self.bytes -= size
        self.running -= 1
        left = self._each.pop(key_id) - 1
        if left:
            self._each[key_id] = left

    def _shed(self) -> GatewayError:
        self._metrics.add("birdwire_calls_shed_total", "uploads")
        return GatewayError("overloaded")


class Upload:
    """One upload's slot, and the space that its body takes up."""

    __slots__ = ("_bytes", "_key_id", "_uploads")

    def __init__(self, uploads: UploadLimits, key_id: str) -> None:
        self._uploads = uploads
        self._key_id = key_id
        self._bytes = 0

    def take(self, size: int) -> None:
        """Reserve space for more bytes of the body.

        Raises:
            GatewayError: overloaded.
        """
        self._uploads.reserve(size)
        self._bytes += size

    def close(self) -> None:
        """Release the slot and the space."""
        self._uploads.end(self._key_id, self._bytes)
