"""X's API as the sandbox answers it.

Owns the dispatching of a request by its path, token, scopes and rate limits (`dispatcher`), X's errors by their ids
(`errors`, with their texts in errors.json), and the endpoints: `posts`, `engagement` (likes, follows, reposts,
bookmarks), `lookups` with `search`, `media`. `objects` renders users and posts, `post_text` counts and links a text.

Must never copy the gateway's reading of X: each endpoint is written from X's documentation. Must never keep state of
its own: the world is in `sandbox.state`.
"""
