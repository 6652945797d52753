"""Failpoints: named places where a test can kill, fail or delay this process. Armed by a setting, sandbox only."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

Result = TypeVar("Result")

POINTS: dict[str, str] = {
    "refresh_before_claim": "the refresh token is about to be marked as presented",
    "refresh_after_claim": "the refresh token is marked, and nothing has been sent",
    "refresh_after_send": "the refresh token has been sent to X, and no response has arrived",
    "refresh_after_reply": "X's new token pair has arrived, and is not stored",
    "refresh_in_persist": "the new token pair is written, and not committed",
    "refresh_after_persist": "the new token pair is stored, and not used yet",
    "link_after_exchange": "X has returned a token pair for the authorization code, and it is not stored",
    "link_after_persist": "the token pair of a link is stored, and X has not named the account",
    "post_after_started": "a post is recorded as started, and not sent",
    "post_after_send": "a post has been sent to X, and no response has arrived",
    "asked_before_store": "a write needs a person, and is not stored",
    "asked_after_store": "a write waits for a person, and its caller is not answered",
    "decided_after_store": "a decision by a signed link is stored, and the page is not answered",
    "approved_before_claim": "an approved write is checked again, and not started",
    "approved_after_claim": "an approved write is recorded as started, and not sent",
    "approved_after_send": "an approved write has been sent to X, and no response has arrived",
    "approved_after_reply": "X's response to an approved write has arrived, and is not recorded",
    "approved_after_end": "the end of an approved write is recorded, and not reported",
    "rotation": "some values are re-encrypted, and not committed",
    "migration": "the schema is changed, and not committed",
}
"""Every failpoint, with the state at that place."""

SENT_WITHIN_S = 0.1
"""After this time a request has left. At a failpoint after a send, X must take longer: a test delays its reply."""

_FORM = re.compile(r"(?P<name>\w+)=(?P<action>kill|raise|delay\((?P<delay>\d+(\.\d+)?)\))(\*(?P<nth>\d{1,9}))?")
_MAX_DELAY_S = 600.0


class FailpointError(Exception):
    """Raised by a failpoint that is armed with `raise`."""


@dataclass(frozen=True, slots=True)
class _Action:
    """What happens at a failpoint: kill, raise or delay; only the `nth` time, or every time for 0."""

    kind: str
    delay_s: float
    nth: int


class Failpoints:
    """The armed failpoints of one process: `name=kill`, `name=raise` or `name=delay(SECONDS)`, comma-separated.

    With `*N` the action happens only the N-th time that the place is reached.
    """

    def __init__(self, setting: str = "") -> None:
        """Parse the setting; raise ValueError with the cause if it is malformed."""
        self._armed = dict(map(_read, filter(None, (part.strip() for part in setting.split(",")))))
        self._reached = dict.fromkeys(self._armed, 0)

    async def reach(self, name: str) -> None:
        """Run the failpoint's action, if it is armed."""
        if self._armed and (delay_s := self._happen(name)):
            await asyncio.sleep(delay_s)

    def reach_now(self, name: str) -> None:
        """Run the action where nothing can be awaited; a delay has no effect there."""
        if self._armed:
            self._happen(name)

    async def during(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        """Await work that sends a request; the failpoint is between the send and the response."""
        if name not in self._armed:
            return await work
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=SENT_WITHIN_S)
        await self.reach(name)
        return await task

    def _happen(self, name: str) -> float:
        """Kill or raise at an armed failpoint; otherwise return the seconds to wait there."""
        action = self._armed.get(name)
        if action is None:
            return 0.0
        self._reached[name] += 1
        if action.nth not in (0, self._reached[name]):
            return 0.0
        if action.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action.kind == "raise":
            raise FailpointError(name)
        return action.delay_s


def _read(part: str) -> tuple[str, _Action]:
    found = _FORM.fullmatch(part)
    if found is None or found["name"] not in POINTS:
        known = ", ".join(POINTS)
        raise ValueError(
            f"failpoints: {part!r:.60} is not POINT=kill, POINT=raise or POINT=delay(SECONDS); points: {known}"
        )
    delay_s = float(found["delay"] or 0)
    if delay_s > _MAX_DELAY_S:
        raise ValueError(f"failpoints: the maximum delay is {_MAX_DELAY_S:.0f} seconds")
    return found["name"], _Action(found["action"].partition("(")[0], delay_s, int(found["nth"] or 0))
