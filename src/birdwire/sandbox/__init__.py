"""The sandbox, a stand-in for X's API: an ASGI app with X's consent, tokens, limits and refusals, and its own state."""
