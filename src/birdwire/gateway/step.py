"""Step: one step of a write, under a name, and what each runner of the list does with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from birdwire.api.messages import Answer

Write = TypeVar("Write")
"""The state of one write (`gateway.sender.Write`)."""

Approved = TypeVar("Approved")
"""The same of a write that waited for a person (`gateway.sender.ApprovedWrite`)."""

Run = Callable[[Write], Awaitable[None] | None]
"""One step of one write. A step that has to wait returns what to wait for."""


class Step(NamedTuple, Generic[Write, Approved]):
    """One step of a write, under a name: what it does, and its check, `look`, which has no effect.

    `needs` are the members of the write that must be known for the check. A step without one refuses only by what the
    earlier steps created. A step `for_files` is left out of a write without files.

    Of a write that waited for a person: a step that is done `once` was done when the write was asked for. `again` is
    what the step does before the write is sent, if that is not `do`. A step of `rules` does not hold what the operator
    ordered.
    """

    name: str
    do: Run[Write]
    look: Run[Write] | None = None
    needs: tuple[str, ...] = ()
    for_files: bool = False
    once: bool = False
    rules: bool = False
    again: Run[Approved] | None = None


class AwaitingApproval(Exception):  # noqa: N818 - it ends the steps of a write, and is not a failure
    """Raised when a write waits for a person. `answer` is that of the call; nothing else is recorded."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
