"""The benchmark's own arithmetic: a wrong figure misleads its readers."""

from __future__ import annotations

import json
import os
import posixpath
import socket
import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select

from bench import (
    budget,
    bytecodes,
    callgrind,
    figures,
    goals,
    instructions,
    interpreters,
    latency,
    machine,
    report,
    seed,
)
from bench.contenders import CONTENDERS, PEERS, Place
from bench.load import DEEDS, Caller, Run
from birdwire.accounts.tokens import SealedTokens
from birdwire.runtime.clock import Clock
from birdwire.settings import Settings
from birdwire.startup import open_vault
from birdwire.store.tables.x_sessions import SessionRow, x_sessions

if TYPE_CHECKING:
    from pathlib import Path


def run(contender: str, number: int, cpu_us: float, *, connections: int = 32, rate: float = 20_000) -> dict[str, Any]:
    """A run that cost this much."""
    return asdict(Run(contender, number, connections, 60_000, rate, cpu_us, 0.0, 1_500, 4_000, 9_000, 60.0, 0, 0))


PYTHON = {
    "implementation": "CPython",
    "version": "3.11.2",
    "origin": "the distribution",
    "compiler": "GCC 12.2.0",
    "optimizations": [],
    "million_steps_s": 1.6,
}
INTERPRETERS = {"measured": PYTHON, "why": "/usr/bin/python3", "started_on": PYTHON | {"version": "3.12.1"}}


def result(*runs: dict[str, Any], rounds: int = 2) -> dict[str, Any]:
    """What a benchmark of these runs leaves behind."""
    names = dict.fromkeys(one["contender"] for one in runs)
    return {
        "made_at": "2026-04-18T07:00:00+00:00",
        "commit": "abc1234",
        "machine": {**machine.described(), "fsync_us": 100},
        "python": INTERPRETERS,
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
    table = figures.Table(
        result(run("birdwire", 1, 60), run("nginx", 1, 10), run("birdwire", 2, 120), run("nginx", 2, 24))
    )
    assert str(table.ratio("birdwire", "nginx", 32)) == "5.50 (5.00 to 6.00)"


def test_the_table_ranks_by_cpu_and_names_missing_contenders() -> None:
    """The cheapest first; no contender is left out silently."""
    page = report.page(result(run("node-undici", 1, 65), run("birdwire", 1, 60), run("nginx", 1, 12), rounds=1))
    assert page.index("The nginx") < page.index("The birdwire") < page.index("The node-undici")
    assert "- not run: caddy: not installed: caddy." in page


@pytest.mark.parametrize(("cpu_us", "verdict"), [(60.0, "met"), (96.0, "**missed**")])
def test_a_goal_is_reported_as_met_or_missed(cpu_us: float, verdict: str) -> None:
    """By the median, at each number of connections that was run; a missed one with the reason."""
    page = report.page(result(run("birdwire", 1, cpu_us), run("nginx", 1, 12), rounds=1))
    row = next(line for line in page.splitlines() if line.startswith("| CPU, by nginx forwarding"))
    assert row.endswith(f"| {verdict} |")
    reason = f"- Missed: CPU, by nginx forwarding. {goals.WHY['CPU, by nginx forwarding']}"
    assert (reason in page) == (verdict != "met")


def verdicts_of_the_latest_runs() -> list[goals.Verdict]:
    """Return the verdicts of bench/results, as far as its runs measured them."""
    folder = PEERS.parent / "results"
    names = ("latest", "growth", "instructions")
    latest, growth, counts = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    return [
        *goals.of_likes(figures.Table(latest)),
        *goals.of_growth(growth),
        *goals.of_instructions(counts),
    ]


def test_each_goal_that_the_latest_runs_missed_has_a_reason() -> None:
    """And each reason belongs to a goal."""
    verdicts = verdicts_of_the_latest_runs()
    assert len(verdicts) > 10
    assert goals.unexplained(verdicts) == []
    assert goals.WHY.keys() <= {goal.words for goal in (*goals.LIKES, goals.ACCOUNTS, goals.INSTRUCTIONS)}


def test_a_run_that_missed_a_goal_asks_for_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Its pages are written without it: the figures are worth keeping."""
    verdict = goals.Verdict(goals.Goal("a new goal", 1.0), 32, figures.Spread(2.0, 2.0, 2.0))
    goals.print_unexplained([verdict, goals.Verdict(goals.Goal("another", 3.0), 32, verdict.found)])
    assert capsys.readouterr().out == "goal missed: a new goal; state the reason in WHY of bench/goals.py\n"
    assert "- Missed: a new goal. The reason is not known yet." in goals.section([verdict])


def test_many_accounts_are_compared_with_few_within_a_round() -> None:
    """If both were run; a part that failed has no runs."""

    def accounts(count: int, *costs: float) -> dict[str, Any]:
        return {"accounts": count, "runs": [{"cpu_us": cost} for cost in costs]}

    rows = [accounts(32, 400, 500), accounts(10_000, 1, 1), accounts(1_000_000, 440, 600)]
    part = {"name": "accounts", "rows": rows}
    (verdict,) = goals.of_growth({"parts": [{"name": "rows", "rows": [{"journal rows": 0}]}, part]})
    assert (str(verdict.found), verdict.met) == ("1.15 (1.10 to 1.20)", True)
    assert goals.of_growth({"parts": [{"name": "accounts", "rows": [{"failed": "why"}]}]}) == []


def test_every_page_names_the_interpreters() -> None:
    """The one that was measured, and the one that make setup chose if that is another."""
    growth = {"made_at": "now", "commit": "abc1234", "machine": {**machine.described(), "fsync_us": 100}, "parts": []}
    whole = result(run("birdwire", 1, 60), rounds=1)
    name = "All Python programs run on Python 3.11.2 (CPython from the distribution, GCC 12.2.0): 1.60 million"
    assert name in report.few(whole).replace("\n", " ")
    assert "Python 3.11.2 (CPython from the distribution" in budget.table(counted())
    pages = [report.page(whole), instructions.page(counted())]
    for page in (*pages, report.growth(growth | {"python": INTERPRETERS})):
        assert name in page
        assert "\n(/usr/bin/python3).\n" in page
        assert "uses another one here: Python 3.12.1 (" in page
    assert len(interpreters.told({"measured": PYTHON, "why": "that of .venv"})) == 2


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


COUNTS = {
    "edge.protocol|": 300,
    "edge.protocol|uvicorn": 100,
    "x.client.pool|": 60,
    "x.limits.windows|": 40,
    "store.engines.group_commit|concurrent": 80,
    "app|": 20,
    "(loop)|asyncio": 200,
}


def test_the_budget_s_parts_add_up_to_a_like() -> None:
    """Libraries count for their caller; the longer prefix takes precedence; nothing is left out."""
    found = budget.packages(COUNTS)
    assert found == {
        "edge": 400,
        "x.client": 60,
        "x.limits": 40,
        "store": 80,
        budget.LOOP: 200,
        budget.OTHER: 20,
    }
    assert list(found) == sorted(found, key=[*budget.PARTS, budget.OTHER].index)
    assert sum(found.values()) == sum(COUNTS.values())


def test_a_package_is_not_a_prefix_of_a_name() -> None:
    """Such as x of x_tokens, or edge of edges."""
    assert budget.package_of("edge") == "edge"
    assert budget.package_of("edges") == budget.OTHER


def counted() -> dict[str, Any]:
    """Return a result of bench.instructions."""
    spans = [callgrind.Span(10, loaded, 2.0, 500, 5.0) for loaded in (10_200, 10_400, 10_300)]
    return {
        "made_at": "2026-04-18T07:00:00+00:00",
        "commit": "abc1234",
        "machine": machine.described(),
        "python": INTERPRETERS,
        "bytecodes": {"counts": COUNTS, "frames": 30, "likes": 20, "alike": 15},
        "instructions": {
            **asdict(callgrind.Cost.of(spans)),
            "runs": [asdict(span) for span in spans],
            "libraries": {"libc.so.6": 10, "libpython3.11.so": 90},
        },
    }


def test_background_work_is_taken_off_a_like() -> None:
    """At the rate of the idle stretches, over the time that the likes took."""
    spans = [
        callgrind.Span(10, 10_200, 2.0, 400, 4.0),
        callgrind.Span(10, 10_500, 4.0, 600, 6.0),
        callgrind.Span(10, 10_400, 2.0, 0, 0.0),
    ]
    cost = callgrind.Cost.of(spans)
    assert cost.idle_rate == pytest.approx(100.0)
    assert cost.middle == pytest.approx(1_010.0)
    assert cost.spread == pytest.approx(20.0 / 1_010.0)


PROFILE = """# callgrind format
events: Ir
summary: 1234

ob=(1) /usr/lib/libpython3.11.so.1.0
fl=(1) ceval.c
fn=(1) eval
10 100
+5 20
cob=(2) /lib/x86_64-linux-gnu/libc.so.6
cfn=(2) malloc
calls=3 40
+1 1000
* 4

ob=(2)
fn=(2)
40 110

totals: 1234
"""


def test_a_callgrind_profile_is_read() -> None:
    """Its total, and what each library costs itself: what it calls counts for the library called."""
    assert callgrind.instructions(PROFILE) == 1234
    assert callgrind.by_library(PROFILE) == {"libpython3.11.so.1.0": 124, "libc.so.6": 110}


def test_a_profile_that_was_cut_off_is_refused() -> None:
    """A missing total must not become a zero."""
    with pytest.raises(ValueError, match="no summary"):
        callgrind.instructions("# callgrind format\nevents: Ir\n")


def test_the_page_and_the_budget_state_both_counts() -> None:
    """And the page of one alone states that one."""
    result = counted()
    page, table = instructions.page(result), budget.table(result)
    assert "| thousand instructions of a like | 32 | ≤ 520 | 1.01 (1.00 to 1.02) | met |" in page
    assert "## 800 bytecodes" in page
    assert "| libpython3.11.so | 90.0% |" in page
    assert "| HTTP server: bytes in, bytes out | `edge` | 400 | 50% |" in table
    assert "| **A like** | | **800** | |" in table
    del result["instructions"]
    assert "bytecodes" in instructions.page(result)


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence, no traceback."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench.instructions", "--only", "instructions"])
    with pytest.raises(SystemExit) as ended:
        instructions.main()
    assert ended.value.code == (
        "The benchmark needs nginx valgrind. On Debian and Ubuntu: sudo apt-get install nginx valgrind"
    )


def test_bytecodes_are_counted_on_their_owner_in_every_thread() -> None:
    """The same work has the same count each time; a library counts for the module of Birdwire that called it."""
    counts = bytecodes.Counts()
    module: dict[str, Any] = {"__name__": "birdwire.edge.protocol", "basename": posixpath.basename}
    exec("def work():\n    basename('a')\n", module)  # noqa: S102 - a module of Birdwire with one function
    counts.install()
    try:
        counts.take()
        found = []
        for _ in range(3):
            module["work"]()
            thread = threading.Thread(target=module["work"])
            thread.start()
            thread.join()
            found.append({place: n for place, n in counts.take().items() if place.startswith("edge.protocol|")})
    finally:
        counts.remove()
    assert found[0] == found[1] == found[2]
    assert found[0].keys() == {"edge.protocol|", "edge.protocol|posixpath"}


def test_the_commonest_like_is_the_one_shown() -> None:
    """One that coincides with a periodic task has other counts."""
    counts, times = bytecodes.commonest([{"a|": 5, "frames": 1}, {"a|": 9, "frames": 2}, {"frames": 1, "a|": 5}])
    assert (counts, times) == ({"a|": 5, "frames": 1}, 2)


def test_a_caller_reads_whole_answers_and_raises_on_a_refusal() -> None:
    """Also one that comes in pieces."""
    head = b"HTTP/1.1 %d OK\r\nContent-Length: 2\r\n\r\n"
    pieces = [(head % 200)[:20], (head % 200)[20:], b"{", b"}", head % 503 + b"{}"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = Caller(listener.getsockname()[1], "bw_test_key")
        connection, _ = listener.accept()
        with connection:
            caller.send()
            assert b"Authorization: Bearer bw_test_key\r\n" in connection.recv(1 << 16)
            for piece in pieces[:4]:
                connection.sendall(piece)
            caller.receive()
            connection.sendall(pieces[4])
            with pytest.raises(RuntimeError, match="503"):
                caller.receive()
        caller.close()


def test_a_caller_that_posts_sends_a_new_text_each_time() -> None:
    """X refuses a text that it has already seen from the account."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        caller = Caller(listener.getsockname()[1], "bw_test_key", "post")
        connection, _ = listener.accept()
        with connection:
            bodies = []
            for _ in range(2):
                caller.send()
                head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
                assert head.startswith(b"POST /apis/v1/twitter/post_twitter HTTP/1.1\r\n")
                assert f"Content-Length: {len(body)}".encode() in head
                bodies.append(json.loads(body)["text"])
            assert bodies[0] != bodies[1]
            connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            caller.receive()
        caller.close()


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
    result = {"made_at": "now", "commit": "abc1234", "machine": described, "python": INTERPRETERS, "parts": [part]}
    page = report.growth(result)
    assert "| accounts | CPU µs | KiB |" in page
    assert "| 1 | 60 | - |" in page
    assert "| 1,000,000 | 61 | 1.5 |" in page


async def test_the_tokens_of_a_large_store_can_be_decrypted(tmp_path: Path) -> None:
    """A gateway ends a link whose token is not bound as its own are, and the benchmark would measure refusals.

    Each session has an account of its own: the writes of one account wait for each other.
    """
    vault = seed.vault_key()
    environment = seed.settings(tmp_path, 8700, "http://127.0.0.1:1", vault)
    first, *others = seed.raw_keys(3)
    await seed.link(environment, [first])
    seed.grow(environment, others, 5)
    engine = create_engine(environment["BIRDWIRE_DATABASE_URL"])
    with engine.connect() as connection:
        rows = [SessionRow(*row) for row in connection.execute(select(x_sessions))]
    engine.dispose()
    tokens = SealedTokens(open_vault(Settings.load(environment)), Clock())
    called = [row for row in rows if row.session_id.startswith("xs_bench")]
    assert len({row.user_id for row in rows}) == len(rows) == 5
    assert [tokens.open(row, "access") for row in called] == [seed.TOKEN] * 2


def test_every_template_of_a_peer_can_be_filled_in(tmp_path: Path) -> None:
    """No brace is left over, none is missing."""
    place = Place(tmp_path, 8001, 8002, ["key"])
    for name in ("x.conf", "nginx.conf", "haproxy.cfg", "Caddyfile", "litellm.yaml"):
        filled = place.written(name, port=8003, tls_port=8004).read_text()
        assert "{{" not in filled
        assert "127.0.0.1:8001" in filled


def test_contenders_have_names_of_their_own() -> None:
    """A run is filed under its contender's name; its load exists."""
    assert {one.deed for one in CONTENDERS} == DEEDS.keys()
    assert len({one.name for one in CONTENDERS}) == len(CONTENDERS)
    assert (PEERS / "callers.lua").exists()


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


def test_the_stages_of_a_like_add_up() -> None:
    """A like that did not wait for the disk has no such stages, so it does not count."""
    marks = latency.Marks()
    marks.mark("read")
    marks.end()
    for first, _, _ in latency.STAGES:
        marks.mark(first)
    began = time.perf_counter()
    marks.end()
    (stages,) = marks.likes
    assert len(stages) == len(latency.STAGES)
    assert all(took > 0 for took in stages)
    assert sum(stages) < time.perf_counter() - began + 1
    told = latency.told({"through": [0.0009] * 4, "forwarded": [0.0002] * 4, "stages": [[1e-4] * 7], "fsync_us": 90})
    assert "Birdwire adds 700." in told
    assert told.splitlines()[-1].split()[-1] == "200"
