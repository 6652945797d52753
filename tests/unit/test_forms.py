"""Files of a form: whole, hashed, on disk if they are large, and never written or read in the event loop then."""

from __future__ import annotations

import hashlib
import resource
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Any

import pytest

from birdwire.api.body import read
from birdwire.api.errors import GatewayError
from birdwire.api.forms import IN_MEMORY, MAX_FILES, MAX_PART_HEADERS, Part
from birdwire.api.messages import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from birdwire.api.forms import Take

BOUNDARY = "b0undary"


def form(*files: bytes, parameters: str = "", headers: str = "") -> Call:
    """A call with these files, in pieces as a network would bring them."""
    disposition = f'Content-Disposition: form-data; name="media"; filename="a"{parameters}{headers}'
    head = f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode()
    raw = b"".join(head + file + b"\r\n" for file in files) + f"--{BOUNDARY}--\r\n".encode()

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), 65_000):
            yield raw[start : start + 65_000]

    return Call("POST", "/", headers={"content-type": [f"multipart/form-data; boundary={BOUNDARY}"]}, stream=stream)


async def taken(call: Call, reserved: list[int] | None = None) -> tuple[Part, ...]:
    """The files of a call, and what was reserved for them."""

    async def before_file(_: dict[str, Any]) -> tuple[int, Take]:
        return 64 << 20, ([] if reserved is None else reserved).append

    return (await read(call, 16_384, before_file)).files


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY + 7])
async def test_a_file_arrives_whole_whatever_its_size(size: int) -> None:
    """Bytes, size and digest; also of a second file."""
    sent = [bytes(number % 251 for number in range(1_000)) * (size // 1_000 + 1), b"second"]
    sent[0] = sent[0][:size]
    parts = await taken(form(*sent))
    assert [part.size for part in parts] == [size, 6]
    assert [part.digest for part in parts] == [hashlib.sha256(file).digest() for file in sent]
    assert [await part.read(64 << 20) for part in parts] == sent
    for part in parts:
        part.file.close()


@pytest.mark.parametrize(("parameters", "fits"), [(30, True), (31, False), (4_000, False)])
async def test_a_part_has_a_bounded_number_of_parameters(parameters: int, *, fits: bool) -> None:
    """To parse them takes quadratic time, and there are up to 64 parts."""
    call = form(b"file", parameters=";" * parameters)
    if fits:
        (part,) = await taken(call)
        part.file.close()
        return
    with pytest.raises(GatewayError) as caught:
        await taken(call)
    assert caught.value.reason == "form_malformed"


@pytest.mark.parametrize(("headers", "fits"), [(MAX_PART_HEADERS, True), (MAX_PART_HEADERS + 1, False)])
async def test_a_part_has_a_bounded_number_of_headers(headers: int, *, fits: bool) -> None:
    """Each is kept, however many come within the limit of the body."""
    call = form(b"file", headers="".join(f"\r\nX-{number}: 1" for number in range(1, headers)))
    if fits:
        (part,) = await taken(call)
        part.file.close()
        return
    with pytest.raises(GatewayError) as caught:
        await taken(call)
    assert caught.value.reason == "form_malformed"


async def test_a_large_file_is_written_and_read_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on meanwhile; a small file is not worth a thread."""
    where: dict[str, set[int]] = {"write": set(), "read": set()}

    class Watched(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > IN_MEMORY:
                where["write"].add(threading.get_ident())
            return super().write(data)

        def read(self, *sizes: int) -> bytes:
            where["read"].add(threading.get_ident())
            return super().read(*sizes)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Watched)
    (part,) = await taken(form(bytes(3 * IN_MEMORY)))
    await part.read(1 << 20)
    part.file.close()
    assert where["write"]
    assert threading.get_ident() not in where["write"] | where["read"]


@pytest.mark.trust("F10")
async def test_a_disk_that_accepts_no_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After, and started files are deleted."""
    closed: list[IO[bytes]] = []

    class Watched(tempfile.SpooledTemporaryFile[bytes]):
        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(GatewayError) as caught:
        await taken(form(b"first", bytes(3 * IN_MEMORY)))
    assert caught.value.reason == "storage_unavailable"
    assert len(closed) == 2


@pytest.mark.trust("F10")
async def test_a_disk_that_is_full_at_any_byte_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at one that is still in a buffer when the body ends; every file is closed, and leaves nothing there."""
    files: list[IO[bytes]] = []

    class Watched(tempfile.SpooledTemporaryFile[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            files.append(self)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Watched)
    size, step = 3 * IN_MEMORY, 4_001
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    reasons = set()
    try:
        for full_at in range(size - step, IN_MEMORY, -step):
            resource.setrlimit(resource.RLIMIT_FSIZE, (full_at, hard))
            with pytest.raises(GatewayError) as caught:
                await taken(form(bytes(size)))
            reasons.add(caught.value.reason)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert reasons == {"storage_unavailable"}
    assert all(file.closed for file in files)


async def test_every_byte_is_reserved_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 64 KiB of a body's files is in memory, and the file on disk never exceeds the reservation."""
    reserved: list[int] = []
    written: list[int] = []

    class Watched(tempfile.SpooledTemporaryFile[bytes]):
        def write(self, data: Any) -> int:
            written.append(len(data))
            assert sum(written) <= sum(reserved) <= sum(written) + 2 * IN_MEMORY
            return super().write(data)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Watched)
    (part,) = await taken(form(bytes(5 * IN_MEMORY)), reserved)
    part.file.close()
    assert sum(written) == 5 * IN_MEMORY < sum(reserved)


async def test_a_body_has_at_most_four_files() -> None:
    """The fifth is refused when it begins, and the others are let go."""
    for part in await taken(form(*[b"a"] * MAX_FILES)):
        part.file.close()
    with pytest.raises(GatewayError) as caught:
        await taken(form(*[b"a"] * (MAX_FILES + 1)))
    assert caught.value.reason == "media_files_malformed"
