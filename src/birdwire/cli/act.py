"""`birdwire like` and its siblings: one command for each row of OPERATIONS that is about one post or user."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import typer

from birdwire.cli import OFFERED, name_of
from birdwire.cli.gateway import API, Gateway
from birdwire.cli.say import ExitCode, JsonOption, Stop, family, printable, saying
from birdwire.cli.sources import DEFAULT_URL, KeyFileOption, gateway_url, read_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.operations import Operation

HOSTS = frozenset({"x.com", "twitter.com"})
_HOST_PREFIX = re.compile(r"(www|mobile|m)\.")
_POST_PATH = re.compile(r"/(?:[A-Za-z0-9_]{1,20}|i/web)/status(?:es)?/([0-9]{1,19})(?:/(?:photo|video)/[0-9])?/?")
_ID = re.compile(r"[0-9]{1,19}")


class Kind(NamedTuple):
    """What an operation is about: how its command asks for it, and says what it wants."""

    argument: Any
    wanted: str
    example: str


POST = Kind(
    Annotated[str, typer.Argument(metavar="ID_OR_URL", help="The post's id, or its address on x.com.")],
    "a post's id or address",
    "https://x.com/grace/status/1346889436626259968",
)
USER = Kind(Annotated[str, typer.Argument(metavar="ID", help="The user's id.")], "a user's id", "2244994946")


def id_of(text: str, kind: Kind) -> str:
    """The id that an argument means: itself, or the one in a post's address.

    Raises:
        Stop: it is neither.
    """
    item_id = text if _ID.fullmatch(text) else _post_id(text) if kind is POST else None
    if item_id is None:
        raise Stop(ExitCode.USAGE, f"{printable(text, 60)!r} is not {kind.wanted}.", f"Give one such as {kind.example}")
    return item_id


def _post_id(text: str) -> str | None:
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.netloc.lower()
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or _HOST_PREFIX.sub("", host, count=1) not in HOSTS:
        return None
    found = _POST_PATH.fullmatch(parts.path)
    return found and found[1]


def _outcome(item_id: str, document: dict[str, Any]) -> str:
    """`1346889436626259968: liked`: what the answer says is true now, in its own words."""
    data = document.get("data", {})
    words = [("" if value else "not ") + name.replace("_", " ") for name, value in data.items() if value is not None]
    return printable(f"{item_id}: {', '.join(words)}")


def _command(operation: Operation) -> Callable[..., None]:
    kind = POST if operation.target == "tweet_id" else USER

    def act(target: str, *, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
        with saying(as_json=as_json) as say:
            item_id = id_of(target, kind)
            gateway = Gateway(gateway_url(), read_key(api_key_file))
            document = gateway.ask("POST", f"{API}/{operation.name}", {operation.target: item_id})
            say.result(document, _outcome(item_id, document))

    act.__annotations__["target"] = kind.argument
    act.__doc__ = f"""{operation.summary}.

    Acts as the X account that is linked to the API key, through the gateway at BIRDWIRE_URL
    (default {DEFAULT_URL}).

    Example: birdwire {name_of(operation)} {kind.example}
    """
    return act


app = family()
for _operation in OFFERED:
    app.command(name_of(_operation))(_command(_operation))
