"""The X accounts linked to API keys, their tokens, and the calls made with them.

Owns the lifecycle of a link (pending, active, needs_relink, ended), the OAuth authorization code flow that starts one,
every token that X has issued, and the renewal and revocation of tokens. Each row of `x_sessions`, `link_states` and
`revocations` is written through this package, except when a key is changed or revoked.

Must never return a token to a caller, log one, or store one unencrypted; use a token before it is stored; present a
refresh token twice concurrently; or change a link's state other than by `links.TRANSITIONS`.

Read in this order:

    links           the state machine of a link, and every transition
    tokens          what a pair of tokens is bound to when it is encrypted
    sessions        session_for(key, scopes): a session whose token is good now
    refresh         one renewal, step by step, safe against crashes and other replicas
    revocation      tokens that are still to be revoked at X
    linking         the authorization code flow: state, PKCE, callback, confirm, undo
    callbacks       one callback per state, at whichever replica; `attempts` reports what became of a state
    endpoints       auth_twitter, auth/status, auth/confirm, unlink_twitter; their bodies are in `bodies`
    pages           the callback and undo pages; `undo_cookie` keeps the undo token in the browser
    retrying_client the X client of one call: renewal, retries, deadline
    write_permit    the permission of a running call, checked again before each write
    acts            the record of what happened to links
"""
