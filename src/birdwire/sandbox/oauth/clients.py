"""The app registered at the simulated X: its clients, its redirect URIs, and client authentication."""

from __future__ import annotations

import hmac
import secrets
import string
from base64 import b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Client:
    """A client of the app. A client without a secret is public."""

    client_id: str
    client_secret: str | None = field(default=None, repr=False)

    @property
    def confidential(self) -> bool:
        """Return whether the client has a secret."""
        return self.client_secret is not None


@dataclass(frozen=True)
class Clients:
    """The app's two clients: a confidential one (web app, bot) and a public one (native, single page)."""

    client_id: str
    client_secret: str = field(repr=False)
    public_client_id: str

    def find(self, client_id: str) -> Client | None:
        """Return the client with this id."""
        if client_id == self.client_id:
            return Client(self.client_id, self.client_secret)
        if client_id == self.public_client_id:
            return Client(self.public_client_id)
        return None


def new_clients() -> Clients:
    """Return clients with random ids in X's format and a random secret."""
    return Clients(_client_id(), secrets.token_urlsafe(38), _client_id())


def _client_id() -> str:
    letters = "".join(secrets.choice(ALPHANUMERIC) for _ in range(20))
    return urlsafe_b64encode(f"{letters}:1:ci".encode()).rstrip(b"=").decode()


def redirect_uri_known(redirect_uri: str, registered: Sequence[str]) -> bool:
    """Return whether X would redirect there: an exact match, or any loopback URI if none is registered."""
    if registered:
        return redirect_uri in registered
    try:
        parts = urlsplit(redirect_uri)
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or parts.fragment or "@" in parts.netloc:
        return False
    return is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def basic_credentials(header: str | None) -> tuple[str, str] | None:
    """Return id and secret of an Authorization: Basic header (RFC 6749 §2.3.1: both form-encoded), or None."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, colon, secret = b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return (unquote_plus(client_id), unquote_plus(secret)) if colon else None


def authenticate(clients: Clients, header: str | None, form: Mapping[str, str]) -> Client | str:
    """Return the authenticated client, or the id of X's refusal.

    The confidential client uses Basic, with or without client_id; the public client uses client_id alone. Any other
    combination is refused, as X refuses a form that does not match the app's type.
    """
    if header:
        credentials = basic_credentials(header)
        client = clients.find(credentials[0]) if credentials else None
        if credentials is None or client is None or client.client_secret is None:
            return "token-bad-client"
        if not hmac.compare_digest(client.client_secret.encode(), credentials[1].encode()):
            return "token-bad-client"
        if form.get("client_id", client.client_id) != client.client_id:
            return "token-bad-client"
        return client
    if not form.get("client_id"):
        return "token-no-client-id"
    client = clients.find(form["client_id"])
    return "token-bad-client" if client is None or client.confidential else client
