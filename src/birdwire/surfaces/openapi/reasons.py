"""Reasons for which calls may refuse, in groups that several endpoints share."""

from __future__ import annotations

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
