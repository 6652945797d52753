"""A random walk over HTTP against a small model: links, likes, posts, lost answers, ends of tokens, keys and processes.

FAULTS_STEPS sets how many steps are taken in all; a failing walk prints the steps that lead there.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from harness.fault_scale import record, scaled
from harness.gateway import RunningGateway, gateway, serving

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import httpx2

Result = TypeVar("Result")

STEPS = scaled("STEPS", 200, 20_000)
STEPS_EACH = 25
USERS = {"ada": "2244994945", "alan": "2244994947"}
TARGETS = ("1346889436626259968", "1521943230163595264")
TEXTS = ("one", "two", "three & four")
UNBOUND = {"likes_per_15m": 1_000_000, "likes_per_24h": 1_000_000, "posts_per_15m": 1_000_000}
LOST: dict[str, dict[str, Any] | None] = {
    "answered": None,
    "lost after": {"drop": "after_apply"},
    "lost before": {"drop": "before_apply"},
    "refused for now": {"error": "rate-limited"},
}


@dataclass
class Model:
    """What should be: at X by account, and of the key."""

    linked: str | None = None
    revoked: bool = False
    likes: set[tuple[str, str]] = field(default_factory=set)
    posts: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in USERS})
    lost: dict[str, bool] = field(default_factory=dict)

    @property
    def refuses(self) -> tuple[int, str] | None:
        """Status and reason of any call that needs the account."""
        if self.revoked:
            return 401, "key_revoked"
        return (403, "x_not_linked") if self.linked is None else None


class Walk(RuleBasedStateMachine):
    """The steps. Servers run in a loop of the machine's own, which stands still between them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.folder = tempfile.TemporaryDirectory()
        self.stack = contextlib.AsyncExitStack()
        self.process = contextlib.AsyncExitStack()
        self.names = 0
        self.run(self._begin())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something in the loop."""
        return self.runner.run(work)

    async def _begin(self) -> None:
        self.sandbox = create_sandbox()
        self.x_url = await self.stack.enter_async_context(serving(sandbox_config(self.sandbox)))
        await self._start()
        await self.running.configure(**UNBOUND)
        await self._new_key()

    async def _start(self) -> None:
        made = gateway(Path(self.folder.name), self.sandbox, self.x_url, self.process)
        self.running: RunningGateway = await self.process.enter_async_context(made)

    async def _new_key(self) -> None:
        key, raw_key = await self.running.gateway.keys.create("test", "walk", "custom", 1_000_000)
        self.key_id, self.raw_key = key.key_id, raw_key
        self.running.client.headers["authorization"] = f"Bearer {raw_key}"
        self.model.linked, self.model.revoked = None, False

    def teardown(self) -> None:
        """End everything."""
        self.run(self.process.aclose())
        self.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    def call(self, name: str, body: dict[str, Any], **headers: str) -> httpx2.Response:
        """One call of the key's holder."""
        return self.run(self.running.call(name, body, headers=headers))

    @initialize()
    def begin_linked(self) -> None:
        """Most walks are to lead somewhere."""
        self.link("ada")

    @rule(username=st.sampled_from(sorted(USERS)))
    def link(self, username: str) -> None:
        """Have somebody approve; the key keeps its account unless it was unlinked."""
        if self.model.revoked:
            assert self.call("auth_twitter", {}).status_code == 401
            return
        answer = self.run(self.running.link(username))
        if self.model.linked in (None, username):
            assert answer.status_code == 200
            self.model.linked = username
        else:
            assert answer.status_code == 409

    @rule()
    def unlink(self) -> None:
        """Nothing is linked any more, whether it was or not."""
        answer = self.call("unlink_twitter", {})
        if self.model.revoked:
            assert answer.status_code == 401
        else:
            assert answer.json() == {"data": {"linked": False}}
            self.model.linked = None

    @rule(tweet_id=st.sampled_from(TARGETS), on=st.booleans(), lost=st.booleans())
    def react(self, tweet_id: str, on: bool, lost: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """Like or unlike; an answer that is lost is asked for again by the gateway itself."""
        path = "/2/users/*/likes" + ("" if on else "/*")
        if lost and not self.model.refuses:
            self.run(self.running.fault("POST" if on else "DELETE", path, {"drop": "after_apply"}))
        answer = self.call("like_twitter" if on else "unlike_twitter", {"tweet_id": tweet_id})
        if self.expected(answer):
            assert answer.json() == {"data": {"liked": on}}
            mark = USERS[str(self.model.linked)], tweet_id
            (self.model.likes.add if on else self.model.likes.discard)(mark)

    @rule(text=st.sampled_from(TEXTS), how=st.sampled_from(sorted(LOST)))
    def post(self, text: str, how: str) -> None:
        """Post under a new name; X takes a text once from an account."""
        self.names += 1
        do, name = LOST[how], f"walk {self.names}"
        if do is not None and not self.model.refuses:
            self.run(self.running.fault("POST", "/2/tweets", do))
        answer = self.call("post_twitter", {"text": text}, **{"idempotency-key": name})
        self.run(self.running.x.delete("/_sandbox/faults"))
        if not self.expected(answer, also=(409, 429, 502)):
            return
        posts = self.model.posts[str(self.model.linked)]
        if how == "refused for now":
            assert answer.status_code == 429
            self.wait(901)  # until then X would not be called again
        elif how == "lost before":
            assert answer.json()["error"]["reason"] == "outcome_unknown"
        elif text in posts:
            assert answer.status_code == 409 if do is None else 502
        else:
            assert answer.status_code == (201 if do is None else 502)
            posts.add(text)

    @precondition(lambda self: not self.model.refuses)
    @rule(text=st.sampled_from(TEXTS))
    def post_twice_under_one_name(self, text: str) -> None:
        """The second call hears what the first one heard."""
        self.names += 1
        first, second = (
            self.call("post_twitter", {"text": text}, **{"idempotency-key": f"walk {self.names}"}) for _ in range(2)
        )
        assert (first.status_code, first.content) == (second.status_code, second.content)
        assert second.headers["idempotent-replayed"] == "true"
        self.model.posts[str(self.model.linked)].add(text)

    @rule()
    def let_tokens_end(self) -> None:
        """Two hours go by for everybody: the next call renews."""
        self.running.clock.advance(hours=2, minutes=1)
        self.run(self.running.advance_x(7_260))

    @rule(seconds=st.integers(1, 90))
    def wait(self, seconds: int) -> None:
        """Time goes by, and lost posts are looked for."""
        self.running.clock.advance(seconds=seconds)
        self.run(self.running.advance_x(seconds))
        self.run(self.running.gateway.reconciler.round())

    @rule(sure=st.integers(0, 3))
    def revoke(self, sure: int) -> None:
        """The key ends, now and then; what it had linked ends with it."""
        if not self.model.revoked and sure == 3:
            self.run(self.running.gateway.keys.revoke(self.key_id))
            self.model.revoked = True

    @precondition(lambda self: self.model.revoked)
    @rule()
    def give_a_new_key(self) -> None:
        """The key has no linked account."""
        self.run(self._new_key())

    @rule()
    def restart(self) -> None:
        """Another process on the same files; it has no memory of what was."""
        added, raw_key = self.running.clock.added, self.raw_key
        self.run(self.process.aclose())
        self.process = contextlib.AsyncExitStack()
        self.run(self._start())
        self.running.clock.added = added
        self.running.client.headers["authorization"] = f"Bearer {raw_key}"

    def expected(self, answer: httpx2.Response, also: tuple[int, ...] = ()) -> bool:
        """Whether the call was served, or failed as the model says."""
        refusal = self.model.refuses
        if refusal is None:
            assert answer.status_code in (200, 201, *also), answer.text
            return True
        assert (answer.status_code, answer.json()["error"]["reason"]) == refusal
        return False

    @invariant()
    def x_is_as_the_model_says(self) -> None:
        """Likes and posts of every account, each text once."""
        state = self.run(self.running.state())
        likes = {(one["user_id"], one["tweet_id"]) for one in state["likes"] if one["tweet_id"] in TARGETS}
        assert likes == self.model.likes
        for name, user_id in USERS.items():
            mine = [one["text"] for one in state["posts"] if one["author_id"] == user_id and one["text"] in TEXTS]
            assert sorted(mine) == sorted(self.model.posts[name])

    @invariant()
    def the_gateway_says_what_is_linked(self) -> None:
        """auth/status, as the model has it."""
        if not self.model.revoked:
            status = self.run(self.running.status())
            assert (status["linked"], status["username"]) == (self.model.linked is not None, self.model.linked)


@pytest.mark.trust("G20")
@pytest.mark.timeout(120 + STEPS)
def test_a_random_walk_never_leaves_the_model() -> None:
    """Over HTTP, with restarts; a seed makes it the same walk each time unless it is a long one."""
    Walk.TestCase.settings = settings(
        max_examples=max(1, STEPS // STEPS_EACH),
        stateful_step_count=STEPS_EACH,
        deadline=None,
        derandomize=STEPS <= 1_000,
        database=None,
        phases=(Phase.generate,),  # to shrink a failing walk would take longer than the time it has
        suppress_health_check=list(HealthCheck),
    )
    case = Walk.TestCase()
    case.runTest()
    record("steps of random walks beside a model", runs=STEPS, left_the_model=0)
