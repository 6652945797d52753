"""Authorization requests (RFC 6749 §4.1.1): what a link may ask X for, its stored state, and its auth_url."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import Field

from birdwire.accounts.sessions import UNDO_FOR
from birdwire.api.body import Body
from birdwire.api.errors import GatewayError, excerpt
from birdwire.keys.permissions import SCOPES
from birdwire.keys.rules import LINK
from birdwire.runtime.clock import rfc3339
from birdwire.store.encryption.vault import Place
from birdwire.store.tables import acts, api_keys
from birdwire.store.tables import link_states as store
from birdwire.x.client.auth_server import ALWAYS_SCOPES, DEFAULT_SCOPES, authorize_url, new_verifier, offered_scopes

if TYPE_CHECKING:
    from birdwire.keys.registry import Key
    from birdwire.runtime.clock import Clock
    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault

STATE_FOR = timedelta(minutes=10)
STATE_KEPT = timedelta(hours=24)
MOST_PENDING = 20


class AuthTwitter(Body):
    """Options of a new link."""

    scopes: list[str] = Field(
        default_factory=list,
        max_length=32,
        description='X scopes to request, such as ["like.write"]; default: all that the key can use',
    )
    expected_username: str | None = Field(
        None,
        pattern=r"^@?[A-Za-z0-9_]{1,15}$",
        description="the X account that must approve; any other account is refused",
    )
    return_to: str | None = Field(
        None,
        max_length=2_000,
        description="target of a button on the final page: a URL that the operator allowed for the key. The gateway's "
        "own URL is always allowed and shows no button",
    )


class LinkStarts:
    """Starts links on one database: for a key's holder over HTTP, and for the operator without a running gateway."""

    def __init__(self, settings: Settings, database: Database, vault: Vault, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._vault = vault
        self._clock = clock

    async def start(self, key: Key, asked: AuthTwitter, by: acts.Actor) -> dict[str, str]:
        """Store a new state and return `auth_url`, `state` and `expires_at`: valid once, for 10 minutes.

        A key's holder, who asks over HTTP, may have lost the right to link since the call was admitted.

        Raises:
            GatewayError: scope_unknown, return_to_not_allowed, key_not_allowed (a scope that the key's actions do not
                need), account_mismatch (the key is pinned to another account).
        """
        offered = offered_scopes(self._settings)
        unknown = next((scope for scope in asked.scopes if scope not in offered), None)
        if unknown is not None:
            raise GatewayError("scope_unknown", scope=excerpt(unknown), known=" ".join(sorted(offered)))
        return_to = None if asked.return_to == self._settings.base_url else asked.return_to
        if return_to is not None and return_to not in key.rules.return_to:
            raise GatewayError("return_to_not_allowed")
        expected, pinned = (asked.expected_username or "").lstrip("@"), key.rules.account_username
        if pinned is not None and expected and expected.lower() != pinned.lower():
            raise GatewayError("account_mismatch", username=expected, expected=f"@{pinned}")
        scopes = _scopes(asked.scopes, key)
        state, verifier, now = secrets.token_urlsafe(32), new_verifier(), self._clock.now()
        state_hash = hash_of(state)
        row = {
            "state_hash": state_hash,
            "key_id": key.key_id,
            "issuer": self._settings.issuer,
            "redirect_uri": self._settings.redirect_uri,
            "verifier_ct": self._vault.seal(verifier, place_of(state_hash)),
            "scopes": " ".join(scopes),
            "return_to": return_to,
            "expected_username": expected or None,
            "created_at": now,
            "expires_at": now + STATE_FOR,
        }
        async with self._database.write() as connection:
            await api_keys.hold(connection, key.key_id)
            if by.via == "http" and not await api_keys.may(connection, key.key_id, LINK):
                raise GatewayError("key_not_allowed", what=LINK)
            await store.trim(
                connection,
                key.key_id,
                keep=MOST_PENDING - 1,
                ended_before=now - UNDO_FOR,
                expired_before=now - STATE_KEPT,
            )
            await store.add(connection, row)
            wanted = {name: row[name] for name in ("scopes", "expected_username", "return_to") if row[name]}
            await acts.append(connection, now, by, "link.started", key.key_id, after=wanted)
        return {
            "auth_url": authorize_url(self._settings, scopes=scopes, state=state, verifier=verifier),
            "state": state,
            "expires_at": rfc3339(now + STATE_FOR),
        }


def hash_of(state: str) -> bytes:
    """Return the hash under which a state is stored."""
    return hashlib.sha256(state.encode()).digest()


def place_of(state_hash: bytes) -> Place:
    """Return the place for which a state's code verifier is sealed."""
    return Place("link_states", state_hash.hex(), "verifier_ct")


def _scopes(asked: list[str], key: Key) -> tuple[str, ...]:
    """What to ask X for: all that the key may use, or less if it says so."""
    needed: tuple[str, ...] = DEFAULT_SCOPES
    if key.rules.actions:
        needed = tuple(scope for name in key.rules.actions for scope in SCOPES.get(name, ()))
    beyond = next((scope for scope in asked if key.rules.actions and scope not in (*needed, *ALWAYS_SCOPES)), None)
    if beyond is not None:
        raise GatewayError("key_not_allowed", what=f"the scope {beyond}")
    return tuple(dict.fromkeys((*(asked or needed), *ALWAYS_SCOPES)))
