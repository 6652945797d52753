"""Images that a key uploads before it posts them: who sees them, for how long they are kept, and when they are not."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from birdwire.cli.approval_view import Asked, document
from birdwire.gateway.guardrails import asking, kept_images
from birdwire.gateway.guardrails.kept_images import KeptImages
from birdwire.sandbox.api import media as sandbox_media
from birdwire.store.database import StorageDownError
from birdwire.store.tables import approvals
from birdwire.store.tables import kept_images as store
from harness.approvals import desk, other_key
from harness.gateway import API, PNG, RunningGateway
from harness.guarded_gateway import GATEWAY, OPERATOR, places_of, set_rules
from harness.linking import HTML

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

    from harness.approvals import Desk

POSTS_WAIT = {"approve": ["post_twitter"]}
CANARY = "wryneck-canary-5521"
GIF = b"GIF89a" + CANARY.encode() * 40


@pytest_asyncio.fixture
async def asked(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A linked gateway, on which every post of the key waits."""
    async with desk(linked, POSTS_WAIT) as made:
        yield made


async def upload(asked: Desk, data: bytes = PNG, name: str = "a.png") -> str:
    """Upload a file; return its media id."""
    answer = await asked.running.client.post(API + "upload_media", files={"media_files": (name, data, "image/png")})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["media_id"])


async def ask(asked: Desk, *media_ids: str, text: str = "With images") -> dict[str, Any]:
    """Ask for a post with uploaded files."""
    return await asked.ask({"text": text, "media": {"media_ids": list(media_ids)}})


async def path_of(asked: Desk, approval: dict[str, Any]) -> str:
    """Return the path of a signed page."""
    token, _ = await asked.approvals.make_link(approval["request_id"], OPERATOR)
    return f"/approve/{token}"


async def get(asked: Desk, path: str) -> httpx2.Response:
    """Open a page, or an image of it, as a browser does."""
    return await asked.running.bare.get(path, headers=HTML)


async def kept(asked: Desk) -> list[str]:
    """Return the media ids of the images that are kept, for any key."""
    async with asked.database.read() as connection:
        return sorted((await connection.execute(select(store.kept_images.c.media_id))).scalars())


async def copies(asked: Desk) -> int:
    """Return how many images are kept with writes."""
    async with asked.database.read() as connection:
        query = select(func.count()).select_from(approvals.approval_files)
        return int((await connection.execute(query)).scalar_one())


@pytest.mark.engines("sqlite", "postgres")
async def test_an_image_that_was_uploaded_earlier_is_shown(asked: Desk) -> None:
    """To the byte, as often as a post asks about it; nothing of it is at rest in clear."""
    first, second = await upload(asked), await upload(asked, GIF, "b.gif")
    approval = await ask(asked, first, second)
    path = await path_of(asked, approval)
    page = await get(asked, path)
    assert ("not shown" in page.text, page.text.count("<img")) == (False, 2)
    for number, (data, media_type) in enumerate([(PNG, "image/png"), (GIF, "image/gif")]):
        assert f'<img src="{path}/media/{number}" alt="Image {number + 1} of the post">' in page.text
        image = await get(asked, f"{path}/media/{number}")
        assert (image.status_code, image.content, image.headers["content-type"]) == (200, data, media_type)
    assert (await get(asked, f"{path}/media/2")).status_code == 404
    assert await places_of(asked.database, [CANARY]) == []
    # Each approval has copies of its own, which go with it. What X still has is kept for the next one.
    again = await ask(asked, second, text="Another post with the same image")
    assert await copies(asked) == 3
    await asked.approvals.deny(approval["request_id"], OPERATOR)
    assert await copies(asked) == 1
    assert (await get(asked, f"{await path_of(asked, again)}/media/0")).content == GIF
    await asked.approve(again)
    await asked.until(again["request_id"], "confirmed")
    assert (await copies(asked), await kept(asked)) == (0, sorted([first, second]))


async def test_programs_read_what_the_images_are(asked: Desk) -> None:
    """Type, size and hash. The hash of the payload is the one that a dry run states, and an edit keeps the images."""
    media_id = await upload(asked)
    body = {"text": "With images", "media": {"media_ids": [media_id, "1346889436626259968"]}}
    would = (await asked.running.call("dry_run/post_twitter", body)).json()["would"]
    approval = await asked.ask(body)
    assert approval["payload_sha256"] == would["payload_sha256"]
    edited = await asked.approvals.edit(approval["request_id"], "Better", approval["payload_sha256"], OPERATOR)
    found = await asked.records.find(approval["request_id"])
    assert found is not None
    about = {"media_id": media_id, "sha256": hashlib.sha256(PNG).hexdigest(), "size": len(PNG), "type": "image/png"}
    assert document(Asked(found, "test"))["media"] == [about]
    path = await path_of(asked, {**approval, "payload_sha256": edited.payload_sha256})
    page = await get(asked, path)
    assert "1 file that was uploaded earlier, media ID 1346889436626259968" in page.text
    assert media_id not in page.text
    assert (await get(asked, f"{path}/media/0")).content == PNG


async def test_the_numbers_follow_the_files_of_the_call(asked: Desk) -> None:
    """A post that has both."""
    media_id = await upload(asked, GIF, "b.gif")
    form: list[Any] = [("aisa_api_key", (None, asked.running.raw_key)), ("content", (None, "Both"))]
    form += [("media_ids", (None, media_id)), ("media_files", ("a.png", PNG, "image/png"))]
    answer = await asked.running.bare.post(API + "post_twitter", files=form)
    assert answer.status_code == 202, answer.text
    path = await path_of(asked, answer.json()["approval"])
    assert [(await get(asked, f"{path}/media/{number}")).content for number in range(2)] == [PNG, GIF]


async def test_the_image_of_another_key_is_not_shown(asked: Desk) -> None:
    """Even though both act for the same account: a key must not learn what another has uploaded."""
    media_id = await upload(asked)
    async with other_key(asked.running) as key_id:
        await asked.rules(POSTS_WAIT, key_id)
        path = await path_of(asked, await ask(asked, media_id))
    page = await get(asked, path)
    assert f"1 file that was uploaded earlier, media ID {media_id}" in page.text
    assert ("<img" in page.text, (await get(asked, f"{path}/media/0")).status_code) == (False, 404)
    assert await copies(asked) == 0


async def test_what_cannot_be_shown_is_not_kept(asked: Desk) -> None:
    """A video, another type of image, and an image of more than 5 MiB."""
    for name, data in (
        ("a.mp4", b"\x00\x00\x00\x18ftypmp42" + bytes(64)),
        ("a.bmp", b"BM" + bytes(64)),
        ("a.gif", b"GIF89a" + bytes(6 << 20)),
    ):
        await upload(asked, data, name)
    assert await kept(asked) == []
    largest = await upload(asked, b"GIF89a" + bytes((5 << 20) - 6), "b.gif")
    assert await kept(asked) == [largest]


async def test_the_newest_uploads_of_a_key_are_kept(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to half of the room for its images, so that the other half is left for the writes that wait."""
    sealed = len(asked.records.seal_upload("key", "1", GIF))
    monkeypatch.setattr(asking, "MAX_KEPT_BYTES", 4 * sealed)
    monkeypatch.setattr(kept_images, "MAX_UPLOADED_BYTES", 2 * sealed)
    ids = []
    for _ in range(3):
        ids.append(await upload(asked, GIF, "a.gif"))
        asked.running.clock.advance(seconds=1)
    assert await kept(asked) == sorted(ids[1:])
    both = await ask(asked, *ids[1:])
    assert await copies(asked) == 2
    # There is no more room for a third copy.
    third = await path_of(asked, await ask(asked, ids[2], text="A third copy"))
    assert f"1 GIF, {len(GIF)} bytes, uploaded earlier, media ID {ids[2]}" in (await get(asked, third)).text
    await asked.approvals.deny(both["request_id"], OPERATOR)
    await ask(asked, ids[2], text="A fourth")
    assert await copies(asked) == 1
    async with asked.database.read() as connection:
        total = await store.bytes_kept(connection, asked.running.key_id)
        total += await approvals.bytes_kept(connection, asked.running.key_id)
    assert total <= 4 * sealed
    # Another key has room of its own.
    async with other_key(asked.running) as key_id:
        await asked.rules(POSTS_WAIT, key_id)
        await upload(asked, GIF, "a.gif")
    assert len(await kept(asked)) == 3


def test_the_room_of_a_key_is_fifty_mebibytes() -> None:
    """Of which uploads take up half."""
    assert (asking.MAX_KEPT_BYTES, kept_images.MAX_UPLOADED_BYTES) == (50 << 20, 25 << 20)


async def test_an_image_is_kept_until_x_deletes_it(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on, no post can use it."""
    monkeypatch.setattr(sandbox_media, "LIFETIME_S", 3_600)
    answer = await asked.running.client.post(API + "upload_media", files={"media": ("a.png", PNG, "image/png")})
    data, clock = answer.json()["data"], asked.running.clock
    async with asked.database.read() as connection:
        rows = await store.of_key(connection, asked.running.key_id, [data["media_id"]], clock.now())
        later = await store.of_key(
            connection, asked.running.key_id, [data["media_id"]], clock.now() + timedelta(seconds=3_601)
        )
    assert rows[data["media_id"]].until == datetime.fromisoformat(data["expires_at"])
    assert later == {}


async def unasked(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that an upload writes and reads nothing of all this."""

    async def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(store, "add", fail)
    monkeypatch.setattr(store, "bytes_kept", fail)
    await upload(asked)
    assert await kept(asked) == []


@pytest.mark.parametrize(
    "rules",
    [{"approve": ["like_twitter"]}, {"links": "deny"}, {"words": {"deny": ["approve"]}}, {"caps": {"*": "9/d"}}],
)
async def test_nothing_is_kept_for_a_key_that_need_not_ask(
    asked: Desk, rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its policies never ask about a post."""
    await asked.rules(rules)
    await unasked(asked, monkeypatch)


async def test_a_policy_in_shadow_mode_keeps_nothing(linked: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody."""
    async with desk(linked, {"mentions": {"max": 9}}) as asked:
        await set_rules(asked.database, linked.key_id, POSTS_WAIT, enforcement="shadow")
        await unasked(asked, monkeypatch)


async def test_an_upload_that_no_policy_governs_keeps_nothing(
    linked: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not even ask whether it should."""

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(KeptImages, "keep", fail)
    async with desk(linked) as asked:
        await asked.rules(None)
        assert await upload(asked)
        assert await kept(asked) == []


async def test_a_policy_of_the_gateway_counts_too(linked: RunningGateway) -> None:
    """Whatever scope may ask, and whichever rule."""
    async with desk(linked, {"mentions": {"max": 9}}) as asked:
        await asked.rules({"links": {"only": ["example.org"], "else": "approve"}}, GATEWAY)
        media_id = await upload(asked)
        assert await kept(asked) == [media_id]
        body = {"text": "https://example.com", "media": {"media_ids": [media_id]}}
        assert (await get(asked, f"{await path_of(asked, await asked.ask(body))}/media/0")).content == PNG


async def test_an_upload_succeeds_though_the_image_cannot_be_kept(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database does not answer any more: the person sees the media id."""

    async def fail(*_: object) -> None:
        raise StorageDownError("a test")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add", fail)
        media_id = await upload(asked)
    assert await kept(asked) == []
    page = await get(asked, await path_of(asked, await ask(asked, media_id)))
    assert f"1 file that was uploaded earlier, media ID {media_id}" in page.text


async def test_an_image_that_was_changed_at_rest_is_named(asked: Desk) -> None:
    """It does not open in another row, so what is shown is what was uploaded under this id."""
    first, second = await upload(asked), await upload(asked, GIF, "b.gif")
    async with asked.database.write() as connection:
        blob = select(store.kept_images.c.blob_ct).where(store.kept_images.c.media_id == first).scalar_subquery()
        moved = store.kept_images.update().where(store.kept_images.c.media_id == second)
        await connection.execute(moved.values(blob_ct=blob))
    page = await get(asked, await path_of(asked, await ask(asked, second)))
    assert f"1 GIF, {len(GIF)} bytes, uploaded earlier, media ID {second}" in page.text
