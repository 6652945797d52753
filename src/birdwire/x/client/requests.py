"""A request to X and how its reply is to be read: the vocabulary that the client and the catalog share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ID_PATTERN = r"^[0-9]{1,19}$"
"""Ids of posts and users. In pydantic's engine `$` does not match before a trailing newline."""


Resource = Literal["post", "user"]
"""What X bills a read by: each post and each user that it returns."""


class XData(BaseModel):
    """The members of X's `data` that an answer passes on; other members are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


@dataclass(slots=True)
class XRequest:
    """A request to X's API: method, path below the base URL, and a JSON body or raw content of a type.

    `endpoint` is its name in X's documentation, method and path without ids, by which breaker and limits are kept.
    `repeatable`: sending it twice does no harm, as with every GET.
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
    """How to read X's reply to one request.

    `answer` selects what is passed on from `data`, or from the whole reply (`whole`); a `bare` success needs neither.
    `enterprise`: X does not offer this action at the self-serve access level. `recently_allowed`: X allowed it to this
    app recently, so a bare Forbidden is about the account or the post. `already` maps an old error code of X to the
    answer that it amounts to. `usual` is the body of most successes, byte for byte, and `expect` the answer in it.
    """

    answer: type[XData]
    enterprise: bool = False
    recently_allowed: bool = False
    about: str = "tweet"
    whole: bool = False
    bare: bool = False
    already: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    usual: bytes = b""


Ask = Callable[[XRequest, Reading], Awaitable[dict[str, Any]]]
"""Sends one request to X for the linked account, and returns its answer."""


class StaleError(Exception):
    """The key or its link has changed, or may have changed, since this call read them. Nothing was sent."""
