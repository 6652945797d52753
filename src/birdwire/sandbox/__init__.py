"""A stand-in for X on this machine: consent page, tokens, API, limits and failures, for tests and development.

Owns an independent second implementation of what X documents, written from X's documentation. `app` builds it and
`server` serves it; `oauth` answers X's OAuth 2.0 endpoints, `api` X's API, `state` holds the simulated world, `control`
lets a test look at that world, change it and make it fail; `pages` renders its pages.

Must never import the gateway, nor be imported by it: a sandbox that shared the gateway's reading of X would be wrong
wherever the gateway is wrong. Must never send anything beyond this machine.

Read in this order: `app`, `state/world`, `api/dispatcher`, `oauth/consent`, `control/endpoints`.
"""
