"""JSON Schemas (draft 2020-12) of requests and responses, made from the models that check them, and as strict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from birdwire.accounts.bodies import AuthTwitter
from birdwire.api.errors import TYPES, Whose
from birdwire.api.messages import REQUEST_ID_PATTERN
from birdwire.keys.rules import MAX_TEXT_LIMIT
from birdwire.x.catalog.post import PostTwitter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from birdwire.api.models import Body

PLACE = "#/components/schemas/"
_EXCLUSIVE = ("media", "poll", "quote_tweet_id", "card_uri")


def fixed(**properties: Any) -> dict[str, Any]:
    """Return a schema that constrains some members of an object, and allows any others."""
    return {"properties": properties, "additionalProperties": True}


def _without(*names: str) -> dict[str, Any]:
    """Return the schema of an object that has none of these members."""
    return fixed(**{name: {"not": {}} for name in names})


RULES: dict[type[BaseModel], dict[str, Any]] = {
    PostTwitter: {
        "if": _without(*_EXCLUSIVE),
        "then": {"required": ["text"]} | fixed(text={"pattern": r"[^\s\u0085]"}),
        "dependentSchemas": {
            "media": _without("poll", "quote_tweet_id", "card_uri"),
            "poll": _without("quote_tweet_id", "card_uri"),
            "card_uri": _without("quote_tweet_id", "direct_message_deep_link"),
        },
    }
}
"""The rules of a model's validators: text is required unless something else is posted, and some fields exclude
others."""

NARROWER: dict[tuple[type[BaseModel], str], dict[str, Any]] = {
    (PostTwitter, "text"): {"maxLength": MAX_TEXT_LIMIT, "pattern": r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"},
}
"""The constraints of a field that are checked in code."""

_ID = "1346889436626259968"
EXAMPLES: dict[str, Any] = {
    "tweet_id": _ID,
    "target_user_id": "2244994945",
    "scopes": ["like.write"],
    "expected_username": "ada",
    # The gateway's own URL.
    "return_to": "http://127.0.0.1:8700",
    "state": "kZ3vJ0pXc1yq",
    "username": "ada",
    "undo_token": "b0x9mJ3rT5",
    "text": "Hello, world!",
    "reply": {"in_reply_to_tweet_id": _ID},
    "in_reply_to_tweet_id": _ID,
    "auto_populate_reply_metadata": True,
    "exclude_reply_user_ids": ["2244994945"],
    "quote_tweet_id": _ID,
    "media": {"media_ids": ["1146654567674912769"]},
    "media_ids": ["1146654567674912769"],
    "tagged_user_ids": ["2244994945"],
    "poll": {"options": ["Tea", "Coffee"], "duration_minutes": 60},
    "options": ["Tea", "Coffee"],
    "duration_minutes": 60,
    "reply_settings": "following",
    "card_uri": "card://1346889436626259968",
    "direct_message_deep_link": "https://twitter.com/messages/compose?recipient_id=2244994945",
    "geo": {"place_id": "5a110d312052166f"},
    "place_id": "5a110d312052166f",
    "for_super_followers_only": False,
    "nullcast": False,
    "paid_partnership": False,
    "made_with_ai": True,
    "community_id": "1493446837214187523",
    "share_with_followers": True,
    "edit_options": {"previous_post_id": _ID},
    "previous_post_id": _ID,
    "userName": "ada",
    "userId": "2244994945",
    "cursor": "7140dibdnow9c7btw4b2n4",
    "query": "ada lovelace",
    "verdict": "approve",
    "payload_sha256": "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c",
    "note": "Not our tone",
}
"""An example of every field that a body or a query may have."""


class Upstream(BaseModel):
    """X's own error, shortened."""

    model_config = ConfigDict(extra="forbid")

    status: int = Field(description="X's HTTP status")
    type: str = Field(description="X's problem type, or empty")
    title: str = Field(description="X's title, or empty")
    detail: str = Field(description="X's explanation, or empty")


class Finding(BaseModel):
    """What one rule of a policy has against a call."""

    model_config = ConfigDict(extra="forbid")

    rule: str = Field(description="the rule, such as links")
    outcome: Literal["deny", "require_approval"] = Field(description="what the rule demands")
    reason: str = Field(description="the reason of the refusal if this finding alone decided")
    message: str = Field(description="what the rule found, for people")
    scope: str = Field(description="whose policy it is: a key's id, account:USER_ID, or gateway")
    version: int = Field(description="the version of the policy")


class Refusal(BaseModel):
    """The cause of a refusal, and the next step. Branch on `reason` or `code`; show `message` and `fix` to people."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="the type of refusal, derived from the status")
    code: str = Field(description="the published code; several reasons share one")
    message: str = Field(description="what is wrong, for people")
    request_id: str = Field(description="identifies this call in the logs", pattern=REQUEST_ID_PATTERN)
    reason: str = Field(description="the exact reason, one of a closed set")
    fix: str = Field(description="what to do about it, for people")
    whose: Whose = Field(description="the party that can fix it or that made the rule")
    retryable: bool = Field(description="whether the same call may succeed later")
    upstream: Upstream | None = Field(None, description="X's own error, if X responded")
    findings: list[Finding] | None = Field(None, description="everything that policies have against the call, if any")


class Error(BaseModel):
    """The body of every refusal."""

    model_config = ConfigDict(extra="forbid")

    error: Refusal


def components(
    requests: Iterable[type[Body]],
    responses: Iterable[type[BaseModel]],
    scopes: Iterable[str] = (),
    base_url: str = EXAMPLES["return_to"],
) -> dict[str, Any]:
    """Return the schemas of all models by name. A request never contains null: it omits the member.

    `scopes` are those that a link may ask for; `base_url` is the gateway's own.
    """
    bodies = list(requests)
    configured = {
        (AuthTwitter, "scopes"): {"items": {"type": "string", "enum": sorted(scopes)}},
        (AuthTwitter, "return_to"): {"examples": [base_url]},
    }
    schemas = _schemas(bodies, nullable=False)
    for schema in schemas.values():
        for field, inner in schema.get("properties", {}).items():
            inner["examples"] = [EXAMPLES[field]]
    for model in bodies:
        schema = schemas[model.__name__]
        schema.update(RULES.get(model, {}))
        for (owner, name), more in (NARROWER | configured).items():
            if owner is model:
                schema["properties"][name].update(more)
    schemas |= _schemas(responses, nullable=True)
    error = _schemas([Error], nullable=False)
    error["Refusal"]["properties"]["type"]["enum"] = sorted({*TYPES.values(), "invalid_request_error"})
    return dict(sorted((schemas | error).items()))


def plain_schema(model: type[Body]) -> dict[str, Any]:
    """Return the schema of one body by itself: without references, null, titles and examples."""
    made = model.model_json_schema()
    parts = made.pop("$defs", {})

    def inlined(schema: Any) -> Any:
        if isinstance(schema, list):
            return [inlined(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            inner = parts[schema["$ref"].rpartition("/")[2]]
            return inlined({**inner, **{name: value for name, value in schema.items() if name != "$ref"}})
        return {name: inlined(value) for name, value in schema.items() if name != "examples"}

    found: dict[str, Any] = _clean(inlined(made), nullable=False)
    return {"properties": {}} | found


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to the schema of a model."""
    return {"$ref": PLACE + model.__name__}


def _schemas(models: Iterable[type[BaseModel]], *, nullable: bool) -> dict[str, Any]:
    unique = dict.fromkeys(models)
    _, made = models_json_schema([(model, "validation") for model in unique], ref_template=PLACE + "{model}")
    return {name: _clean(schema, nullable=nullable) for name, schema in made.get("$defs", {}).items()}


def _clean(schema: Any, *, nullable: bool) -> Any:
    """Return pydantic's schema without titles and defaults and, unless `nullable`, without null."""
    if isinstance(schema, list):
        return [_clean(item, nullable=nullable) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in {"title", "default", "properties"}}
    clean = {key: _clean(value, nullable=nullable) for key, value in kept.items()}
    if "properties" in schema:
        names: dict[str, Any] = schema["properties"]
        clean["properties"] = {name: _clean(inner, nullable=nullable) for name, inner in names.items()}
    if {"type": "null"} not in clean.get("anyOf", []):
        return clean
    only, *_ = (option for option in clean["anyOf"] if option != {"type": "null"})
    rest = {key: value for key, value in clean.items() if key != "anyOf"}
    return (_or_null(only) if nullable else only) | rest


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | more
