"""`birdwire like` and its siblings: one command for each row of OPERATIONS that is about one post or user."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from birdwire.cli.gateway import API, Gateway
from birdwire.cli.say import ExitCode, JsonOption, Stop, printable, saying
from birdwire.cli.sources import KeyFileOption, gateway_url, read_key
from birdwire.operations import OPERATIONS, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

OFFERED = tuple(operation for operation in OPERATIONS if list(operation.body.model_fields) == [operation.target])
"""Operations whose body is one id."""

HOSTS = frozenset({"x.com", "twitter.com"})
_HOST_PREFIX = re.compile(r"(www|mobile|m)\.")
_POST_PATH = re.compile(r"/(?:[A-Za-z0-9_]{1,20}|i/web)/status(?:es)?/([0-9]{1,19})(?:/(?:photo|video)/[0-9])?/?")
_ID = re.compile(r"[0-9]{1,19}")

PostArgument = Annotated[str, typer.Argument(metavar="ID_OR_URL", help="The post's id, or its address on x.com.")]
UserArgument = Annotated[str, typer.Argument(metavar="ID", help="The user's id.")]


def name_of(operation: Operation) -> str:
    """The command of an operation."""
    return operation.name.removesuffix("_twitter").replace("_", "-")


def id_of(text: str, field: str) -> str:
    """The id that an argument means: itself, or the one in a post's address.

    Raises:
        Stop: it is neither.
    """
    if _ID.fullmatch(text):
        return text
    post_id = _post_id(text) if field == "tweet_id" else None
    if post_id is None:
        wanted = "a post's id or address" if field == "tweet_id" else "a user's id"
        example = "https://x.com/grace/status/1346889436626259968" if field == "tweet_id" else "2244994946"
        raise Stop(
            ExitCode.USAGE, f"{printable(text, 60)!r} is not {wanted}.", f"Give 1 to 19 digits, such as {example}"
        )
    return post_id


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
    field, name = operation.target, name_of(operation)

    def act(target: str, *, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
        with saying(as_json=as_json) as say:
            item_id = id_of(target, field)
            gateway = Gateway(gateway_url(), read_key(api_key_file))
            document = gateway.ask("POST", f"{API}/{operation.name}", {field: item_id})
            say.result(document, _outcome(item_id, document))

    argument, example = (
        (PostArgument, "https://x.com/grace/status/1346889436626259968")
        if field == "tweet_id"
        else (UserArgument, "2244994946")
    )
    act.__annotations__["target"] = argument
    act.__doc__ = f"""{operation.summary}.

    Acts as the X account that is linked to the API key, through the gateway at BIRDWIRE_URL
    (default http://127.0.0.1:8700).

    Example: birdwire {name} {example}
    """
    return act


app = typer.Typer()
for _operation in OFFERED:
    app.command(name_of(_operation))(_command(_operation))
