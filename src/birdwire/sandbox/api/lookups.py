"""Lookups of users and posts, timelines and search. Read-only; a missing resource is a 200 with errors, as at X."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from birdwire.sandbox.api import search
from birdwire.sandbox.api.dispatcher import ID, USERNAME, Call, Endpoint
from birdwire.sandbox.api.errors import Answer, invalid, not_authorized, not_found
from birdwire.sandbox.api.objects import Fields, post_object, user_object

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import Post, User

SCOPES = "tweet.read users.read"
IDS_AT_ONCE = 100
SEARCH = re.compile(r"[A-Za-z0-9_' ]{1,50}", re.ASCII)
QUERY_LENGTH = 512
RECENT = timedelta(days=7)


def me(platform: Simulator, call: Call) -> Answer:
    """GET /2/users/me."""
    return Answer(200, {"data": user_object(platform, call.viewer, Fields(platform, call.query))})


def user_by_id(platform: Simulator, call: Call) -> Answer:
    """GET /2/users/{id}."""
    return _one_user(platform, call, platform.world.users.get(call.ids["id"]), "id")


def user_by_name(platform: Simulator, call: Call) -> Answer:
    """GET /2/users/by/username/{username}."""
    return _one_user(platform, call, platform.world.user_named(call.ids["username"]), "username")


def _one_user(platform: Simulator, call: Call, user: User | None, parameter: str) -> Answer:
    if user is None or user.suspended:
        return Answer(200, {"errors": [not_found("user", call.ids[parameter], parameter)]})
    return Answer(200, {"data": user_object(platform, user, Fields(platform, call.query))})


def users(platform: Simulator, call: Call) -> Answer:
    """GET /2/users?ids=."""
    return _many_users(platform, call, "ids", ID, platform.world.users.get)


def users_by_name(platform: Simulator, call: Call) -> Answer:
    """GET /2/users/by?usernames=."""
    return _many_users(platform, call, "usernames", USERNAME, platform.world.user_named)


def _many_users(
    platform: Simulator,
    call: Call,
    name: str,
    pattern: re.Pattern[str],
    find: Callable[[str], User | None],
) -> Answer:
    fields = Fields(platform, call.query)
    found, errors = [], []
    for value in _listed(call, name, pattern):
        user = find(value)
        if user is None or user.suspended:
            errors.append(not_found("user", value, name))
        else:
            found.append(user_object(platform, user, fields))
    return _partial(found, errors)


def post_by_id(platform: Simulator, call: Call) -> Answer:
    """GET /2/tweets/{id}."""
    fields, post_id = Fields(platform, call.query), call.ids["id"]
    seen = _seen(platform, call.viewer, post_id, "id")
    if isinstance(seen, dict):
        return Answer(200, {"errors": [seen]})
    return Answer(200, {"data": post_object(platform, seen, fields)} | _includes(platform, [seen], fields))


def posts(platform: Simulator, call: Call) -> Answer:
    """GET /2/tweets?ids=."""
    fields = Fields(platform, call.query)
    seen = [_seen(platform, call.viewer, post_id, "ids") for post_id in _listed(call, "ids", ID)]
    found = [one for one in seen if not isinstance(one, dict)]
    errors = [one for one in seen if isinstance(one, dict)]
    answer = _partial([post_object(platform, post, fields) for post in found], errors)
    return Answer(200, answer.body | _includes(platform, found, fields))


def _seen(platform: Simulator, viewer: User, post_id: str, parameter: str) -> Post | dict[str, str]:
    """Return the post, or the entry of `errors` in its place."""
    post = platform.world.live_post(post_id)
    if post is None:
        return not_found("tweet", post_id, parameter)
    if not platform.world.may_see_user(viewer, platform.world.users[post.author_id]):
        return not_authorized("tweet", post_id, parameter)
    return post


def timeline(platform: Simulator, call: Call) -> Answer:
    """GET /2/users/{id}/tweets: newest first, the pinned post in chronological order."""
    user = platform.world.users.get(call.ids["id"])
    if user is None or user.suspended:
        return Answer(200, {"errors": [not_found("user", call.ids["id"], "id")]})
    if not platform.world.may_see_user(call.viewer, user):
        return Answer(200, {"errors": [not_authorized("user", user.id, "id")]})
    mine = platform.world.posts_of(user.id)
    if "replies" in call.query.get("exclude", "").split(","):
        mine = [post for post in mine if post.in_reply_to_tweet_id is None]
    return _page_of_posts(platform, call, mine, least=5, usual=10)


def search_users(platform: Simulator, call: Call) -> Answer:
    """GET /2/users/search."""
    query = call.query.get("query", "")
    if not SEARCH.fullmatch(query):
        raise invalid(
            f"The `query` query parameter value [{query[:100]}] does not match ^{SEARCH.pattern}$", query=query
        )
    size = _number(call, "max_results", 1, 1000, 100)
    after = _page_start(call, "next_token")
    words = query.lower().split()
    found = [
        user
        for user in sorted(platform.world.users.values(), key=lambda user: int(user.id))
        if not user.suspended
        and int(user.id) > after
        and all(word in f"{user.username} {user.name}".lower() for word in words)
    ]
    fields, page = Fields(platform, call.query), found[:size]
    meta = {"next_token": _token(page[-1].id)} if len(found) > size else {}
    data = {"data": [user_object(platform, user, fields) for user in page]} if page else {}
    return Answer(200, {**data, "meta": meta})


def search_posts(platform: Simulator, call: Call) -> Answer:
    """GET /2/tweets/search/recent: the posts of the last seven days."""
    query = call.query.get("query", "")
    if not 0 < len(query) <= QUERY_LENGTH:
        raise invalid("The `query` query parameter can not be empty", query=query)
    since = platform.clock.now() - RECENT
    world = platform.world
    found = [
        post
        for author in world.users.values()
        if world.may_see_user(call.viewer, author)
        for post in world.posts_of(author.id)
        if post.created_at >= since and search.matches(world, post, query)
    ]
    found.sort(key=lambda post: int(post.id), reverse=True)
    return _page_of_posts(platform, call, found, least=10, usual=10)


def _page_of_posts(platform: Simulator, call: Call, rows: Sequence[Post], *, least: int, usual: int) -> Answer:
    """Return one page of posts, newest first, between the requested ids and times."""
    size = _number(call, "max_results", least, 100, usual)
    names = [name for name in ("pagination_token", "next_token") if name in call.query]
    below = min([_page_start(call, name) for name in names] + [_id(call, "until_id", 10**19)])
    above = _id(call, "since_id", 0)
    start, end = _time(call, "start_time"), _time(call, "end_time")
    wanted = [
        post
        for post in rows
        if above < int(post.id) < below
        and (start is None or post.created_at >= start)
        and (end is None or post.created_at < end)
    ]
    page, fields = wanted[:size], Fields(platform, call.query)
    meta: dict[str, Any] = {"result_count": len(page)}
    if not page:
        return Answer(200, {"meta": meta})
    meta = {"newest_id": page[0].id, "oldest_id": page[-1].id} | meta
    if len(wanted) > size:
        meta["next_token"] = _token(page[-1].id)
    data = [post_object(platform, post, fields) for post in page]
    return Answer(200, {"data": data} | _includes(platform, page, fields) | {"meta": meta})


def _includes(platform: Simulator, rows: Sequence[Post], fields: Fields) -> dict[str, Any]:
    """Return the authors, if the query requests their expansion."""
    if "author_id" not in fields.expansions or not rows:
        return {}
    authors = dict.fromkeys(post.author_id for post in rows)
    return {"includes": {"users": [user_object(platform, platform.world.users[one], fields) for one in authors]}}


def _partial(found: list[dict[str, Any]], errors: list[dict[str, str]]) -> Answer:
    """Return data and errors, each only if it is not empty."""
    body: dict[str, Any] = {"data": found} if found else {}
    return Answer(200, body | ({"errors": errors} if errors else {}))


def _listed(call: Call, name: str, pattern: re.Pattern[str]) -> list[str]:
    """Return a query parameter's list of 1 to 100 values."""
    values = call.query.get(name, "").split(",")
    if len(values) > IDS_AT_ONCE:
        raise invalid(f"The number of values in the `{name}` query parameter list must be 1 to {IDS_AT_ONCE}")
    for value in values:
        if not pattern.fullmatch(value):
            raise invalid(
                f"The `{name}` query parameter value [{value[:100]}] does not match ^{pattern.pattern}$",
                **{name: value},
            )
    return values


def _number(call: Call, name: str, least: int, most: int, usual: int) -> int:
    value = call.query.get(name, str(usual))
    if not re.fullmatch(r"[0-9]{1,6}", value, re.ASCII) or not least <= int(value) <= most:
        raise invalid(
            f"The `{name}` query parameter value [{value[:100]}] is not between {least} and {most}", **{name: value}
        )
    return int(value)


def _id(call: Call, name: str, usual: int) -> int:
    value = call.query.get(name)
    if value is None:
        return usual
    if not ID.fullmatch(value):
        raise invalid(
            f"The `{name}` query parameter value [{value[:100]}] does not match ^{ID.pattern}$", **{name: value}
        )
    return int(value)


def _time(call: Call, name: str) -> datetime | None:
    """Parse an RFC 3339 time."""
    value = call.query.get(name)
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise invalid(f"The `{name}` query parameter value [{value[:100]}] is not a time", **{name: value}) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _token(last_id: str) -> str:
    """Return a page token, which is opaque to clients."""
    return urlsafe_b64encode(f"p1:{last_id}".encode()).rstrip(b"=").decode()


def _page_start(call: Call, name: str) -> int:
    """Return the id after which a page continues; 0 without a token."""
    value = call.query.get(name)
    if value is None:
        return 0
    try:
        kind, _, last_id = urlsafe_b64decode(value[:100] + "==").decode().partition(":")
    except ValueError:
        kind, last_id = "", ""
    if kind != "p1" or not ID.fullmatch(last_id):
        raise invalid(f"The `{name}` query parameter value [{value[:100]}] is not valid", **{name: value})
    return int(last_id)


ENDPOINTS = (
    Endpoint("GET", "/2/users/me", SCOPES, me, 75),
    Endpoint("GET", "/2/users/search", SCOPES, search_users, 900),
    Endpoint("GET", "/2/users/by", SCOPES, users_by_name, 900),
    Endpoint("GET", "/2/users/by/username/{username}", SCOPES, user_by_name, 900),
    Endpoint("GET", "/2/users", SCOPES, users, 900),
    Endpoint("GET", "/2/users/{id}", SCOPES, user_by_id, 900),
    Endpoint("GET", "/2/users/{id}/tweets", SCOPES, timeline, 900),
    Endpoint("GET", "/2/tweets/search/recent", SCOPES, search_posts, 300),
    Endpoint("GET", "/2/tweets", SCOPES, posts, 5000),
    Endpoint("GET", "/2/tweets/{id}", SCOPES, post_by_id, 900),
)
