"""The gateway's OpenAPI 3.1 document, made from OPERATIONS and PROBLEMS."""

from __future__ import annotations

from typing import Any


def document(base_url: str) -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Birdwire", "version": "0"},
        "servers": [{"url": base_url}],
        "paths": {},
    }
