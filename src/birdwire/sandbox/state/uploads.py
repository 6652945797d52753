"""Chunks of uploads that are not finalized yet. In memory, bounded, gone with the process: X promises them nothing."""

from __future__ import annotations

OPEN_AT_ONCE = 1000


class Uploads:
    """Segment sizes by media id: the sandbox counts bytes and keeps none of them."""

    def __init__(self) -> None:
        self._sizes: dict[str, dict[int, int]] = {}

    def open(self, media_id: str) -> None:
        """Begin an upload; the oldest of more than 1,000 open ones is dropped."""
        self._sizes[media_id] = {}
        if len(self._sizes) > OPEN_AT_ONCE:
            self._sizes.pop(next(iter(self._sizes)))

    def put(self, media_id: str, index: int, size: int) -> bool:
        """Note a segment, again if it came before; False if no such upload is open."""
        if media_id not in self._sizes:
            return False
        self._sizes[media_id][index] = size
        return True

    def close(self, media_id: str, total_bytes: int) -> bool:
        """End an upload if its segments are whole: none missing, and together as long as promised."""
        sizes = self._sizes.get(media_id, {})
        if sorted(sizes) != list(range(len(sizes))) or sum(sizes.values()) != total_bytes:
            return False
        del self._sizes[media_id]
        return True

    def clear(self) -> None:
        """Drop every open upload."""
        self._sizes.clear()
