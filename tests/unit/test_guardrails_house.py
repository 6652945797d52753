"""The structure of the guardrails: who may judge, charge, begin and send."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import birdwire
from birdwire.gateway.sender import Write
from birdwire.gateway.writes import Writes

SOURCE = Path(birdwire.__file__).parent
TREES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(SOURCE.rglob("*.py"))
    if not {"sandbox", "cli", "migrations"} & set(path.relative_to(SOURCE).parts)
}

STEPS = ("gateway.writes", "gateway.lookups")
JUDGE = "gateway.guardrails.spending"
"""What the step lists judge and charge by."""


def callers(name: str) -> set[str]:
    """Return the modules that call a function or method of this name."""
    return {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", ""), getattr(node.func, "id", ""))
    }


def test_calls_are_evaluated_for_the_step_lists_and_the_rehearsal_alone() -> None:
    """Every surface goes through the lists, so a call has one decision."""
    assert callers("evaluate") <= {JUDGE, "gateway.guardrails.rehearsal"}
    # Admission judges again, by a function that the step list hands it; the operator's edit of a post is judged, too.
    assert callers("judge") == {*STEPS, "gateway.admission", "gateway.guardrails.approvals"}
    assert callers("judge_again") == {"gateway.writes"}


def test_only_a_unit_of_the_group_commit_charges_a_call() -> None:
    """The journal's, with the row of a write; or the one of a lookup, of shadow mode, or of reads without a caller."""
    assert callers("charging") == {JUDGE, "outcomes.settlement"}
    assert callers("giving_back") == {JUDGE, "outcomes.settlement"}
    assert callers("charge") == {"gateway.writes"} | callers("charge") & {"gateway.guardrails.policy"}
    assert callers("reserve") & {*STEPS, "gateway.pipeline"} == {"gateway.lookups"}


def test_only_the_steps_send_to_x_for_a_caller() -> None:
    """Nothing else opens a client with a permit, opens a record, or sends what was recorded."""
    assert callers("permit") == {"gateway.writes"}
    assert callers("lookup_permit") == {"gateway.lookups"}
    opened = {name for name in callers("perform") if name.startswith(("gateway", "surfaces", "routes"))}
    assert opened <= {"gateway.writes"}
    assert callers("upload") & {"gateway.writes", "gateway.pipeline", "surfaces"} == {"gateway.writes"}


def test_only_persons_decide() -> None:
    """No route with a key reaches a decision: only the page of signed links does, and the command line."""
    page = {"gateway.guardrails.signed_links", "surfaces.approve.pages"}
    for decision in ("approve", "deny", "edit"):
        assert callers(decision) <= page, decision
    assert callers("perform_approved") == set()
    assert callers("make_link") == callers("order_deletion") == set()


def _steps() -> dict[str, tuple[str, str]]:
    """Return the methods by which each step does and looks, from the source of the list."""
    tree = ast.parse(inspect.getsource(Writes.__init__).lstrip())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Step":
            name, *methods = node.args
            names = [getattr(one, "attr", "") for one in methods]
            assert isinstance(name, ast.Constant)
            found[str(name.value)] = (names[0], names[1] if len(names) > 1 else "")
    return found


def test_the_steps_stand_in_their_order() -> None:
    """Whatever refuses for nothing comes first; what counts comes after what only looks."""
    order = ["action", "body", "files", "session", "pause", "policy", "windows", "daily_writes"]
    assert list(_steps()) == [*order, "room", "record", "attach", "ask", "start", "send"]


def test_each_step_that_can_refuse_beforehand_has_a_look() -> None:
    """A step without one needs what earlier steps made: a record, uploaded files or a charge; `room` is a look."""
    without = {name for name, (_, look) in _steps().items() if not look}
    assert without == {"room", "record", "attach", "start"}


def _flagged(flag: str) -> set[str]:
    """Return the names of the steps that have a flag, from the source of the list."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(Writes.__init__).lstrip())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Step":
            assert isinstance(node.args[0], ast.Constant)
            if any(keyword.arg == flag for keyword in node.keywords):
                found.add(str(node.args[0].value))
    return found


def test_an_approved_write_goes_through_the_same_steps_again() -> None:
    """What was done when it was asked for is not done twice; what the operator ordered is held by no rule."""
    assert _flagged("once") == {"files", "daily_writes", "room", "attach", "ask"}
    assert _flagged("rules") == {"action", "pause", "policy"}


def test_a_look_needs_what_a_write_has() -> None:
    """A misspelt need would never be known, and its step never be looked at."""
    needed = set()
    for node in ast.walk(ast.parse(inspect.getsource(Writes.__init__).lstrip())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Step":
            given = [keyword.value for keyword in node.keywords if keyword.arg == "needs"] + node.args[3:4]
            names = {element.value for one in given for element in ast.walk(one) if isinstance(element, ast.Constant)}
            needed |= names
    assert needed <= set(Write.__dataclass_fields__)
    assert needed == {"body", "session"}
