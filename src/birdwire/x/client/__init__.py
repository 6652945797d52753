"""HTTP towards X: connections, requests, and what X's replies mean.

Owns the connection pool and its rule that every failure states whether a byte of the request may have reached X; one
send of a request with an access token; the reading of replies into the gateway's own reasons; X's rate limit headers;
and the three requests of OAuth with what their replies prove about a token.

Must never send a request twice, renew a token, keep a rate window, or know a caller: retries, renewal and deadlines
belong to the account's client, windows and breakers to `x.limits`.

Read in this order: `requests`, `rate_headers`, `connection`, `pool`, `api`, `replies`, `auth_server`.
"""
