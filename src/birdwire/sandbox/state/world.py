"""The simulated X's data: users, posts, engagement, and the grants to apps. Never contains a token in plain text."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkstemp
from typing import Any, Literal

from pydantic import TypeAdapter

# X's ids are snowflakes: milliseconds since this instant, shifted left by 22 bits.
SNOWFLAKE_EPOCH_MS = 1288834974657


@dataclass
class User:
    """A user. `blocks` contains user ids; `premium` allows edits."""

    id: str
    username: str
    name: str
    created_at: datetime
    protected: bool = False
    suspended: bool = False
    premium: bool = True
    verified: bool = False
    blocks: set[str] = field(default_factory=set)
    pinned_tweet_id: str | None = None
    description: str = ""


@dataclass
class Post:
    """A post. `edit_history` lists the ids of all its versions, oldest first."""

    id: str
    author_id: str
    text: str
    created_at: datetime
    deleted: bool = False
    in_reply_to_tweet_id: str | None = None
    quote_tweet_id: str | None = None
    media_ids: list[str] = field(default_factory=list)
    poll: dict[str, Any] | None = None
    previous_post_id: str | None = None
    edit_history: list[str] = field(default_factory=list)
    reply_settings: str = "everyone"
    mentions: list[str] = field(default_factory=list)
    community_id: str | None = None


@dataclass
class Media:
    """An upload. Unfinished segments are kept elsewhere, because they need not survive the process."""

    id: str
    media_key: str
    owner_ids: list[str]
    category: str
    total_bytes: int
    created_at: datetime
    expires_at: datetime
    finalized_at: datetime | None = None


@dataclass
class Token:
    """One access or refresh token, identified by the SHA-256 of its text."""

    digest: str
    kind: Literal["access", "refresh"]
    issued_at: datetime
    expires_at: datetime | None
    parent: str | None = None
    spent_at: datetime | None = None


@dataclass
class Grant:
    """The permission that one user gave one client, with its family of tokens."""

    id: str
    user_id: str
    client_id: str
    scopes: list[str]
    created_at: datetime
    tokens: dict[str, Token] = field(default_factory=dict)


@dataclass
class Registration:
    """The app's credentials, kept so that they remain valid after a restart of the sandbox."""

    client_id: str
    client_secret: str = field(repr=False)
    public_client_id: str


@dataclass
class World:
    """Everything that survives a restart. Mappings are by id; tuples are (user id, post id)."""

    users: dict[str, User] = field(default_factory=dict)
    posts: dict[str, Post] = field(default_factory=dict)
    likes: set[tuple[str, str]] = field(default_factory=set)
    # Source -> target -> pending.
    follows: dict[str, dict[str, bool]] = field(default_factory=dict)
    # User -> post -> id of the repost.
    retweets: dict[str, dict[str, str]] = field(default_factory=dict)
    bookmarks: set[tuple[str, str]] = field(default_factory=set)
    media: dict[str, Media] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    app_tokens: set[str] = field(default_factory=set)
    registration: Registration | None = None
    clock_offset_s: float = 0.0
    last_id: int = 0

    def new_id(self, now: datetime) -> str:
        """Return a snowflake id that was never issued before."""
        millis = int(now.timestamp() * 1000) - SNOWFLAKE_EPOCH_MS
        self.last_id = max(self.last_id + 1, millis << 22)
        return str(self.last_id)

    def user_named(self, username: str) -> User | None:
        """Return the user with this username, ignoring case."""
        wanted = username.lower()
        return next((user for user in self.users.values() if user.username.lower() == wanted), None)

    def follows_openly(self, source_id: str, target_id: str) -> bool:
        """Return whether `source` follows `target` and was accepted."""
        return self.follows.get(source_id, {}).get(target_id) is False

    def may_see_user(self, viewer: User, author: User) -> bool:
        """Return whether the viewer may see this author's posts."""
        if viewer.id == author.id:
            return True
        if author.suspended or viewer.id in author.blocks:
            return False
        return not author.protected or self.follows_openly(viewer.id, author.id)

    def live_post(self, post_id: str) -> Post | None:
        """Return the post, if it exists, is not deleted, and its author is not suspended."""
        post = self.posts.get(post_id)
        if post is None or post.deleted or self.users[post.author_id].suspended:
            return None
        return post

    def posts_of(self, author_id: str) -> list[Post]:
        """Return the author's posts that are not deleted, newest first, each only in its latest version."""
        mine = [post for post in self.posts.values() if post.author_id == author_id and not post.deleted]
        mine = [post for post in mine if not post.edit_history or post.edit_history[-1] == post.id]
        return sorted(mine, key=lambda post: int(post.id), reverse=True)


def snowflake_time(snowflake: str) -> datetime:
    """Return when an id was issued."""
    return datetime.fromtimestamp(((int(snowflake) >> 22) + SNOWFLAKE_EPOCH_MS) / 1000, UTC)


class WorldFile:
    """A world in a file (JSON, 0600), replaced atomically and synced: a crash leaves either the old or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._adapter = TypeAdapter(World)

    def load(self) -> World | None:
        """Return the stored world, or None without a file; raise ValueError if the file is invalid."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self._adapter.validate_json(raw)
        except ValueError as error:
            raise ValueError(f"{self._path} is not a valid sandbox state file; delete it to start over") from error

    def save(self, world: World) -> None:
        """Write the world and return once it is on disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp creates the file with mode 0600.
        handle, name = mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._adapter.dump_json(world))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
