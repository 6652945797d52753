"""The command line: one module a family of commands."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
