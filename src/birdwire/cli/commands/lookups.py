"""`birdwire user`, `posts` and `search`: lookups, which X bills."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from birdwire.api.paths import API
from birdwire.cli.gateway_client import GatewayClient, data_of
from birdwire.cli.inputs import gateway_url, read_key
from birdwire.cli.options import JsonOption, KeyFileOption
from birdwire.cli.output import family, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.cli.targets import USER, UserArgument

COUNTED = {"followers": "followers", "following": "following", "statusesCount": "posts"}

app = family()


@app.command()
def user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The user's @username or profile URL on x.com.")],
    *,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look up a user by name.

    X bills each lookup.

    Example: birdwire user @grace
    """
    with saying(as_json=as_json) as say:
        username = USER.named(name).username
        if username is None:
            raise Stop(ExitCode.USAGE, f"{name} is an ID, but this command needs a username.", "Use one such as @grace")
        document = _look("user/info", api_key_file, userName=username)
        say.result(document, *_described(data_of(document)))


@app.command()
def posts(
    who: UserArgument,
    *,
    cursor: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR", help="Show the page that starts at this cursor: the next_cursor of the previous page."
        ),
    ] = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a user's newest posts.

    X bills each lookup.

    Example: birdwire posts @grace
    """
    with saying(as_json=as_json) as say:
        named = USER.named(who)
        whose = {"userId": named.item_id} if named.username is None else {"userName": named.username}
        document = _look("user/last_tweets", api_key_file, **whose, cursor=cursor)
        say.table(
            document, _rows(data_of(document).get("tweets")), ("id", "createdAt", "text"), "There are no posts to show."
        )
        if document.get("has_next_page") and not as_json:
            cursor = printable(document.get("next_cursor"))
            say.aside(f"To show more, run: birdwire posts {who} --cursor {cursor}")


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="Words to search for in users' names.")],
    *,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for users.

    X bills each lookup.

    Example: birdwire search grace
    """
    with saying(as_json=as_json) as say:
        document = _look("user/search", api_key_file, query=" ".join(words))
        say.table(document, _rows(document.get("users")), ("id", "userName", "name"), "No users were found.")


def _look(name: str, api_key_file: Any, **query: str | None) -> dict[str, Any]:
    given = {field: value for field, value in query.items() if value is not None}
    path = f"{API}/{name}" + (f"?{urlencode(given)}" if given else "")
    return GatewayClient(gateway_url(), read_key(api_key_file)).ask("GET", path)


def _rows(found: object) -> list[dict[str, Any]]:
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _described(found: dict[str, Any]) -> list[str]:
    """Describe a user in a few lines, without the fields that X did not return."""
    names = ("name", "id", "description")
    lines = [f"@{printable(found.get('userName'))}", *(printable(found[name]) for name in names if found.get(name))]
    numbers = [f"{found[name]} {word}" for name, word in COUNTED.items() if isinstance(found.get(name), int)]
    marks = [word for name, word in (("isVerified", "verified"), ("protected", "protected")) if found.get(name) is True]
    return [*lines, *([", ".join(numbers + marks)] if numbers or marks else [])]
