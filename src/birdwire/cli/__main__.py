"""Entry point of `python -m birdwire.cli`."""

from __future__ import annotations

from birdwire.cli import main

main()
