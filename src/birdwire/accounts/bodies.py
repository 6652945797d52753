"""Request bodies of the link endpoints, as plain models that also describe the API."""

from __future__ import annotations

from pydantic import Field

from birdwire.api.body import Body


class AuthTwitter(Body):
    """What a link may be narrowed to."""

    scopes: list[str] = Field(
        default_factory=list,
        max_length=32,
        description='X scopes to ask for, such as ["like.write"]; all that the key can use, if left out',
    )
    expected_username: str | None = Field(
        None, pattern=r"^@?[A-Za-z0-9_]{1,15}$", description="the X account that must approve; any other is refused"
    )
    return_to: str | None = Field(
        None,
        max_length=2_000,
        description="where a button on the last page leads: a URL that the operator allowed for the key. The gateway's "
        "own URL is always allowed, and shows no button",
    )


class Confirm(Body):
    """Which link to put in use, and as whom."""

    state: str = Field(min_length=1, max_length=500, description="the state that auth_twitter answered")
    username: str = Field(pattern=r"^@?[A-Za-z0-9_]{1,15}$", description="the X account that is meant")


class Undo(Body):
    """What ends a link that was not meant."""

    undo_token: str = Field(description="the one-time token of the page after the link")
