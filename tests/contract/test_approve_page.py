"""The page of a signed link over HTTP: what it shows, what alone decides, and what never leaves it."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from datetime import timedelta
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from birdwire.api.messages import Call
from birdwire.api.models import Body
from birdwire.outcomes.approval_payload import Payload
from birdwire.runtime.clock import Clock
from birdwire.store.tables.approvals import approvals
from birdwire.surfaces.approve import payload_view
from birdwire.surfaces.approve.decision_form import FORM_LIMIT
from birdwire.surfaces.approve.request_view import moment
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.post import PostTwitter
from harness.approve_page import FORM, Asking, asking, hash_on
from harness.gateway import API, GRACE, PNG, POST, RunningGateway
from harness.guarded_gateway import ADA, contents, pause
from harness.linking import HTML, JSON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

TEXT = "The release is out: https://example.org/notes"
OWN = {"sec-fetch-site": "same-origin"}


@pytest_asyncio.fixture
async def asked(running: RunningGateway) -> AsyncIterator[Asking]:
    """A gateway whose key has to ask a person about everything."""
    async with asking(running) as made:
        yield made


def words(page: Any) -> str:
    """Return the text of a page on one line, without its style."""
    body = re.sub(r"(?s)<style>.*?</style>", "", page.text)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


# What is shown.


async def test_the_page_shows_what_a_person_has_to_know(asked: Asking) -> None:
    """The account, the key, the text, the link's host, the reason, the price, the time; and two buttons."""
    page = await asked.get(await asked.page_of({"text": TEXT}))
    assert page.status_code == 200
    shown = words(page)
    assert "Publish this post as @ada?" in shown
    for part in ("test key", TEXT, "Leads to example.org", "post_twitter needs a person's approval", "$0.20", "@ada"):
        assert part in shown, part
    assert f"ID {ADA}" in shown
    assert re.search(r"Decide by \d+ \w+ 20\d\d, \d\d:\d\d UTC in 60 minutes", shown)
    assert re.search(r'<time datetime="20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ">', page.text)
    assert re.findall(r'<button class="(\w+)"', page.text) == ["approve", "deny", "save"]


async def test_a_page_forbids_scripts_frames_caches_and_indexes(asked: Asking) -> None:
    """And sends no other site its address. Of the question, of an end, and of an unknown token."""
    path = await asked.page_of({"text": TEXT})
    pages = [await asked.get(path), await asked.get(f"/approve/{secrets.token_urlsafe(20)}")]
    await asked.press(path, "deny")
    pages.append(await asked.get(path))
    for page in pages:
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert policy["style-src"].startswith("'sha256-")
        assert "script-src" not in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["x-robots-tag"] == "noindex"
        assert page.headers["x-content-type-options"] == "nosniff"
        # With no-referrer, the Origin of a form would be null.
        assert page.headers["referrer-policy"] == ("same-origin" if "<form" in page.text else "no-referrer")
        assert not re.search(r"<script|<iframe|<link|src=\"http|onerror=", page.text)


def leaf_values(model: type[Body]) -> Iterator[tuple[str, Any]]:
    """Every member of a body that is no object, with an example of its own."""
    numbers = iter(range(1_000, 9_000))
    enough = {
        "duration_minutes": 1_501,
        "options": ["First option", "Second option"],
        "media_ids": ["7001", "7002"],
        "text": "A text",
        "place_id": "a-place",
        "card_uri": "card://a-card",
        "direct_message_deep_link": "https://x.com/messages/compose?recipient_id=1",
        "reply_settings": "subscribers",
    }
    for name, info in model.model_fields.items():
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        inner = next((one for one in options if isinstance(one, type) and issubclass(one, Body)), None)
        if inner is not None:
            yield name, dict(leaf_values(inner))
        elif name in enough:
            yield name, enough[name]
        elif bool in options:
            yield name, True
        elif any("list" in str(one) for one in options):
            yield name, [str(next(numbers)), str(next(numbers))]
        else:
            yield name, str(next(numbers))


def leaves_of(value: Any) -> Iterator[Any]:
    """Every value at any depth."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from leaves_of(inner)
        if not isinstance(inner, dict | list):
            yield inner


def test_no_member_of_a_post_is_left_out() -> None:
    """The whole model, at every depth: each member is set, and each has a label of its own and its value."""
    fields = dict(leaf_values(PostTwitter))
    assert set(fields) == set(PostTwitter.model_fields)
    payload = Payload("post_twitter", ADA, fields)
    found = payload_view.members(payload)
    apart = {"text", "media.media_ids"}
    paths = {
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in fields.items()
        for inner in (value if isinstance(value, dict) else [name])
    }
    assert {member.name for member in found} == paths - apart
    assert [member for member in found if member.label == member.name] == []
    assert len({member.label for member in found}) == len(found)
    shown = [value.text for member in found for value in member.values]
    shown += [payload_view.text_of(payload) or "", *payload_view.media_not_shown(payload, frozenset())]
    in_words = {True: "yes", 1_501: "1 day, 1 hour, 1 minute", "subscribers": "only subscribers"}
    for value in leaves_of(fields):
        assert any(str(in_words.get(value, value)) in text for text in shown), value
    assert [member.name for member in payload_view.members(Payload("x", ADA, {"zzz": 1, **fields}))][-1] == "zzz"


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if not one.takes_file], ids=lambda one: one.name)
def test_no_member_of_an_operation_is_left_out(operation: Any) -> None:
    """Nor one that no table knows: it is shown by its own name."""
    fields = dict(leaf_values(operation.body)) | {"later": {"member": "a value", "empty": {}}}
    found = {member.name: member for member in payload_view.members(Payload(operation.name, ADA, fields))}
    assert {"later.member", "later.empty"} <= set(found)
    assert found["later.member"].values[0].text == "a value"
    if operation.target in fields:
        assert (
            found[operation.target].values[0].href
            == f"https://x.com/i/{_kind_of(operation)}/{fields[operation.target]}"
        )


def _kind_of(operation: Any) -> str:
    return "status" if operation.target == "tweet_id" else "user"


@pytest.mark.parametrize(
    ("name", "body", "asks"),
    [
        ("like_twitter", {"tweet_id": POST}, "Like this post as @ada?"),
        ("follow_twitter", {"target_user_id": GRACE}, "Follow this user as @ada?"),
        ("delete_twitter", {"tweet_id": POST}, "Delete this post as @ada?"),
        ("post_twitter", {"text": "a", "reply": {"in_reply_to_tweet_id": POST}}, "Publish this reply as @ada?"),
        ("post_twitter", {"text": "a", "quote_tweet_id": POST}, "Publish this quote post as @ada?"),
    ],
)
async def test_the_question_names_the_operation(asked: Asking, name: str, body: dict[str, Any], asks: str) -> None:
    """And links to what it is about."""
    page = await asked.get(await asked.page_of(body, name))
    assert asks in words(page)
    assert 'href="https://x.com/i/' in page.text
    assert "Edit the text" in words(page) or "text" not in body


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("see https://xn--e1awd7f.com/", "Leads to xn--e1awd7f.com"),
        ("see https://\u0435xample.com/a", "Leads to xn--xample-2of.com"),
        ("see https://example.com/@evil.org", "Leads to example.com"),
        ("see example.org.", "Leads to example.org"),
    ],
)
async def test_a_link_is_shown_with_the_host_to_which_it_leads(asked: Asking, text: str, leads: str) -> None:
    """In punycode, so that look-alikes differ."""
    assert leads in words(await asked.get(await asked.page_of({"text": text})))


async def test_a_card_without_a_host_is_named(asked: Asking) -> None:
    """Only X knows where it leads."""
    page = words(await asked.get(await asked.page_of({"text": "a", "card_uri": "card://12345"})))
    assert "card://12345 Where it leads is not known." in page


async def test_markup_is_shown_and_not_part_of_the_page(asked: Asking) -> None:
    """In the text, in an option of a poll, and in a note."""
    markup = '<img src=x onerror="1">{{7*7}}'
    body = {"text": markup, "poll": {"options": [markup[:25], "b"], "duration_minutes": 60}}
    path = await asked.page_of(body)
    page = await asked.get(path)
    assert "<img" not in page.text
    assert markup in words(page)
    await asked.press(path, "deny", note=markup)
    page = await asked.get(path)
    assert "<img" not in page.text
    assert markup in words(page)


# What decides.


@pytest.mark.engines("sqlite", "postgres")
async def test_a_person_approves_and_the_page_shows_the_post(asked: Asking) -> None:
    """First that it is being sent, looking again by itself; then where it is."""
    path = await asked.page_of({"text": TEXT})
    pressed = await asked.press(path, "approve")
    assert (pressed.status_code, pressed.headers["location"]) == (303, path)
    page = await asked.get(path)
    async with asyncio.timeout(20):
        while "refresh" in page.headers:
            assert words(page).startswith("Approved - Birdwire Birdwire Approved Birdwire is sending it.")
            assert page.headers["refresh"] == "1"
            await asyncio.sleep(0.1)
            page = await asked.get(path)
    assert "Published" in words(page)
    (post,) = [one for one in (await asked.running.state())["posts"] if one["text"].startswith("The release is out")]
    assert f'href="https://x.com/ada/status/{post["id"]}"' in page.text


async def test_a_refresh_is_bounded_by_the_age_of_the_decision(asked: Asking) -> None:
    """X is away: the page looks again more and more rarely, and at last no more."""
    await asked.running.fault("POST", "/2/tweets", {"status": 503}, times=None)
    path = await asked.page_of({"text": "bounded"})
    await asked.press(path, "approve")
    seen = []
    for _ in range(4):
        seen.append((await asked.get(path)).headers.get("refresh"))
        asked.running.clock.advance(seconds=30)
    assert seen[0] == "1"
    assert "1" not in seen[1:]
    asked.running.clock.advance(minutes=12)
    assert "refresh" not in (await asked.get(path)).headers


@pytest.mark.engines("sqlite", "postgres")
async def test_a_person_denies_with_a_note_for_the_caller(asked: Asking) -> None:
    """The page and the caller have it."""
    request_id = await asked.ask({"text": TEXT})
    path = await asked.link_to(request_id)
    assert (await asked.press(path, "deny", note="  wrong week ")).status_code == 303
    page = words(await asked.get(path))
    assert "Denied" in page
    assert "tester denied it on" in page
    assert "wrong week" in page
    assert TEXT not in page
    again = await asked.running.call("post_twitter", {"text": TEXT})
    assert (again.status_code, again.json()["error"]["reason"]) == (403, "approval_denied")
    assert "wrong week" in again.json()["error"]["message"]
    assert not await asked.running.calls("/2/tweets")


async def test_an_edit_asks_again_with_the_new_hash(asked: Asking) -> None:
    """The old hash approves nothing, and line breaks arrive as they were typed."""
    path = await asked.page_of({"text": "First\nversion"})
    before = hash_on(await asked.get(path))
    assert (await asked.press(path, "edit", text="Second\r\nversion <b>")).status_code == 303
    page = await asked.get(path)
    assert "The text was edited." in words(page)
    assert ">Second\nversion &lt;b&gt;</p>" in page.text
    assert hash_on(page) != before
    late = await asked.press(path, "approve", sha256=before)
    assert late.status_code == 409
    assert "Nothing was decided." in words(late)
    assert ">Second\nversion &lt;b&gt;</p>" in late.text
    assert await asked.state_of(path) == "awaiting_approval"
    assert (await asked.press(path, "approve", sha256=hash_on(late))).status_code == 303


async def test_a_refused_edit_keeps_what_the_person_typed(asked: Asking) -> None:
    """And says why it was refused; the old text goes on waiting."""
    path = await asked.page_of({"text": TEXT})
    before = hash_on(await asked.get(path))
    typed = "x" * 281
    page = await asked.press(path, "edit", text=typed)
    assert page.status_code == 400
    assert "weighted length is 281" in words(page)
    assert f">\n{typed}</textarea>" in page.text
    assert "<details open>" in page.text
    assert hash_on(page) == before


async def test_a_pause_holds_an_approval_and_the_page_says_so(asked: Asking) -> None:
    """The request goes on waiting."""
    path = await asked.page_of({"text": TEXT})
    await pause(asked.database, asked.running.key_id, why="a drill")
    page = await asked.press(path, "approve")
    assert page.status_code == 403
    assert "a drill" in words(page)
    assert await asked.state_of(path) == "awaiting_approval"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    ],
)
async def test_a_form_of_another_site_decides_nothing(asked: Asking, headers: dict[str, str]) -> None:
    """Whatever the browser tells of it."""
    path = await asked.page_of({"text": TEXT})
    sent = {"verdict": "approve", "payload_sha256": hash_on(await asked.get(path))}
    refused = await asked.running.bare.post(path, data=sent, headers=HTML | headers)
    assert refused.status_code == 403
    assert "The request came from a page on another site." in words(refused)
    assert await asked.state_of(path) == "awaiting_approval"


SHA = "0" * 64
BAD_FORMS: list[tuple[str, str, str]] = [
    ("no field", "", "unsupported_media_type"),
    ("no verdict", f"payload_sha256={SHA}", "form_malformed"),
    ("an unknown verdict", f"verdict=yes&payload_sha256={SHA}", "form_malformed"),
    ("no hash", "verdict=approve", "form_malformed"),
    ("a short hash", "verdict=approve&payload_sha256=00", "form_malformed"),
    ("a hash in capitals", f"verdict=approve&payload_sha256={'A' * 64}", "form_malformed"),
    ("two verdicts", f"verdict=approve&verdict=deny&payload_sha256={SHA}", "duplicate_field"),
    ("two hashes", f"verdict=approve&payload_sha256={SHA}&payload_sha256={SHA}", "duplicate_field"),
    ("an unknown field", f"verdict=approve&payload_sha256={SHA}&by=boss", "unknown_field"),
    ("a note with an approval", f"verdict=approve&payload_sha256={SHA}&note=a", "unknown_field"),
    ("a text with an approval", f"verdict=approve&payload_sha256={SHA}&text=a", "unknown_field"),
    ("an edit without a text", f"verdict=edit&payload_sha256={SHA}", "form_malformed"),
    ("a long note", f"verdict=deny&payload_sha256={SHA}&note={'a' * 501}", "form_malformed"),
    ("another hash", f"verdict=approve&payload_sha256={SHA}", "approval_stale"),
    ("another hash to deny", f"verdict=deny&payload_sha256={SHA}", "approval_stale"),
    ("another hash to edit", f"verdict=edit&payload_sha256={SHA}&text=a", "approval_stale"),
    ("raw bytes", f"verdict=deny&payload_sha256={SHA}&note=\xe9", "form_malformed"),
]


async def test_a_form_that_is_not_the_pages_own_decides_nothing(asked: Asking) -> None:
    """Each with its reason, for a program in the envelope and for a person on a page."""
    path = await asked.page_of({"text": TEXT})
    before = await contents(asked.database)
    for name, form, reason in BAD_FORMS:
        for accept in (JSON, HTML):
            headers = accept | OWN | {"content-type": FORM}
            answer = await asked.running.bare.post(path, content=form.encode("latin-1"), headers=headers)
            assert answer.status_code >= 400, name
            if accept is JSON:
                assert answer.json()["error"]["reason"] == reason, name
            else:
                assert "Nothing was decided" in words(answer), name
    big = f"verdict=edit&payload_sha256={SHA}&text={'a' * FORM_LIMIT}"
    sent = await asked.running.bare.post(path, content=big, headers=HTML | OWN | {"content-type": FORM})
    assert sent.json()["error"]["reason"] == "body_too_large"
    body = json.dumps({"verdict": "approve", "payload_sha256": hash_on(await asked.get(path))})
    sent = await asked.running.bare.post(path, content=body, headers=JSON | OWN | {"content-type": "application/json"})
    assert sent.json()["error"]["reason"] == "unsupported_media_type"
    assert await contents(asked.database) == before


@pytest.mark.trust("G15")
async def test_a_thousand_looks_decide_nothing(asked: Asking) -> None:
    """GET, HEAD and prefetches of links, as mail scanners and previews send them: the database stays as it was."""
    paths = [await asked.page_of({"text": f"{TEXT} {number}"}) for number in range(5)]
    before = await contents(asked.database)
    ways: list[tuple[str, dict[str, str]]] = [
        ("GET", HTML),
        ("GET", JSON),
        ("HEAD", HTML),
        ("GET", HTML | {"sec-purpose": "prefetch"}),
        ("GET", HTML | {"sec-purpose": "prefetch;prerender", "purpose": "prefetch"}),
    ]
    gate = asyncio.Semaphore(10)

    async def look(number: int) -> int:
        method, headers = ways[number // 5 % len(ways)]
        query = "?verdict=approve" if number % 3 == 0 else ""
        async with gate:
            return (await asked.running.bare.request(method, paths[number % 5] + query, headers=headers)).status_code

    assert set(await asyncio.gather(*map(look, range(1_000)))) == {200}
    sha256 = hash_on(await asked.get(paths[0]))
    form = {"verdict": "approve", "payload_sha256": sha256}
    headers = JSON | OWN | {"sec-purpose": "prefetch"}
    refused = await asked.running.bare.post(paths[0], data=form, headers=headers)
    assert refused.json()["error"]["reason"] == "prefetch"
    assert await contents(asked.database) == before
    assert {await asked.state_of(path) for path in paths} == {"awaiting_approval"}
    assert await asked.links_used() == 0


async def test_other_methods_are_refused(asked: Asking) -> None:
    """A PUT or a DELETE is no decision."""
    path = await asked.page_of({"text": TEXT})
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await asked.running.bare.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST, HEAD")
    assert await asked.state_of(path) == "awaiting_approval"


@pytest.mark.trust("#323")
async def test_a_key_decides_nothing_through_the_page(asked: Asking) -> None:
    """The page knows no key: a token alone opens it, and the request's id is none."""
    request_id = await asked.ask({"text": TEXT})
    for name in (request_id, asked.running.raw_key):
        form = {"verdict": "approve", "payload_sha256": SHA}
        answer = await asked.running.client.post(f"/approve/{name}", data=form, headers=JSON | OWN)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "route_unknown")


# What became of it.


async def test_a_link_decides_once(asked: Asking) -> None:
    """The second press, and another link to the same request, say what became of it."""
    request_id = await asked.ask({"text": TEXT})
    path, other = await asked.link_to(request_id), await asked.link_to(request_id)
    sha256 = hash_on(await asked.get(path))
    await asked.press(path, "deny", sha256=sha256)
    for late in (path, other):
        page = await asked.press(late, "approve", sha256=sha256)
        assert page.status_code == 409
        assert "Denied" in words(page)
        assert "<button" not in page.text
    assert await asked.links_used() == 1
    assert await asked.state_of(path) == "denied"


async def test_an_expired_link_says_so(asked: Asking) -> None:
    """Before and after a gateway noticed; the text is not shown any more, and a late press decides nothing."""
    path = await asked.page_of({"text": TEXT})
    sha256 = hash_on(await asked.get(path))
    asked.running.clock.advance(hours=1, seconds=1)
    page = await asked.get(path)
    assert "Expired" in words(page)
    assert TEXT not in words(page)
    late = await asked.press(path, "approve", sha256=sha256)
    assert late.status_code == 409
    assert "Expired" in words(late)
    assert not await asked.running.calls("/2/tweets")


async def test_a_payload_that_cannot_be_decrypted_cannot_be_approved_unseen(asked: Asking) -> None:
    """Such as one that was damaged: the page has no button."""
    path = await asked.page_of({"text": TEXT})
    async with asked.database.write() as connection:
        await connection.execute(update(approvals).values(payload_ct=b"damaged"))
    page = await asked.get(path)
    assert "It cannot be shown" in words(page)
    assert "<button" not in page.text


async def test_a_cancelled_request_says_so(asked: Asking) -> None:
    """The key that asked took it back."""
    request_id = await asked.ask({"text": TEXT})
    path = await asked.link_to(request_id)
    (await asked.running.client.post(f"{API}requests/{request_id}/cancel")).raise_for_status()
    assert "Cancelled" in words(await asked.get(path))


async def test_a_refusal_of_x_is_shown(asked: Asking) -> None:
    """In the words that the caller gets."""
    for _ in range(2):
        path = await asked.page_of({"text": "Said before"})
        await asked.press(path, "approve")
        page = await asked.get(path)
        async with asyncio.timeout(20):
            while "refresh" in page.headers:
                await asyncio.sleep(0.1)
                page = await asked.get(path)
    assert "X refused it" in words(page)
    assert "already posted the same text" in words(page)


@pytest.mark.trust("G12")
async def test_unknown_tokens_are_limited_by_address_and_valid_ones_are_not(asked: Asking) -> None:
    """A wrong token is no different from any other path, for a person and for a program."""
    path = await asked.page_of({"text": TEXT})
    guess = f"/approve/{secrets.token_urlsafe(20)}"
    page = await asked.get(guess)
    assert page.status_code == 404
    assert (
        words(page)
        == "There is nothing here - Birdwire Birdwire There is nothing here Check that the whole link was copied."
    )
    statuses: set[tuple[int, str]] = set()
    for _ in range(200):
        answer = await asked.running.bare.get(f"/approve/{secrets.token_urlsafe(20)}", headers=JSON)
        statuses.add((answer.status_code, answer.json()["error"]["reason"]))
        if len(statuses) == 2:
            break
    assert statuses == {(404, "route_unknown"), (429, "auth_failures")}
    assert (await asked.get(path)).status_code == 200


async def test_a_text_that_is_no_token_is_not_looked_up(asked: Asking) -> None:
    """It costs the address nothing either."""
    for _ in range(70):
        assert (await asked.get("/approve/short")).status_code == 404


async def test_a_program_gets_json(asked: Asking) -> None:
    """What waits, the decision, and what became of it."""
    request_id = await asked.ask({"text": TEXT})
    path = await asked.link_to(request_id)
    shown = (await asked.running.bare.get(path, headers=JSON)).json()["approval"]
    assert (shown["request_id"], shown["state"]) == (request_id, "awaiting_approval")
    form = {"verdict": "deny", "payload_sha256": shown["payload_sha256"]}
    denied = await asked.running.bare.post(path, data=form, headers=JSON | OWN)
    assert (denied.status_code, denied.json()["approval"]["state"]) == (200, "denied")
    again = await asked.running.bare.post(path, data=form, headers=JSON | OWN)
    assert (again.status_code, again.json()["error"]["reason"]) == (409, "approval_not_waiting")


# Images.


@pytest_asyncio.fixture
async def relayed(tmp_path: Path) -> AsyncIterator[Asking]:
    """A gateway that takes a post with its files, and whose key has to ask."""
    url = f"sqlite:///{tmp_path / 'birdwire.db'}"
    async with RunningGateway.built(tmp_path, database_url=url, relay_dialect=True) as running, asking(running) as made:
        yield made


async def ask_with_files(relayed: Asking, *files: tuple[str, bytes, str]) -> str:
    """Ask for a post with files; return the path of its page."""
    parts: list[Any] = [("aisa_api_key", (None, relayed.running.raw_key)), ("content", (None, "With files"))]
    parts += [("media_files", file) for file in files]
    answer = await relayed.running.bare.post(f"{API}post_twitter", files=parts)
    assert answer.status_code == 202, answer.text
    return await relayed.link_to(answer.json()["approval"]["request_id"])


async def test_an_image_is_shown_and_a_file_that_is_not_is_named(relayed: Asking) -> None:
    """The bytes are those that were sent, and nothing that a browser could run."""
    path = await ask_with_files(relayed, ("a.png", PNG, "image/png"), ("b.bmp", b"BM" + bytes(2_000), "image/bmp"))
    page = await relayed.get(path)
    assert re.findall(r'<img src="([^"]+)" alt="Image 1 of the post">', page.text) == [f"{path}/media/0"]
    assert "img-src 'self'" in page.headers["content-security-policy"]
    assert "1 image, 2 KiB : not shown" in words(page)
    assert words(page).index("not shown") < words(page).index("Approve Deny")
    image = await relayed.running.bare.get(f"{path}/media/0")
    assert (image.status_code, image.content) == (200, PNG)
    assert image.headers["content-type"] == "image/png"
    assert image.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert image.headers["content-disposition"] == 'inline; filename="image-1.png"'
    assert image.headers["x-content-type-options"] == "nosniff"
    assert image.headers["cache-control"] == "no-store"
    for other in (f"{path}/media/1", f"{path}/media/2", f"{path}/media/-1", f"{path}/media/0x0", f"{path}/media/"):
        assert (await relayed.running.bare.get(other)).status_code == 404, other
    await relayed.press(path, "deny")
    assert (await relayed.running.bare.get(f"{path}/media/0")).status_code == 404


async def test_a_file_that_was_uploaded_earlier_and_is_not_kept_is_named(asked: Asking) -> None:
    """It is of a type that cannot be shown."""
    file = ("a.bmp", b"BM" + bytes(64), "image/bmp")
    upload = await asked.running.client.post(f"{API}upload_media", files={"media_files": file})
    media_id = upload.raise_for_status().json()["data"]["media_id"]
    page = words(await asked.get(await asked.page_of({"text": "a", "media": {"media_ids": [media_id]}})))
    assert f"1 file that was uploaded earlier, media ID {media_id} : not shown" in page


# The token.


@pytest.mark.trust("O15")
async def test_a_token_is_in_no_log_line_and_no_metric(asked: Asking) -> None:
    """However a request spells the path, and whether the app or the edge answers it."""
    path = await asked.page_of({"text": TEXT})
    token = path.split("/")[2]
    bare = asked.running.bare
    await asked.get(path)
    await bare.head(path)
    await asked.get(f"{path}?verdict=approve")
    await asked.get(f"{path}/media/0")
    await asked.get(f"{path}/other/thing")
    await asked.get(f"/APPROVE/{token}")
    await asked.get(f"{asked.running.settings.base_url}//approve//{token}")
    await asked.get(f"/%61pprove/{token}")
    await asked.get(f"/prefix/approve/{token}/")
    await bare.put(path)
    await bare.post(path, content=b"a" * 20_000, headers={"content-type": FORM})
    await bare.post(path, content=b"a" * 2_000_000, headers={"content-type": FORM})
    await asked.press(path, "deny")
    await asked.get(path)
    log = asked.running.log.getvalue()
    assert token not in log
    assert token[:12] not in log
    assert log.count('"path":"/approve/{token}"') >= 8
    assert '"path":"/approve/{token}/media/0"' in log
    metrics = asked.running.gateway.telemetry.metrics
    assert token not in str((await metrics.answer(None, Call("GET", "/metrics"))).body)


async def test_the_refusal_of_a_raw_request_has_no_token_in_its_log_line(asked: Asking) -> None:
    """A request that the edge refuses is logged by the edge."""
    path = await asked.page_of({"text": TEXT})
    host, port = asked.running.settings.base_url.removeprefix("http://").split(":")
    for rest in (b"Host: a b\r\n", b"Transfer-Encoding: gzip\r\nHost: a\r\n", b"Content-Length: 999999\r\nHost: a\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST %b HTTP/1.1\r\n%b\r\n" % (path.encode(), rest))
        async with asyncio.timeout(10):
            assert b"HTTP/1.1 4" in await reader.read()
        writer.close()
    log = asked.running.log.getvalue()
    assert path.split("/")[2] not in log
    assert log.count('"path":"/approve/{token}"') >= 3


def test_the_time_is_shown_in_words() -> None:
    """In minutes, in hours, and before now."""
    now = Clock().now()
    seconds = {61: "in 1 minute", 3_300: "in 55 minutes", 7_300: "in 2 hours", -130: "2 minutes ago", 5: "now"}
    for after, wanted in seconds.items():
        assert moment(now + timedelta(seconds=after), now).distance == wanted
