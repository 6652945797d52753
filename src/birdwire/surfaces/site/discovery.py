"""Documents that agents and language models read: an A2A agent card, a plugin manifest, llms.txt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire import __version__
from birdwire.api.paths import API, DRY_RUN
from birdwire.surfaces.openapi.outline import outline
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from birdwire.settings import Settings

NAME = "Birdwire"
SHORT = "Act on X for a person, with one API key."
ABOUT = (
    "A self-hosted gateway that acts on X (Twitter) for the person whose account is linked to the caller's API key: "
    "it posts, replies, likes, follows, reposts, bookmarks and uploads media."
)
HOW = (
    "Call the endpoints listed in /openapi.json with `Authorization: Bearer <Birdwire API key>` and a JSON body. If no "
    "account is linked, calls return 403 x_not_linked: get an auth_url from auth_twitter, or from the operator if the "
    "key is not allowed to call it, and have the account's owner open it. In a refusal, error.reason names the cause, "
    "error.fix the next step, and error.retryable whether the same call may succeed later. "
    "Status 202 means that a person must approve the call first: nothing was published. Do not send it again; read its "
    f"outcome later from GET {API}/requests/{{request_id}}. "
    f"POST {API}/{DRY_RUN}/OPERATION returns what a call would do and cost, without doing it. "
    f"GET {API}/auth/status shows the rules, the budget and a pause that apply to the key."
)


def agent_card(settings: Settings) -> dict[str, Any]:
    """Return an A2A agent card (A2A 0.3.0 §5.5). Its description states that the skills are plain HTTP calls."""
    url = settings.base_url
    return {
        "protocolVersion": "0.3.0",
        "name": NAME,
        "description": f"{ABOUT} It is an HTTP API, not a conversation: each skill is one call. {HOW}",
        "url": url + API,
        "preferredTransport": "HTTP+JSON",
        "version": __version__,
        "documentationUrl": f"{url}/docs",
        "capabilities": {"streaming": False, "pushNotifications": False, "stateTransitionHistory": False},
        "securitySchemes": {"ApiKey": {"type": "http", "scheme": "bearer", "description": "A Birdwire API key."}},
        "security": [{"ApiKey": []}],
        "defaultInputModes": ["application/json"],
        "defaultOutputModes": ["application/json"],
        "skills": [
            {
                "id": row.name,
                "name": row.summary,
                "description": f"{row.summary}, as the linked account: POST {API}/{row.name}.",
                "tags": ["x", "twitter", *sorted({scope.partition(".")[0] for scope in row.scopes})],
                "inputModes": ["multipart/form-data" if row.takes_file else "application/json"],
            }
            for row in OPERATIONS
        ],
    }


def ai_plugin(settings: Settings) -> dict[str, Any]:
    """Return a plugin manifest, version 1."""
    return {
        "schema_version": "v1",
        "name_for_human": NAME,
        "name_for_model": NAME.lower(),
        "description_for_human": SHORT,
        "description_for_model": f"{ABOUT} {HOW}",
        "auth": {"type": "user_http", "authorization_type": "bearer"},
        "api": {"type": "openapi", "url": f"{settings.base_url}/openapi.json"},
        "legal_info_url": f"{settings.base_url}/docs",
    }


def llms(document: dict[str, Any]) -> str:
    """Return a short description of the gateway in Markdown, with a list of links for each section."""
    url = document["servers"][0]["url"]
    lines = [f"# {NAME}", "", f"> {ABOUT}", "", HOW, ""]
    for section in outline(document):
        lines += [f"## {section.name}", ""]
        for call in section.calls:
            needed = [member.name for member in call.takes if member.required and "." not in member.name]
            takes = f" Requires {', '.join(needed)}." if needed else ""
            lines.append(f"- [{call.method} {call.path}]({url}/docs#{call.anchor}): {call.summary}.{takes}")
        lines.append("")
    return "\n".join(lines)
