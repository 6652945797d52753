"""The gateway's OpenAPI 3.1 document, made from the endpoints and PROBLEMS; promises no more than the code keeps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from birdwire import __version__
from birdwire.api.errors import PROBLEMS, GatewayError, render
from birdwire.api.paths import API
from birdwire.keys.rate_limit import WINDOW_S
from birdwire.surfaces.openapi.endpoints import BEYOND_SCHEMA, Endpoint, endpoints
from birdwire.surfaces.openapi.schemas import EXAMPLES, Error, components, fixed, reference
from birdwire.x.client.auth_server import offered_scopes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from birdwire.settings import Settings

_ALL = "The same as X-RateLimit-{}-Requests."
_COUNT: dict[str, Any] = {"type": "string", "pattern": "^[0-9]+$"}

HEADERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "X-Request-Id": (
        "Names this call in the gateway's logs.",
        {"type": "string", "pattern": "^req_[0-9A-HJKMNP-TV-Z]{26}$"},
        "req_01JD3K8W6ZQ4T5V7X9YABCDEFG",
    ),
    "X-RateLimit-Limit-Requests": (f"Calls that the key may make in {WINDOW_S} seconds.", _COUNT, "600"),
    "X-RateLimit-Remaining-Requests": ("How many of these calls are left.", _COUNT, "599"),
    "X-RateLimit-Reset-Requests": (
        f"When the oldest counted call leaves the {WINDOW_S} seconds: UNIX seconds.",
        _COUNT,
        "1790000000",
    ),
    "X-RateLimit-Limit": (_ALL.format("Limit"), _COUNT, "600"),
    "X-RateLimit-Remaining": (_ALL.format("Remaining"), _COUNT, "599"),
    "X-RateLimit-Reset": (_ALL.format("Reset"), _COUNT, "1790000000"),
    "RateLimit-Policy": ("The IETF draft's spelling of the limit.", {"type": "string"}, '"rpm";q=600;w=60'),
    "RateLimit": (
        "The IETF draft's spelling of what is left; t: seconds.",
        {"type": "string"},
        '"rpm";r=599;t=60',
    ),
    "X-RateLimit-Degraded": (
        "Replicas could not reach their shared counters: the limit shown is this replica's share.",
        {"type": "string", "const": "local"},
        "local",
    ),
    "WWW-Authenticate": ("How to authenticate (RFC 9110 §11.6.1).", {"type": "string", "const": "Bearer"}, "Bearer"),
    "Retry-After": (
        "Whole seconds to wait before the next attempt, at least 1.",
        {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "60",
    ),
    "Idempotency-Key": (
        "Made by Birdwire for a call without one.",
        {"type": "string"},
        "idem_01JD3K8W6ZQ4T5V7X9YABCDEFG",
    ),
    "Idempotent-Replayed": ("The stored response to the first call.", {"type": "string", "const": "true"}, "true"),
}
"""Every header that a response may have in addition to HTTP's own: its meaning, its form, an example."""

_DEGRADED = "X-RateLimit-Degraded"
_ALLOWANCE = tuple(name for name in HEADERS if "RateLimit" in name and name != _DEGRADED)

TITLES = {
    400: "What was sent cannot be used",
    401: "No usable API key",
    403: "Not allowed for this key or for its linked account",
    404: "It does not exist, or is not visible to the linked account",
    405: "The path does not accept this method",
    408: "The request did not arrive in time",
    409: "In conflict with the present state",
    413: "The body is too large",
    414: "The path and query are too long",
    415: "The type of the body is not accepted",
    429: "A limit of Birdwire's or X's is used up",
    431: "The headers are too many or too large",
    500: "Something broke inside Birdwire",
    502: "X failed, could not be reached, or did not report the outcome",
    503: "Temporarily unavailable",
}

PLACEHOLDERS: dict[str, Any] = {
    "account": "@ada",
    "edits": "",
    "detail": "it has the wrong form",
    "example": '{"tweet_id": "1346889436626259968"}',
    "expected": "@ada",
    "expired": "2026-09-18T00:00:00Z",
    "field": "tweetid",
    "fields": "media and poll",
    "given": "bw_test_",
    "half": "nothing was asked of X",
    "how": "Send `Content-Type: application/json` and an uncompressed UTF-8 body",
    "kind": "image/png",
    "known": "tweet_id",
    "length": "281",
    "limit": "280",
    "message": "it gave no reason.",
    "method": "GET",
    "period": "monthly",
    "remedy": "Try again in a minute",
    "reset": "at 2026-09-18T00:15:00Z",
    "reset_date": "2026-10-01",
    "scope": "like.write",
    "serves": "bw_live_ keys",
    "target": "tweet_id",
    "username": "grace",
    "wanted": "JSON, as Content-Type: application/json",
    "what": "post_twitter",
    "why": "X has not yet said which account approved it",
}
"""What examples of refusals say where the true ones say what happened."""

_INTRODUCTION = """\
A self-hosted gateway through which an app or an AI agent acts on X for a person, with one API key.

**Key.** Every call carries `Authorization: Bearer <API key>`; the X account that acts is the one linked to the key. \
Link it once: `POST {api}/auth_twitter`, then have the account's owner open the `auth_url` it returns.

**Bodies** are one JSON object in UTF-8. Unknown fields, fields sent twice and null are refused; ids are strings \
of 1 to 19 digits. Paths are exact: no trailing slash.

**Refusals** have one shape, {error}. `reason` names the exact cause, `fix` what to do, `whose` who can do it. A \
path that is not listed here is 404 `route_unknown`; a listed one with another method is 405 `method_not_allowed` with \
`Allow`, except for HEAD, which documents, `/livez`, `/readyz` and the callback answer.

**Limits** are per key, per {window} seconds; every response to a valid key carries them in its headers. 429 and 503 \
carry `Retry-After`.

**Repeating** is safe for all calls but post_twitter and upload_media. Give any POST an `Idempotency-Key`: for 24 \
hours the same key with the same body gets the response of the first call, with `Idempotent-Replayed: true`. For a \
post or upload without one, Birdwire makes one and returns it in that header."""

_RELAY = """\


**Older clients.** A body (JSON, urlencoded or multipart) with the field `aisa_api_key` uses the relay dialect: \
that field is the key, and a key in the header must be the same one. Then `content` may stand for `text`, top-level \
`media_ids` and `in_reply_to_tweet_id` for their places in `media` and `reply`, parts named `media_files` are \
attached to the post, `callback_url` and `type` are ignored, and a success is always 200 \
`{"code": 200, "msg": "ok", "data": {…}}`. The same calls are also answered without `/twitter` in the path. Neither is \
listed below: new clients do not need them."""


def document(settings: Settings) -> dict[str, Any]:
    """The whole document of a gateway with these settings."""
    listed = endpoints(settings)
    paths: dict[str, Any] = {}
    shared = _Shared()
    for endpoint in listed:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, shared)
    text = _INTRODUCTION.format(api=API, error="`Error`", window=WINDOW_S)
    taken = [endpoint.takes for endpoint in listed if _has_body(endpoint) and not endpoint.files]
    said = [endpoint.answer for endpoint in listed if endpoint.answer is not None]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Birdwire",
            "version": __version__,
            "summary": "Act on X for a person, with one API key.",
            "description": text + (_RELAY if settings.relay_dialect else ""),
            "contact": {"name": "The operator of this gateway"},
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": settings.base_url}],
        "tags": [
            {"name": "Link", "description": "Link an X account to a key, and unlink it."},
            {"name": "Act", "description": "Act on X as the linked account."},
            {"name": "Read", "description": "Look things up on X as the linked account."},
            {"name": "About", "description": "The gateway about itself; these need no key."},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "ApiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A Birdwire API key, bw_live_… or bw_test_….",
                }
            },
            "schemas": components(taken, said, offered_scopes(settings), settings.base_url),
            "headers": shared.headers,
            "responses": shared.responses,
        },
    }


def by_status(reasons: Iterable[str]) -> dict[int, list[str]]:
    """Reasons in their order, by the status that they have."""
    found: dict[int, list[str]] = {}
    for reason in dict.fromkeys(reasons):
        found.setdefault(PROBLEMS[reason].status, []).append(reason)
    return dict(sorted(found.items()))


class _Shared:
    """Headers and responses by reference: each stands once in the document."""

    def __init__(self) -> None:
        self.headers: dict[str, Any] = {}
        self.responses: dict[str, Any] = {}

    def refusal(self, endpoint: Endpoint, status: int, reasons: list[str]) -> dict[str, str]:
        """Return a reference to the response of one status, with the reasons that the endpoint may have for it."""
        required = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}.get(status, [])
        optional = (*_ALLOWANCE, _DEGRADED) if endpoint.keyed else ()
        if {"idempotency_in_flight", "x_breaker_open", "x_renewal_failed"} & set(reasons):
            optional += ("Retry-After",)
        example = render(GatewayError(reasons[0], **PLACEHOLDERS), HEADERS["X-Request-Id"][2]).value
        content: dict[str, Any] = {"application/json": {"schema": _narrowed(reasons), "example": example}}
        if endpoint.page:
            content["text/html"] = {"schema": {"type": "string"}}
        response = {
            "description": f"{TITLES[status]}: {', '.join(reasons)}.",
            "headers": self.header_references(("X-Request-Id", *required), optional),
            "content": content,
        }
        number = 1
        name = f"Refused{status}"
        while self.responses.setdefault(name, response) != response:
            number += 1
            name = f"Refused{status}_{number}"
        return {"$ref": f"#/components/responses/{name}"}

    def header_references(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
        """Return references to these headers."""
        return {name: self._header(name, name, required=True) for name in required} | {
            name: self._header(name, f"Optional-{name}", required=False) for name in optional
        }

    def _header(self, name: str, place: str, *, required: bool) -> dict[str, str]:
        words, schema, example = HEADERS[name]
        header = {"description": words, "required": required, "schema": schema, "example": example}
        self.headers.setdefault(place, header)
        return {"$ref": f"#/components/headers/{place}"}


def _narrowed(reasons: list[str]) -> dict[str, Any]:
    """Return the schema of an error with one of these reasons.

    Generators of clients follow the reference and ignore what stands next to it, so that they make one type of error.
    """
    problems = [PROBLEMS[reason] for reason in reasons]
    narrowed = fixed(
        type={"const": problems[0].type},
        code={"enum": sorted({problem.code for problem in problems})},
        reason={"enum": reasons},
        whose={"enum": sorted({problem.whose for problem in problems})},
    )
    return reference(Error) | fixed(error=narrowed)


def _operation(endpoint: Endpoint, shared: _Shared) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": endpoint.operation_id,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": _description(endpoint),
        "security": [{"ApiKey": []}] if endpoint.keyed else [],
    }
    if rules := BEYOND_SCHEMA.get(endpoint.operation_id):
        made["x-beyond-schema"] = rules
    if parameters := _parameters(endpoint):
        made["parameters"] = parameters
    if _has_body(endpoint):
        made["requestBody"] = _request(endpoint)
    made["responses"] = {str(endpoint.status): _success(endpoint, shared)} | {
        str(status): shared.refusal(endpoint, status, reasons)
        for status, reasons in by_status(endpoint.reasons).items()
    }
    return made


def _description(endpoint: Endpoint) -> str:
    scopes = f"Scopes at X: {', '.join(f'`{scope}`' for scope in endpoint.scopes)}." if endpoint.scopes else ""
    rules = BEYOND_SCHEMA.get(endpoint.operation_id, {})
    more = "".join(f" 400 `{reason}`: {rule}." for reason, rule in rules.items())
    return (" ".join(filter(None, (endpoint.description, scopes))) + more) or f"{endpoint.summary}. It needs no key."


def _has_body(endpoint: Endpoint) -> bool:
    return endpoint.method == "POST"


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    if endpoint.query:
        return _query_parameters(endpoint)
    if endpoint.operation_id == "oauthCallback":
        return _callback_parameters()
    if endpoint.operation_id == "requestOutcome":
        _, schema, example = HEADERS["X-Request-Id"]
        words = "the X-Request-Id of the write"
        place = {"name": "request_id", "in": "path", "required": True}
        return [place | {"description": words, "schema": schema, "example": example}]
    return [_IDEMPOTENCY_KEY] if endpoint.keyed and endpoint.method == "POST" else []


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names this call, so that it is done once however often it is sent; kept for 24 hours.",
    "schema": {"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    "example": "6f1c2b0e-6d0b-4d9e-9a52-1f7b8f6f0f3e",
}


def _query_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    """A query's parameters, each at most once."""
    schema = components([endpoint.takes], [])[endpoint.takes.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", []),
            "description": inner["description"],
            "schema": {key: value for key, value in inner.items() if key not in {"description", "examples"}},
            "example": EXAMPLES[name],
        }
        for name, inner in schema["properties"].items()
    ]


def _callback_parameters() -> list[dict[str, Any]]:
    words: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("state", "the link's state", {"type": "string", "minLength": 1, "maxLength": 500}),
        ("code", "X's authorization code", {"type": "string", "minLength": 1, "maxLength": 2_000}),
        ("error", "X's word if the owner refused, such as access_denied", {"type": "string"}),
        ("iss", "the authorization server (RFC 9207)", {"type": "string"}),
    )
    return [
        {"name": name, "in": "query", "required": name == "state", "description": text, "schema": schema}
        for name, text, schema in words
    ]


def _request(endpoint: Endpoint) -> dict[str, Any]:
    required = any(field.is_required() for field in endpoint.takes.model_fields.values())
    examples = {
        re.sub(r"\W+", "_", name).strip("_").lower(): {"summary": name, "value": value}
        for name, value in endpoint.examples.items()
    }
    if endpoint.files:
        parts = {
            name: {"type": "string", "format": "binary", "description": f"the file{', by another name' * (n > 0)}"}
            for n, name in enumerate(endpoint.files)
        }
        schema = {
            "type": "object",
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
            "properties": parts,
        }
        words = "One image, GIF or video, as one multipart part."
        return {"required": True, "description": words, "content": {"multipart/form-data": {"schema": schema}}}
    media: dict[str, Any] = {"schema": reference(endpoint.takes)}
    content = {"application/json": media | {"examples": examples}}
    if endpoint.form:
        content["application/x-www-form-urlencoded"] = media
    # A post needs something in it, though no one field is required.
    return {"required": required or endpoint.operation_id == "postTwitter", "content": content}


def _success(endpoint: Endpoint, shared: _Shared) -> dict[str, Any]:
    optional: tuple[str, ...] = (_DEGRADED,) if endpoint.keyed else ()
    if endpoint.keyed and endpoint.method == "POST":
        optional += ("Idempotency-Key", "Idempotent-Replayed")
    content: dict[str, Any] = {}
    if endpoint.answer is not None:
        content["application/json"] = {"schema": reference(endpoint.answer)}
        if endpoint.expect:
            content["application/json"]["example"] = {"data": dict(endpoint.expect)}
    if endpoint.text:
        content[endpoint.text] = {"schema": {"type": "object" if endpoint.text.endswith("json") else "string"}}
        if endpoint.text.endswith("yaml"):
            content[endpoint.text] = {"schema": {}}
    if endpoint.page:
        content["text/html"] = {"schema": {"type": "string"}}
    return {
        "description": "Created." if endpoint.status == 201 else "Done.",
        "headers": shared.header_references(("X-Request-Id", *(_ALLOWANCE if endpoint.keyed else ())), optional),
        "content": content,
    }
