"""`birdwire post` and `birdwire upload`: publish a post, with each of its fields as an option, and upload media."""

from __future__ import annotations

import inspect
import re
import secrets
import shlex
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path  # noqa: TC003 - Typer reads it
from types import NoneType
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_origin

import typer

from birdwire.api.body import check
from birdwire.api.errors import GatewayError, describe
from birdwire.api.models import Body
from birdwire.api.paths import API
from birdwire.cli.dry_run import DryRunOption, ask, finish, id_of
from birdwire.cli.gateway_client import GatewayClient, data_of
from birdwire.cli.inputs import gateway_url, read_key, read_stdin
from birdwire.cli.options import JsonOption, KeyFileOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.cli.targets import POST, USER
from birdwire.cli.waiting import WaitOption, patience_s, send
from birdwire.x.catalog.post import PostTwitter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

# The maximum length of a text is a rule of the key, so only the gateway checks it.
UNCHECKED = {"text_limit": sys.maxsize}
PART = "media_files"
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")

app = family()


class Row(NamedTuple):
    """A field's option: its flag, metavar and help."""

    flag: str
    metavar: str | None
    help: str


ROWS = {
    "reply.in_reply_to_tweet_id": Row("--reply-to", "ID_OR_URL", "Post to reply to."),
    "reply.auto_populate_reply_metadata": Row("--auto-metadata", None, "Has no effect: X accepts and ignores it."),
    "reply.exclude_reply_user_ids": Row("--exclude", "USER", "User to leave out of the reply's mentions; repeatable."),
    "quote_tweet_id": Row("--quote", "ID_OR_URL", "Post to quote."),
    "media.media_ids": Row("--media-id", "ID", "Media ID from `birdwire upload`; repeatable, at most 4."),
    "media.tagged_user_ids": Row("--tag", "USER", "User to tag in the media; repeatable."),
    "poll.options": Row("--poll", "A|B", "Poll with 2 to 4 options of at most 25 characters each."),
    "poll.duration_minutes": Row("--poll-minutes", "N", "Duration of the poll in minutes, 5 to 10080."),
    "poll.reply_settings": Row("--poll-reply-settings", None, "Who may reply to the poll."),
    "card_uri": Row("--card", "URI", "URI of a card to attach."),
    "direct_message_deep_link": Row("--dm-link", "URL", "Link that opens a direct message conversation."),
    "geo.place_id": Row("--place", "ID", "X's ID of the place to attach."),
    "reply_settings": Row("--reply-settings", None, "Who may reply. Default: everyone."),
    "for_super_followers_only": Row("--super-followers", None, "Show the post only to super followers."),
    "nullcast": Row("--nullcast", None, "Do not show the post in timelines."),
    "paid_partnership": Row("--paid-partnership", None, "Label the post as a paid partnership."),
    "made_with_ai": Row("--made-with-ai", None, "Label the post's media as made with AI."),
    "community_id": Row("--community", "ID", "Community to post in."),
    "share_with_followers": Row("--share-with-followers", None, "Show a community post to all followers, too."),
    "edit_options.previous_post_id": Row("--edit", "ID_OR_URL", "Post to edit: the new post replaces it."),
}
"""Options by field. A field without a row uses its own name and description."""

POSTS = frozenset({"reply.in_reply_to_tweet_id", "quote_tweet_id", "edit_options.previous_post_id"})
USERS = frozenset({"reply.exclude_reply_user_ids", "media.tagged_user_ids"})
OPTIONS_OF_POLL = "poll.options"


class Field(NamedTuple):
    """One field of a post: its dotted path, the type of its value (bool, int, str, list[str] or Literal), its help."""

    place: str
    kind: Any
    description: str

    @property
    def name(self) -> str:
        """Return the name of the command's parameter."""
        return self.place.replace(".", "__")

    @property
    def row(self) -> Row:
        """Return the field's option."""
        own = self.place.rpartition(".")[2].replace("_", "-")
        words = f"{self.description[:1].upper()}{self.description[1:]}."
        return ROWS.get(self.place, Row(f"--{own}", None if self.kind is bool else "TEXT", words))

    def parameter(self) -> inspect.Parameter:
        """Return the parameter for Typer. A flag is off by default, so it has no --no-... form."""
        flag, metavar, words = self.row
        kind: Any = str if self.place == OPTIONS_OF_POLL else self.kind
        asked: Any = typer.Option(False if kind is bool else None, flag, metavar=metavar, help=words)
        annotation = kind if kind is bool else kind | None
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=asked, annotation=annotation)


def fields(model: type[Body], above: str = "") -> Iterator[Field]:
    """Yield a body's fields except the text; nested objects are flattened."""
    for name, field in model.model_fields.items():
        place, kind = f"{above}{name}", _kind(field)
        if isinstance(kind, type) and issubclass(kind, Body):
            yield from fields(kind, f"{place}.")
        elif place != "text":
            yield Field(place, kind, field.description or "")


def _kind(field: FieldInfo) -> Any:
    """Return the type of a field's value, without None and constraints."""
    kind: Any = field.annotation
    if NoneType in get_args(kind):
        [kind] = (one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return list[str] if get_origin(kind) is list else kind


FIELDS = tuple(fields(PostTwitter))


def post(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="Text of the post; - reads it from stdin, without the final line break."),
    ] = None,
    *,
    media: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Image, GIF or video to upload and attach; repeatable."
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Idempotency key. Birdwire publishes at most one post per idempotency key within a day."
        ),
    ] = None,
    wait: WaitOption = None,
    dry_run: DryRunOption = False,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    **given: Any,
) -> None:
    """Publish, reply to, quote or edit a post.

    Birdwire acts as the X account that is linked to the API key. The command prints the new post's ID.

    Exit code 7 means that X may or may not have published the post. The error then shows how to repeat the command
    without posting twice. Exit code 8 means that nothing was published, because a person must approve the post first;
    with --wait, the command waits for that.

    - Reply: `birdwire post "Thanks!" --reply-to https://x.com/grace/status/1346889436626259968`
    - Images: `birdwire post "Two birds" --media one.jpg --media two.jpg`
    - Poll: `birdwire post "Tea?" --poll "Yes|No" --poll-minutes 60`

    Example: birdwire post "Hello from the command line"
    """
    with saying(as_json=as_json) as say, ExitStack() as stack:
        files = [stack.enter_context(_opened(path)) for path in media or ()]
        name = secrets.token_hex(16) if idempotency_key is None else idempotency_key
        body = _body(read_stdin() if text == "-" else text, given)
        _check(body, len(files), name)
        wait_s = patience_s(wait)
        if dry_run:
            _take_ids(body)
        gateway = GatewayClient(gateway_url(), read_key(api_key_file))
        if dry_run:
            finish(say, _try(gateway, body, files))
        _find_users(gateway, body)
        for file in files:
            uploaded = _upload(say, gateway, file)["data"]["media_id"]
            say.aside(f"Uploaded {printable(file.name, 100)} as {printable(uploaded, 30)}")
            body.setdefault("media", {}).setdefault("media_ids", []).append(uploaded)
        with _repeatable(body, name, files=bool(files)):
            document = send(say, gateway, "post_twitter", body, wait_s=wait_s, idempotency_key=name)
        data = data_of(document)
        say.result(document, printable(data.get("id")))
        if not as_json:
            say.aside(f"Posted. Text as stored by X: {printable(data.get('text'))}")


def _signature() -> inspect.Signature:
    """Return the signature of `post` for Typer: its own parameters, and one for each field."""
    own = [one for one in inspect.signature(post, eval_str=True).parameters.values() if one.name != "given"]
    return inspect.Signature([*own[:2], *(field.parameter() for field in FIELDS), *own[2:]])


post.__signature__ = _signature()  # type: ignore[attr-defined] # a function takes any attribute
app.command()(post)


@app.command()
def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Image, GIF or video to upload.")
    ],
    *,
    dry_run: DryRunOption = False,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload an image, GIF or video to attach to a post.

    The command prints the media ID for `birdwire post --media-id`. Use it within a day, because X deletes media that
    no post uses.

    Example: birdwire upload bird.png
    """
    with saying(as_json=as_json) as say, _opened(file) as opened:
        gateway = GatewayClient(gateway_url(), read_key(api_key_file))
        if dry_run:
            finish(say, gateway.upload(f"{API}/dry_run/upload_media", PART, opened))
        document = _upload(say, gateway, opened)
        say.result(document, printable(document["data"]["media_id"]))


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise Stop(ExitCode.USAGE, f"Cannot read {path}: {error.strerror}.") from None


def _body(text: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Build the body of post_twitter from the given options."""
    body: dict[str, Any] = {} if text is None else {"text": text}
    for field in FIELDS:
        value = given[field.name]
        if value is None or value is False or value == []:
            continue
        if field.place in POSTS:
            value = POST.named(value).item_id
        elif field.place == OPTIONS_OF_POLL:
            value = [option.strip() for option in value.split("|")]
        inner = body
        *above, name = field.place.split(".")
        for part in above:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return body


def _check(body: dict[str, Any], files: int, idempotency_key: str) -> None:
    """Validate the post before anything is uploaded or sent. Files and usernames are replaced by placeholder ids.

    Raises:
        Stop: the gateway would refuse the post; message and fix are the gateway's.
    """
    if not IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise Stop(ExitCode.USAGE, "An idempotency key must consist of 1 to 255 printable ASCII characters.")
    tried: dict[str, Any] = {name: dict(value) if isinstance(value, dict) else value for name, value in body.items()}
    if files:
        media = tried.setdefault("media", {})
        media["media_ids"] = [*media.get("media_ids", ()), *["0"] * files]
    for place in USERS:
        above, _, name = place.partition(".")
        if name in tried.get(above, {}):
            tried[above][name] = [USER.named(user).item_id or "0" for user in tried[above][name]]
    try:
        check(tried, PostTwitter, UNCHECKED)
    except GatewayError as error:
        raise Stop(ExitCode.USAGE, *describe(error)) from None


def _find_users(gateway: GatewayClient, body: dict[str, Any]) -> None:
    for place in USERS:
        above, _, name = place.partition(".")
        if name in body.get(above, {}):
            body[above][name] = [USER.named(user).find(gateway) for user in body[above][name]]


def _take_ids(body: dict[str, Any]) -> None:
    """Replace users by their ids.

    Raises:
        Stop: one is a username, which a dry run cannot look up.
    """
    for place in USERS:
        above, _, name = place.partition(".")
        if name in body.get(above, {}):
            body[above][name] = [id_of(USER.named(user)) for user in body[above][name]]


def _try(gateway: GatewayClient, body: dict[str, Any], files: list[IO[bytes]]) -> dict[str, Any]:
    """Return the verdict on the first file that would not be uploaded, else on the post, with an id for each file."""
    for file in files:
        verdict = gateway.upload(f"{API}/dry_run/upload_media", PART, file)
        if verdict.get("would", {}).get("outcome") != "allow":
            return verdict
        body.setdefault("media", {}).setdefault("media_ids", []).append("0")
    return ask(gateway, "post_twitter", body)


@contextmanager
def _repeatable(body: dict[str, Any], name: str, *, files: bool) -> Iterator[None]:
    """Show how to repeat the command, if the outcome of the post is unknown.

    Raises:
        Stop: replaces the same, with another fix.
    """
    try:
        yield
    except Stop as stop:
        if stop.code == ExitCode.UNKNOWN:
            ids = "".join(f" --media-id {one}" for one in body["media"]["media_ids"]) if files else ""
            again = f"--idempotency-key {shlex.quote(name)}{ids and f' and, in place of --media,{ids}'}"
            stop.fix = f"Check the account on x.com, or repeat the command with {again}: Birdwire will not post twice."
        raise


def _upload(say: Output, gateway: GatewayClient, file: IO[bytes]) -> dict[str, Any]:
    name = printable(file.name, 100)
    with say.waiting(f"Uploading {name}"):
        document = gateway.upload(f"{API}/upload_media", PART, file)
    if not isinstance(data_of(document).get("media_id"), str):
        raise Stop(ExitCode.UPSTREAM, f"{gateway.url} received {name} but did not return an ID.")
    return document
