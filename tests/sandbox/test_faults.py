"""Faults: every refusal by its id, and what happens on a real wire."""

from __future__ import annotations

import gzip
import http.client
import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from birdwire.sandbox.api.errors import Catalogue
from birdwire.sandbox.control.faults import ConnectionDropped
from birdwire.sandbox.state.seed import VISIBLE_POST_ID

if TYPE_CHECKING:
    from sandbox.conftest import SandboxClient

ADA = "2244994945"


@pytest.mark.parametrize("name", Catalogue().ids())
async def test_every_refusal_can_be_provoked_by_its_id(x: SandboxClient, name: str) -> None:
    """With a body that is X's, at any endpoint."""
    await x.control("faults", match={"method": "GET", "path": "/2/users/*"}, do={"error": name})
    answer = await x.http.get("/2/users/me")
    entry = Catalogue().answer(name, 0)
    assert answer.status_code == entry.status
    assert (answer.json() if answer.content else None) == entry.body
    if entry.status == 429:
        assert answer.headers["x-rate-limit-reset"].isdecimal()
    assert (await x.http.get("/2/users/me")).status_code == 401


async def test_faults_come_in_order_and_end(x: SandboxClient) -> None:
    """First in, first out; null lasts until deleted."""
    for status in (500, 502):
        await x.control("faults", match={"path": "/2/users/me"}, do={"status": status}, times=1)
    await x.control("faults", do={"status": 418}, times=None)
    assert [(await x.http.get("/2/users/me")).status_code for _ in range(4)] == [500, 502, 418, 418]
    assert (await x.http.delete("/_sandbox/faults")).json() == {"deleted": 1}
    assert (await x.http.get("/2/users/me")).status_code == 401


async def test_a_fault_matches_by_method_and_path(x: SandboxClient) -> None:
    """Others pass."""
    await x.control("faults", match={"method": "POST", "path": "/2/oauth2/*"}, do={"status": 503})
    assert (await x.http.get("/2/users/me")).status_code == 401
    assert (await x.refresh("made-up")).status_code == 503
    assert (await x.refresh("made-up")).status_code == 400


async def test_an_answer_can_be_anything(x: SandboxClient) -> None:
    """JSON, text, nothing, any bytes; with headers."""
    await x.control("faults", do={"status": 200, "body": {"data": {}}, "headers": {"Retry-After": "7"}})
    await x.control("faults", do={"status": 502, "body": "<html>edge</html>"})
    await x.control("faults", match={"method": "get"}, do={"status": 204})
    zipped = b64encode(gzip.compress(b'{"data":{}}')).decode()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    await x.control("faults", do={"status": 200, "body_base64": zipped, "headers": headers})
    first, second, third, fourth = [await x.http.get("/2/users/me") for _ in range(4)]
    assert (first.json(), first.headers["retry-after"]) == ({"data": {}}, "7")
    assert (second.text, second.headers["content-type"]) == ("<html>edge</html>", "text/html; charset=utf-8")
    assert (third.status_code, third.content) == (204, b"")
    assert fourth.json() == {"data": {}}


@pytest.mark.parametrize(("when", "applied"), [("before_apply", False), ("after_apply", True)])
async def test_a_dropped_call_is_applied_or_not_as_ordered(x: SandboxClient, when: str, applied: bool) -> None:  # noqa: FBT001 - a case
    """The log shows a call without an answer; in one process the drop is an exception."""
    token = (await x.link())["access_token"]
    await x.control("faults", match={"path": "*/likes"}, do={"drop": when})
    with pytest.raises(ConnectionDropped):
        await x.call(token, "POST", f"/2/users/{ADA}/likes", json={"tweet_id": VISIBLE_POST_ID})
    assert bool((await x.state())["likes"]) is applied
    assert (await x.http.get("/_sandbox/calls")).json()["calls"][-1]["status"] is None


class Wire:
    """A plain HTTP/1.1 client, each request on a connection of its own."""

    def __init__(self, base: str) -> None:
        self._address = urlsplit(base).netloc
        self.body = b""

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """The answer; its body is in `body`."""
        connection = http.client.HTTPConnection(self._address, timeout=20)
        try:
            headers = {"content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            self.body = answer.read()
            return answer
        finally:
            connection.close()


@pytest.mark.parametrize("when", ["before_apply", "after_apply"])
def test_on_the_wire_a_drop_is_an_end_without_a_byte(served: str, when: str) -> None:
    """The server goes on."""
    wire = Wire(served)
    wire.ask("POST", "/_sandbox/faults", {"do": {"drop": when}})
    with pytest.raises(http.client.RemoteDisconnected):
        wire.ask("GET", "/2/users/me")
    assert wire.ask("GET", "/2/users/me").status == 401


def test_on_the_wire_a_cut_body_is_shorter_than_promised(served: str) -> None:
    """Content-Length as if whole, then the end."""
    wire = Wire(served)
    wire.ask("POST", "/_sandbox/faults", {"do": {"truncate": 5}})
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.ask("GET", "/2/users/me")
    assert (caught.value.partial, caught.value.expected) == (b'{\n  "', 94)


def test_on_the_wire_a_trickled_body_is_whole(served: str) -> None:
    """Slow, and nothing else."""
    wire = Wire(served)
    wire.ask("POST", "/_sandbox/faults", {"do": {"trickle_bps": 1000}})
    wire.ask("GET", "/2/users/me")
    assert json.loads(wire.body)["title"] == "Unauthorized"


def test_on_the_wire_the_date_is_sent_once(served: str) -> None:
    """The sandbox's own, and no server name."""
    answer = Wire(served).ask("GET", "/2/users/me")
    assert len(answer.headers.get_all("date", [])) == 1
    assert answer.headers.get("server") is None


def test_a_forwarded_address_does_not_open_or_close_the_control_surface(served: str) -> None:
    """The caller is the connected peer."""
    connection = http.client.HTTPConnection(urlsplit(served).netloc, timeout=20)
    connection.request("GET", "/_sandbox/state", headers={"x-forwarded-for": "192.0.2.7"})
    assert connection.getresponse().status == 200
    connection.close()
