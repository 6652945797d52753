"""X's OAuth 2.0 as the sandbox answers it.

Owns the registered apps (`clients`), the consent page with PKCE and state (`consent`), codes, tokens and their rotation
(`grants`), and the endpoints that exchange, refresh and revoke tokens (`token_endpoint`).

Must never be more lenient than X: a client that works here must work there. Refresh tokens are single use, as X's are.
"""
