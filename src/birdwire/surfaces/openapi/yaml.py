"""JSON values as readable YAML 1.2. Every text is quoted as in JSON, so that it cannot be read as another type."""

from __future__ import annotations

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./{}-]*")
_NOT_A_NAME = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def dump(value: Any) -> str:
    """Return a JSON value as a YAML document."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        return [line for name, inner in value.items() for line in _entry(f"{_name(name)}:", inner)]
    if isinstance(value, list) and value:
        return [line for inner in value for line in _item(inner)]
    return [json.dumps(value, ensure_ascii=False)]


def _entry(head: str, value: Any) -> list[str]:
    lines = _lines(value)
    if isinstance(value, dict | list) and value:
        return [head, *(f"  {line}" for line in lines)]
    return [f"{head} {lines[0]}"]


def _item(value: Any) -> list[str]:
    first, *rest = _lines(value)
    return [f"- {first}", *(f"  {line}" for line in rest)]


def _name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _NOT_A_NAME else json.dumps(name, ensure_ascii=False)
