"""A request to X and how its reply is to be read: the vocabulary that the client and the catalog share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ID_PATTERN = r"^[0-9]{1,19}$"
"""Ids of posts and users. pydantic's engine knows no trailing-newline exception, so this matches whole strings only."""


class XData(BaseModel):
    """The members of X's `data` that an answer passes on; X's other members are left out."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


@dataclass(slots=True)
class XRequest:
    """A call to X's API: method, path below the base URL, and a JSON body or raw content of a type.

    `endpoint` names it as X's documentation does, by method and path without ids: breaker and limits go by it.
    `repeatable`: a second send does no harm, as with every GET.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    json: dict[str, Any] | None = None
    content: bytes = field(default=b"", repr=False)
    content_type: str = ""
    endpoint: str = ""
    repeatable: bool = False


@dataclass(slots=True)
class Reading:
    """How to read X's answer to one call.

    `answer` picks what is passed on from `data`, or from the whole reply (`whole`); a `bare` success needs neither.
    `enterprise`: X keeps this action from the self-serve access level; `lately_allowed`: it let this app do it not
    long ago, so a bare Forbidden is about the account or the post. `already` maps an old code of X to the answer it
    amounts to.
    """

    answer: type[XData]
    enterprise: bool = False
    lately_allowed: bool = False
    about: str = "tweet"
    whole: bool = False
    bare: bool = False
    already: Mapping[int, dict[str, Any]] = field(default_factory=dict)


Ask = Callable[[XRequest, Reading], Awaitable[dict[str, Any]]]
"""Sends one call to X for the linked account."""
