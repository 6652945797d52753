"""`python -m bench.growth`: what a like costs as a gateway grows in accounts, journal rows, replicas and renewals."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import contenders, engines, goals, install, interpreters, machine, report, seed
from bench.figures import Spread
from bench.load import PATH, Load
from bench.machine import LOAD_CORE, SERVER_CORE, Process, answering, free_port, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contenders import Place
    from bench.load import Run

HERE = Path(__file__).parent
WORK = HERE / ".work"
PROGRAM = Path(sys.executable).parent / "birdwire"
CONNECTIONS = 32
CALLED, WARMED = 20_000, 4_000
"""So many of the accounts of a large store are called; and so many of those, to see what one takes in memory."""

RENEWED = 200
UNLIMITED = 1_000_000_000
JOURNAL_S = 80 * 86_400
"""The age of the oldest row of a long journal: younger than what is purged."""

LOGS = (
    ("log", "--limit", "50"),
    ("log", "--operation", "like_twitter", "--limit", "50"),
    ("log", "--state", "unknown", "--limit", "50"),
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One way to grow. Its rows hold figures by the titles of their columns."""

    title: str
    words: tuple[str, ...]
    measured: Callable[[Place, argparse.Namespace], list[Row]]


def main() -> None:
    """Run the chosen parts, and write what came out."""
    options = _options()
    python = interpreters.enter("bench.growth", options.python)
    install.everything()
    parts, described = [], {}
    for name in options.only or PARTS:
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir()
        described = {**machine.described(), "fsync_us": machine.fsync_us(WORK)}
        print(f"{name} ...", flush=True)
        part = PARTS[name]
        x, place = contenders.x(WORK, seed.raw_keys(CONNECTIONS))
        try:
            rows = part.measured(place, options)
        except Exception as error:  # noqa: BLE001 - the other parts are still worth having
            rows = [{"failed": f"{type(error).__name__}: {error}"}]
        finally:
            x.stop()
        for row in rows:
            print({title: figure for title, figure in row.items() if title != "runs"}, flush=True)
        parts.append({"name": name, "title": part.title, "words": part.words, "rows": rows})
    made_at, commit = (
        datetime.now(UTC).isoformat(timespec="seconds"),
        machine.output(["git", "rev-parse", "--short", "HEAD"]),
    )
    result = {"made_at": made_at, "commit": commit, "machine": described, "python": python, "parts": parts}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "growth.md").write_text(report.growth(result))
    print(f"written: {options.out}/growth.json, growth.md")
    goals.print_unexplained(goals.of_growth(result))


# Linked accounts.


def accounts(place: Place, options: argparse.Namespace) -> list[Row]:
    """Gateways with few and with many linked accounts, side by side."""
    rows: dict[str, Row] = {}
    running: dict[str, Process] = {}
    keys = {size: seed.raw_keys(min(size, CALLED)) for size in options.sessions}
    try:
        for size, called in keys.items():
            name = f"accounts-{size}"
            environment = _environment(place, name)
            asyncio.run(seed.link(environment, called[:1]))
            seed.grow(environment, called[1:], size)
            store_mib = (place.folder(name) / "birdwire.db").stat().st_size / (1 << 20)
            running[name], cold = _cold(place, name, environment, called[0])
            rows[name] = {"accounts": size, "store MiB": round(store_mib, 1)} | cold
            for words, most in (("hot", CONNECTIONS), ("warm", WARMED), ("all", CALLED)):
                (place.folder(name) / f"{words}.keys").write_text("\n".join(called[:most]))
        runs = _rounds(running, options, lambda name: place.folder(name) / "hot.keys")
        for name, process in running.items():
            rows[name] |= _told(runs[name]) | _spread(place.folder(name), process, options)
    finally:
        for process in running.values():
            process.stop()
    return list(rows.values())


def _spread(folder: Path, process: Process, options: argparse.Namespace) -> Row:
    """What it costs in memory and time to call many accounts in turn."""
    used = len((folder / "warm.keys").read_text().split())
    before_mib = process.rss_mib()
    run = Load(folder / "warm.keys", options.seconds, spread=True).run(process, 1, CONNECTIONS)
    told: Row = {}
    if used >= WARMED and run.requests >= used:
        told["KiB an account called"] = round((process.rss_mib() - before_mib) * 1024 / used, 2)
    run = Load(folder / "all.keys", options.seconds, spread=True).run(process, 2, CONNECTIONS)
    return told | {"CPU µs, each like another account": run.cpu_us, "MiB after that": round(process.rss_mib())}


# Journal rows.


def rows(place: Place, options: argparse.Namespace) -> list[Row]:
    """Gateways with an empty and with a long journal, side by side; and the commands that read it."""
    found: dict[str, Row] = {}
    running: dict[str, Process] = {}
    environments = {}
    try:
        for size in (0, options.rows):
            name = f"rows-{size}"
            environments[name] = environment = _environment(place, name)
            asyncio.run(seed.link(environment, place.keys))
            if size:
                process = _started(place, name, environment)
                _like(process.port, place.keys[0])
                process.stop()
                seed.lengthen(environment, size, apart_s=JOURNAL_S / size)
            running[name], cold = _cold(place, name, environment, place.keys[0])
            found[name] = {"journal rows": size} | cold
        runs = _rounds(running, options, lambda _: place.keys_file)
        for name in running:
            found[name] |= _told(runs[name])
    finally:
        for process in running.values():
            process.stop()
    for name, environment in environments.items():
        found[name] |= {f"`{' '.join(words)}` s": _command_s(environment, words) for words in LOGS}
    found[name] |= _purged(place, name, environment, options)
    return list(found.values())


def _purged(place: Place, name: str, environment: dict[str, str], options: argparse.Namespace) -> Row:
    """What likes cost while the older half of the journal is dropped, and how fast that goes."""
    keep = timedelta(seconds=JOURNAL_S / 2)
    due = seed.older_rows(environment, keep)
    began = time.monotonic()
    process = _started(place, name, environment | {"BIRDWIRE_JOURNAL_DAYS": str(keep.days)})
    try:
        load = Load(place.keys_file, options.seconds)
        runs = [load.run(process, number, CONNECTIONS) for number in range(1, options.rounds + 1)]
    finally:
        process.stop()
    took_s = time.monotonic() - began
    dropped = due - seed.older_rows(environment, keep)
    return {
        "purged rows/s under load": round(dropped / took_s),
        "CPU µs meanwhile": str(Spread.of(run.cpu_us for run in runs)),
        "p99 ms meanwhile": str(Spread.of(run.p99_us / 1000 for run in runs)),
    }


def _command_s(environment: dict[str, str], words: tuple[str, ...]) -> float | str:
    """How long a command takes, start included."""
    began = time.monotonic()
    argv = [str(PROGRAM), *words, "--json"]
    given = machine.plain_environment() | environment
    done = subprocess.run(argv, capture_output=True, check=False, env=given, timeout=300)
    return round(time.monotonic() - began, 2) if done.returncode == 0 else f"exit {done.returncode}"


# Replicas.


def replicas(place: Place, options: argparse.Namespace) -> list[Row]:
    """One, two and four gateways on one PostgreSQL and one Redis."""
    found = []
    for count in (1, 2, 4):
        name = f"replicas-{count}"
        folder = place.folder(name)
        started: list[Process] = []
        try:
            postgres, database_url = engines.postgres(folder, core=LOAD_CORE, connections=200)
            started.append(postgres)
            redis, redis_url = engines.redis(folder, core=LOAD_CORE)
            started.append(redis)
            environment = _environment(place, name, database_url=database_url, redis_url=redis_url)
            asyncio.run(seed.link(environment, place.keys))
            running = []
            for _ in range(count):
                running.append(_started(place, name, environment | {"BIRDWIRE_PORT": str(free_port())}))
                started.insert(0, running[-1])
            found.append({"replicas": count} | asyncio.run(_together(place, running, options)))
        finally:
            for process in started:
                process.stop()
    return found


async def _together(place: Place, running: list[Process], options: argparse.Namespace) -> Row:
    """Load on all replicas at once, a share of the connections each."""
    load, share = Load(place.keys_file, options.seconds), max(1, CONNECTIONS // len(running))
    runs = await asyncio.gather(*(asyncio.to_thread(load.run, process, 1, share) for process in running))
    likes = sum(run.requests for run in runs)
    return {
        "likes/s in all": round(sum(run.rate for run in runs)),
        "CPU µs": round(sum(run.cpu_us * run.requests for run in runs) / likes, 1),
        "p99 ms": round(max(run.p99_us for run in runs) / 1000, 1),
        "runs": [asdict(run) for run in runs],
    }


# Renewals.


def renewals(place: Place, options: argparse.Namespace) -> list[Row]:
    """Accounts at the sandbox: first with tokens that last, then with such as are always about to end."""
    port = free_port()
    sandbox = start("sandbox", [PROGRAM, "sandbox", "--port", port, "--json"], place.work, core=LOAD_CORE, port=port)
    try:
        log = place.work / "sandbox.log"
        answering(sandbox, lambda: "client_id" in log.read_text())
        x_url, client = f"http://127.0.0.1:{port}", json.loads(log.read_text().splitlines()[0])
        keys = {7_200: seed.raw_keys(RENEWED), 30: seed.raw_keys(RENEWED)}
        given = {"x_client_id": client["client_id"], "x_client_secret": client["client_secret"]}
        environment = seed.settings(place.folder("renewals"), free_port(), x_url, seed.vault_key(), **given)
        asyncio.run(seed.link(environment, [*chain.from_iterable(keys.values())], linked=False))
        gateway = _started(place, "renewals", environment)
        try:
            return [_renewed(x_url, gateway, lifetime_s, place, options, chosen) for lifetime_s, chosen in keys.items()]
        finally:
            gateway.stop()
    finally:
        sandbox.stop()


def _renewed(
    x_url: str, gateway: Process, lifetime_s: int, place: Place, options: argparse.Namespace, keys: list[str]
) -> Row:
    """Link these keys to accounts whose tokens live so long, and have them like."""
    endless = {"likes_per_15m": UNLIMITED, "likes_per_24h": UNLIMITED, "limits": {"GET /2/users/me": UNLIMITED}}
    _post(f"{x_url}/_sandbox/config", {**endless, "access_token_s": lifetime_s})
    for raw_key in keys:
        _link(gateway.port, x_url, raw_key)
    path = place.work / f"{lifetime_s}.keys"
    path.write_text("\n".join(keys))
    load = Load(path, options.seconds, spread=True)
    runs = [load.run(gateway, number, CONNECTIONS) for number in range(1, options.rounds + 1)]
    return {"seconds that a token lives": lifetime_s} | _told(runs)


def _link(port: int, x_url: str, raw_key: str) -> None:
    """An account linked as its owner would do it."""
    begun = _post(f"http://127.0.0.1:{port}/apis/v1/twitter/auth_twitter", {}, raw_key)
    decision = {"auth_url": begun["auth_url"], "username": "ada", "action": "allow"}
    decided = _post(f"{x_url}/_sandbox/consent", decision)
    with urllib.request.urlopen(decided["redirect_to"], timeout=10) as answer:  # noqa: S310 - our own, on loopback
        answer.read()


# What the parts share.


def _environment(place: Place, name: str, **more: str) -> dict[str, str]:
    return seed.settings(place.folder(name), free_port(), place.x_url, seed.vault_key(), **more)


def _started(place: Place, name: str, environment: dict[str, str]) -> Process:
    port = int(environment["BIRDWIRE_PORT"])
    process = start(name, [PROGRAM, "serve"], place.folder(name), core=SERVER_CORE, env=environment, port=port)
    answering(process)
    return process


def _cold(place: Place, name: str, environment: dict[str, str], raw_key: str) -> tuple[Process, Row]:
    """A gateway, and how long it took from nothing to listening, and to its first like."""
    began = time.monotonic()
    process = _started(place, name, environment)
    listening = time.monotonic()
    _like(process.port, raw_key)
    liked = time.monotonic()
    return process, {
        "listening after ms": round((listening - began) * 1000),
        "first like after ms": round((liked - began) * 1000),
    }


def _like(port: int, raw_key: str) -> None:
    _post(f"http://127.0.0.1:{port}{PATH}", {"tweet_id": "1346889436626259968"}, raw_key)


def _post(url: str, body: dict[str, Any], raw_key: str = "") -> dict[str, Any]:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {raw_key}"} if raw_key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - our own, on loopback
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - the same
        found: dict[str, Any] = json.loads(answer.read() or b"{}")
    return found


def _rounds(
    running: dict[str, Process], options: argparse.Namespace, keys: Callable[[str], Path]
) -> dict[str, list[Run]]:
    """The same load on each in turn."""
    found: dict[str, list[Run]] = {name: [] for name in running}
    for number in range(1, options.rounds + 1):
        for name, process in running.items():
            found[name].append(Load(keys(name), options.seconds).run(process, number, CONNECTIONS))
    return found


def _told(runs: list[Run]) -> Row:
    return {
        "CPU µs": str(Spread.of(run.cpu_us for run in runs)),
        "likes/s": str(Spread.of(run.rate for run in runs)),
        "p99 ms": str(Spread.of(run.p99_us / 1000 for run in runs)),
        "peak MiB": round(max(run.peak_mib for run in runs)),
        "runs": [asdict(run) for run in runs],
    }


PARTS = {
    "accounts": Part(
        "Linked accounts",
        (
            f"So many keys, each with an account, in one SQLite file; {CONNECTIONS} of them are called. Then each like",
            f"is by another of {CALLED:,}, in turn. The memory of an account is what calling {WARMED:,} more added.",
        ),
        accounts,
    ),
    "rows": Part("Journal rows", ("SQLite; a command's time is from start to end, the interpreter's included.",), rows),
    "replicas": Part(
        "Replicas",
        (
            "On one PostgreSQL and one Redis. All replicas share one core; the databases, X and the load share the",
            "other: this shows what a replica costs, not how far they scale.",
        ),
        replicas,
    ),
    "renewals": Part(
        "Renewals",
        (
            f"Accounts of {RENEWED} keys at the sandbox, which has the other core to itself and the load. A token that",
            "lives for 30 s is renewed before each like, so the likes/s are renewals/s.",
        ),
        renewals,
    ),
}


def _options() -> argparse.Namespace:
    def sizes(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="make bench-growth ARGS=…", description=__doc__)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--sessions", type=sizes, default=[32, 10_000, 1_000_000], help="numbers of linked accounts")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the long journal (default: 10,000,000)")
    parser.add_argument("--seconds", type=int, default=3, help="how long each run is measured (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (default: 3)")
    interpreters.add_option(parser)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
