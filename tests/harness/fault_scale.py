"""How much the fault tests do: a little in every run, much by `make faults`, anything by the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONG = os.environ.get("FAULTS") == "long"
REPORT = os.environ.get("FAULTS_REPORT", "")


def scaled(name: str, short: int, long: int) -> int:
    """The number for this run: FAULTS_NAME, else the long or the short form's."""
    return int(os.environ.get(f"FAULTS_{name}", long if LONG else short))


def record(what: str, **figures: object) -> None:
    """A line for the report, if one is written."""
    if REPORT:
        with Path(REPORT).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **figures}) + "\n")


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
