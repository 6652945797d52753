"""Body: the base of the models that check what callers send."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """The fields of a call. Strict: no type is converted, text has no lone surrogate, an unknown member is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_present(cls, value: object) -> object:
        """Refuse null, since X would read it as a value of its own, and text with a lone surrogate."""
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
    """Return whether text has no lone surrogates, which can only come from an escape."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text
