"""What the document describes of writes that wait for a person, against the real answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from birdwire.surfaces.openapi.document import document
from harness.approvals import Desk, desk
from harness.gateway import API
from harness.guarded_gateway import OPERATOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

    from harness.gateway import RunningGateway

HTTP = {"date", "server", "content-type", "content-length", "connection", "cache-control", "x-content-type-options"}
PAGES = {"x-robots-tag", "vary"}
"""Headers that every answer has, or those of the pages for people, which the document leaves out."""


@pytest.fixture
async def asked(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A gateway at which every write of the key waits."""
    async with desk(linked) as opened:
        yield opened


def described(running: RunningGateway, method: str, path: str, answer: httpx2.Response) -> None:
    """Compare an answer with the response that the document has for its status: body and headers."""
    whole = document(running.settings)
    registry: Registry[Any] = Registry().with_resource(
        "urn:doc", Resource.from_contents(whole, default_specification=DRAFT202012)
    )
    response = whole["paths"][path][method]["responses"][str(answer.status_code)]
    if "$ref" in response:
        response = whole["components"]["responses"][response["$ref"].rsplit("/", 1)[-1]]
    reference = response["content"]["application/json"]["schema"]["$ref"]
    validator = OAS31Validator({"$ref": f"urn:doc{reference}"}, registry=registry)
    assert [error.message for error in validator.iter_errors(answer.json())] == []
    headers = {name.lower(): place["$ref"].rsplit("/", 1)[-1] for name, place in response["headers"].items()}
    assert set(answer.headers) - HTTP - PAGES <= set(headers)
    required = {name for name, place in headers.items() if whole["components"]["headers"][place]["required"]}
    assert required <= set(answer.headers)


async def test_a_call_that_waits_is_answered_as_described(asked: Desk) -> None:
    """At first, when it is repeated, when an identical one is made, and when its answer is held."""
    running, body = asked.running, {"text": "Described https://example.org"}
    path = f"{API}post_twitter"
    name = {"idempotency-key": "described"}
    for headers in (name, name, {}, {"prefer": "wait=0"}, {**name, "prefer": "wait=1"}):
        answer = await running.call("post_twitter", body, headers=headers)
        assert answer.status_code == 202
        described(running, "post", path, answer)
    waiting = answer.json()["approval"]
    assert answer.headers["location"] == f"{API}requests/{waiting['request_id']}"
    await asked.approve(waiting)
    done = await running.call("post_twitter", body, headers={**name, "prefer": "wait=20"})
    assert (done.status_code, done.headers["preference-applied"]) == (201, "wait=20")
    described(running, "post", path, done)


async def test_requests_are_reported_as_described(asked: Desk) -> None:
    """While they wait, approved, edited, denied and cancelled; and a call that nobody was asked about."""
    running, path = asked.running, API + "requests/{request_id}"
    waiting, denied, cancelled = [await asked.post(f"Described {number}") for number in range(3)]
    await asked.approvals.edit(waiting["request_id"], "Edited", waiting["payload_sha256"], OPERATOR)
    await asked.approvals.deny(denied["request_id"], OPERATOR, note="Not our tone")
    answer = await asked.cancel(cancelled["request_id"])
    assert answer.status_code == 200
    described(running, "post", f"{path}/cancel", answer)
    again = await asked.cancel(cancelled["request_id"])
    assert again.status_code == 409
    described(running, "post", f"{path}/cancel", again)
    for one, state in ((waiting, "waiting"), (denied, "denied"), (cancelled, "cancelled")):
        answer = await running.client.get(f"{API}requests/{one['request_id']}", headers={"prefer": "wait=0"})
        assert answer.json()["approval"]["state"] == state
        described(running, "get", path, answer)
    await asked.rules({})
    posted = await running.call("post_twitter", {"text": "Nobody was asked"})
    answer = await running.client.get(f"{API}requests/{posted.headers['x-request-id']}")
    assert answer.json()["approval"] is None
    described(running, "get", path, answer)


async def test_a_signed_link_answers_programs_as_described(asked: Desk) -> None:
    """Opened, decided, and decided again."""
    running, waiting = asked.running, await asked.post("Described")
    token, _ = await asked.approvals.make_link(waiting["request_id"], OPERATOR)
    path, headers = "/approve/{token}", {"accept": "application/json"}
    place = path.replace("{token}", token)
    described(running, "get", path, await running.bare.get(place, headers=headers))
    form = {"verdict": "deny", "payload_sha256": waiting["payload_sha256"]}
    for status in (200, 409):
        answer = await running.bare.post(place, data=form, headers=headers)
        assert answer.status_code == status
        described(running, "post", path, answer)
