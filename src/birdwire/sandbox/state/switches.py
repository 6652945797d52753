"""The sandbox's switches: names, values and defaults. A change is applied completely or not at all."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Seconds = Annotated[int | float, Field(ge=0, le=315_360_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


class Switches(BaseModel):
    """The current behaviour of the simulated X. Immutable: `changed` returns a new one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    tier: Literal["enterprise", "self_serve_2026_04"] = "enterprise"
    tier_refusal: Literal["client-not-enrolled", "access-level-453", "forbidden", "not-permitted-feature"] = "forbidden"
    tier_refuses_deletes: bool = False
    reply_refusal: Literal["reply-not-allowed-new", "reply-not-allowed"] = "reply-not-allowed-new"
    refresh_mode: Literal["strict", "family_revoke", "grace", "parent_of_active"] = "strict"
    grace_s: Seconds = 30
    refresh_refusal: Literal["invalid_request", "invalid_grant"] = "invalid_request"
    access_token_s: Seconds = 7200
    code_s: Seconds = 30
    allow_plain: bool = True
    generation: Literal["2.166", "2.167", "mixed"] = "mixed"
    billing: Literal["ok", "credits_depleted", "spend_cap", "usage_cap", "user_not_enrolled"] = "ok"
    credits_form: Literal["credits-depleted-old", "credits-depleted-new"] = "credits-depleted-old"
    invisible: Literal["cannot-be-found", "not-authorized", "forbidden"] = "cannot-be-found"
    likes_per_15m: Count = 50
    likes_per_24h: Count = 1000
    posts_per_15m: Count = 100
    posts_per_24h: Count = 10_000
    limits: Annotated[dict[str, Count], Field(max_length=100)] = {}
    edit_window_s: Seconds = 3600
    edit_refusal: Literal["forbidden", "not-permitted-action", "not-permitted-feature"] = "forbidden"
    media_result: Literal["succeeded", "failed"] = "succeeded"
    media_processing_s: Seconds = 2
    date_skew_s: Annotated[int | float, Field(ge=-315_360_000, le=315_360_000)] = 0

    def changed(self, changes: dict[str, Any]) -> Switches:
        """Return a copy with these members changed; raise ValueError with every unknown name and invalid value."""
        try:
            return Switches.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            found = error.errors(include_url=False)
        faults = [_explained(one) for one in found]
        if any(one["type"] == "extra_forbidden" for one in found):
            faults.append(f"the known names are {', '.join(Switches.model_fields)}")
        raise ValueError("; ".join(faults))


def _explained(error: Any) -> str:
    """Describe one validation error in a short sentence that names the switch."""
    name = ".".join(str(part) for part in error["loc"][:2]) if error["loc"][:1] == ("limits",) else error["loc"][0]
    if error["type"] == "extra_forbidden":
        return f"unknown name {name!r}"
    return f"{name}: {error['msg']}"
