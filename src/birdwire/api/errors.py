"""Every refusal, declared once in PROBLEMS; render() is the only writer of {"error": ...}. Never shows an exception's text."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from birdwire.api.messages import Answer, Call, Headers
from birdwire.api.paths import API

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from birdwire.api.reason_type import Reason

Whose = Literal["caller", "account_owner", "operator", "x_rule", "x_billing", "x_outage", "birdwire"]
Outcome = Literal["refused", "not_sent", "unknown"]

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "upstream_error",
    503: "api_error",
}
"""The `type` of each status; every other 4xx is an invalid_request_error."""

LINK = f"Call POST {API}/auth_twitter, or ask the operator to run `birdwire accounts link KEY_ID`; then have the account's owner"
RELINK = f"{LINK} approve again."
ENTERPRISE = "since 2026-04-20, likes, follows and quote posts require X Enterprise access"


@dataclass(frozen=True, slots=True)
class Problem:
    """The texts of one reason. `message` and `fix` may hold {placeholders}."""

    status: int
    code: str
    whose: Whose
    message: str
    fix: str
    retryable: bool = False

    @property
    def type(self) -> str:
        """The published `type`, which follows from the status."""
        return TYPES.get(self.status, "invalid_request_error")


_INVALID, _FORBIDDEN, _KEY, _CONFLICT = "invalid-request", "client-forbidden", "invalid_api_key", "conflict"
_SEND_KEY = "Send the header `Authorization: Bearer <your Birdwire API key>`."
_NEW_LINK = f"Start again with POST {API}/auth_twitter."
_CONTENT = "Send text, media, a poll, a quote or a card."
_CHECK_KEY = "Check that the whole key was copied; the operator can list keys with `birdwire keys list`."

PROBLEMS: dict[str, Problem] = {
    # 400: the body
    "arguments_malformed": Problem(400, _INVALID, "caller", "The arguments of the tool are malformed: {detail}.", "Send {wanted}."),
    "json_malformed": Problem(400, "json_parse_error", "caller", "The body is not valid JSON: {detail}.", "Send one JSON object in UTF-8."),
    "body_not_object": Problem(400, "json_parse_error", "caller", "The body is JSON, but not an object.", "Send one JSON object, such as {example}."),
    "duplicate_field": Problem(400, "json_parse_error", "caller", "The request contains {field} more than once.", "Send each field once."),
    "unknown_field": Problem(400, _INVALID, "caller", "Unknown field: {field}.", "Remove it. This call accepts {known}."),
    "unexpected_query": Problem(400, _INVALID, "caller", "This call accepts no query parameters, but the URL contains {field}.", "Remove the query string. The parameters of a POST call belong in its JSON body."),
    "form_malformed": Problem(400, _INVALID, "caller", "The form cannot be parsed: {detail}.", "Send a valid form, or JSON if the call accepts it."),
    "mutually_exclusive": Problem(400, _INVALID, "caller", "These fields are mutually exclusive: {fields}.", "Send only one of them."),
    "text_missing": Problem(400, "missing_parameter", "caller", "`text` is missing, and the post has no other content.", _CONTENT),
    "text_empty": Problem(400, _INVALID, "caller", "The text is empty, and the post has no other content.", _CONTENT),
    "text_too_long": Problem(400, _INVALID, "caller", "The text's weighted length is {length}; the maximum for this key is {limit}.", "Shorten the text (a link counts as 23 characters, a CJK character or an emoji as 2), or ask the operator to raise the key's limit."),
    "media_files_missing": Problem(400, "missing_parameter", "caller", "`media_files` is missing.", "Send the file as part of a multipart form: curl -F media_files=@FILE."),
    "media_files_malformed": Problem(400, _INVALID, "caller", "`media_files` is malformed: {detail}.", "Send {wanted} as part of a multipart form: curl -F media_files=@FILE."),
    "media_too_large": Problem(400, _INVALID, "caller", "X accepts {kind} files of at most {limit} MiB.", "Send a smaller file."),
    "media_rejected": Problem(400, _INVALID, "x_rule", "X could not process the media file: {message}", "Encode the file differently; see X's media best practices."),
    "scope_unknown": Problem(400, _INVALID, "caller", "This gateway does not request the scope {scope} from X.", "Use only these scopes: {known}. The operator can add others with the setting extra_scopes."),
    "return_to_not_allowed": Problem(400, _INVALID, "caller", "This key is not allowed to use this return_to URL.", "Remove return_to, or ask the operator to allow the URL for this key."),
    # 400: HTTP itself
    "http_malformed": Problem(400, _INVALID, "caller", "The request is not valid HTTP: {detail}.", "Use a standard HTTP client."),
    "host_not_allowed": Problem(400, _INVALID, "caller", "The Host header names a host that this gateway does not serve.", "Use the gateway's public host name, or ask the operator to add this host to the setting hosts."),
    "idempotency_key_malformed": Problem(400, _INVALID, "caller", "The Idempotency-Key header must appear only once and contain 1 to 255 printable ASCII characters.", "Send one valid key, such as a UUID."),
    "duplicate_header": Problem(400, _INVALID, "caller", "The request contains the header {field} more than once.", "Send the header once."),
    "prefetch": Problem(400, _INVALID, "caller", "This page can be opened only once, so Birdwire refuses prefetch requests.", "Open the page directly in a browser."),
    # 400: the callback
    "callback_malformed": Problem(400, _INVALID, "account_owner", "X's redirect is incomplete or repeats a parameter.", _NEW_LINK),
    "state_unknown": Problem(400, _INVALID, "account_owner", "This link is unknown or has expired.", _NEW_LINK),
    "state_expired": Problem(400, _INVALID, "account_owner", "This link has expired. Links are valid for 10 minutes.", _NEW_LINK),
    "state_used": Problem(400, _INVALID, "account_owner", "This link has already been used. Either that attempt failed, or the account is no longer linked through it.", _NEW_LINK),
    "issuer_mismatch": Problem(400, _INVALID, "operator", "This link was created for a different authorization server or callback URL.", _NEW_LINK),
    "consent_denied": Problem(400, _INVALID, "account_owner", "{what}; nothing was linked.", f"To try again, start with POST {API}/auth_twitter."),
    "code_rejected": Problem(400, _INVALID, "account_owner", "X refused the authorization code: it is invalid, was already used, or is older than 30 seconds.", _NEW_LINK),
    "undo_unknown": Problem(400, _INVALID, "account_owner", "This undo token is unknown or no longer valid: it was already used, it is older than 10 minutes, or the link has already ended.", f"Unlink with POST {API}/unlink_twitter, or remove the app at https://x.com/settings/connected_apps."),
    # 400: X rejected a parameter
    "x_invalid_request": Problem(400, _INVALID, "caller", "X rejected a parameter: {message}", "Correct the field named in the message."),
    "x_cashtag_limit": Problem(400, _INVALID, "x_rule", "X lets self-serve apps use at most one cashtag ($TICKER) in a post.", "Keep one cashtag and write the others without the $."),
    # 401
    "key_missing": Problem(401, "missing_api_key", "caller", "The request has no API key.", _SEND_KEY),
    "key_in_query": Problem(401, "missing_api_key", "caller", "The API key is in the URL, where logs and proxies record it. It was ignored.", f"{_SEND_KEY} Rotate the key if the URL was sent over a network."),
    "key_malformed": Problem(401, _KEY, "caller", "The API key is malformed. Birdwire keys start with bw_live_ or bw_test_.", f"{_SEND_KEY} {_CHECK_KEY}"),
    "key_unknown": Problem(401, _KEY, "caller", "This API key does not exist on this gateway.", _CHECK_KEY),
    "key_mismatch": Problem(401, _KEY, "caller", "The header and the body contain different API keys.", "Send one key, in the Authorization header."),
    "key_expired": Problem(401, _KEY, "caller", "This API key expired on {expired}.", "Ask the operator for a new key."),
    "key_revoked": Problem(401, "revoked_api_key", "caller", "This API key has been revoked, or replaced by a rotation.", "Use the new key, or ask the operator for one."),
    "metrics_token_wrong": Problem(401, _KEY, "operator", "The metrics endpoint requires the metrics token.", "Send the header `Authorization: Bearer <BIRDWIRE_METRICS_TOKEN>`."),
    # 403
    "mode_mismatch": Problem(403, _FORBIDDEN, "caller", "This is a {given} key, but this gateway accepts only {serves}.", "Use a bw_test_ key with the sandbox and a bw_live_ key with X."),
    "ip_not_allowed": Problem(403, _FORBIDDEN, "operator", "This key cannot be used from your IP address.", "Call from an IP address that the operator has allowed for this key."),
    "origin_not_allowed": Problem(403, _FORBIDDEN, "caller", "The request came from a page on another site.", "Press the button on Birdwire's own page. A program must not send the Origin header of another site."),
    "key_not_allowed": Problem(403, _FORBIDDEN, "operator", "This key is not allowed to use {what}.", "Ask the operator for a key that allows it."),
    "x_not_linked": Problem(403, _FORBIDDEN, "account_owner", "No X account is linked to this API key.", f"{LINK} open the auth_url."),
    "x_link_pending": Problem(403, _FORBIDDEN, "x_outage", "The link is not active yet: {why}.", "{remedy}.", retryable=True),
    "x_scope_missing": Problem(403, _FORBIDDEN, "account_owner", "The link does not include a required scope: {scope}.", f"{LINK} approve {{scope}}."),
    "x_session_expired": Problem(403, _FORBIDDEN, "account_owner", "X no longer accepts the session of {account}: it expired, or the app was removed from the account's connected apps.", RELINK),
    "x_not_user_token": Problem(403, _FORBIDDEN, "account_owner", "The stored X token belongs to an app, not to a user.", RELINK),
    "x_account_mismatch": Problem(403, _FORBIDDEN, "account_owner", "The stored X session belongs to an X account other than the linked one.", RELINK),
    "x_user_suspended": Problem(403, _FORBIDDEN, "account_owner", "X has suspended or locked the linked account.", "Ask the account's owner to resolve this on x.com or to link another account."),
    "x_tier_lacks_action": Problem(403, _FORBIDDEN, "x_rule", "X does not offer this action at the access level of the gateway's X app.", f"Ask the operator about the X app's access level: {ENTERPRISE}. To develop without it, use the sandbox (`birdwire dev`)."),
    "x_not_enrolled": Problem(403, _FORBIDDEN, "operator", "X refused this gateway's X app because it is not enrolled for this endpoint.", f"Ask the operator to move the X app to the pay-per-use package and the Production environment in X's developer console. Note that {ENTERPRISE}."),
    "x_user_not_enrolled": Problem(403, _FORBIDDEN, "x_billing", "X bills this call to the linked account, which has no pay-per-use developer account.", "Ask the account's owner to create a developer account in X's developer console and enroll it in pay-per-use."),
    "x_credits_depleted": Problem(403, _FORBIDDEN, "x_billing", "The X developer account behind this gateway has no API credits left.", "Ask the operator to add credits in X's developer console."),
    "reply_not_allowed": Problem(403, _FORBIDDEN, "x_rule", "X lets self-serve apps reply to a post only if its author mentioned or quoted this account.", "Reply only to authors who mentioned or quoted this account, or ask the operator to get X Enterprise access."),
    "x_refused": Problem(403, _FORBIDDEN, "x_rule", "X refused this action for this account: {message}", "{edits}Check the account and the post on x.com. If every account gets this error, ask the operator to check the X app's package and credits."),
    # 403: guardrails
    "policy_denied": Problem(403, _FORBIDDEN, "operator", "A policy does not allow this call: {detail}.", "Change the call, or ask the operator to change the policy (`birdwire policy show {scope}`)."),
    "owner_denied": Problem(403, _FORBIDDEN, "account_owner", "A rule of the account's owner does not allow this call: {detail}.", "Change the call, or ask the account's owner to change the rule."),
    "price_unknown": Problem(403, _FORBIDDEN, "operator", "A budget applies to this call, but X's price list has no price for it.", "Ask the operator to set what an unpriced call reserves (`birdwire policy set {scope} budget.unpriced=SUM`)."),
    "policy_unreadable": Problem(403, _FORBIDDEN, "operator", "The policy of {scope} cannot be read, so Birdwire refuses every write and lookup to which it applies.", "Ask the operator to run `birdwire check`, then to set the policy again or to upgrade Birdwire."),
    "paused": Problem(403, _FORBIDDEN, "operator", "The operator paused {what} at {since}: {why}.", "Wait until the operator resumes it (`birdwire resume {scope}`)."),
    "paused_by_owner": Problem(403, _FORBIDDEN, "account_owner", "The account's owner paused the account at {since}: {why}.", "Wait until the account's owner resumes it."),
    "approval_denied": Problem(403, _FORBIDDEN, "operator", "A person denied this call{note}.", "Change what you ask for. For 24 hours, the same call by this key is refused without asking again."),
    # 404
    "tweet_not_found": Problem(404, "resource-not-found", "caller", "The post does not exist, was deleted, or is not visible to the linked account.", "Check {target}."),
    "user_not_found": Problem(404, "resource-not-found", "caller", "The user does not exist or is not visible to the linked account.", "Check the user's ID or name; the posts of a protected account are visible only to its approved followers."),
    "reply_target_not_found": Problem(404, "resource-not-found", "caller", "The post to reply to was deleted or is not visible to the linked account.", "Check reply.in_reply_to_tweet_id."),
    "request_not_found": Problem(404, "resource-not-found", "caller", "This key made no write with this request ID, or the record of the write has been deleted.", "Check the request_id; every response carries it in X-Request-Id."),
    "route_unknown": Problem(404, "unknown_endpoint", "caller", "There is no such endpoint.", "See /docs or /openapi.json for the endpoints; paths are exact, without a trailing slash."),
    "tool_unavailable": Problem(404, "unknown_endpoint", "operator", "This gateway does not offer the tool {tool}.", "Do without it, or ask the operator to add {call} to the setting reads."),
    "mcp_unavailable": Problem(404, "unknown_endpoint", "operator", "This gateway does not offer MCP: the package that it needs is missing or cannot be imported.", "Ask the operator to install birdwire[mcp] (`make setup` does) and to restart the gateway. The HTTP API works without it."),
    # 405 to 431: the edge
    "method_not_allowed": Problem(405, "method_not_allowed", "caller", "This endpoint does not accept {method}.", "Use {allow}."),
    "request_timeout": Problem(408, "request_timeout", "caller", "The request did not arrive in time.", "Send the request faster, or ask the operator to raise request_deadline_s (for uploads, upload_deadline_s).", retryable=True),
    "body_too_large": Problem(413, "body_too_large", "caller", "The body is larger than {limit} bytes.", "Send a smaller body."),
    "uri_too_long": Problem(414, "uri_too_long", "caller", "The path and query are longer than {limit} bytes.", "Shorten the URL. The parameters of a POST call belong in its JSON body."),
    "unsupported_media_type": Problem(415, "unsupported_media_type", "caller", "This call accepts {wanted}.", "{how}."),
    "headers_too_large": Problem(431, "headers_too_large", "caller", "The request has too many headers, or they are too large.", "Send at most 100 headers, with a total size of at most 16 KiB."),
    # 409
    "account_mismatch": Problem(409, _CONFLICT, "account_owner", "The X account is @{username}, but this key expects {expected}. Nothing was changed.", "Sign in to X as {expected}, then approve the link. To link a different account, unlink the current one first, or send the new account's name as expected_username. If the operator pinned the key to {expected}, only the operator can change that."),
    "idempotency_in_flight": Problem(409, _CONFLICT, "caller", "The first call with this Idempotency-Key is still running.", "Retry after the delay in Retry-After to get the first call's response.", retryable=True),
    "idempotency_key_reused": Problem(409, _CONFLICT, "caller", "This Idempotency-Key was already used for a different call.", "Use a new Idempotency-Key for each new call."),
    "duplicate_text": Problem(409, _CONFLICT, "caller", "A policy does not allow the same text again: {detail}.", "Change the text, or wait until the earlier post is old enough."),
    "approval_expired": Problem(409, _CONFLICT, "caller", "Nothing was published, because the time of this request is over: {detail}.", "Send the call again, with a new Idempotency-Key, if you still want it."),
    "approval_stale": Problem(409, _CONFLICT, "caller", "Nothing was published, because something has changed since a person was asked: {detail}.", "Send the call again, with a new Idempotency-Key, if you still want it."),
    "approval_not_waiting": Problem(409, _CONFLICT, "caller", "The request does not wait for a decision: it is {state}.", f"Read its outcome with GET {API}/requests/REQUEST_ID."),
    "cancelled": Problem(409, _CONFLICT, "caller", "The request was cancelled before it was sent, so nothing was published.", "Send the call again, with a new Idempotency-Key, if you still want it."),
    "restored_backup": Problem(409, _CONFLICT, "caller", "The request waited for a person when the database was restored from a backup, so Birdwire never sends it: that may have happened after the backup.", "Check on x.com whether it was carried out. If not, send the call again with a new Idempotency-Key."),
    "duplicate_post": Problem(409, _CONFLICT, "x_rule", "X refused the post because the account has already posted the same text.", "Change the text."),
    "edit_window_closed": Problem(409, _CONFLICT, "x_rule", "The post can no longer be edited: X allows edits for at most one hour after the first version.", "Post a correction as a reply, or delete the post and post it again."),
    "superseded": Problem(409, _CONFLICT, "caller", "A newer call requested the opposite action, so Birdwire did not retry this call after its first attempt failed.", "Send this call again only if you want it instead of the newer one."),
    "x_conflict": Problem(409, _CONFLICT, "x_rule", "X reports a conflict with the current state: {message}", "Check the post on x.com and try again."),
    # 429
    "rpm_exceeded": Problem(429, "rate_limit_exceeded", "caller", "This key has used up its {limit} calls per minute.", "Retry after the delay in Retry-After, or ask the operator to raise the key's limit.", retryable=True),
    "concurrency_exceeded": Problem(429, "rate_limit_exceeded", "caller", "This key has too many calls in progress: {detail}.", "Send fewer concurrent calls, retry after the delay in Retry-After, or ask the operator to raise the limit.", retryable=True),
    "auth_failures": Problem(429, "rate_limit_exceeded", "caller", "Birdwire received too many invalid API keys, `state` values, undo tokens or approval links from your IP address.", "Check the API key, `state`, undo token or approval link, then retry after the delay in Retry-After.", retryable=True),
    "daily_cap": Problem(429, "quota_exceeded", "operator", "This key has used up its {limit} writes for today (UTC).", "Wait until midnight UTC, or ask the operator to raise the key's cap.", retryable=True),
    "quiet_hours": Problem(429, "quota_exceeded", "operator", "A policy sets quiet hours: {detail}.", "Retry after the delay in Retry-After.", retryable=True),
    "cap_reached": Problem(429, "quota_exceeded", "operator", "A policy limits how often this may happen: {detail}.", "Retry after the delay in Retry-After, or ask the operator to change the policy (`birdwire policy show {scope}`).", retryable=True),
    "budget_exhausted": Problem(429, "quota_exceeded", "operator", "The budget for X does not cover this call: {detail}.", "Retry after the delay in Retry-After, or ask the operator to raise the budget (`birdwire policy show {scope}`).", retryable=True),
    "approvals_full": Problem(429, "quota_exceeded", "operator", "{limit} calls of this key already wait for a person's approval.", f"Wait until some of them are decided, or cancel some with POST {API}/requests/REQUEST_ID/cancel.", retryable=True),
    "x_window_15m": Problem(429, "upstream_rate_limit", "x_rule", "The linked account has reached X's 15-minute limit for this action.", "Try again {reset}.", retryable=True),
    "x_window_24h": Problem(429, "upstream_rate_limit", "x_rule", "The linked account has reached X's 24-hour limit for this action.", "Try again {reset}.", retryable=True),
    "x_usage_capped": Problem(429, "quota_exceeded", "x_billing", "The X app has reached its {period} usage cap.", "Ask the operator to raise the cap in X's developer console, or wait for the next billing cycle."),
    "x_spend_cap": Problem(429, "quota_exceeded", "x_billing", "The X developer account behind this gateway has reached its spending limit, which resets on {reset_date}.", "Wait until then, or ask the operator to raise the limit in X's developer console.", retryable=True),
    # 500, 503: Birdwire itself
    "internal": Problem(500, "internal_error", "birdwire", "An internal error occurred in Birdwire.", "Try again. If the error persists, send the request_id to the operator.", retryable=True),
    "overloaded": Problem(503, "overloaded", "birdwire", "Birdwire is at capacity.", "Retry after the delay in Retry-After.", retryable=True),
    "draining": Problem(503, "overloaded", "birdwire", "This Birdwire process is shutting down.", "Retry after the delay in Retry-After. If the error persists, ask the operator whether the gateway is running.", retryable=True),
    "storage_unavailable": Problem(503, "storage_unavailable", "operator", "Birdwire's database is not responding; {half}.", "Retry after the delay in Retry-After. If the error persists, ask the operator to check the disk and the database.", retryable=True),
    # 502: X
    "x_unreachable": Problem(502, "upstream_unavailable", "x_outage", "Birdwire could not reach X. Nothing was sent.", "Try again in a few seconds. If the error persists, ask the operator to check the network and the setting x_api_url.", retryable=True),
    "x_tls": Problem(502, "upstream_unavailable", "operator", "Birdwire could not establish a secure connection to X. Nothing was sent.", "Ask the operator to check the clock, the CA certificates and any proxy on the way to X.", retryable=True),
    "x_5xx": Problem(502, "upstream_unavailable", "x_outage", "X returned a server error, or closed the connection before its response was complete.", "Try again in a few seconds.", retryable=True),
    "x_breaker_open": Problem(502, "upstream_unavailable", "x_outage", "X keeps failing on this endpoint, so Birdwire has paused calls to it and probes it every few seconds. Nothing was sent.", "Retry after the delay in Retry-After.", retryable=True),
    "x_renewal_failed": Problem(502, "upstream_unavailable", "x_outage", "X returned a server error when Birdwire tried to renew the linked account's access.", "Retry after the delay in Retry-After. The account does not have to be linked again.", retryable=True),
    "x_timeout": Problem(502, "upstream_timeout", "x_outage", "X did not respond in time.", "Try again in a few seconds. This call is safe to repeat.", retryable=True),
    "outcome_unknown": Problem(502, "outcome_unknown", "x_outage", "X's response was lost: X may or may not have carried out the call.", f"Do not send a post again with another Idempotency-Key. Birdwire searches the account's timeline for a lost post, which usually takes about a minute: poll GET {API}/requests/REQUEST_ID, or repeat the call with the same Idempotency-Key. If it was an upload, upload the file again: nothing was published."),
    "not_applied": Problem(502, "upstream_unavailable", "x_outage", "X's response was lost, and the post is not in the account's timeline: X did not publish it.", "Post again with a new Idempotency-Key."),
    "x_client_credentials": Problem(502, "upstream_unavailable", "operator", "X rejected the gateway's client ID or secret.", "Ask the operator to check the X app's client ID, secret and client type. Accounts do not have to be linked again."),
    "x_reply_malformed": Problem(502, "upstream_bad_reply", "x_outage", "X sent a response that Birdwire cannot read.", "Try again in a few seconds. If the error persists, check X's status page.", retryable=True),
    "x_endpoint_gone": Problem(502, "upstream_bad_reply", "x_outage", "X returned 404 without a body: either it does not currently offer this endpoint, or it rejected the token.", "Check X's status page. If the error persists, ask the operator to check the setting x_api_url and the X app's access level."),
}  # fmt: skip
"""Reason -> Problem. A closed set: raising any other reason is a KeyError, and a test keeps every row reachable."""

REQUIRED = (
    *("tweet_id", "target_user_id", "username", "state", "undo_token", "userName", "query", "media_files", "text"),
    *("in_reply_to_tweet_id", "media_ids", "options", "duration_minutes", "previous_post_id", "place_id"),
)
"""Fields of bodies and queries, at any depth, that some call requires: their reason is FIELD_missing."""

FIELDS = (
    *REQUIRED,
    *("scopes", "expected_username", "return_to", "reply", "auto_populate_reply_metadata", "exclude_reply_user_ids"),
    *("quote_tweet_id", "media", "tagged_user_ids", "poll", "reply_settings", "card_uri", "direct_message_deep_link"),
    *("geo", "for_super_followers_only", "nullcast", "paid_partnership", "made_with_ai", "community_id"),
    *("share_with_followers", "edit_options", "userId", "cursor"),
)
"""Fields of bodies and queries, at any depth; each has the reason FIELD_malformed."""

# The absence of these ids has the published code invalid-request.
_PUBLISHED_IDS = {"tweet_id", "target_user_id"}

for _field in FIELDS:
    _code = _INVALID if _field in _PUBLISHED_IDS else "missing_parameter"
    # `text` and `media_files` have rows of their own, which stay.
    if _field in REQUIRED:
        _missing = Problem(400, _code, "caller", f"`{_field}` is missing.", f"Send {_field}: {{wanted}}.")
        PROBLEMS.setdefault(f"{_field}_missing", _missing)
    _malformed = Problem(
        400, _INVALID, "caller", f"`{_field}` is malformed: {{detail}}.", f"Send {_field}: {{wanted}}."
    )
    PROBLEMS.setdefault(f"{_field}_malformed", _malformed)

RETRY_AFTER_S = {
    "auth_failures": 60,
    "concurrency_exceeded": 1,
    "budget_exhausted": 3_600,
    "approvals_full": 60,
    "cap_reached": 60,
    "daily_cap": 3_600,
    "quiet_hours": 60,
    "draining": 1,
    "overloaded": 1,
    "storage_unavailable": 5,
    "x_window_15m": 60,
    "x_window_24h": 60,
    "x_usage_capped": 86_400,
    "x_spend_cap": 86_400,
    "rpm_exceeded": 60,
}
"""The Retry-After of a reason if the raiser does not know a better one. Every 429 and 503 has one."""


SEND_REASONS: dict[str, Reason] = {"unreachable": "x_unreachable", "tls": "x_tls", "busy": "overloaded", "timeout": "x_timeout", "cut": "x_5xx", "malformed": "x_reply_malformed"}  # fmt: skip
"""The reason for a call to X that got no reply, by its cause (`SendFailed.cause`)."""


class GatewayError(Exception):
    """A refusal with a reason of PROBLEMS. `values` fill the placeholders.

    `upstream` is X's own error (status, type, title, detail); `retry_after_s` is in whole seconds. `outcome` is the
    outcome of a write: not_sent (no byte left for X, as with every refusal of the gateway's own), refused (X refused
    this very call) or unknown (X may have applied it). `findings` are all findings of the policies that refused the call.
    """

    def __init__(
        self,
        reason: Reason,
        *,
        retry_after_s: int | None = None,
        upstream: dict[str, object] | None = None,
        outcome: Outcome = "not_sent",
        headers: Headers = (),
        findings: Sequence[Mapping[str, object]] = (),
        **values: Any,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem = PROBLEMS[reason]
        self.retry_after_s = retry_after_s if retry_after_s is not None else RETRY_AFTER_S.get(reason)
        self.upstream = upstream
        self.outcome: Outcome = outcome
        self.headers = headers
        self.findings = findings
        self.values = values


def reason_named(name: str) -> Reason:
    """Return a computed name as a reason.

    Raises:
        KeyError: PROBLEMS does not declare it.
    """
    PROBLEMS[name]
    return cast("Reason", name)


_DEFAULTS = {"reset": "in a minute"}


class _Fill(string.Formatter):
    """Fills placeholders by name only. A missing value becomes `unknown`, since rendering an error must never fail."""

    def get_value(self, key: int | str, args: object, kwargs: object) -> object:
        del args
        return kwargs.get(key, _DEFAULTS.get(str(key), "unknown")) if isinstance(kwargs, dict) else "unknown"


_UNSAFE = re.compile(r"[^A-Za-z0-9 _.,:/@'()\[\]-]")


def excerpt(sent: object, length: int = 40) -> str:
    """Return a short excerpt of what a caller sent, safe to show anywhere: other characters become `?`."""
    text = _UNSAFE.sub("?", str(sent)[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


def describe(error: GatewayError) -> tuple[str, str]:
    """Return the refusal's message and fix, with their placeholders filled."""
    fill = _Fill()
    return fill.format(error.problem.message, **error.values), fill.format(error.problem.fix, **error.values)


def render(error: GatewayError, request_id: str) -> Answer:
    """Return the one form of an error, with the headers that its status requires (RFC 9110 §15.5.2, §10.2.3)."""
    problem = error.problem
    message, fix = describe(error)
    body: dict[str, object] = {
        "type": problem.type,
        "code": problem.code,
        "message": message,
        "request_id": request_id,
        "reason": error.reason,
        "fix": fix,
        "whose": problem.whose,
        "retryable": problem.retryable,
    }
    if error.upstream is not None:
        body["upstream"] = error.upstream
    if error.findings:
        body["findings"] = error.findings
    headers = list(error.headers)
    if problem.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(max(1, error.retry_after_s))))
    return Answer.of({"error": body}, problem.status, headers)


def refuse(error: GatewayError, call: Call) -> Answer:
    """Return the refusal as an answer, and note it for the log."""
    call.note["reason"] = error.reason
    if error.upstream is not None:
        call.note["upstream_status"] = error.upstream["status"]
    return render(error, call.request_id)
