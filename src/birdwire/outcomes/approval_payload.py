"""The payload of a write that waits for a person: exactly what would be sent, as it is stored and hashed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Payload:
    """What a write asks for, and what its policies found. `fields` are as the caller sent them.

    `files` describe the files that came with it: `{"sha256", "size", "type"}` each. `media_ids` are the ids that X gave
    these files; they are not part of the hash. `findings` are documents of findings, which asked for approval.

    `uploads` describe those files that were uploaded before and that Birdwire knows: `{"media_id", "sha256", "size",
    "type"}` each. They are not part of the hash either: the ids in `fields` are.
    """

    operation: str
    user_id: str
    fields: Mapping[str, Any] = field(repr=False)
    files: Sequence[Mapping[str, Any]] = ()
    media_ids: Sequence[str] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    uploads: Sequence[Mapping[str, Any]] = ()

    @property
    def media(self) -> list[Mapping[str, Any]]:
        """The descriptions of all known files. A file's place among them is the number of its image."""
        return [*self.files, *self.uploads]

    @property
    def sha256(self) -> str:
        """The SHA-256 of what is asked for: sorted compact JSON in UTF-8 (RFC 8785), which names files by content."""
        asked = {"operation": self.operation, "user_id": self.user_id, "fields": self.fields, "files": self.files}
        return hashlib.sha256(_compact(asked).encode()).hexdigest()

    def encode(self) -> str:
        """Return it as it is encrypted: with its members in the order in which they are shown."""
        whole = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Payload:
        """Return the payload of a decrypted text.

        Raises:
            ValueError: the text is not a payload.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or set(found) != set(cls.__slots__):
            raise ValueError("not a payload")
        return cls(**found)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
