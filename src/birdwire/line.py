"""The line to X of one call: what is asked, with what token, how often and for how long. Never a word to the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.errors import GatewayError
from birdwire.x import Unauthorized

if TYPE_CHECKING:
    from birdwire.clock import Clock
    from birdwire.operations import XRequest
    from birdwire.sessions import Sessions, XSession
    from birdwire.x import Reading, X


class Line:
    """One call's way to X: its session, renewed once if X answers 401."""

    def __init__(self, session: XSession, sessions: Sessions, x: X, clock: Clock, deadline_s: float) -> None:
        self._session = session
        self._sessions = sessions
        self._x = x
        self._clock = clock
        self._deadline_s = deadline_s
        self._renewed = False

    @property
    def user_id(self) -> str:
        """The linked account."""
        return self._session.user_id

    async def ask(self, request: XRequest, reading: Reading) -> dict[str, Any]:
        """Ask X; on a 401, which was not applied, once more with a new token. After a second 401 the link stays.

        Raises:
            GatewayError: X's refusal, or why it could not be asked.
        """
        ends_at = self._clock.monotonic() + self._deadline_s
        try:
            return await self._x.call(self._session.access_token, request, reading, self._deadline_s)
        except Unauthorized as error:
            if self._renewed:
                raise self._give_up(error) from None
            upstream = error.upstream
        self._session, self._renewed = await self._sessions.renew(self._session, upstream), True
        left_s = max(1.0, ends_at - self._clock.monotonic())
        try:
            return await self._x.call(self._session.access_token, request, reading, left_s)
        except Unauthorized as error:
            raise self._give_up(error) from None

    def _give_up(self, error: Unauthorized) -> GatewayError:
        self._sessions.hold_off(self._session)
        account = f"@{self._session.username}"
        return GatewayError("x_session_expired", account=account, outcome="refused", upstream=error.upstream)
