"""The HTTP server that callers reach.

Owns everything between the socket and a Call: accepting or refusing connections, deadlines and sizes, one meaning for
each byte of a request, the client's address behind trusted proxies, and the bytes of the response. Every refusal, even
that of an unreadable request, has the error envelope and one line in the log.

Must never know an API key, a route's meaning, the store or X: it turns bytes into a Call, awaits a handler, and writes
the Answer. Must never wait without a deadline, nor keep bytes without a bound.

Read in this order: `request_head` (what must be unambiguous), `connections` (limits, eviction, trusted proxies),
`protocol` (one connection on uvicorn's protocol), `server` (how uvicorn serves an app), `asgi` (Starlette's requests
and responses), `fast_path` (POSTs that bypass the framework).
"""
