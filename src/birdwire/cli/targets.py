"""What names a post or a user on the command line: an id, an address on x.com, a @username. Guesses nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import SplitResult, urlencode, urlsplit

import typer

from birdwire.api.paths import API
from birdwire.cli.gateway_client import data_of
from birdwire.cli.output import ExitCode, Stop, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.cli.gateway_client import GatewayClient

HOSTS = frozenset({"x.com", "twitter.com"})
PAGES = frozenset(
    {"about", "compose", "download", "explore", "hashtag", "home", "i", "intent", "jobs", "login", "logout", "messages"}
    | {"notifications", "privacy", "search", "settings", "share", "signup", "tos"}
)
"""First parts of X's own paths: pages, not people."""

_HOST_PREFIX = re.compile(r"(www|mobile|m)\.")
_POST_PATH = re.compile(r"/(?:[A-Za-z0-9_]{1,20}|i/web)/status(?:es)?/([0-9]{1,19})(?:/(?:photo|video)/[0-9])?/?")
_USER_PATH = re.compile(r"/(?:i/user/(?P<id>[0-9]{1,19})|@?(?P<name>[A-Za-z0-9_]{1,15}))/?")
_USERNAME = re.compile(r"@?([A-Za-z0-9_]{1,15})")
_ID = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Named:
    """A post or a user as somebody named it: by id, or, for a user only, by username without the @."""

    item_id: str | None = None
    username: str | None = None

    def find(self, gateway: GatewayClient) -> str:
        """The id; a username costs a look-up, which X bills.

        Raises:
            Stop: there is no such user, or the gateway looks nobody up.
        """
        if self.item_id is not None:
            return self.item_id
        try:
            found = gateway.ask("GET", f"{API}/user/info?{urlencode({'userName': self.username})}")
        except Stop as stop:
            if stop.reason != "route_unknown":
                raise
            message = f"This gateway does not look up users, so it cannot find the id of @{self.username}."
            raise Stop(ExitCode.REFUSED, message, "Give the user's id.", document=stop.document) from None
        user_id = data_of(found).get("id")
        if not isinstance(user_id, str) or not _ID.fullmatch(user_id):
            raise Stop(ExitCode.UPSTREAM, f"{gateway.url} found @{self.username}, but returned no id.")
        return user_id

    def shown(self, item_id: str) -> str:
        """The name that people read, once the id is known."""
        return item_id if self.username is None else f"@{self.username} ({item_id})"


class Kind(NamedTuple):
    """What a target may be: how a command asks for it, says what it wants, and reads it."""

    argument: Any
    wanted: str
    example: str
    read: Callable[[str], Named | None]

    def named(self, text: str) -> Named:
        """What a text names; nothing is asked for it.

        Raises:
            Stop: nothing of this kind.
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
    """The parts of an address on x.com; None if it is none."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.netloc.lower()
    except ValueError:
        return None
    here = parts.scheme in ("http", "https") and _HOST_PREFIX.sub("", host, count=1) in HOSTS
    return parts if here and text.isprintable() else None


PostArgument = Annotated[str, typer.Argument(metavar="ID_OR_URL", help="The post's id, or its address on x.com.")]
UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="The user's id, @username, or the address of their page on x.com.")
]
POST = Kind(PostArgument, "a post's id or address", "https://x.com/grace/status/1346889436626259968", _post)
USER = Kind(UserArgument, "a user's id, @username or address", "@grace", _user)
