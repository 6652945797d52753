"""docs/guardrails.md and docs/approvals.md: every command is run against `birdwire dev`, from top to bottom."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from birdwire.gateway.approval_waits import MAX_WAIT_S, MAX_WAITING
from birdwire.gateway.guardrails import held_writes
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.rules import RULES
from birdwire.store.tables.journal import STATES
from harness.pages import blocks, dev_gateway, steps, text_of

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/guardrails.md"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", [PAGE, "docs/approvals.md"])
def test_the_guides_commands_do_what_the_guide_shows(tmp_path: Path, page: str) -> None:
    """With the exit codes and the answers that it shows; one block continues where the last one ended."""
    with dev_gateway(tmp_path) as reader:
        for block in blocks(page, "console"):
            for step in steps(block):
                reader.do(step)


def test_the_guide_names_only_rules_and_presets_that_exist() -> None:
    """Each shorthand in it starts with a rule."""
    names = {rule.name for rule in RULES}
    used = re.findall(r"(?<![\w.-])([a-z_]+)(?:\.[\w*]+)?=(?!\")[\w\"*]", text_of(PAGE))
    assert set(used) <= names
    assert len(set(used)) > 6
    assert set(re.findall(r"--preset (\w+)", text_of(PAGE))) <= set(PRESETS)


def test_the_page_of_approvals_has_every_state_and_limit() -> None:
    """As the code has them."""
    text = text_of("docs/approvals.md")
    assert all(f"`{state}`" in text for state in STATES)
    rows = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in text.splitlines() if row.startswith("| ")}
    assert rows["requests of one key that wait"].startswith(f"{held_writes.MAX_WAITING};")
    assert rows["how long `Prefer: wait` holds an answer"] == f"{MAX_WAIT_S} seconds"
    assert rows["answers that one process holds at a time"].startswith(f"{MAX_WAITING};")
