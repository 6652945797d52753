"""Birdwire: a self-hosted gateway through which an app or an AI agent acts on X for a person, with one API key.

Owns four modules alongside its packages: `settings` (every option once), `routes` (every path), `startup` (the checks
before a gateway or a command uses a database) and `app` (the composition root, which builds every part).

Must never act on X without a key that allows it, send a write again whose outcome is unknown, or show a token.

Begin with docs/design.md, or here. A call comes in through `edge`, is admitted by `gateway` with the help of `keys`,
runs on the X session that `accounts` keeps, goes out through `x`, and leaves its outcome in `outcomes`. `api` is the
contract with callers, `store` everything at rest, `runtime` what any service needs, `surfaces` what describes the
gateway to others. `cli` and `sandbox` are programs on top.

Each package's docstring states what it owns, what it must never do, and in which order to read it. Imports point one
way: tests/unit/test_architecture.py has the table.
"""

from __future__ import annotations

__version__ = "0.1.0"
