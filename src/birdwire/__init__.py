"""Birdwire: a self-hosted gateway through which an app or an AI agent acts on X for a person."""

from __future__ import annotations

__version__ = "0.1.0"
