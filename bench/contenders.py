"""CONTENDERS: every way of passing a like on that is measured, how it is run, and what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench import engines, seed
from bench.load import PATH
from bench.machine import LOAD_CORE, Process, answering, free_port, start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).parent
PEERS = HERE / "peers"
BIN = HERE / ".venv" / "bin"
X_PATH = f"/2/users/{seed.USER_ID}/likes"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens: its folder, nginx in X's place, the callers' keys."""

    work: Path
    x_port: int
    x_tls_port: int
    keys: Sequence[str]

    @property
    def x_url(self) -> str:
        """X without TLS."""
        return f"http://127.0.0.1:{self.x_port}"

    @property
    def x_tls_url(self) -> str:
        """X with TLS, by a certificate of the run's own CA."""
        return f"https://127.0.0.1:{self.x_tls_port}"

    @property
    def keys_file(self) -> Path:
        """The callers' keys, one a line."""
        return self.work / "keys"

    def folder(self, name: str) -> Path:
        """A contender's own folder."""
        path = self.work / name
        path.mkdir(exist_ok=True)
        return path

    def written(self, template: str, **values: object) -> Path:
        """A peer's configuration, filled in."""
        filled = {"work": self.work, "x_port": self.x_port, "x_tls_port": self.x_tls_port, "path": PATH}
        filled |= {"x_path": X_PATH, "token": seed.TOKEN, **values}
        path = self.work / template
        path.write_text((PEERS / template).read_text().format(**filled))
        return path

    def peer_environment(self, port: int) -> dict[str, str]:
        """What the peers written for this benchmark read."""
        return {"PORT": str(port), "X_URL": self.x_url, "X_PATH": X_PATH, "TOKEN": seed.TOKEN}


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of passing a like on, or another deed of load.DEEDS.

    `how` is a sentence for readers who want to repeat it; `version` a command.
    """

    name: str
    title: str
    how: str
    start: Callable[[Place, str], Process]
    needs: tuple[str | Path, ...] = ()
    version: tuple[str | Path, ...] = ()
    own: bool = False
    deed: str = "like"

    def lacks(self) -> list[str]:
        """The programs it needs that are not here."""
        return [Path(program).name for program in self.needs if shutil.which(str(program)) is None]


def x(work: Path, keys: Sequence[str]) -> tuple[Process, Place]:
    """Start nginx in X's place, beside the load."""
    place = Place(work, free_port(), free_port(), keys)
    place.keys_file.write_text("\n".join(keys))
    certify(work)
    process = start("x", ["nginx", "-c", place.written("x.conf")], work, core=LOAD_CORE, port=place.x_port)
    answering(process)
    return process, place


def certify(work: Path) -> None:
    """A CA of our own, and X's certificate by it: ca.pem, x.pem and x.key."""
    now = dt.datetime.now(dt.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench CA")])

    def certificate(name: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(ca_name).public_key(public_key)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
        return made.not_valid_after(now + dt.timedelta(days=1))

    ca = certificate(ca_name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    leaf_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench X")])
    leaf = certificate(leaf_name, key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]),
        critical=False,
    )
    pem = serialization.Encoding.PEM
    (work / "ca.pem").write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (work / "x.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (work / "x.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


# Ours.


def gateway(place: Place, name: str, x_url: str, rules: Mapping[str, Any] | None = None, **more: str) -> Process:
    """`birdwire serve` on a new database with every key linked, and a policy of the gateway if `rules` are given."""
    folder, port = place.folder(name), free_port()
    environment = seed.settings(folder, port, x_url, seed.vault_key(), **more)
    asyncio.run(seed.link(environment, place.keys))
    if rules is not None:
        asyncio.run(seed.guard(environment, rules))
    program = Path(sys.executable).parent / "birdwire"
    trusted = {"SSL_CERT_FILE": str(place.work / "ca.pem")}
    return _up(start(name, [program, "serve"], folder, env=environment | trusted, port=port))


def _sqlite(place: Place, name: str) -> Process:
    return gateway(place, name, place.x_url)


def _guarded(place: Place, name: str) -> Process:
    return gateway(place, name, place.x_url, rules=seed.RULES)


def _sqlite_tls(place: Place, name: str) -> Process:
    return gateway(place, name, place.x_tls_url)


def _postgres(place: Place, name: str) -> Process:
    folder = place.folder(name)
    with contextlib.ExitStack() as started:
        postgres, database_url = engines.postgres(folder, core=LOAD_CORE)
        started.callback(postgres.stop)
        redis, redis_url = engines.redis(folder, core=LOAD_CORE)
        started.callback(redis.stop)
        process = gateway(place, name, place.x_url, database_url=database_url, redis_url=redis_url)
        process.attendants += [postgres, redis]
        started.pop_all()  # from here on they end with the gateway
    return process


# The peers.


def _direct(place: Place, name: str) -> Process:
    """X itself, once more: a second nginx like it, so that its CPU is its own."""
    port = free_port()
    conf = (place.work / "x.conf").read_text().replace(f":{place.x_port} ", f":{port} ", 1)
    conf = conf.replace(f":{place.x_tls_port} ", f":{free_port()} ", 1).replace("/x.pid", "/direct.pid")
    (place.work / "direct.conf").write_text(conf)
    return _up(start(name, ["nginx", "-c", place.work / "direct.conf"], place.work, port=port))


def _nginx(place: Place, name: str) -> Process:
    port = free_port()
    conf = place.written("nginx.conf", port=port, tls_port=free_port())
    return _up(start(name, ["nginx", "-c", conf], place.work, port=port))


def _nginx_tls(place: Place, name: str) -> Process:
    port = free_port()
    conf = place.written("nginx.conf", port=free_port(), tls_port=port)
    own = conf.with_name("nginx-tls.conf")
    own.write_text(conf.read_text().replace("/nginx.pid", "/nginx-tls.pid"))
    return _up(start(name, ["nginx", "-c", own], place.work, port=port))


def _haproxy(place: Place, name: str) -> Process:
    port = free_port()
    return _up(start(name, ["haproxy", "-f", place.written("haproxy.cfg", port=port)], place.work, port=port))


def _caddy(place: Place, name: str) -> Process:
    port = free_port()
    argv = ["caddy", "run", "--adapter", "caddyfile", "--config", place.written("Caddyfile", port=port)]
    return _up(start(name, argv, place.work, env={"GOMAXPROCS": "1"}, port=port))


def _node(script: str) -> Callable[[Place, str], Process]:
    def begin(place: Place, name: str) -> Process:
        port = free_port()
        environment = place.peer_environment(port) | {"NODE_ENV": "production"}
        return _up(start(name, ["node", PEERS / script], place.work, env=environment, port=port))

    return begin


def _fastapi(module: str) -> Callable[[Place, str], Process]:
    def begin(place: Place, name: str) -> Process:
        port, folder = free_port(), place.folder(name)
        argv = [BIN / "uvicorn", "--app-dir", PEERS, f"{module}:app", "--port", str(port), "--no-access-log"]
        argv += ["--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
        more = {"USER_ID": seed.USER_ID, "KEYS": str(place.keys_file), "DATABASE": str(folder / "gateway.db")}
        return _up(start(name, argv, folder, env=place.peer_environment(port) | more, port=port))

    return begin


def _litellm(place: Place, name: str) -> Process:
    port = free_port()
    argv = [BIN / "litellm", "--config", place.written("litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--run_granian"]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": f"sk-{seed.TOKEN}",
        "LITELLM_MODE": "PRODUCTION",
        "NO_PROXY": "*",
    }
    return _up(start(name, argv, place.folder(name), env=environment, port=port))


def _up(process: Process) -> Process:
    try:
        answering(process)
    except RuntimeError:
        process.stop()
        raise
    return process


NODE = ("node", PEERS / "node_modules" / ".package-lock.json")
CONTENDERS: tuple[Contender, ...] = (
    Contender(
        "birdwire",
        "**Birdwire**, SQLite, everything on",
        "`birdwire serve` as it comes: WAL, synchronous=FULL, each journal row on the disk before the answer, its log "
        "in a file, its metrics on; keys of 1,000,000 calls a minute, up to 1,000 of each at once (the defaults are far "
        "lower), each linked to an account of its own",
        _sqlite,
        own=True,
    ),
    Contender(
        "birdwire-tls",
        "**Birdwire**, SQLite, TLS 1.3 to X",
        "the same; X's certificate is verified (SSL_CERT_FILE names the CA)",
        _sqlite_tls,
        own=True,
    ),
    Contender(
        "birdwire-postgres",
        "**Birdwire**, PostgreSQL + Redis",
        "the same on PostgreSQL (fsync and synchronous_commit on) and Redis, both on the other core; the CPU is the "
        "gateway's alone",
        _postgres,
        needs=engines.PROGRAMS,
        own=True,
    ),
    Contender(
        "birdwire-post",
        "**Birdwire**, SQLite, a post in place of a like",
        "the same as the first, with `post_twitter` and a new text each time; the post's journal row is on the disk "
        "before the post is sent to X, and its outcome before the answer",
        _sqlite,
        own=True,
        deed="post",
    ),
    Contender(
        "birdwire-guarded",
        "**Birdwire**, SQLite, under a policy",
        "the same as the first, with caps of an hour and a day and budgets of a day and a month for the whole gateway: "
        "four counters that every like is charged before it is sent, in the unit that starts its journal row",
        _guarded,
        own=True,
    ),
    Contender("direct", "X itself (nginx answering)", "no gateway at all: the callers ask nginx, on the measured core", _direct, ("nginx",), ("nginx", "-v")),
    Contender("nginx", "nginx forwarding", "one worker, `proxy_pass` with `keepalive`, a header injected, no log", _nginx, ("nginx",), ("nginx", "-v")),
    Contender("nginx-tls", "nginx forwarding, TLS 1.3 to X", "the same; X's certificate is verified", _nginx_tls, ("nginx",), ("nginx", "-v")),
    Contender("haproxy", "HAProxy forwarding", "one thread, `http-reuse always`, a header injected, no log", _haproxy, ("haproxy",), ("haproxy", "-v")),
    Contender("caddy", "Caddy forwarding", "`reverse_proxy` with kept-alive connections, a header injected, no log, GOMAXPROCS=1", _caddy, ("caddy",), ("caddy", "version")),
    Contender("node-undici", "Node + undici relay", "node:http in front, an undici Pool of 128 behind, a header injected; nothing else", _node("relay.mjs"), ("node",), ("node", "--version")),
    Contender("node-http-proxy", "Node http-proxy", "http-proxy with a keep-alive agent, a header injected", _node("proxy.mjs"), ("node",), ("node", "--version")),
    Contender("fastapi", "FastAPI + httpx relay", "uvicorn with uvloop and httptools, one shared AsyncClient, a typed body, a header injected; nothing else", _fastapi("relay"), (BIN / "uvicorn",), (BIN / "python", "-c", "import fastapi, httpx; print('FastAPI', fastapi.__version__, 'httpx', httpx.__version__)")),
    Contender("fastapi-full", "FastAPI + httpx + SQLAlchemy, everything on", "the same with key look-up, limit, AES-GCM, validation and a journal row on the disk before the answer (ORM on aiosqlite, WAL, synchronous=FULL), structlog to a file", _fastapi("gateway"), (BIN / "uvicorn",), (BIN / "python", "-c", "import sqlalchemy, structlog; print('SQLAlchemy', sqlalchemy.__version__, 'structlog', structlog.__version__)")),
    Contender("litellm", "LiteLLM proxy, pass-through endpoint", "one worker on Granian (a third less CPU than on its uvicorn), log level ERROR, no database, no key asked for; the endpoint injects a header", _litellm, (BIN / "litellm",), (BIN / "python", "-c", "from importlib.metadata import version; print('LiteLLM', version('litellm'))")),
)  # fmt: skip
"""In the order of a round."""
