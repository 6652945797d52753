"""The benchmark's own arithmetic: a wrong figure misleads its readers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from bench import budget, machine, report
from bench.contenders import CONTENDERS, PEERS, Place
from bench.load import Run

if TYPE_CHECKING:
    from pathlib import Path


def run(contender: str, number: int, cpu_us: float, *, connections: int = 32, rate: float = 20_000) -> dict[str, Any]:
    """A run that cost this much."""
    return asdict(Run(contender, number, connections, 60_000, rate, cpu_us, 0.0, 1_500, 4_000, 9_000, 60.0, 0, 0))


def result(*runs: dict[str, Any], rounds: int = 2) -> dict[str, Any]:
    """What a benchmark of these runs leaves behind."""
    names = dict.fromkeys(one["contender"] for one in runs)
    return {
        "made_at": "2026-04-18T07:00:00+00:00",
        "commit": "abc1234",
        "machine": {**machine.described(), "fsync_us": 100},
        "options": {"seconds": 3, "rounds": rounds, "connections": [32]},
        "contenders": [
            {"name": name, "title": f"The {name}", "how": "somehow", "version": "1.0", "own": name == "birdwire"}
            for name in names
        ],
        "missing": {"caddy": "not installed: caddy"},
        "runs": list(runs),
    }


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that was slow for a while was so for both."""
    table = report.Table(
        result(run("birdwire", 1, 60), run("nginx", 1, 10), run("birdwire", 2, 120), run("nginx", 2, 24))
    )
    assert str(table.ratio("birdwire", "nginx", 32)) == "5.50 (5.00 to 6.00)"


def test_the_table_ranks_by_cpu_and_names_missing_contenders() -> None:
    """The cheapest first; no contender is left out silently."""
    page = report.page(result(run("node-undici", 1, 65), run("birdwire", 1, 60), run("nginx", 1, 12), rounds=1))
    assert page.index("The nginx") < page.index("The birdwire") < page.index("The node-undici")
    assert "- not run: caddy: not installed: caddy." in page


@pytest.mark.parametrize(("cpu_us", "verdict"), [(60.0, "met"), (84.0, "**missed**")])
def test_a_target_is_reported_as_met_or_missed(cpu_us: float, verdict: str) -> None:
    """By the median, at each number of connections that was run."""
    page = report.page(result(run("birdwire", 1, cpu_us), run("nginx", 1, 12), rounds=1))
    row = next(line for line in page.splitlines() if line.startswith("| CPU, by nginx forwarding"))
    assert row.endswith(f"| {verdict} |")


def test_the_plot_shows_each_contender() -> None:
    """A bar and its figure."""
    picture = report.plot(result(run("birdwire", 1, 60), run("nginx", 1, 12), rounds=1))
    assert picture.count("<rect") == 2
    assert ">60.0</text>" in picture


def test_a_result_is_json_with_a_run_a_line() -> None:
    """So that two results can be compared line by line."""
    whole = result(run("birdwire", 1, 60), run("nginx", 1, 12), rounds=1)
    text = report.written(whole)
    assert json.loads(text) == whole
    assert len([line for line in text.splitlines() if '"cpu_us"' in line]) == 2


def test_the_table_of_the_readme_is_replaced_between_its_marks(tmp_path: Path) -> None:
    """Twice, and nothing else is touched."""
    page, (first, second) = tmp_path / "README.md", report.MARKS
    page.write_text(f"before\n\n{first}\nold\n{second}\n\nafter\n")
    whole = result(run("birdwire", 1, 60), run("nginx", 1, 12), run("caddy", 1, 90), rounds=1)
    for _ in range(2):
        report.put_between(page, report.MARKS, report.few(whole))
        text = page.read_text()
        assert text.startswith(f"before\n\n{first}\n\n| A like")
        assert text.endswith(f"\n\n{second}\n\nafter\n")
        assert "The nginx" in text
        assert "old" not in text
        assert "The caddy" not in text


def test_the_budget_s_parts_add_up_to_what_a_like_costs() -> None:
    """Without the sampler's own cost; the other threads have a row of their own."""
    found = {
        "plain": Run("birdwire", 1, 32, 60_000, 10_000, 80.0, 0.0, 1, 1, 1, 60.0, 0, 0),
        "booked": {"edge|Edge.read|": 3.0, "store.sqlite|_put|": 1.0, "(loop and greenlets)||uvloop": 1.0},
        "threads": {"main": (4.0, 2.0), "python 7": (1.0, 1.0)},
    }
    parts = budget.parts(found)
    assert parts["Bytes in, bytes out"] == pytest.approx(36.0)
    assert parts["The journal row, on the disk"] == pytest.approx(12.0)
    assert parts["The event loop"] == pytest.approx(12.0)
    assert sum(parts.values()) == pytest.approx(80.0)


def test_the_pages_that_the_benchmark_renews_have_its_marks() -> None:
    """Once each, in order."""
    root = PEERS.parent.parent
    for page, (first, second) in (("README.md", report.MARKS), ("docs/design.md", budget.MARKS)):
        text = (root / page).read_text()
        assert text.count(first) == text.count(second) == 1
        assert text.index(first) < text.index(second)


def test_growth_is_reported_as_a_table_for_each_part() -> None:
    """A row for each size; what one row lacks is left open."""
    rows = [{"accounts": 1, "CPU µs": "60", "runs": []}, {"accounts": 1_000_000, "CPU µs": "61", "KiB": 1.5}]
    part = {"name": "accounts", "title": "Linked accounts", "words": ["So many."], "rows": rows}
    described = {**machine.described(), "fsync_us": 100}
    page = report.growth({"made_at": "now", "commit": "abc1234", "machine": described, "parts": [part]})
    assert "| accounts | CPU µs | KiB |" in page
    assert "| 1 | 60 | - |" in page
    assert "| 1,000,000 | 61 | 1.5 |" in page


def test_every_template_of_a_peer_can_be_filled_in(tmp_path: Path) -> None:
    """No brace is left over, none is missing."""
    place = Place(tmp_path, 8001, 8002, ["key"])
    for name in ("x.conf", "nginx.conf", "haproxy.cfg", "Caddyfile", "litellm.yaml"):
        filled = place.written(name, port=8003, tls_port=8004).read_text()
        assert "{{" not in filled
        assert "127.0.0.1:8001" in filled


def test_contenders_have_names_of_their_own() -> None:
    """A run is filed under its contender's name."""
    assert len({one.name for one in CONTENDERS}) == len(CONTENDERS)
    assert (PEERS / "like.lua").exists()


def test_the_cost_of_a_process_is_that_of_its_whole_tree(tmp_path: Path) -> None:
    """A child that worked and has ended counts too."""
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    process = machine.start("burner", [sys.executable, "-c", script], tmp_path)
    try:
        os.waitid(os.P_PID, process.running.pid, os.WEXITED | os.WNOWAIT)
        assert process.cpu_s() >= 0.3
    finally:
        process.stop()
