"""Scale of the fault tests: short in every run, long with `make faults`, or set by environment variables."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONG = os.environ.get("FAULTS") == "long"
REPORT = os.environ.get("FAULTS_REPORT", "")


def scaled(name: str, short: int, long: int) -> int:
    """Return the number for this run: FAULTS_NAME if set, else that of the long or short form."""
    return int(os.environ.get(f"FAULTS_{name}", long if LONG else short))


def record(what: str, **figures: object) -> None:
    """Append a line to the report, if one is requested."""
    if REPORT:
        with Path(REPORT).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **figures}) + "\n")


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
