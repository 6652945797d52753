"""Makes a gateway's database ready, by its own functions: keys with high limits, each with a linked account."""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING

from birdwire.app import create_app
from birdwire.authserver import Tokens
from birdwire.keys import MAX_RPM, mint
from birdwire.operations import OPERATIONS
from birdwire.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCOPES = tuple(sorted({scope for row in OPERATIONS for scope in row.scopes} | {"offline.access"}))
USER_ID = "2244994945"
FAR_S = 365 * 86_400
TOKEN = base64.urlsafe_b64encode(b"a token as long as those of X, which has 91 characters, all in all.").decode()


def raw_keys(count: int) -> list[str]:
    """New secrets for a gateway whose X is on this machine."""
    return [mint("test") for _ in range(count)]


def vault_key() -> str:
    """A new one, as the settings take it."""
    return base64.b64encode(os.urandom(32)).decode()


def settings(work: Path, port: int, x_url: str, vault: str, **more: str) -> dict[str, str]:
    """A gateway's settings as environment variables: an X on this machine, everything else as it comes."""
    chosen = {
        "port": str(port),
        "database_url": f"sqlite:///{work}/birdwire.db",
        "vault_key": vault,
        "x_client_id": "bench",
        "x_api_url": x_url,
        "x_authorize_url": f"{x_url}/i/oauth2/authorize",
        **more,
    }
    return {f"BIRDWIRE_{name.upper()}": value for name, value in chosen.items()}


async def link(environment: dict[str, str], keys: Sequence[str]) -> None:
    """Create these keys, each linked to an account of its own, with tokens that outlive the run."""
    gateway = create_app(Settings.load(environment), log=io.StringIO(), upgrade=True)
    tokens = Tokens(TOKEN, TOKEN[::-1], FAR_S, None)
    async with gateway.app.router.lifespan_context(gateway.app):
        for number, raw_key in enumerate(keys):
            key, _ = await gateway.keys.create("test", f"bench {number}", "enterprise", MAX_RPM, raw_key)
            row, _ = await gateway.sessions.keep(key.key_id, tokens, SCOPES, None)
            await gateway.sessions.name(row["session_id"], str(int(USER_ID) + number), f"bench_{number}")
