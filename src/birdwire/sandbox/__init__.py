"""The sandbox: a local stand-in for X's API, as an ASGI app with its own state.

It simulates X for development and tests: the consent page, OAuth tokens, posts and engagement, look-ups, rate limits,
and refusals in X's own words. A control API inspects the state, changes it, and injects faults.

The sandbox imports no other package of Birdwire, and only the command line imports it. So the gateway is tested against
an independent second implementation of what X documents. It never calls X.

Read in this order:

1. `app`: the composition root, with every route.
2. `state`: the simulator with its world, clock, switches and rate limits; the seed and fixtures that fill the world.
3. `oauth`: X's OAuth 2.0: clients, consent page, grants, token endpoint.
4. `api`: X's API v2. `dispatcher` processes every call; the other modules are its endpoints and its refusals.
5. `control`: the control API, faults and traffic; the fault-injecting TCP proxy.
6. `pages` and `server`: HTML and uvicorn.
"""
