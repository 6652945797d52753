"""The paths of the API: the prefix, and what derives from it."""

from __future__ import annotations

import re
from urllib.parse import unquote

API = "/apis/v1/twitter"
"""The prefix of every call with a key, and of the pages that end a link."""

OAUTH_CALLBACK = f"{API}/oauth_callback"
AUTH_UNDO = f"{API}/auth/undo"
DRY_RUN = "dry_run"
"""Precedes an operation in the path of a call that only returns what the operation would do.

It is neither a header nor a member of the body: one that gets lost on the way would turn the dry run into the call.
"""
SHORT_API = API.removesuffix("/twitter")
"""The prefix that older clients use."""

MCP = "/mcp"
"""The endpoint of the Model Context Protocol, for agents."""

APPROVE = "/approve/{token}"
"""The page of a signed link. The token decides as the operator does, so no log may have it."""
APPROVE_MEDIA = f"{APPROVE}/media/{{number}}"
_SIGNED = re.compile(r"/approve/+[^/]+", re.IGNORECASE)


def without_token(path: str) -> tuple[str, ...]:
    """Split a path at each token of a signed link, however it spells the rest: APPROVE stands between the parts."""
    return tuple(_SIGNED.split(path if "%" not in path else unquote(path)))
