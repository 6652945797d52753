"""How people and programs discover the gateway and learn to use it.

Owns the OpenAPI document, the pages and texts for people and agents, the tools of agents, and what `make docs` writes.

Must never decide anything: it describes the tables of the other packages (operations, errors, settings, metrics), and
nothing here changes what a call does. Must never read the store.

Read in this order: `openapi` (the document, its parts in `endpoints`, `schemas`, `responses`), `site` (what is served
about the gateway), `mcp` (its tools for agents), `reference` and `skill` (what `make docs` writes), `notifications`
(how events are worded for the operator).
"""
