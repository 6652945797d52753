"""Files are taken only from callers that may send them, in few slots and bounded room, and within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from birdwire.keys.rules import NO_RULES, KeyRules
from harness.gateway import API, PNG, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GUARD_S = 20
KIB = 1 << 10
MIB = 1 << 20
FILE = b'--b\r\nContent-Disposition: form-data; name="media_files"; filename="a.png"\r\n\r\n' + PNG
END = b"\r\n--b--\r\n"


def field(name: str, value: str) -> bytes:
    """Return a part of a form that is not a file."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


@dataclass
class Sender:
    """A caller that sends a body as slowly as a test wants."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *chunks: bytes) -> None:
        """Send more of the body."""
        self.writer.write(b"".join(chunks))
        await self.writer.drain()

    async def answer(self) -> tuple[int, str, dict[str, str]]:
        """Return the status, the reason (of a success: nothing) and the headers of the answer."""
        async with asyncio.timeout(GUARD_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            document = json.loads(await self.reader.readexactly(int(headers["content-length"])))
        return int(first.split()[1]), document.get("error", {}).get("reason", ""), headers

    async def status(self) -> tuple[int, str]:
        """Return the status and the reason of the answer."""
        return (await self.answer())[:2]

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Place:
    """A gateway, and the callers that send it something."""

    running: RunningGateway
    senders: list[Sender]

    async def sender(
        self, key: str | None, *chunks: bytes, size: int | None = None, name: str = "upload_media"
    ) -> Sender:
        """Start to send a body with a Content-Length of `size`, or chunked without one."""
        url = urlsplit(str(self.running.client.base_url))
        sender = Sender(*await asyncio.open_connection(url.hostname, url.port))
        self.senders.append(sender)
        lines = [f"POST {API}{name} HTTP/1.1", f"Host: {url.netloc}", "Content-Type: multipart/form-data; boundary=b"]
        lines += [f"Authorization: Bearer {key}"] if key else []
        lines += ["Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}", "", ""]
        await sender.send("\r\n".join(lines).encode(), *chunks)
        return sender

    async def key(self, username: str = "", rules: KeyRules = NO_RULES, **link: Any) -> str:
        """Make a key, linked to an account if one is named."""
        _, raw_key = await self.running.gateway.keys.create("test", "another", "growth", rules=rules)
        if username:
            own = self.running.client.headers["authorization"]
            self.running.client.headers["authorization"] = f"Bearer {raw_key}"
            (await self.running.link(username, **link)).raise_for_status()
            self.running.client.headers["authorization"] = own
        return raw_key

    def gauge(self, name: str) -> float:
        """Return a metric's value."""
        return next(
            sample.value
            for family in self.running.gateway.telemetry.metrics.collect()
            for sample in family.samples
            if sample.name == f"birdwire_{name}" and not sample.labels.get("why", "")
        )

    async def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        async with asyncio.timeout(GUARD_S):
            while self.gauge(name) != value:  # noqa: ASYNC110 - it happens in the gateway
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def built(directory: Path, **options: Any) -> AsyncIterator[Place]:
    """Start a gateway with a key that ada is linked to."""
    async with RunningGateway.built(directory, **options) as running:
        place = Place(running, [])
        await running.link("ada")
        try:
            yield place
        finally:
            for sender in place.senders:
                await sender.close()


@pytest.fixture(params=["lane", "app"])
async def place(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Serve with the default bounds, by the lane and by the app alone."""
    async with built(tmp_path, lane=request.param == "lane") as one:
        yield one


def relay(key: str) -> bytes:
    """Return the parts of a post by an older client, up to the beginning of its first file."""
    return field("aisa_api_key", key) + field("content", "a picture")


@pytest.mark.trust("T13")
async def test_a_file_is_refused_before_its_first_byte(place: Place) -> None:
    """For key rules, link and scope, with the key in the header or in an earlier part: the rest is never asked for."""
    narrow = await place.key("ada", KeyRules(actions=("like_twitter", "link")))
    unlinked = await place.key()
    poster = await place.key("ada", body={"scopes": ["tweet.read", "users.read", "tweet.write"]})
    for key, reason in ((narrow, "key_not_allowed"), (unlinked, "x_not_linked"), (poster, "x_scope_missing")):
        for sender in (
            await place.sender(key, FILE, size=MIB),
            await place.sender(key, relay(key), FILE, size=MIB, name="post_twitter"),
            await place.sender(None, relay(key), FILE, size=MIB, name="post_twitter"),
            await place.sender(None, field("aisa_api_key", key), FILE, size=MIB),
        ):
            status, told, headers = await sender.answer()
            assert (status, told) == (403, reason)
            assert "x-ratelimit-remaining" in headers
    assert place.gauge("uploads_running") == place.gauge("uploads_bytes") == 0
    assert await place.running.calls("/2/media") == []


async def test_a_bad_key_in_an_earlier_part_is_named(place: Place) -> None:
    """The refusal speaks of that key, not of a missing one."""
    await place.running.gateway.keys.revoke(place.running.key_id)
    sender = await place.sender(None, field("aisa_api_key", place.running.raw_key), FILE, size=MIB)
    assert await sender.status() == (401, "key_revoked")


@pytest.mark.trust("T13")
async def test_a_key_sends_two_files_and_all_keys_eight(place: Place) -> None:
    """The third of a key is 429, the ninth of all 503; a slot is free again when its call ends, however it does."""
    keys = [place.running.raw_key, *[await place.key("ada") for _ in range(4)]]
    size = len(FILE) + len(END)
    senders = [await place.sender(key, FILE, size=size) for key in keys[:4] for _ in range(2)]
    await place.until("uploads_running", 8)
    status, reason, headers = await (await place.sender(keys[0], FILE, size=size)).answer()
    assert (status, reason, headers["retry-after"]) == (429, "concurrency_exceeded", "1")
    status, reason, headers = await (await place.sender(keys[4], FILE, size=size)).answer()
    assert (status, reason, headers["retry-after"]) == (503, "overloaded", "1")
    assert (await place.running.like()).status_code == 200
    await senders[0].send(END)
    assert await senders[0].status() == (200, "")
    await senders[2].close()
    await place.until("uploads_running", 6)
    for key in (keys[0], keys[4]):
        assert await (await place.sender(key, FILE, END, size=size)).status() == (200, "")
    for sender in (senders[1], *senders[3:]):
        await sender.send(END)
        assert await sender.status() == (200, "")
    await place.until("uploads_running", 0)
    assert place.gauge("uploads_bytes") == 0


async def test_an_upload_counts_among_the_calls_of_its_key(tmp_path: Path) -> None:
    """From its first file on: it takes the place of a running call, or waits for a free one."""
    async with built(tmp_path, max_calls_each=1, max_calls_each_queued=0) as place:
        sender = await place.sender(place.running.raw_key, FILE, size=len(FILE) + len(END))
        await place.until("uploads_running", 1)
        assert (await place.running.like()).json()["error"]["reason"] == "concurrency_exceeded"
        other = await place.key("ada")
        assert await (await place.sender(other, FILE, END, size=len(FILE) + len(END))).status() == (200, "")
        await sender.send(END)
        assert await sender.status() == (200, "")
        assert (await place.running.like()).status_code == 200


@pytest.mark.trust("T13")
async def test_room_for_files_is_reserved_as_they_come(tmp_path: Path) -> None:
    """Slow senders hold what they sent, not what they announced; beyond the budget a body is refused with 503."""
    full = (503, "overloaded")
    async with built(tmp_path, max_upload_bytes=MIB, max_spooled_bytes=MIB) as place:
        keys = [place.running.raw_key, *[await place.key("ada") for _ in range(2)]]
        slow = [await place.sender(key, FILE, size=900 * KIB) for key in keys[:2] for _ in range(2)]
        await place.until("uploads_running", 4)
        bytes_ = 700 * KIB
        sent = bytes(bytes_ - len(FILE) - len(END))
        assert await (await place.sender(keys[2], FILE, sent, END, size=bytes_)).status() == (200, "")
        await slow[0].send(bytes(500 * KIB))
        await place.until("uploads_bytes", 4 * len(FILE) + 500 * KIB)
        assert await (await place.sender(keys[2], FILE, size=bytes_)).status() == full  # before its bytes come
        chunked = await place.sender(keys[2], b"%x\r\n" % bytes_, FILE, sent, END)
        assert await chunked.status() == full  # it did not say how many there would be
        await place.until("uploads_bytes", 4 * len(FILE) + 500 * KIB)
        await slow[0].close()
        await place.until("uploads_running", 3)
        assert await (await place.sender(keys[2], FILE, sent, END, size=bytes_)).status() == (200, "")


@pytest.mark.trust("G15")
@pytest.mark.parametrize("lane", [True, False])
async def test_a_body_without_a_key_has_an_ordinary_bodys_time(tmp_path: Path, *, lane: bool) -> None:
    """A file's time begins when a part has named a valid key; a refused body has an ordinary one's left."""
    async with built(tmp_path, lane=lane, request_deadline_s=1.0) as place:
        size = len(relay(place.running.raw_key)) + len(FILE) + len(END)
        keyed = await place.sender(None, relay(place.running.raw_key), FILE, size=size, name="post_twitter")
        await place.until("uploads_running", 1)
        nameless = await place.sender(None, field("content", "x"), size=MIB, name="post_twitter")
        refused = await place.sender(None, FILE, size=MIB)
        assert await refused.status() == (401, "key_missing")
        assert await nameless.status() == (408, "request_timeout")
        for sender in (nameless, refused):
            async with asyncio.timeout(GUARD_S):
                assert await sender.reader.read() == b""
        await keyed.send(END)
        assert await keyed.status() == (200, "")


async def test_a_body_without_a_key_stays_small(place: Place) -> None:
    """What comes before a key counts against the limit of a body without files."""
    large = field("content", "x" * 66_000)
    sender = await place.sender(None, large, relay(place.running.raw_key), FILE, size=MIB, name="post_twitter")
    assert await sender.status() == (413, "body_too_large")
