"""Segments of uploads that are not finalized yet. Bounded, and in memory only, because X does not guarantee them."""

from __future__ import annotations

OPEN_AT_ONCE = 1000


class Uploads:
    """Segment sizes by media id. The sandbox counts bytes and stores none."""

    def __init__(self) -> None:
        self._sizes: dict[str, dict[int, int]] = {}

    def open(self, media_id: str) -> None:
        """Start an upload; beyond 1,000 open uploads the oldest is dropped."""
        self._sizes[media_id] = {}
        if len(self._sizes) > OPEN_AT_ONCE:
            self._sizes.pop(next(iter(self._sizes)))

    def put(self, media_id: str, index: int, size: int) -> bool:
        """Record a segment, which may be repeated; return False if no such upload is open."""
        if media_id not in self._sizes:
            return False
        self._sizes[media_id][index] = size
        return True

    def close(self, media_id: str, total_bytes: int) -> bool:
        """Close an upload and return True if its segments are complete: none is missing, and their sum is the total."""
        sizes = self._sizes.get(media_id, {})
        if sorted(sizes) != list(range(len(sizes))) or sum(sizes.values()) != total_bytes:
            return False
        del self._sizes[media_id]
        return True

    def clear(self) -> None:
        """Drop every open upload."""
        self._sizes.clear()
