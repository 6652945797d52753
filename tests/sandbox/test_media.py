"""Uploads: segments in any order, processing by the clock, and what a post takes."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx2

    from sandbox.conftest import SandboxClient

UPLOAD = "/2/media/upload"
VIDEO = {"media_type": "video/mp4", "media_category": "tweet_video"}
IMAGE = {"media_type": "image/png", "media_category": "tweet_image"}


@pytest.fixture
async def token(x: SandboxClient) -> str:
    """Ada's access token."""
    access_token: str = (await x.link())["access_token"]
    return access_token


async def initialize(x: SandboxClient, token: str, **body: Any) -> str:
    """A new upload's id."""
    answer = await x.call(token, "POST", f"{UPLOAD}/initialize", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["media_key"].endswith(f"_{data['id']}")
    assert data["expires_after_secs"] > 0
    media_id: str = data["id"]
    return media_id


async def append(x: SandboxClient, token: str, media_id: str, index: int, content: bytes) -> httpx2.Response:
    """A segment, as a form."""
    form, files = {"segment_index": str(index)}, {"media": ("blob", content, "application/octet-stream")}
    return await x.call(token, "POST", f"{UPLOAD}/{media_id}/append", data=form, files=files)


async def status(x: SandboxClient, token: str, media_id: str) -> Any:
    """Where the processing stands."""
    answer = await x.call(token, "GET", f"{UPLOAD}?command=STATUS&media_id={media_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()["data"].get("processing_info")


async def video(x: SandboxClient, token: str) -> str:
    """A finalized video of two segments."""
    media_id = await initialize(x, token, **VIDEO, total_bytes=5)
    await append(x, token, media_id, 0, b"abc")
    await append(x, token, media_id, 1, b"de")
    assert (await x.call(token, "POST", f"{UPLOAD}/{media_id}/finalize")).status_code == 200
    return media_id


async def test_segments_come_in_any_order_and_form(x: SandboxClient, token: str) -> None:
    """Multipart and base64; one may come twice."""
    media_id = await initialize(x, token, **VIDEO, total_bytes=5)
    body = {"media": b64encode(b"de").decode(), "segment_index": 1}
    assert (await x.call(token, "POST", f"{UPLOAD}/{media_id}/append", json=body)).status_code == 200
    for _ in range(2):
        answer = await append(x, token, media_id, 0, b"abc")
        assert answer.json()["data"]["expires_at"] > 0
    for _ in range(2):
        answer = await x.call(token, "POST", f"{UPLOAD}/{media_id}/finalize")
        assert answer.json()["data"]["size"] == 5
        assert answer.json()["data"]["processing_info"] == {"state": "pending", "check_after_secs": 1}


async def test_processing_goes_by_the_clock(x: SandboxClient, token: str) -> None:
    """Pending, in progress, succeeded."""
    await x.control("config", media_processing_s=100)
    media_id = await video(x, token)
    await x.control("clock", advance_s=50)
    half = await status(x, token, media_id)
    assert (half["state"], half["check_after_secs"]) == ("in_progress", 1)
    assert 50 <= half["progress_percent"] < 60
    await x.control("clock", advance_s=51)
    assert await status(x, token, media_id) == {"state": "succeeded", "progress_percent": 100}


async def test_processing_can_fail(x: SandboxClient, token: str) -> None:
    """With an error; a post does not take it."""
    await x.control("config", media_result="failed", media_processing_s=0)
    media_id = await video(x, token)
    info = await status(x, token, media_id)
    assert info["state"] == "failed"
    assert info["error"]["message"]
    answer = await x.call(token, "POST", "/2/tweets", json={"text": "v", "media": {"media_ids": [media_id]}})
    assert answer.status_code == 403


async def test_an_image_is_ready_immediately(x: SandboxClient, token: str) -> None:
    """In one go, as a form or as JSON; then it goes with a post."""
    files, form = {"media": ("a.png", b"png", "image/png")}, {"media_category": "tweet_image"}
    first = await x.call(token, "POST", UPLOAD, data=form, files=files)
    second = await x.call(token, "POST", UPLOAD, json=form | {"media": b64encode(b"png").decode()})
    ids = []
    for answer in (first, second):
        data = answer.json()["data"]
        assert (answer.status_code, data["size"], data.get("processing_info")) == (200, 3, None)
        ids.append(data["id"])
    answer = await x.call(token, "POST", "/2/tweets", json={"media": {"media_ids": ids}})
    assert answer.status_code == 201
    assert (await x.state())["posts"][-1]["media_ids"] == ids


@pytest.mark.parametrize("name", ['"media"; filename="a.png"', '"media"'])
async def test_a_multipart_file_keeps_its_bytes(x: SandboxClient, token: str, name: str) -> None:
    """With a filename and, as twitter-api-v2 sends it, without: no bytes are text."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    part = f"--b\r\nContent-Disposition: form-data; name={name}\r\n\r\n".encode() + png + b"\r\n"
    category = b'--b\r\nContent-Disposition: form-data; name="media_category"\r\n\r\ntweet_image\r\n--b--\r\n'
    headers = {"authorization": f"Bearer {token}", "content-type": "multipart/form-data; boundary=b"}
    answer = await x.http.post(UPLOAD, content=part + category, headers=headers)
    assert (answer.status_code, answer.json()["data"]["size"]) == (200, len(png))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b"no boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\nX: y\r\n\r\n1\r\n--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="shared"\r\n\r\n\xff\r\n--b--',
        ),
        (
            "multipart/form-data; boundary=b",
            b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n' % n for n in range(11)) + b"--b--",
        ),
    ],
)
async def test_a_malformed_multipart_form_is_refused(x: SandboxClient, token: str, kind: str, content: bytes) -> None:
    """No boundary, another one, a part without a name, a field that is not text, too many parts."""
    headers = {"authorization": f"Bearer {token}", "content-type": kind}
    answer = await x.http.post(UPLOAD, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["message"] == "The request body is not a form"


async def test_a_post_takes_only_what_is_ready_and_ones_own(x: SandboxClient, token: str) -> None:
    """Unknown, foreign, unfinished, run out, and mixed with a video: X's general refusal."""
    unfinished = await initialize(x, token, **IMAGE, total_bytes=3)
    ready = (await x.call(token, "POST", UPLOAD, json={"media": "cG5n", "media_category": "tweet_image"})).json()[
        "data"
    ]["id"]
    await x.control("config", media_processing_s=0)
    moving = await video(x, token)
    alan = (await x.link("alan"))["access_token"]
    for who, ids in (
        (token, ["1"]),
        (token, [unfinished]),
        (alan, [ready]),
        (token, [ready, moving]),
        (token, [ready, ready]),
    ):
        answer = await x.call(who, "POST", "/2/tweets", json={"text": "m", "media": {"media_ids": ids}})
        assert answer.json()["detail"] == "You are not permitted to perform this action."
    await x.control("clock", advance_s=1_300_000)
    token = (await x.link())["access_token"]
    answer = await x.call(token, "POST", "/2/tweets", json={"text": "m", "media": {"media_ids": [ready]}})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"media_category": "tweet_poem"},
        {"media_type": "image/png"},
        {"media_type": "text/html"},
        {"total_bytes": 0},
        {"total_bytes": 512_000_001},
        {"total_bytes": "5"},
        {"total_bytes": True},
        {"additional_owners": ["x"]},
        {"colour": "red"},
    ],
)
async def test_a_wrong_beginning_is_refused(x: SandboxClient, token: str, changes: dict[str, Any]) -> None:
    """Category, type, size."""
    body = VIDEO | {"total_bytes": 5} | changes
    answer = await x.call(token, "POST", f"{UPLOAD}/initialize", json=body)
    assert answer.status_code == 400


async def test_a_missing_segment_is_noticed(x: SandboxClient, token: str) -> None:
    """A gap, or too few bytes; the upload stays open."""
    media_id = await initialize(x, token, **VIDEO, total_bytes=5)
    await append(x, token, media_id, 1, b"de")
    for _ in range(2):
        assert (await x.call(token, "POST", f"{UPLOAD}/{media_id}/finalize")).status_code == 400
    await append(x, token, media_id, 0, b"abc")
    assert (await x.call(token, "POST", f"{UPLOAD}/{media_id}/finalize")).status_code == 200


async def test_segments_are_numbered_to_999_and_bounded(x: SandboxClient, token: str) -> None:
    """And need a number and content."""
    media_id = await initialize(x, token, **VIDEO, total_bytes=5)
    for index, content in ((1000, b"a"), (-1, b"a"), (0, b""), (0, b"123456")):
        assert (await append(x, token, media_id, index, content)).status_code == 400
    bodies: list[dict[str, Any]] = [
        {},
        {"media": "%%", "segment_index": 0},
        {"media": "YQ=="},
        {"media": 5, "segment_index": 0},
    ]
    for body in bodies:
        assert (await x.call(token, "POST", f"{UPLOAD}/{media_id}/append", json=body)).status_code == 400
    broken = await x.call(token, "POST", f"{UPLOAD}/{media_id}/append", content=b"--x", files=None)
    assert broken.status_code == 400


async def test_foreign_uploads_are_forbidden(x: SandboxClient, token: str) -> None:
    """To append, to finalize, to ask for; unless their owner said so."""
    alan = (await x.link("alan"))["access_token"]
    media_id = await initialize(x, token, **VIDEO, total_bytes=5)
    assert (await append(x, alan, media_id, 0, b"abc")).status_code == 403
    assert (await x.call(alan, "POST", f"{UPLOAD}/{media_id}/finalize")).status_code == 403
    assert (await x.call(alan, "GET", f"{UPLOAD}?media_id={media_id}")).status_code == 403
    shared = await initialize(x, token, **VIDEO, total_bytes=5, additional_owners=["2244994947"])
    assert (await append(x, alan, shared, 0, b"abc")).status_code == 200


async def test_a_broken_form_is_not_written_to_the_log(
    x: SandboxClient, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither what a caller sent, nor that it did."""
    media_id = await initialize(x, token, **IMAGE, total_bytes=5)
    headers = {"authorization": f"Bearer {token}", "content-type": "multipart/form-data; boundary=x"}
    answer = await x.http.post(f"{UPLOAD}/{media_id}/append", content=b"--x\r\n@secret", headers=headers)
    assert answer.status_code == 400
    assert [record.getMessage() for record in caplog.records if "multipart" in record.name] == []
