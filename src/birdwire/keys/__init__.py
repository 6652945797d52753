"""API keys: who may call, what they may do, and how often.

Owns the keys of a database and their secrets, the rules of a key (actions, addresses, expiry, daily cap, account), the
cache of keys with its invalidation, the limit of calls per minute, alone or shared through Redis, and the limit of
lookups that guesses may cause.

Must never store or log a secret: it keeps a SHA-256 and the last four characters. Must never call X, nor decide
anything about an account's link beyond what the key allows. Must never answer a call from a cache that the change feed
cannot invalidate.

Read in this order: `secrets` (what a key looks like), `rules` (what it may do), `registry` (`Keys`: find, create,
change, rotate, revoke), `cache`, `guess_limit`; then `rate_limit`, `redis_rate_limit` and `redis_connection`.
`permissions` describes a key's rules to people; `context` is what a running call carries.
"""
