"""Body: the base of the models that check what callers send."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """What a call takes. Strict: a number is no string, half a character is none, an unknown member is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_there(cls, value: object) -> object:
        """A member is left out, not null: X would take null for a value of its own. And text is whole characters."""
        if isinstance(value, str) and value.isascii():
            return value
        if value is None:
            raise PydanticCustomError("null", "null")
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if not all(map(is_well_formed, texts)):
            raise PydanticCustomError("string_unicode", "unpaired surrogate")
        return value


class Empty(Body):
    """No fields."""


def is_well_formed(text: str) -> bool:
    """Whether text is free of lone surrogates, which only an escape can bring in."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text
