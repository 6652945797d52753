"""Named places at which a test may end, fail or delay this process: armed by a setting, towards the sandbox alone."""

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
    "refresh_after_claim": "it is marked, and nothing has been sent",
    "refresh_after_send": "it is on its way to X, and no answer has come",
    "refresh_after_reply": "X's new pair has come, and is not stored",
    "refresh_in_persist": "the new pair is written, and not committed",
    "refresh_after_persist": "the new pair is stored, and nobody has it",
    "link_after_exchange": "X has given a pair for the code, and it is not stored",
    "link_after_persist": "the pair of a link is stored, and X has not named the account",
    "post_after_started": "a post is written down as started, and not sent",
    "post_after_send": "a post is on its way to X, and no answer has come",
    "rotation": "some values are sealed again, and not committed",
    "migration": "the schema is changed, and not committed",
}
"""Every point, and how things stand there."""

SENT_WITHIN_S = 0.1
"""By then what is sent has left. For a point after a send X must take longer: a test lets its reply trickle."""

_FORM = re.compile(r"(?P<name>\w+)=(?P<action>kill|raise|delay\((?P<delay>\d+(\.\d+)?)\))(\*(?P<nth>\d{1,9}))?")
_LONGEST_DELAY_S = 600.0


class FailpointError(Exception):
    """A failpoint fails, as it was told to."""


@dataclass(frozen=True, slots=True)
class _Action:
    kind: str  # kill, raise or delay
    delay_s: float
    nth: int  # only at this time; 0: every time


class Failpoints:
    """The armed points of one process, if any: `name=kill`, `name=raise` or `name=delay(SECONDS)`, by commas.

    With `*N` it happens only the N-th time that the place is reached.
    """

    def __init__(self, setting: str = "") -> None:
        """Raise ValueError, saying why, if it cannot be read."""
        self._armed = dict(map(_read, filter(None, (part.strip() for part in setting.split(",")))))
        self._reached = dict.fromkeys(self._armed, 0)

    async def reach(self, name: str) -> None:
        """Pass the point, or have happen there what was asked for."""
        if self._armed and (delay_s := self._happen(name)):
            await asyncio.sleep(delay_s)

    def reach_now(self, name: str) -> None:
        """The same where nothing can be awaited; a delay is none there."""
        if self._armed:
            self._happen(name)

    async def during(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work that sends something; the point is between that and its answer."""
        if name not in self._armed:
            return await work
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=SENT_WITHIN_S)
        await self.reach(name)
        return await task

    def _happen(self, name: str) -> float:
        """Kill or fail at an armed point; else for how many seconds to wait there."""
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
        raise ValueError(f"failpoints: {part!r:.60} is not POINT=kill, raise or delay(SECONDS), with POINT of {known}")
    delay_s = float(found["delay"] or 0)
    if delay_s > _LONGEST_DELAY_S:
        raise ValueError(f"failpoints: a delay is {_LONGEST_DELAY_S:.0f} seconds at most")
    return found["name"], _Action(found["action"].partition("(")[0], delay_s, int(found["nth"] or 0))
