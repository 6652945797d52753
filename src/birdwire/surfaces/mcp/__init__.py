"""The Model Context Protocol at POST /mcp: an agent's tools, each of which is one call of the HTTP API.

Owns the tools (`tools`: their names, descriptions, schemas and annotations, from OPERATIONS and LOOKUPS), what a tool
call asks for (`arguments`), what a model reads of the answer (`results`, `sentences`), how the call runs
(`tool_calls`), the protocol itself (`jsonrpc`, `kernel`), and the endpoint in front of all of them (`endpoint`).

A tool call goes through the pipeline as the HTTP call does: with the same key, rules, policies, idempotency, journal
and reasons. Only its form differs. A POST is admitted, and its body read, before the SDK sees a byte of it.

Must never decide anything, keep state between two calls, or be imported before a client asks: the SDK, which `kernel`
alone imports, takes about 20 MiB and a second.

Read in this order: `endpoint`, `jsonrpc`, `kernel`, `tools`, `tool_calls`, `arguments`, `results`, `sentences`.
"""
