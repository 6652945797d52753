"""X's token and revocation endpoints on the wire. `grants` implements the grants themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.routing import Route

from birdwire.sandbox.api.dispatcher import dressed, json_object, read_bounded
from birdwire.sandbox.api.errors import Answer, Refusal, oauth_error
from birdwire.sandbox.oauth.clients import Client, authenticate

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from birdwire.sandbox.state.simulator import Simulator

FORM, JSON = "application/x-www-form-urlencoded", "application/json"
FORM_BYTES = 64 * 1024
FIELDS = 50
NO_STORE = {"cache-control": "no-store"}
TOKEN_WRONG = "Value passed for the token was invalid."  # noqa: S105 - a sentence of X's, no secret
CODE_WRONG = "Value passed for the authorization code was invalid."


async def read_parameters(request: Request) -> dict[str, str]:
    """Read the parameters from the query and the body, a form or a JSON object; refuse repeated parameters.

    RFC 6749 §3.2 defines only the form. X reads all three, and SDKs depend on each.
    """
    raw = await read_bounded(request, FORM_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        pairs = _decoded(request.scope["query_string"])
        if raw and kind == JSON:
            json_object(raw)
            pairs += json.loads(raw, object_pairs_hook=list)
        elif raw and kind == FORM:
            pairs += _decoded(raw)
        elif raw:
            raise Refusal(oauth_error("invalid_request", f"Content-Type must be {FORM} or {JSON}."))
    except ValueError:
        raise Refusal(oauth_error("invalid_request", "The parameters are malformed.")) from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise Refusal(oauth_error("invalid_request", "A parameter was given more than once."))
    for name, value in parameters.items():
        if not isinstance(value, str):
            raise Refusal(oauth_error("invalid_request", f"The parameter [{name[:100]}] must be a string."))
    return parameters


def _decoded(urlencoded: bytes) -> list[tuple[str, Any]]:
    return parse_qsl(urlencoded.decode(), keep_blank_values=True, max_num_fields=FIELDS, errors="strict")


class TokenServer:
    """The three endpoints that require a client's credentials."""

    def __init__(self, platform: Simulator) -> None:
        self._platform = platform

    def routes(self) -> list[Route]:
        """Return the routes of the three endpoints."""
        return [
            Route("/2/oauth2/token", self.token, methods=["POST"]),
            Route("/2/oauth2/revoke", self.revoke, methods=["POST"]),
            Route("/oauth2/token", self.app_token, methods=["POST"]),
        ]

    async def token(self, request: Request) -> Response:
        """POST /2/oauth2/token: two tokens for a code or a refresh token, on disk before the answer is sent."""
        return await self._answered(request, self._issue)

    async def revoke(self, request: Request) -> Response:
        """POST /2/oauth2/revoke. Requires token_type_hint, in contrast to X's own example."""
        return await self._answered(request, self._revoke)

    async def app_token(self, request: Request) -> Response:
        """POST /oauth2/token: a token for the app alone. No endpoint here accepts it: all require a user's token."""
        return await self._answered(request, self._issue_app_token)

    async def _answered(self, request: Request, decide: Callable[[Client, dict[str, str]], Answer]) -> Response:
        """Process a request of all three: parameters, client, decision, then write the world to disk."""
        platform = self._platform
        try:
            form = await read_parameters(request)
            if "grant_type" in form:
                request.scope["birdwire.sandbox.call"]["grant_type"] = form["grant_type"][:50]
            client = authenticate(platform.clients, request.headers.get("authorization"), form)
            if isinstance(client, str):
                raise platform.catalogue.refusal(client)
            answer = decide(client, form)
            await platform.saved()
        except Refusal as refusal:
            answer = refusal.answer
        return dressed(platform, answer)

    def _issue(self, client: Client, form: dict[str, str]) -> Answer:
        platform = self._platform
        grant_type = _needed(form, "grant_type")
        if grant_type == "authorization_code":
            for name in ("code", "redirect_uri", "code_verifier"):
                _needed(form, name)
            issued = platform.grants.exchange(client, form, platform.config)
            wrong = oauth_error("invalid_request", CODE_WRONG)
        elif grant_type == "refresh_token":
            issued = platform.grants.refresh(client, _needed(form, "refresh_token"), platform.config)
            wrong = oauth_error(platform.config.refresh_refusal, TOKEN_WRONG)
        else:
            return oauth_error("invalid_request", "Value passed for the grant type was invalid.")
        return wrong if issued is None else Answer(200, issued, NO_STORE)

    def _revoke(self, client: Client, form: dict[str, str]) -> Answer:
        token = _needed(form, "token")
        if _needed(form, "token_type_hint") not in {"access_token", "refresh_token"}:
            return oauth_error("invalid_request", "Value passed for the token_type_hint was invalid.")
        self._platform.grants.revoke(client, token)
        return Answer(200, {"revoked": True}, NO_STORE)

    def _issue_app_token(self, client: Client, form: dict[str, str]) -> Answer:
        if not client.confidential or _needed(form, "grant_type") != "client_credentials":
            raise self._platform.catalogue.refusal("token-bad-client")
        issued = {"token_type": "bearer", "access_token": self._platform.grants.app_token()}
        return Answer(200, issued, NO_STORE)


def _needed(form: dict[str, str], name: str) -> str:
    """Return the parameter's value; answer with X's refusal if it is missing."""
    if not form.get(name):
        raise Refusal(oauth_error("invalid_request", f"Missing required parameter [{name}]."))
    return form[name]
