"""The corpus of the edge again, through haproxy and nginx as we ship their configurations, over TLS.

A front reads a request before we do, and may repair or refuse it. What must hold: a request that reached us has its one
answer, none is there that was not sent, and what both let pass is answered as without a front.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import secrets
import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote_to_bytes

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birdwire.api.paths import MCP
from birdwire.edge.connections import EdgeLimits
from birdwire.surfaces.mcp.endpoint import MAX_MESSAGE
from harness.edge_server import GUARD_S, RunningServer, gateway, hang_up
from harness.gateway import free_port
from harness.http_corpus import BODY, FIELDS, KEY, PROBE, ROWS, RawResponse, Row, get, like, marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FRONTS = Path(__file__).parents[2] / "docs" / "fronts"
Name = Literal["haproxy", "nginx"]
SHORT_S = 1
"""Every deadline of a front that a test waits for, in place of its ten and five seconds."""

EACH = 20
"""Connections of one address, in place of 200."""

AT_THE_LIMIT = {"100 headers", "a head of 16 KiB", "a head of 16 KiB behind another request"}
"""A front adds headers of its own, with which these are over it: 431."""

OURS = re.compile(r"req_[0-9A-Z]{26}")
"""A request id of Birdwire's; a front's own looks otherwise."""


@dataclass
class Fronted:
    """A front and what is behind it."""

    name: Name
    port: int
    served: RunningServer
    tls: ssl.SSLContext

    async def talk(self, sent: bytes) -> bytes:
        """Send everything in one write, and read until the front ends the connection, which may be a reset."""
        got = bytearray()
        async with asyncio.timeout(GUARD_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, limit=1 << 22)
            try:
                writer.write(sent.replace(KEY, self.served.key.encode()))
                with contextlib.suppress(OSError):
                    while piece := await reader.read(1 << 16):
                        got += piece
            finally:
                await hang_up(writer)
        return bytes(got)

    def reached(self) -> list[str]:
        """The paths of the requests that came through to us since the last look."""
        lines = [json.loads(line) for line in self.served.log.getvalue().splitlines()]
        self.served.log.seek(0)
        self.served.log.truncate()
        return [line["path"] for line in lines if line["event"] == "request" and line["path"] != "/readyz"]


def certify(folder: Path) -> Path:
    """A certificate for this machine, and its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
    certificate = made.not_valid_after(now + dt.timedelta(days=1)).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file = folder / "front.pem"
    file.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return file


def written(name: Name, folder: Path, port: int, behind: int) -> list[str]:
    """The shipped configuration with a test's addresses, certificate and short deadlines; the command that runs it."""
    certificate = certify(folder)
    changes = {
        "haproxy": {
            ":443 ssl crt /etc/haproxy/birdwire.pem": f"127.0.0.1:{port} ssl crt {certificate}",
            "127.0.0.1:8700": f"127.0.0.1:{behind}",
            "sc0_conn_cur gt 200": f"sc0_conn_cur gt {EACH}",
            "http-request 10s": f"http-request {SHORT_S}s",
            "http-keep-alive 5s": f"http-keep-alive {SHORT_S}s",
        },
        "nginx": {
            "listen 443": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8443": f"127.0.0.1:{free_port()}",
            "limit_conn each 200": f"limit_conn each {EACH}",
            "/etc/nginx/birdwire.crt": str(certificate),
            "/etc/nginx/birdwire.key": str(certificate),
            "127.0.0.1:8700": f"127.0.0.1:{behind}",
            "header_timeout 10s": f"header_timeout {SHORT_S}s",
            "body_timeout 10s": f"body_timeout {SHORT_S}s",
            "keepalive_timeout 5s": f"keepalive_timeout {SHORT_S}s",
            "http {": f"http {{ client_body_temp_path {folder}; proxy_temp_path {folder};",
            "worker_processes auto": "worker_processes 1",
        },
    }[name]
    file = FRONTS / {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[name]
    text = file.read_text("utf-8")
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / file.name).write_text(text, "utf-8")
    program = shutil.which(name) or name
    if name == "haproxy":
        return [program, "-db", "-f", str(folder / file.name)]
    with contextlib.suppress(FileExistsError):
        (folder / "modules").symlink_to("/usr/lib/nginx/modules")  # where its modules are looked for, under -p
    # Its workers keep a long body in the folder of this test, which is that of the tests' user alone.
    started = f"daemon off; user root; pid {folder}/nginx.pid; error_log /dev/null;"
    return [program, "-c", str(folder / file.name), "-p", str(folder), "-e", "/dev/null", "-g", started]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["haproxy", "nginx"])
async def fronted(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Fronted]:
    """A front before a gateway, for all rows. In CI it must be there."""
    name: Name = request.param
    if shutil.which(name) is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp(name)
    folder.chmod(0o755)  # nginx's workers are another user when its master is root
    port = free_port()
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    limits = EdgeLimits(head_s=SHORT_S, body_s=SHORT_S, bodies={MCP: MAX_MESSAGE})
    async with gateway(tmp_path_factory.mktemp("edge"), limits) as served:
        process = await asyncio.create_subprocess_exec(
            *written(name, folder, port, served.port),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        front = Fronted(name, port, served, tls)
        try:
            await serves(front, process)
            yield front
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), GUARD_S)


async def serves(front: Fronted, process: asyncio.subprocess.Process) -> None:
    """Wait until the front has found us."""
    async with asyncio.timeout(GUARD_S):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                if (await front.talk(PROBE)).startswith(b"HTTP/1.1 200"):
                    front.reached()
                    return
            await asyncio.sleep(0.05)
    pytest.fail(f"{front.name} ended")


def answers(raw: bytes, heads: frozenset[int]) -> list[RawResponse]:
    """The answers in a stream. A front's own may be in any shape, and may be ended by the connection alone."""
    found: list[RawResponse] = []
    while raw:
        top, blank, raw = raw.partition(b"\r\n\r\n")
        if not blank:
            break  # a reset cut it off
        line, *fields = top.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3}) .*", line)
        assert match is not None, f"no status line: {line[:100]!r}"
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        if match[1] == "100":
            continue
        length = 0 if len(found) in heads else int(headers.get("content-length", len(raw)))
        found.append(RawResponse(int(match[1]), headers, raw[:length]))
        raw = raw[length:]
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_the_longest_message_of_mcp_passes_and_a_longer_one_is_refused(fronted: Fronted) -> None:
    """The answer is the gateway's JSON, of a known length; one byte more is 413, from either of the two."""
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    for length, status in ((MAX_MESSAGE, 200), (MAX_MESSAGE + 1, 413)):
        head = (
            b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY + b"\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % length
        )
        [answer] = answers(await fronted.talk(head + ping.ljust(length)), frozenset())
        found = json.loads(answer.body)
        assert answer.status == status, found
        assert found.get("error", {}).get("reason") == (None if status == 200 else "body_too_large")
        assert (found.get("id"), "result" in found) == ((1, True) if status == 200 else (None, False))
    fronted.reached()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.trust("T12")
@pytest.mark.parametrize("row", [marked(row) for row in ROWS])
async def test_every_request_has_its_one_answer_through_a_front(fronted: Fronted, row: Row) -> None:
    """What reached us was sent, is answered once and in our shape; what the front refuses it refuses, and ends."""
    raw = await fronted.talk(row.sent + PROBE if row.probe else row.sent)
    got = answers(raw, row.heads)
    finals = [status for status in row.statuses if status != 100]
    assert len(got) <= len(finals) + row.probe, "an answer to nothing"
    ours = [one for one in got if OURS.fullmatch(one.headers.get("x-request-id", ""))]
    reached = fronted.reached()
    assert len(reached) >= len(ours)
    if raw and len(got) == len(finals) + row.probe:  # no reset: then nothing of ours is lost
        assert len(reached) == len(ours), "a request without an answer"
    for path in reached:
        assert path.encode()[:40].partition(b"?")[0] in unquote_to_bytes(row.sent + PROBE), "a request that nobody sent"
    for number, one in enumerate(got):
        if one in ours and one.status >= 400 and number not in row.heads:
            assert set(json.loads(one.body)["error"]) >= FIELDS
        if one not in ours:
            assert one.status >= 400, "an answer of the front's own that is no refusal"
    if row.kept and len(ours) == len(finals) + 1 and row.name not in AT_THE_LIMIT:
        assert [one.status for one in ours] == [*finals, 200]


@pytest.mark.asyncio(loop_scope="module")
async def test_only_a_front_can_set_the_callers_address(fronted: Fronted) -> None:
    """A request with made-up addresses arrives with the front's word alone; and ordinary ones pass as they are."""
    sent = get(b"X-Forwarded-For: 192.0.2.1", b"Forwarded: for=192.0.2.1", b"Connection: close")
    assert [one.status for one in answers(await fronted.talk(sent), frozenset())] == [200]
    close = b"Connection: close"
    posted = like(b"Content-Length: %d" % len(BODY), close, body=BODY)
    (one,) = answers(await fronted.talk(posted), frozenset())
    assert (one.status, one.reason) == (403, "x_not_linked")
    assert one.headers["strict-transport-security"] == "max-age=31536000"
    fronted.reached()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.trust("G15")
async def test_a_front_caps_the_connections_of_an_address(fronted: Fronted) -> None:
    """The cap includes silent connections; another address is served meanwhile."""
    opened = [asyncio.create_task(stay(fronted.port)) for _ in range(EACH + 3)]
    async with asyncio.timeout(GUARD_S):
        for _, ended in zip(range(3), asyncio.as_completed(opened), strict=False):
            await ended
        assert sum(task.done() for task in opened) == 3
        assert (await fronted.talk(PROBE)).startswith(b"HTTP/1.1 ")
        for task in opened:
            task.cancel()
        await asyncio.gather(*opened, return_exceptions=True)
    fronted.reached()


async def stay(port: int) -> None:
    """Connect from an address of one's own, say nothing, and stay until the other side ends it."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        try:
            await reader.read()
        finally:
            await hang_up(writer)


async def sends(port: int, tls: ssl.SSLContext, lines: bytes) -> bytes:
    """Send one request through a front and return what comes back."""
    async with asyncio.timeout(GUARD_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        try:
            writer.write(lines)
            with contextlib.suppress(OSError):
                return await reader.read()
        finally:
            await hang_up(writer)
    return b""


def folder_in(directory: Path, name: str) -> Path:
    """A new folder that a front's own user can read."""
    directory.chmod(0o755)
    folder = directory / name
    folder.mkdir(mode=0o755)
    return folder


@contextlib.asynccontextmanager
async def talkative(name: Name, folder: Path, behind: int, logged: Path) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """A front that logs every request, and errors at nginx's own level; its port, and how to talk to it."""
    port = free_port()
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    command = written(name, folder, port, behind)
    command = [part.replace("error_log /dev/null", f"error_log {logged} error") for part in command]
    if name == "haproxy":
        file = folder / "haproxy.cfg"
        file.write_text(file.read_text("utf-8").replace("local0 notice", "local0 debug"), "utf-8")
    with logged.open("ab") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        async with asyncio.timeout(GUARD_S):
            while not await reaches(port, tls):
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield port, tls
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), GUARD_S)


@pytest.mark.trust("O15")
@pytest.mark.parametrize("name", ["haproxy", "nginx"])
async def test_a_front_logs_no_token_of_a_signed_link(tmp_path: Path, name: Name) -> None:
    """In the log of requests and that of errors, with us behind it and with nobody."""
    if shutil.which(name) is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed")
    token = secrets.token_urlsafe(20)
    spellings = [
        *(f"/approve/{token}", f"/approve/{token}?a=1", f"/approve/{token}/media/0", f"/APPROVE/{token}"),
        *(f"//approve//{token}", f"/x/approve/{token}/", f"/%61pprove/{token}", f"/approve%2F{token}"),
    ]
    body = f"POST /approve/{token} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\nverdict="
    odd = f"GET /approve/{token} HTTP/9.9\r\nHost: a b\r\n\r\n"
    async with gateway(tmp_path, EdgeLimits(head_s=SHORT_S, body_s=SHORT_S)) as served:
        for number, behind in enumerate((served.port, free_port())):
            logged = tmp_path / f"log{number}"
            async with talkative(name, folder_in(tmp_path, str(number)), behind, logged) as (port, tls):
                for path in spellings:
                    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    assert (await sends(port, tls, head.encode())).startswith(b"HTTP/1.")
                await sends(port, tls, body.encode())
                await sends(port, tls, odd.encode())
            log = logged.read_text("utf-8")
            # nginx logs an error of its own as a request for its page.
            assert log.count("/approve/{token}") >= 4 or "connect() failed" in log
            assert token not in log
            assert token[:12] not in log


async def reaches(port: int, tls: ssl.SSLContext) -> bool:
    """Whether the front answers, with us behind it or without."""
    try:
        return (await sends(port, tls, PROBE)).startswith(b"HTTP/1.")
    except OSError:
        return False
