"""Reasons for which calls may refuse, in groups that several endpoints share; and rules that no schema expresses."""

from __future__ import annotations

import re

from birdwire.api.forms import MAX_FIELDS, MAX_NAME
from birdwire.api.paths import DRY_RUN
from birdwire.x.catalog.operations import OPERATIONS

EDGE = (
    *("http_malformed", "duplicate_header", "host_not_allowed", "request_timeout", "body_too_large", "uri_too_long"),
    *("headers_too_large", "internal", "overloaded"),
)
"""Reasons for which any request may be refused."""

KEYED = (
    *("key_missing", "key_in_query", "key_malformed", "key_unknown", "key_revoked", "key_expired", "mode_mismatch"),
    *("ip_not_allowed", "rpm_exceeded", "concurrency_exceeded", "auth_failures", "storage_unavailable"),
)
BODY = (
    *("json_malformed", "body_not_object", "duplicate_field", "unknown_field", "form_malformed"),
    "unsupported_media_type",
)
IDEMPOTENCY = ("idempotency_key_malformed", "idempotency_in_flight", "idempotency_key_reused")
UPSTREAM = (
    *("x_not_user_token", "x_account_mismatch", "x_user_suspended", "x_not_enrolled", "x_user_not_enrolled"),
    *("x_credits_depleted", "x_refused", "x_invalid_request", "x_conflict", "x_window_15m", "x_window_24h"),
    *("x_usage_capped", "x_spend_cap", "x_unreachable", "x_tls", "x_5xx", "x_timeout", "x_reply_malformed"),
    *("x_endpoint_gone", "x_client_credentials", "x_session_expired", "x_tier_lacks_action", "user_not_found"),
)
"""Reasons that a call to X may have."""

LINKED = (
    *("key_not_allowed", "x_not_linked", "x_link_pending", "x_scope_missing", "account_mismatch", "x_breaker_open"),
    "x_renewal_failed",
    *UPSTREAM,
)
FILES = ("media_files_missing", "media_files_malformed", "media_too_large", "media_rejected")
POSTING = (
    *("mutually_exclusive", "text_missing", "text_empty", "text_too_long", "duplicate_post", "reply_not_allowed"),
    *("reply_target_not_found", "x_cashtag_limit", "edit_window_closed", "place_id_missing"),
)
PAUSED = ("paused", "paused_by_owner")
GUARDED = (
    *("policy_denied", "owner_denied", "quiet_hours", "cap_reached", "budget_exhausted", "price_unknown"),
    "policy_unreadable",
    *PAUSED,
)
"""Reasons that the policies and pauses of a key, its account or the gateway may have."""

WAITED = (*("approval_denied", "approvals_full", "approval_expired", "approval_stale", "cancelled", "restored_backup"),)
"""Reasons that a write may have because a person had to approve it."""

STARTING = (*PAUSED, "key_not_allowed", "scope_unknown", "return_to_not_allowed", "account_mismatch")
CONFIRMING = (
    *PAUSED,
    *("key_not_allowed", "state_unknown", "state_expired", "account_mismatch", "x_link_pending", "x_scope_missing"),
    *("state_used", "consent_denied", "code_rejected"),
    *UPSTREAM,
)
CALLBACK = (
    *("callback_malformed", "state_unknown", "state_expired", "state_used", "issuer_mismatch", "consent_denied"),
    *("code_rejected", "prefetch", "key_revoked", "account_mismatch", "auth_failures", "storage_unavailable"),
    "x_scope_missing",
    *UPSTREAM,
)

DECIDING = (
    *("form_malformed", "duplicate_field", "unknown_field", "unsupported_media_type", "origin_not_allowed", "prefetch"),
    *("approval_not_waiting", "approval_expired", "approval_stale", "restored_backup"),
    *("text_missing", "text_malformed", "text_empty", "text_too_long", "duplicate_text"),
)
"""Reasons that a decision by a signed link may have, in addition to those of the policies that judge an edit."""


def camel(name: str) -> str:
    """Return a name with slashes and underscores as generators of clients write names."""
    head, *rest = re.split(r"[_/]", name)
    return head + "".join(word.title() for word in rest)


BEYOND_SCHEMA: dict[str, dict[str, str]] = {
    "authTwitterUser": {"return_to_not_allowed": "`return_to` must be a URL that the operator allowed for the key"},
    "authConfirm": {"state_unknown": "`state` must be one that auth_twitter returned for this key"},
    "authUndo": {"undo_unknown": "`undo_token` must come from the page after a link"},
    "oauthCallback": {
        "callback_malformed": "exactly one of `code` and `error` is required",
        "state_unknown": "`state` must be one that auth_twitter returned",
    },
    "postTwitter": {
        "place_id_missing": "`geo` must contain a `place_id`",
        "text_too_long": "the limit applies to the weighted length of `text`, not to its number of characters",
        "x_invalid_request": "X must accept the ids, cards and links",
    },
    "uploadMedia": {
        "media_files_malformed": "the file must be an image, GIF or video, as recognised by its first bytes"
    },
    "userLastTweets": {
        "mutually_exclusive": "exactly one of `userName` and `userId` is required",
        "x_invalid_request": "`cursor` must be one that an earlier page returned",
    },
    "approveDecide": {
        "unknown_field": "`note` belongs to deny, and `text` to edit",
        "form_malformed": "an edit has a `text`",
    },
    **{
        camel(f"{DRY_RUN}_{row.name}"): {
            "json_malformed": "the body may be nested at most 32 levels deep, its numbers must be finite and have at "
            "most 4,300 digits, and its field names must not contain unpaired surrogates"
        }
        for row in OPERATIONS
        if not row.takes_file
    },
    **{
        camel(f"{DRY_RUN}_{row.name}"): {
            "form_malformed": f"the form may have at most {MAX_FIELDS} parts, each with a name of 1 to {MAX_NAME} "
            "characters"
        }
        for row in OPERATIONS
        if row.takes_file
    },
}
"""Rules that a schema cannot express, by operation and reason: a request that fits the schema may still get 400."""
