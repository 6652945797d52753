"""Users and posts that a caller adds. The whole request is validated before any of it takes effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from birdwire.sandbox.api.post_text import mentions
from birdwire.sandbox.state.seed import plant
from birdwire.sandbox.state.world import Post, User

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.sandbox.state.world import World

Id = Annotated[str, Field(pattern=r"^[0-9]{1,19}\z")]
Username = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,15}\z")]
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class PlannedUser(BaseModel):
    """A user by username, created or else changed in the given members. `blocks` contains usernames."""

    model_config = STRICT

    username: Username
    id: Id | None = None
    name: Annotated[str | None, Field(max_length=50)] = None
    description: Annotated[str | None, Field(max_length=500)] = None
    protected: bool | None = None
    suspended: bool | None = None
    premium: bool | None = None
    blocks: Annotated[list[Username] | None, Field(max_length=1000)] = None


class PlannedPost(BaseModel):
    """A post of one of the users. The id of an existing post replaces that post."""

    model_config = STRICT

    author: Username
    text: Annotated[str, Field(max_length=25_000)]
    id: Id | None = None
    deleted: bool = False
    in_reply_to_tweet_id: Id | None = None
    quote_tweet_id: Id | None = None


class Plan(BaseModel):
    """Users and posts to add. An empty plan restores the seed."""

    model_config = STRICT

    users: Annotated[list[PlannedUser], Field(max_length=10_000)] = []
    posts: Annotated[list[PlannedPost], Field(max_length=10_000)] = []

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Plan:
        """Parse a plan; raise ValueError with the problems if it is invalid."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ValueError(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])
            ) from None

    def plant(self, world: World, now: datetime) -> None:
        """Apply the plan; raise ValueError, with nothing changed, for an unknown username or another user's id."""
        if not self.users and not self.posts:
            plant(world)
            return
        self._check(world)
        for planned in self.users:
            _plant_user(world, planned, now)
        for planned in self.users:
            if planned.blocks is not None:
                blocked = [world.user_named(name) for name in planned.blocks]
                _named(world, planned.username).blocks = {user.id for user in blocked if user is not None}
        for post in self.posts:
            _plant_post(world, post, now)

    def _check(self, world: World) -> None:
        names = {user.username.lower() for user in world.users.values()} | {
            user.username.lower() for user in self.users
        }
        for name in [post.author for post in self.posts] + [name for user in self.users for name in user.blocks or []]:
            if name.lower() not in names:
                raise ValueError(f"there is no user {name}")
        for user in self.users:
            known = world.user_named(user.username)
            if user.id and ((known and known.id != user.id) or (not known and user.id in world.users)):
                raise ValueError(f"user {user.username}: {user.id} is not this user's id, or is another user's id")


def _named(world: World, username: str) -> User:
    user = world.user_named(username)
    if user is None:
        raise ValueError(f"there is no user {username}")
    return user


def _plant_user(world: World, planned: PlannedUser, now: datetime) -> None:
    user = world.user_named(planned.username)
    if user is None:
        user_id = planned.id or world.new_id(now)
        user = world.users[user_id] = User(user_id, planned.username, planned.name or planned.username, now)
    for name in ("name", "description", "protected", "suspended", "premium"):
        value = getattr(planned, name)
        if value is not None:
            setattr(user, name, value)


def _plant_post(world: World, planned: PlannedPost, now: datetime) -> None:
    author = _named(world, planned.author)
    post_id = planned.id or world.new_id(now)
    names = mentions(planned.text)
    world.posts[post_id] = Post(
        id=post_id,
        author_id=author.id,
        text=planned.text,
        created_at=now,
        deleted=planned.deleted,
        in_reply_to_tweet_id=planned.in_reply_to_tweet_id,
        quote_tweet_id=planned.quote_tweet_id,
        edit_history=[post_id],
        mentions=[user.id for user in world.users.values() if user.username.lower() in names],
    )
