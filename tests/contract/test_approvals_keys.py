"""No call with an API key decides: every route that takes one is called with a decision, and nothing is decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from birdwire.surfaces.openapi.document import document
from harness.approvals import Desk, desk
from harness.gateway import POST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.gateway import RunningGateway

ENDING = {"/apis/v1/twitter/requests/{request_id}/cancel", "/apis/v1/twitter/unlink_twitter"}
"""Routes by which a key's holder ends what waits: it cancels the request, or ends the link."""


@pytest.fixture
async def asked(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A gateway at which every write of the key waits."""
    async with desk(linked) as opened:
        yield opened


@pytest.mark.trust("#323")
@pytest.mark.parametrize("verdict", ["approve", "deny", "edit"])
async def test_no_route_that_takes_a_key_decides(asked: Desk, verdict: str) -> None:
    """With the words of the page's form, as JSON and as a form, in the path, the query and the headers."""
    running, waiting = asked.running, await asked.post("Decide about this")
    request_id = waiting["request_id"]
    decision = {"verdict": verdict, "payload_sha256": waiting["payload_sha256"], "request_id": request_id}
    decision |= {"text": "Another text"} if verdict == "edit" else {}
    told = set()
    for path, methods in document(running.settings)["paths"].items():
        for method, operation in methods.items():
            if not operation["security"] or path in ENDING:
                continue
            place = path.replace("{request_id}", request_id)
            wholes: list[dict[str, Any]] = [{"json": decision}, {"data": decision}, {"json": {"tweet_id": POST}}]
            for sent in [{}, {"params": {"verdict": verdict}}, *wholes * (method == "post")]:
                headers = {"x-verdict": verdict, "prefer": f"wait=0, verdict={verdict}"}
                answer = await running.client.request(method.upper(), place, headers=headers, **sent)
                told.add(answer.status_code)
        for verb in (verdict, "decide"):
            answer = await running.client.post(f"{path.replace('{request_id}', request_id)}/{verb}", json=decision)
            assert answer.status_code == 404, path
    assert told >= {200, 202, 400}
    row = await asked.approval(request_id)
    assert (row.decided_at, row.ended_at, row.edited_from) == (None, None, None)
    assert await asked.state(request_id) == "awaiting_approval"
    assert await asked.acts() == []
