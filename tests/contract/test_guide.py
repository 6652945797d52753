"""docs/guardrails.md: every command of the guide is run against `birdwire dev`, from top to bottom."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.rules import RULES
from harness.pages import blocks, dev_gateway, steps, text_of

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/guardrails.md"


@pytest.mark.timeout(180)
def test_the_guides_commands_do_what_the_guide_shows(tmp_path: Path) -> None:
    """With the exit codes and the answers that it shows; one block continues where the last one ended."""
    with dev_gateway(tmp_path) as reader:
        for block in blocks(PAGE, "console"):
            for step in steps(block):
                reader.do(step)


def test_the_guide_names_only_rules_and_presets_that_exist() -> None:
    """Each shorthand in it starts with a rule."""
    names = {rule.name for rule in RULES}
    used = re.findall(r"(?<![\w.-])([a-z_]+)(?:\.[\w*]+)?=(?!\")[\w\"*]", text_of(PAGE))
    assert set(used) <= names
    assert len(set(used)) > 6
    assert set(re.findall(r"--preset (\w+)", text_of(PAGE))) <= set(PRESETS)
