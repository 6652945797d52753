"""A dict with a maximum size, for what a process remembers of its callers."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedDict(OrderedDict[Key, Value], Generic[Key, Value]):
    """Holds at most `max_entries`: a new key evicts the oldest one.

    The oldest key is the one that was added first; a caller that uses `move_to_end` makes it the least recently used.
    """

    def __init__(self, max_entries: int, on_evict: Callable[[Key], object] | None = None) -> None:
        super().__init__()
        self._max_entries = max_entries
        self._on_evict = on_evict

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set a value, and evict the oldest key if the dict is full and does not have this one."""
        if len(self) >= self._max_entries and key not in self:
            evicted, _ = self.popitem(last=False)
            if self._on_evict is not None:
                self._on_evict(evicted)
        super().__setitem__(key, value)
