"""Request bodies of the link endpoints, as plain models that also describe the API."""

from __future__ import annotations

from pydantic import Field

from birdwire.api.models import Body


class AuthTwitter(Body):
    """Options of a new link."""

    scopes: list[str] = Field(
        default_factory=list,
        max_length=32,
        description='X scopes to request, such as ["like.write"]; default: all that the key can use',
    )
    expected_username: str | None = Field(
        None,
        pattern=r"^@?[A-Za-z0-9_]{1,15}$",
        description="the X account that must approve; any other account is refused",
    )
    return_to: str | None = Field(
        None,
        max_length=2_000,
        description="target of a button on the final page: a URL that the operator allowed for the key. The gateway's "
        "own URL is always allowed and shows no button",
    )


class Confirm(Body):
    """The link to confirm, and the account that you expect."""

    state: str = Field(min_length=1, max_length=500, description="the state that auth_twitter returned")
    username: str = Field(pattern=r"^@?[A-Za-z0-9_]{1,15}$", description="the X account that you expect")


class Undo(Body):
    """The token that undoes a link."""

    undo_token: str = Field(description="the one-time token from the page after the link")
