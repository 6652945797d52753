"""A local X: consent, tokens, state, limits and refusals as X's own. An ASGI app that knows nothing of the gateway."""
