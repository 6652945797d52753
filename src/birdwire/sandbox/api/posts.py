"""Creates and deletes posts, with X's rules on texts, replies, quotes and edits."""

from __future__ import annotations

import unicodedata
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from birdwire.sandbox.api import post_text
from birdwire.sandbox.api.dispatcher import Call, Endpoint
from birdwire.sandbox.api.engagement import reachable_post, refuse_by_tier, switched_refusal
from birdwire.sandbox.api.errors import Answer, invalid
from birdwire.sandbox.api.media import attachable
from birdwire.sandbox.state.world import Post

if TYPE_CHECKING:
    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import User

SCOPES = "tweet.read tweet.write users.read"
EDITS = 5
PHOTOS = 4

Id = Annotated[str, Field(pattern=r"^[0-9]{1,19}\z")]
Text = Annotated[str, Field(max_length=25_000)]
Audience = Literal["following", "mentionedUsers", "subscribers", "verified"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Reply(_Part):
    """Post that is replied to. auto_populate_reply_metadata is accepted and ignored, as X documents."""

    in_reply_to_tweet_id: Id
    auto_populate_reply_metadata: bool | None = None
    exclude_reply_user_ids: Annotated[list[Id], Field(max_length=10)] | None = None


class Attached(_Part):
    """Uploads attached to a post."""

    media_ids: Annotated[list[Id], Field(min_length=1, max_length=PHOTOS)]
    tagged_user_ids: Annotated[list[Id], Field(max_length=10)] | None = None


class Poll(_Part):
    """A poll. reply_settings is accepted and ignored, as X documents."""

    options: Annotated[list[Annotated[str, Field(min_length=1, max_length=25)]], Field(min_length=2, max_length=4)]
    duration_minutes: Annotated[int, Field(ge=5, le=10_080)]
    reply_settings: Audience | None = None


class Geo(_Part):
    """Location of a post."""

    place_id: Annotated[str, Field(max_length=100)]


class Edit(_Part):
    """Post that an edit replaces."""

    previous_post_id: Id


class Draft(_Part):
    """The body of POST /2/tweets."""

    text: Text = ""
    reply: Reply | None = None
    quote_tweet_id: Id | None = None
    media: Attached | None = None
    poll: Poll | None = None
    card_uri: Text | None = None
    direct_message_deep_link: Text | None = None
    geo: Geo | None = None
    reply_settings: Audience | None = None
    for_super_followers_only: bool | None = None
    nullcast: bool | None = None
    paid_partnership: bool | None = None
    made_with_ai: bool | None = None
    community_id: Id | None = None
    share_with_followers: bool | None = None
    edit_options: Edit | None = None


def create(platform: Simulator, call: Call) -> Answer:
    """POST /2/tweets."""
    draft = _draft(call.body)
    text = draft.text.strip()
    _check_words(platform, draft, text)
    if draft.quote_tweet_id is not None:
        refuse_by_tier(platform)
        reachable_post(platform, call.viewer, draft.quote_tweet_id)
    if draft.reply is not None:
        _check_reply(platform, call.viewer, draft.reply.in_reply_to_tweet_id)
    if draft.media is not None and not attachable(platform, call.viewer, draft.media.media_ids):
        raise platform.catalogue.refusal("not-permitted-action")
    previous = _editable(platform, call.viewer, draft)
    _check_new(platform, call.viewer, text, previous)
    post = _write(platform, call.viewer, draft, text, previous)
    data: dict[str, Any] = {"id": post.id, "text": post_text.shortened(post.text)}
    # 2.166 returns no edit history here, 2.167 names it after posts, and live X keeps the older name.
    if platform.config.generation == "2.167":
        data["edit_history_post_ids"] = post.edit_history
    elif platform.config.generation == "mixed":
        data["edit_history_tweet_ids"] = post.edit_history
    return Answer(201, {"data": data})


def _draft(body: Any) -> Draft:
    try:
        draft = Draft.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in found["loc"])[:100]
        raise invalid(f"The request body field [{name}] is not valid: {found['msg'][:200]}") from None
    given = [name for name in ("media", "poll", "quote_tweet_id", "card_uri") if getattr(draft, name) is not None]
    if draft.card_uri is not None and draft.direct_message_deep_link is not None:
        given += ["card_uri", "direct_message_deep_link"]
    if len(given) > 1:
        raise invalid(f"The request body fields [{','.join(dict.fromkeys(given))}] are mutually exclusive")
    if not given and not draft.text.strip():
        raise invalid("The request body must have text, media, a poll, a card or a quoted post")
    return draft


def _check_words(platform: Simulator, draft: Draft, text: str) -> None:
    if post_text.weight(unicodedata.normalize("NFC", text)) > post_text.LONGEST:
        raise platform.catalogue.refusal("not-permitted-action")
    if platform.config.tier != "enterprise" and post_text.cashtags(draft.text) > 1:
        raise platform.catalogue.refusal("cashtag-limit")


def _check_reply(platform: Simulator, viewer: User, target_id: str) -> None:
    """Check that the reply's target exists, that its author allows the reply, and, in some tiers, a summons."""
    world = platform.world
    target = world.live_post(target_id)
    if target is None or not world.may_see_user(viewer, world.users[target.author_id]):
        raise platform.catalogue.refusal("reply-target-gone")
    if target.author_id == viewer.id:
        return
    if platform.config.tier != "enterprise" and not _summoned(platform, viewer, target):
        raise platform.catalogue.refusal(platform.config.reply_refusal)
    allowed = {
        "everyone": True,
        "mentionedUsers": viewer.id in target.mentions,
        "following": viewer.id in target.mentions or world.follows_openly(target.author_id, viewer.id),
        "verified": viewer.id in target.mentions or viewer.verified,
        "subscribers": viewer.id in target.mentions,
    }
    if not allowed[target.reply_settings]:
        raise platform.catalogue.refusal("reply-not-allowed")


def _summoned(platform: Simulator, viewer: User, target: Post) -> bool:
    """Return whether the target mentions the account or quotes one of its posts."""
    quoted = platform.world.posts.get(target.quote_tweet_id or "")
    return viewer.id in target.mentions or (quoted is not None and quoted.author_id == viewer.id)


def _editable(platform: Simulator, viewer: User, draft: Draft) -> Post | None:
    """Return the edited post; None for a new one. X's refusal of an edit is undocumented, so a switch selects it."""
    if draft.edit_options is None:
        return None
    world = platform.world
    post = world.live_post(draft.edit_options.previous_post_id)
    first = world.posts.get(post.edit_history[0]) if post else None
    if post is None or first is None:
        raise switched_refusal(platform, platform.config.edit_refusal)
    target = world.posts.get(post.in_reply_to_tweet_id or "")
    ends_at = first.created_at + timedelta(seconds=platform.config.edit_window_s)
    mine = post.author_id == viewer.id and viewer.premium and post.edit_history[-1] == post.id
    fixed = post.poll is not None or draft.poll is not None or post.community_id is not None
    to_others = target is not None and target.author_id != viewer.id
    over = platform.clock.now() >= ends_at or len(post.edit_history) > EDITS
    if not mine or fixed or to_others or over:
        raise switched_refusal(platform, platform.config.edit_refusal)
    return post


def _check_new(platform: Simulator, viewer: User, text: str, previous: Post | None) -> None:
    same = unicodedata.normalize("NFC", text)
    others = (post for post in platform.world.posts_of(viewer.id) if post is not previous)
    if text and any(unicodedata.normalize("NFC", post.text) == same for post in others):
        raise platform.catalogue.refusal("duplicate-post")


def _write(platform: Simulator, viewer: User, draft: Draft, text: str, previous: Post | None) -> Post:
    world, now = platform.world, platform.clock.now()
    post_id = world.new_id(now)
    history = [*previous.edit_history, post_id] if previous else [post_id]
    for version in history[:-1]:
        world.posts[version].edit_history = history
    names = post_text.mentions(text)
    replied_to = draft.reply.in_reply_to_tweet_id if draft.reply else None
    quoted = draft.quote_tweet_id
    # An edit changes the text, never the post that it replies to or quotes.
    if previous is not None:
        replied_to, quoted = previous.in_reply_to_tweet_id, previous.quote_tweet_id
    post = world.posts[post_id] = Post(
        id=post_id,
        author_id=viewer.id,
        text=text,
        created_at=now,
        in_reply_to_tweet_id=replied_to,
        quote_tweet_id=quoted,
        media_ids=list(draft.media.media_ids) if draft.media else [],
        poll=draft.poll.model_dump(exclude={"reply_settings"}) if draft.poll else None,
        previous_post_id=previous.id if previous else None,
        edit_history=history,
        reply_settings=draft.reply_settings or "everyone",
        mentions=[user.id for user in world.users.values() if user.username.lower() in names],
        community_id=draft.community_id,
    )
    return post


def delete(platform: Simulator, call: Call) -> Answer:
    """DELETE /2/tweets/{id}: delete all versions of the caller's post. 404 if deleted; plain 403 for others' posts."""
    post_id = call.ids["id"]
    post = platform.world.posts.get(post_id)
    if post is None or post.deleted:
        gone = platform.catalogue.refusal("not-found-404").answer
        named = {"detail": f"Could not find tweet with id: [{post_id}].", "resource_id": post_id, "value": post_id}
        return Answer(gone.status, gone.body | named)
    if post.author_id != call.viewer.id:
        raise platform.catalogue.refusal("missing-scope")
    for version in post.edit_history:
        platform.world.posts[version].deleted = True
    return Answer(200, {"data": {"deleted": True}})


ENDPOINTS = (
    Endpoint(
        "POST",
        "/2/tweets",
        SCOPES,
        create,
        "posts_per_15m",
        "posts_per_24h",
        "posts_per_24h",
        body=frozenset(Draft.model_fields),
    ),
    Endpoint("DELETE", "/2/tweets/{id}", SCOPES, delete, 50),
)
