"""The control surface: its access rules, refusals and changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import httpx2
import pytest

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.state.seed import DELETED_POST_ID, VISIBLE_POST_ID
from birdwire.sandbox.state.switches import Switches

if TYPE_CHECKING:
    from sandbox.conftest import SandboxClient

ADA = "2244994945"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The part of docs/sandbox.md under a heading."""
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


async def test_the_default_seed_has_five_people_and_a_deleted_post(x: SandboxClient) -> None:
    """As the documentation names them."""
    state = await x.state()
    assert [user["username"] for user in state["users"]] == ["ada", "grace", "alan", "pat", "gus"]
    assert [user["username"] for user in state["users"] if user["protected"]] == ["pat"]
    assert [user["username"] for user in state["users"] if user["suspended"]] == ["gus"]
    assert [post["id"] for post in state["posts"] if post["deleted"]] == [DELETED_POST_ID]
    assert {user["id"] for user in state["users"]} == {post["author_id"] for post in state["posts"]}
    assert state.keys() == {"users", "posts", "likes", "follows", "retweets", "bookmarks"}


async def test_other_machines_are_refused() -> None:
    """By the peer's address."""
    transport = httpx2.ASGITransport(create_sandbox(), client=("192.0.2.7", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.get("/_sandbox/state")).status_code == 403
        assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "2130706433"])
async def test_foreign_names_are_refused(x: SandboxClient, host: str) -> None:
    """A rebound name reaches the socket, but not the control surface."""
    answer = await x.http.get("/_sandbox/state", headers={"host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "[::1]:80", "127.0.0.2"])
async def test_loopback_names_are_let_in(x: SandboxClient, host: str) -> None:
    """Every name of this machine's own."""
    assert (await x.http.get("/_sandbox/state", headers={"host": host})).status_code == 200


async def test_pages_of_other_origins_are_refused(x: SandboxClient) -> None:
    """A web page cannot reset what it cannot read."""
    answer = await x.http.post("/_sandbox/reset", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert (await x.http.post("/_sandbox/reset", headers={"origin": "http://127.0.0.1"})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("config", {"tier": "free"}),
        ("config", {"colour": "red"}),
        ("config", {"likes_per_15m": -1}),
        ("config", {"likes_per_15m": True}),
        ("config", {"likes_per_15m": 1.5}),
        ("config", {"limits": {"GET /2/users/me": "many"}}),
        ("config", {"limits": {"GET /2/moon": 1}}),
        ("clock", {}),
        ("clock", {"advance_s": "1"}),
        ("clock", {"advance_s": True}),
        ("clock", {"advance_s": 1e300}),
        ("clock", {"advance_s": 1, "now": 2}),
        ("reset", {"all": True}),
        ("seed", {"users": [{"username": "no spaces"}]}),
        ("seed", {"posts": [{"author": "nobody", "text": "?"}]}),
        ("seed", {"users": [{"username": "ada", "id": "1"}]}),
        ("faults", {}),
        ("faults", {"do": {}}),
        ("faults", {"do": {"error": "no-such-error"}}),
        ("faults", {"do": {"drop": "sometime"}}),
        ("faults", {"do": {"status": 503, "error": "unavailable"}}),
        ("faults", {"do": {"status": 99}}),
        ("faults", {"do": {"status": 200, "headers": {"x": "a\r\nb"}}}),
        ("faults", {"do": {"status": 200, "headers": {"x y": "a"}}}),
        ("faults", {"do": {"body": {}}}),
        ("faults", {"do": {"status": 200, "body_base64": "%%"}}),
        ("faults", {"do": {"status": 200, "body": 1, "body_base64": "YQ=="}}),
        ("faults", {"do": {"status": 500}, "times": 0}),
        ("faults", {"do": {"status": 500}, "match": {"header": "x"}}),
        ("faults", {"do": 5}),
    ],
)
async def test_an_invalid_request_is_refused_and_changes_nothing(
    x: SandboxClient, path: str, body: dict[str, Any]
) -> None:
    """400 with a sentence, and nothing changes."""
    before = await x.state(), (await x.http.get("/_sandbox/config")).json()
    answer = await x.http.post(f"/_sandbox/{path}", json=body)
    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 5
    assert (await x.state(), (await x.http.get("/_sandbox/config")).json()) == before
    assert (await x.http.get("/_sandbox/faults")).json() == {"faults": []}


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"advance_s":NaN}', 400), (b'{"a":"\\ud800"}', 400), (b"", 400)],
)
async def test_only_json_objects_are_read(x: SandboxClient, content: bytes, status: int) -> None:
    """NaN is refused too, which is not JSON."""
    headers = {"content-type": "application/json"}
    assert (await x.http.post("/_sandbox/clock", content=content, headers=headers)).status_code == status


async def test_other_kinds_of_body_and_huge_ones_are_refused(x: SandboxClient) -> None:
    """A form from a foreign page is not JSON; a body is bounded."""
    assert (await x.http.post("/_sandbox/clock", data={"advance_s": "1"})).status_code == 415
    assert (await x.http.post("/_sandbox/clock", content=b" " * 8_400_000)).status_code == 413


async def test_config_changes_any_subset_and_answers_the_whole(x: SandboxClient) -> None:
    """And all names of a refused change are named."""
    whole = await x.control("config", tier="self_serve_2026_04", likes_per_15m=3)
    assert (whole["tier"], whole["likes_per_15m"], whole["billing"]) == ("self_serve_2026_04", 3, "ok")
    error = (await x.http.post("/_sandbox/config", json={"tier": "x", "billing": 1})).json()["error"]
    assert error.startswith("tier: Input should be ")
    assert "; billing: Input should be " in error


async def test_an_unknown_switch_is_refused_with_the_names_of_the_known_ones(x: SandboxClient) -> None:
    """Of switches and, within `limits`, of endpoints."""
    error = (await x.http.post("/_sandbox/config", json={"colour": 1})).json()["error"]
    assert error == f"unknown name 'colour'; the known names are {', '.join(Switches.model_fields)}"
    error = (await x.http.post("/_sandbox/config", json={"limits": {"GET /2/moon": 1}})).json()["error"]
    assert error.startswith("limits: unknown name 'GET /2/moon'; the known names are GET /2/users/me, ")


def test_every_switch_is_documented_with_its_values_default_first() -> None:
    """docs/sandbox.md against the switches themselves."""
    documented = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section("Switches"), re.MULTILINE))
    assert list(documented) == list(Switches.model_fields)
    for name, default in Switches().model_dump().items():
        values = re.findall("`([^`]+)`", documented[name])
        assert values[0] == (default if isinstance(default, str) else json.dumps(default)), name
        if isinstance(default, str):
            assert set(values) == set(get_args(Switches.model_fields[name].annotation)), name


async def test_the_consent_call_is_documented(x: SandboxClient) -> None:
    """Every member of its body: the documented example itself, filled in."""
    text = section("Consent without a browser")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert rows == ["auth_url", "username", "action", "scopes"]
    answer = await x.http.post("/_sandbox/consent", json=dict.fromkeys(rows, 1))
    assert "unknown" not in answer.json()["error"]
    body = {"auth_url": x.authorize_url(), "username": "ada", "action": "allow", "scopes": ["tweet.read"]}
    assert (await x.control("consent", **body)).keys() == {"redirect_to"}


async def test_calls_are_numbered_and_name_the_user_and_operation(x: SandboxClient) -> None:
    """since=N, grant_type at the token endpoint, user_id at the API; control calls are not X's."""
    token = (await x.link())["access_token"]
    await x.call(token, "GET", "/2/users/me")
    calls = (await x.http.get("/_sandbox/calls")).json()["calls"]
    assert [(call["n"], call["method"], call["path"], call["status"]) for call in calls] == [
        (1, "POST", "/2/oauth2/token", 200),
        (2, "GET", "/2/users/me", 200),
    ]
    assert calls[0]["grant_type"] == "authorization_code"
    assert calls[1]["user_id"] == ADA
    assert (await x.http.get("/_sandbox/calls?since=1")).json()["calls"] == calls[1:]
    assert (await x.http.get("/_sandbox/calls?since=x")).status_code == 400


async def test_a_reset_undoes_all_but_grants_and_numbers(x: SandboxClient) -> None:
    """A linked app stays linked unless requested otherwise."""
    token = (await x.link())["access_token"]
    await x.call(token, "POST", f"/2/users/{ADA}/likes", json={"tweet_id": VISIBLE_POST_ID})
    await x.control("config", likes_per_15m=1)
    await x.control("faults", do={"status": 500}, times=None)
    await x.control("clock", advance_s=60)
    state = await x.control("reset")
    assert state["likes"] == []
    assert (await x.http.get("/_sandbox/config")).json()["likes_per_15m"] == 50
    assert (await x.http.get("/_sandbox/calls")).json() == {"calls": []}
    answer = await x.call(token, "GET", "/2/users/me")
    assert (answer.status_code, answer.headers["x-rate-limit-remaining"]) == (200, "74")
    assert (await x.http.get("/_sandbox/calls")).json()["calls"][0]["n"] == 3
    await x.control("reset", grants=False)
    assert (await x.call(token, "GET", "/2/users/me")).status_code == 401


async def test_the_seed_can_be_put_back_and_added_to(x: SandboxClient) -> None:
    """People and posts by name; the seed itself with an empty body."""
    plan = {
        "users": [{"username": "eve", "protected": True}],
        "posts": [{"author": "eve", "text": "hi @ada", "id": "77"}],
    }
    state = await x.control("seed", **plan)
    eve = next(user for user in state["users"] if user["username"] == "eve")
    assert eve["protected"] is True
    assert {"id": "77", "text": "hi @ada", "author_id": eve["id"], "deleted": False} in state["posts"]
    await x.control("seed", users=[{"username": "ada", "suspended": True}])
    state = (await x.http.post("/_sandbox/seed")).json()
    assert next(user for user in state["users"] if user["username"] == "ada")["suspended"] is False
    assert any(user["username"] == "eve" for user in state["users"])


async def test_the_front_page_explains_the_sandbox(x: SandboxClient) -> None:
    """Accounts, endpoints and control calls."""
    page = (await x.http.get("/")).text
    for part in ("not X", "@grace", VISIBLE_POST_ID, "/2/users/{id}/likes", "/_sandbox/faults"):
        assert part in page


async def test_removing_an_unknown_user_is_404(x: SandboxClient) -> None:
    """404, as JSON."""
    answer = await x.http.post("/_sandbox/users/5/revoke_app")
    assert (answer.status_code, answer.json()) == (404, {"error": "there is no user with this id"})
