"""The users and posts of a new sandbox. Their ids are fixed, so that examples keep working."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from birdwire.sandbox.state.world import Post, User, World, snowflake_time

# A post by grace, which the examples like.
VISIBLE_POST_ID = "1346889436626259968"
# A deleted post by grace.
DELETED_POST_ID = "1346889436626259969"
# A post by pat, whose posts only followers can see.
PROTECTED_POST_ID = "1445880548472328192"
# A post by gus, who is suspended.
SUSPENDED_POST_ID = "1445880548472328193"
OTHER_USER_ID = "2244994946"
OTHER_USERNAME = "grace"


@dataclass(frozen=True)
class Person:
    """One user of the seed, with posts as (id, text)."""

    id: str
    username: str
    name: str
    description: str
    posts: tuple[tuple[str, str], ...]
    protected: bool = False
    suspended: bool = False


PEOPLE = (
    Person(
        "2244994945",
        "ada",
        "Ada",
        "Notes on the engine.",
        (
            ("1346889436626259840", "The engine weaves algebraic patterns as the loom weaves flowers and leaves."),
            ("1501258611384852480", "Note G is done. It took a while."),
            ("1603419180975409153", "Good morning to everyone who reads the notes before the paper."),
        ),
    ),
    Person(
        OTHER_USER_ID,
        OTHER_USERNAME,
        "Grace",
        "It is easier to ask forgiveness.",
        (
            (VISIBLE_POST_ID, "Found an actual bug in the relay. Taped it into the log book."),
            (DELETED_POST_ID, "This one did not last."),
            ("1521943230163595264", "A ship in port is safe, but that is not what ships are built for."),
            ("1603419180975409154", "@ada I read the notes first. Of course I did."),
        ),
    ),
    Person(
        "2244994947",
        "alan",
        "Alan",
        "Counting, slowly.",
        (
            ("1376161898757156864", "We can only see a short distance ahead, but we can see plenty there to do."),
            ("1534567890123456512", "Running, then thinking. In this order today."),
        ),
    ),
    Person(
        "2244994948",
        "pat",
        "Pat",
        "Friends only.",
        (
            (PROTECTED_POST_ID, "Only my followers read this."),
            ("1545880548472328192", "And this, too."),
        ),
        protected=True,
    ),
    Person(
        "2244994949",
        "gus",
        "Gus",
        "",
        (
            (SUSPENDED_POST_ID, "Buy now!"),
            ("1545880548472328193", "Last chance!"),
        ),
        suspended=True,
    ),
)


def plant(world: World) -> None:
    """Restore the seed's users and posts in the world; leave everything else unchanged."""
    joined_at = datetime(2013, 12, 14, 4, 35, 55, tzinfo=UTC)
    for person in PEOPLE:
        world.users[person.id] = User(
            id=person.id,
            username=person.username,
            name=person.name,
            description=person.description,
            created_at=joined_at,
            protected=person.protected,
            suspended=person.suspended,
            pinned_tweet_id=person.posts[0][0],
        )
        for post_id, text in person.posts:
            mentions = [other.id for other in PEOPLE if f"@{other.username}" in text]
            world.posts[post_id] = Post(
                id=post_id,
                author_id=person.id,
                text=text,
                created_at=snowflake_time(post_id),
                deleted=post_id == DELETED_POST_ID,
                edit_history=[post_id],
                mentions=mentions,
            )
