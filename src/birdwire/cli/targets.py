"""Parses a post or a user on the command line: an id, an x.com URL, or a @username. Rejects anything ambiguous."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import SplitResult, urlencode, urlsplit

import typer

from birdwire.api.paths import API
from birdwire.cli.gateway_client import data_of
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.cli.gateway_client import GatewayClient

HOSTS = frozenset({"x.com", "twitter.com"})
PAGES = frozenset(
    {"about", "compose", "download", "explore", "hashtag", "home", "i", "intent", "jobs", "login", "logout", "messages"}
    | {"notifications", "privacy", "search", "settings", "share", "signup", "tos"}
)
"""First path segments that X reserves for its own pages: they are not usernames."""

_HOST_PREFIX = re.compile(r"(www|mobile|m)\.")
_POST_PATH = re.compile(r"/(?:[A-Za-z0-9_]{1,20}|i/web)/status(?:es)?/([0-9]{1,19})(?:/(?:photo|video)/[0-9])?/?")
_USER_PATH = re.compile(r"/(?:i/user/(?P<id>[0-9]{1,19})|@?(?P<name>[A-Za-z0-9_]{1,15}))/?")
_USERNAME = re.compile(r"@?([A-Za-z0-9_]{1,15})")
_ID = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Named:
    """A post or a user as the command line names it: by id, or for a user also by username, without the @."""

    item_id: str | None = None
    username: str | None = None

    def find(self, gateway: GatewayClient) -> str:
        """Return the id. A username requires a user lookup, which X bills.

        Raises:
            Stop: the user does not exist, or the gateway does not offer lookups of users.
        """
        if self.item_id is not None:
            return self.item_id
        try:
            found = gateway.ask("GET", f"{API}/user/info?{urlencode({'userName': self.username})}")
        except Stop as stop:
            if stop.reason != "route_unknown":
                raise
            message = f"This gateway does not offer user lookups, so the id of @{self.username} is unknown."
            raise Stop(ExitCode.REFUSED, message, "Use the user's ID instead.", document=stop.document) from None
        user_id = data_of(found).get("id")
        if not isinstance(user_id, str) or not _ID.fullmatch(user_id):
            raise Stop(ExitCode.UPSTREAM, f"{gateway.url} found @{self.username} but did not return an ID.")
        return user_id

    def shown(self, item_id: str) -> str:
        """Return the name to print for people, once the id is known."""
        return item_id if self.username is None else f"@{self.username} ({item_id})"


class Kind(NamedTuple):
    """A kind of target: its argument, its description in errors, an example, and its parser."""

    argument: Any
    wanted: str
    example: str
    read: Callable[[str], Named | None]

    def named(self, text: str) -> Named:
        """Parse a target; does not call the gateway.

        Raises:
            Stop: the text does not name a target of this kind.
        """
        named = self.read(text)
        if named is None:
            message = f"{printable(text, 60)!r} is not {self.wanted}."
            raise Stop(ExitCode.USAGE, message, f"Use one such as {self.example}")
        return named


def _post(text: str) -> Named | None:
    if _ID.fullmatch(text):
        return Named(text)
    parts = _on_x(text)
    found = parts and _POST_PATH.fullmatch(parts.path)
    return Named(found[1]) if found else None


def _user(text: str) -> Named | None:
    if _ID.fullmatch(text):
        return Named(text)
    if name := _USERNAME.fullmatch(text):
        return Named(username=name[1])
    parts = _on_x(text)
    found = parts and _USER_PATH.fullmatch(parts.path)
    if not found or (found["name"] or "").lower() in PAGES:
        return None
    return Named(found["id"], found["name"])


def _on_x(text: str) -> SplitResult | None:
    """Return the parts of an x.com URL; None for any other text."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.netloc.lower()
    except ValueError:
        return None
    here = parts.scheme in ("http", "https") and _HOST_PREFIX.sub("", host, count=1) in HOSTS
    return parts if here and text.isprintable() else None


PostArgument = Annotated[str, typer.Argument(metavar="ID_OR_URL", help="The post's ID or its URL on x.com.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's ID, @username or profile URL on x.com.")]
POST = Kind(PostArgument, "a post's id or URL", "https://x.com/grace/status/1346889436626259968", _post)
USER = Kind(UserArgument, "a user's id, @username or profile URL", "@grace", _user)
