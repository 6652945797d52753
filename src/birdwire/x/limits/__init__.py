"""What delays or stops a request to X.

Owns the rate windows that X reports, the circuit breaker of each endpoint, the order of writes that undo each other,
and the record of which operations X recently allowed this app, which refuses nothing.

Must never send anything, hold one account's failures or limits against another account, or contain a limit of X's:
every number comes from X's replies.

Read in this order: `rate_windows`, `circuit_breaker`, `write_order`, `capabilities`. `accounts/retrying_client.py`
uses all but the last.
"""
