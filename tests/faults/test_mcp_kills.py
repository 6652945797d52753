"""A gateway that is killed in the middle of create_post: the agent finds out what became of the post, by its tools.

FAULTS_MCP_KILLS sets how many processes are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from harness.fault_scale import LONG, record, scaled
from harness.mcp import call_tool
from harness.processes import Deployment, deploy

if TYPE_CHECKING:
    from pathlib import Path

    from harness.processes import GatewayProcess

KILLS = scaled("MCP_KILLS", 1, 20)
SETTLED_S = 90

pytestmark = pytest.mark.timeout(120 + SETTLED_S * KILLS)


async def content(deployment: Deployment, at: GatewayProcess, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool with the first key; return its structured content."""
    result = await call_tool(at.url, deployment.raw_keys[0], tool, arguments, client=deployment.client)
    return dict(result["structuredContent"])


async def settled(deployment: Deployment, at: GatewayProcess, request_id: str) -> dict[str, Any]:
    """Return the report of a request once its outcome is known."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            report = await content(deployment, at, "get_request", request_id=request_id)
            if report["state"] != "unknown":
                return report
            await asyncio.sleep(0.2)


@pytest.mark.trust("#340")
@pytest.mark.parametrize("applied", [True, False], ids=["published", "not published"])
async def test_the_outcome_of_a_post_whose_process_was_killed_is_found_by_the_tools(
    tmp_path: Path, *, applied: bool
) -> None:
    """The same call again is not sent again: it names the request, and get_request reports what X has."""
    if not applied and not LONG:
        pytest.skip("the search for a lost post takes a minute: make faults")
    async with deploy(tmp_path) as deployment:
        for number in range(KILLS):
            asked = {"text": f"killed {number}", "once": f"name {number}"}
            at = await deployment.serve(failpoints="post_after_send=kill")
            if not number:
                await deployment.link(at)
            await deployment.fault("/2/tweets", {"trickle_bps": 20} if applied else {"drop": "before_apply"})
            with contextlib.suppress(httpx2.HTTPError):
                await content(deployment, at, "create_post", **asked)
            await at.ended()
            again = await deployment.serve()
            first = await content(deployment, again, "create_post", **asked)
            assert first["state"] in {"unknown", "done", "refused"}, first
            report = await settled(deployment, again, first["request_id"])
            texts = [one["text"] for one in (await deployment.x.get("/_sandbox/state")).json()["posts"]]
            assert texts.count(asked["text"]) == applied
            assert report["state"] == ("done" if applied else "refused")
            assert report["data"]["state"] == ("found" if applied else "not_found")
            await again.kill()
    record("posts by MCP whose process was killed", runs=KILLS, applied=applied)
