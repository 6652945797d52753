"""The tests of policies notice changes of their code: at least nine of ten, in the long form of the tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.fault_scale import LONG, record
from harness.mutation import mutants

ROOT = Path(__file__).parents[2]
GUARDRAILS = ROOT / "src" / "birdwire" / "gateway" / "guardrails"
TESTS = {
    "policy": ("test_policy.py", "test_policy_values.py", "test_policy_properties.py"),
    "rules": ("test_policy_values.py", "test_policy.py"),
}
"""The tests of each module, first those that notice the most."""


@pytest.mark.skipif(not LONG, reason="it takes minutes")
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("module", TESTS)
def test_nine_of_ten_changes_are_noticed(module: str) -> None:
    """One change at a time, each in a process of its own."""
    runner = [sys.executable, "tests/harness/mutation.py", str(GUARDRAILS / f"{module}.py")]
    tests = [f"tests/unit/{name}" for name in TESTS[module]]
    environment = {"PYTHONPATH": "src:tests:.", "PATH": "", "FAULTS_POLICIES": "150"}
    ended = subprocess.run(  # noqa: S603 - our own program
        [*runner, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=3_500
    )
    noticed, total = map(int, re.findall(r"(\d+) of (\d+) noticed", ended.stdout)[0])
    record(f"changes of {module}.py that tests notice", noticed=noticed, total=total)
    assert noticed >= 0.9 * total, ended.stdout


SOURCE = '''
def f(a, b):
    """Return something with 1 in it."""
    if a < 1 and not b:
        raise ValueError("no")
    return [] if b == "x" else a + 2
'''


def test_a_module_is_changed_in_each_of_its_places() -> None:
    """Once in each, and never in a text."""
    found = list(mutants(SOURCE))
    assert [mutant.what for mutant in found if mutant.line == 4] == [
        "the condition is negated",
        "line 5 is dropped",
        "And becomes Or",
        "Lt is flipped",
        "not is dropped",
        "1 becomes 2",
    ]
    assert [mutant.what for mutant in found if mutant.line == 6] == [
        "None is returned",
        "the condition is negated",
        "Eq is flipped",
        "Add is flipped",
        "2 becomes 3",
    ]
    assert len({mutant.source for mutant in found}) == len(found) == 11
    assert all("with 1 in it" in mutant.source for mutant in found)
