"""LOOKUPS: what an app may read from X, in the shapes that published clients expect. X bills and limits each one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from pydantic import Field

from birdwire.api.errors import GatewayError
from birdwire.api.models import Body
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.x.catalog.post import Id
from birdwire.x.client.requests import ID_PATTERN, Reading, XData, XRequest

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.x.client.requests import Ask, Resource

USERNAME_PATTERN = r"^@?[A-Za-z0-9_]{1,15}$"
USER_CACHE_S = 60.0
MAX_USERS = 1_000
PAGE = 20
BY_ID, BY_NAME, TIMELINE, SEARCH = (
    "/2/users/{id}",
    "/2/users/by/username/{username}",
    "/2/users/{id}/tweets",
    "/2/users/search",
)
BILLED: Mapping[str, tuple[Resource, int]] = {
    f"GET {BY_ID}": ("user", 1),
    f"GET {BY_NAME}": ("user", 1),
    f"GET {TIMELINE}": ("post", PAGE),
    f"GET {SEARCH}": ("user", PAGE),
}
"""What X bills a request to each endpoint by, and how many of it X returns at most."""
_USER_FIELDS = "created_at,description,profile_image_url,protected,public_metrics,verified"


class UserQuery(Body):
    """The user to look up."""

    userName: str = Field(pattern=USERNAME_PATTERN, description="a username of 1 to 15 letters, digits or _")  # noqa: N815 - the published name


class TimelineQuery(Body):
    """The user user posts to read, and where to continue."""

    userName: str | None = Field(None, pattern=USERNAME_PATTERN, description="a username; alternatively, send userId")  # noqa: N815 - the published name
    userId: Id | None = Field(None, description="a user's id, 1 to 19 digits; alternatively, send userName")  # noqa: N815 - the same
    cursor: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._~=-]{0,500}$", description="next_cursor of the previous page"
    )


class SearchQuery(Body):
    """The search terms."""

    query: str = Field(pattern=r"^[A-Za-z0-9_' ]{1,50}$", description="1 to 50 letters, digits, spaces, _ or '")


class _User(XData):
    id: str = Field(pattern=ID_PATTERN)
    name: str = ""
    username: str = ""
    created_at: str | None = None
    description: str | None = None
    profile_image_url: str | None = None
    protected: bool | None = None
    verified: bool | None = None
    public_metrics: dict[str, Any] | None = None


class _Post(XData):
    id: str = Field(pattern=ID_PATTERN)
    text: str = ""
    created_at: str | None = None


class _Meta(XData):
    result_count: int = 0
    next_token: str | None = None


class _Timeline(XData):
    data: list[_Post] = Field(default_factory=list)
    meta: _Meta = Field(default_factory=_Meta)


class _Found(XData):
    data: list[_User] = Field(default_factory=list)
    meta: _Meta = Field(default_factory=_Meta)


LookupWork = Callable[["LookupRunner", str, Any, "Ask"], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Lookup:
    """One lookup: its path below the prefix, its query, the endpoints of X that it calls, and the scopes it needs.

    `most` is what X may return to it at most, which is what X bills. `tool` names the MCP tool for it.
    """

    name: Literal["user/info", "user/last_tweets", "user/search"]
    summary: str
    query: type[Body]
    run: LookupWork
    endpoints: tuple[str, ...]
    most: Mapping[Resource, int]
    tool: str
    scopes: tuple[str, ...] = ("tweet.read", "users.read")


class LookupRunner:
    """Runs the lookups. Users are cached for a minute for each account that asked, since X bills each request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._users: BoundedDict[tuple[str, str], tuple[float, _User]] = BoundedDict(MAX_USERS)

    async def info(self, account: str, query: UserQuery, ask: Ask) -> dict[str, Any]:
        """Return one user by name."""
        user = await self._user(account, query.userName.lstrip("@"), ask)
        return {"status": "success", "data": _user_data(user)}

    async def last_tweets(self, account: str, query: TimelineQuery, ask: Ask) -> dict[str, Any]:
        """Return a user's newest posts without replies; a pinned post is sorted by its time."""
        if (query.userName is None) == (query.userId is None):
            raise GatewayError("mutually_exclusive", fields="userName and userId (send exactly one)")
        if query.userId is not None:
            author = _User.model_validate(await ask(_user_request(BY_ID, query.userId), Reading(_User, about="user")))
        else:
            author = await self._user(account, str(query.userName).lstrip("@"), ask)
        parameters = {"max_results": PAGE, "exclude": "replies", "tweet.fields": "created_at,author_id"}
        if query.cursor:
            parameters["pagination_token"] = query.cursor
        request = _get(TIMELINE, author.id, urlencode(parameters, safe=","))
        page = _Timeline.model_validate(await ask(request, Reading(_Timeline, about="user", whole=True)))
        posts = sorted(page.data, key=lambda post: int(post.id), reverse=True)
        return {
            "status": "success",
            "data": {"tweets": [_post_data(post, author) for post in posts]},
            "has_next_page": page.meta.next_token is not None,
            "next_cursor": page.meta.next_token or "",
        }

    async def search(self, account: str, query: SearchQuery, ask: Ask) -> dict[str, Any]:
        """Return users that match the search terms."""
        del account
        request = _get(SEARCH, "", urlencode({"query": query.query, "max_results": PAGE}, quote_via=quote))
        found = _Found.model_validate(await ask(request, Reading(_Found, about="user", whole=True)))
        users = [
            {"id": user.id, "screen_name": user.username, "userName": user.username, "name": user.name}
            for user in found.data
        ]
        return {"status": "success", "users": users}

    async def _user(self, account: str, username: str, ask: Ask) -> _User:
        place, now = (account, username.lower()), self._clock.monotonic()
        kept = self._users.get(place)
        if kept is not None and now < kept[0]:
            return kept[1]
        found = await ask(_user_request(BY_NAME, username), Reading(_User, about="user"))
        user = _User.model_validate(found)
        self._users[place] = (now + USER_CACHE_S, user)
        self._users.move_to_end(place)
        return user


LOOKUPS: tuple[Lookup, ...] = (
    Lookup(
        "user/info",
        "Look up a user by name",
        UserQuery,
        LookupRunner.info,
        (f"GET {BY_NAME}",),
        {"user": 1},
        tool="get_user",
    ),
    Lookup(
        "user/last_tweets",
        "Read a user's newest posts",
        TimelineQuery,
        LookupRunner.last_tweets,
        (f"GET {TIMELINE}", f"GET {BY_ID}"),
        {"user": 1, "post": PAGE},
        tool="get_user_posts",
    ),
    Lookup(
        "user/search",
        "Search for users",
        SearchQuery,
        LookupRunner.search,
        (f"GET {SEARCH}",),
        {"user": PAGE},
        tool="search_users",
    ),
)


def billed(endpoint: str, answer: Mapping[str, Any]) -> tuple[Resource, int]:
    """Return what X bills for an answer: the kind of resource, and how many of it came."""
    resource, _ = BILLED[endpoint]
    data = answer.get("data")
    return resource, len(data) if isinstance(data, list) else 1


def _get(path: str, user: str, query: str) -> XRequest:
    return XRequest("GET", f"{path.format(id=user, username=user)}?{query}", endpoint=f"GET {path}")


def _user_request(path: str, user: str) -> XRequest:
    return _get(path, user, f"user.fields={_USER_FIELDS}")


def _user_data(user: _User) -> dict[str, Any]:
    metrics = user.public_metrics or {}
    data = {
        "id": user.id,
        "userName": user.username,
        "name": user.name,
        "description": user.description,
        "profilePicture": user.profile_image_url,
        "createdAt": None if user.created_at is None else _x_time(user.created_at),
        "protected": user.protected,
        "isVerified": user.verified,
        "followers": metrics.get("followers_count"),
        "following": metrics.get("following_count"),
        "statusesCount": metrics.get("tweet_count", metrics.get("post_count")),
    }
    return {name: value for name, value in data.items() if value is not None}


def _post_data(post: _Post, author: _User) -> dict[str, Any]:
    return {
        "id": post.id,
        "text": post.text,
        "createdAt": _x_time(post.created_at or ""),
        "url": f"https://x.com/{author.username or 'i'}/status/{post.id}",
        "author": {"id": author.id, "userName": author.username, "name": author.name},
    }


def _x_time(at: str) -> str:
    """Return a time in X's older form, `Fri Sep 18 04:02:35 +0000 2026`; a text that is not a time is unchanged."""
    try:
        return datetime.fromisoformat(at).astimezone(UTC).strftime("%a %b %d %H:%M:%S +0000 %Y")
    except (ValueError, OverflowError):
        return at
