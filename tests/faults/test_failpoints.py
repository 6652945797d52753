"""A gateway that dies at each named place, and what its successor makes of it: nothing is lost in silence."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio

import birdwire
from birdwire.runtime.failpoints import POINTS, FailpointError, Failpoints
from birdwire.settings import Settings, SettingsError
from birdwire.store.encryption.key_files import create_key_file
from harness.fault_scale import record, scaled
from harness.processes import TOKEN, Deployment, deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KILLED = -signal.SIGKILL
ROUNDS = scaled("ROUNDS", 1, 5)
"""How often a gateway dies at each point."""

pytestmark = pytest.mark.timeout(60 * ROUNDS)


@pytest_asyncio.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A sandbox and a key; no gateway runs yet."""
    async with deploy(tmp_path) as made:
        yield made


async def dies(deployment: Deployment, point: str, do: Callable[[Any], Any], **settings: str) -> None:
    """Start a gateway that ends at a point, and do what leads there."""
    at = await deployment.serve(failpoints=f"{point}=kill", **settings)
    with pytest.raises(httpx2.HTTPError):
        await do(at)
    assert await at.ended() == KILLED


# A point, how often X is asked for a new pair in all, and what the next like meets.
REFRESHES = [
    pytest.param("refresh_before_claim", 1, None, id="before the claim", marks=pytest.mark.trust("F3")),
    pytest.param("refresh_after_claim", 1, None, id="after the claim", marks=pytest.mark.trust("F3")),
    pytest.param("refresh_after_send", 2, "refresh_lost_reply", id="after the send", marks=pytest.mark.trust("F4")),
    pytest.param("refresh_after_reply", 2, "refresh_lost_reply", id="after the reply", marks=pytest.mark.trust("F5")),
    pytest.param("refresh_in_persist", 2, "refresh_lost_reply", id="in the persist", marks=pytest.mark.trust("F5")),
    pytest.param("refresh_after_persist", 1, None, id="after the persist", marks=pytest.mark.trust("F6")),
]


@pytest.mark.trust("R6")
@pytest.mark.parametrize(("point", "asked", "lost"), REFRESHES)
async def test_an_interrupted_refresh_succeeds_or_is_reported(
    tmp_path: Path, point: str, asked: int, lost: str | None
) -> None:
    """X is asked again once at most, after the lease; and a link is lost only where X's answer was."""
    for number in range(ROUNDS):
        (place := tmp_path / str(number)).mkdir()
        async with deploy(place) as deployment:
            await _refresh_cut_short(deployment, point, asked, lost)
    record(f"killed at {point}", runs=ROUNDS, ended_as_documented=ROUNDS, links_lost=ROUNDS * bool(lost))


async def _refresh_cut_short(deployment: Deployment, point: str, asked: int, lost: str | None) -> None:

    async def refresh(at: Any) -> None:
        await deployment.link(at)
        await deployment.expire()
        if point == "refresh_after_send":
            await deployment.fault(TOKEN, {"trickle_bps": 20})
        await deployment.like(at)

    await dies(deployment, point, refresh)
    deployment.expire_leases()
    again = await deployment.serve()
    answer = await deployment.like(again)
    status = await deployment.status(again)
    assert len(await deployment.refreshes()) == asked
    if lost is None:
        assert (answer.status_code, status["state"], status["generation"]) == (200, "active", 2)
    else:
        assert answer.json()["error"]["reason"] == "x_session_expired"
        assert (status["state"], status["why"]) == ("needs_relink", lost)
        await deployment.link(again)
        assert (await deployment.like(again)).status_code == 200


@pytest.mark.trust("F7")
@pytest.mark.parametrize("point", ["link_after_exchange", "link_after_persist"])
async def test_an_interrupted_link_is_complete_or_can_be_repeated(tmp_path: Path, point: str) -> None:
    """What was stored is named later; what was not is said, and a new link works."""
    for number in range(ROUNDS):
        (place := tmp_path / str(number)).mkdir()
        async with deploy(place) as deployment:
            await _link_cut_short(deployment, point)
    record(f"killed at {point}", runs=ROUNDS, ended_as_documented=ROUNDS)


async def _link_cut_short(deployment: Deployment, point: str) -> None:

    async def link(at: Any) -> None:
        await deployment.link(at)

    await dies(deployment, point, link)
    again = await deployment.serve()
    if point == "link_after_persist":
        assert (await deployment.status(again))["state"] == "pending"
    else:
        assert (await deployment.like(again)).json()["error"]["reason"] == "x_not_linked"
        await deployment.link(again)
    assert (await deployment.like(again)).status_code == 200
    assert (await deployment.status(again))["username"] == "ada"


@pytest.mark.parametrize(("point", "sent"), [("post_after_started", 0), ("post_after_send", 1)])
async def test_an_interrupted_post_is_never_sent_again(deployment: Deployment, point: str, sent: int) -> None:
    """The same Idempotency-Key afterwards tells what is known; X has the post once at most."""

    async def post(at: Any) -> None:
        await deployment.link(at)
        await deployment.fault("/2/tweets", {"trickle_bps": 20})
        await deployment.call(at, "post_twitter", {"text": "once"}, **{"idempotency-key": "k"})

    async def posts() -> int:
        found = (await deployment.x.get("/_sandbox/state")).json()["posts"]
        return sum(one["text"] == "once" for one in found)

    await dies(deployment, point, post)
    again = await deployment.serve()
    answer = await deployment.call(again, "post_twitter", {"text": "once"}, **{"idempotency-key": "k"})
    assert answer.status_code in (201, 409, 502)
    assert await posts() == sent


@pytest.mark.trust("F8")
async def test_an_interrupted_change_of_the_vault_key_continues(tmp_path: Path) -> None:
    """What was not committed is as it was; the next run does the rest."""
    for number in range(ROUNDS):
        (place := tmp_path / str(number)).mkdir()
        async with deploy(place) as deployment:
            await _rotation_cut_short(deployment)
    record("killed at rotation", runs=ROUNDS, ended_as_documented=ROUNDS)


async def _rotation_cut_short(deployment: Deployment) -> None:
    at = await deployment.serve()
    await deployment.link(at)
    await at.kill()
    new = deployment.directory / "new.key"
    create_key_file(new)
    keys = {"vault_key_file": str(new), "vault_other_key_files": str(deployment.directory / "vault.key")}
    code, _ = await deployment.command("vault", "rotate", failpoints="rotation=kill*2", **keys)
    assert code == KILLED
    assert (await deployment.command("vault", "rotate", **keys))[1]["left"] == 0
    again = await deployment.serve(vault_key_file=str(new))
    assert (await deployment.like(again)).status_code == 200


@pytest.mark.trust("F8")
async def test_an_interrupted_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    """All of a version or nothing: the next one starts from the same."""
    for number in range(ROUNDS):
        (place := tmp_path / str(number)).mkdir()
        async with deploy(place) as deployment:
            await _migration_cut_short(deployment)
    record("killed at migration", runs=ROUNDS, ended_as_documented=ROUNDS)


async def _migration_cut_short(deployment: Deployment) -> None:
    fresh = {"database_url": f"sqlite:///{deployment.directory / 'fresh.db'}"}
    assert await deployment.command("migrate", failpoints="migration=kill", **fresh) == (KILLED, None)
    assert (await deployment.command("migrate", **fresh))[0] == 0
    at = await deployment.serve(**fresh)
    assert (await deployment.client.get(f"{at.url}/readyz")).status_code == 200


async def test_a_point_fails_delays_and_counts() -> None:
    """As configured, and only there."""
    points = Failpoints("refresh_after_reply=raise*2, refresh_after_claim=delay(0)")
    await points.reach("refresh_after_claim")
    await points.reach("refresh_after_reply")
    await points.reach("refresh_in_persist")
    with pytest.raises(FailpointError):
        await points.reach("refresh_after_reply")
    points.reach_now("refresh_after_reply")


@pytest.mark.trust("T23")
@pytest.mark.parametrize("x_api_url", ["https://api.x.com", "https://192.0.2.1"])
def test_failpoints_are_refused_off_the_sandbox(x_api_url: str) -> None:
    """However they are written."""
    with pytest.raises(SettingsError, match="failpoints require the sandbox"):
        Settings.load({"BIRDWIRE_FAILPOINTS": "migration=kill", "BIRDWIRE_X_API_URL": x_api_url})


@pytest.mark.parametrize("setting", ["nowhere=kill", "migration", "migration=die", "migration=delay(1e9)", "=", "a b"])
def test_an_unknown_failpoint_is_refused(setting: str) -> None:
    """A misspelt failpoint would test nothing."""
    with pytest.raises(SettingsError):
        Settings.load({"BIRDWIRE_FAILPOINTS": setting, "BIRDWIRE_X_API_URL": "http://127.0.0.1"})


def test_every_point_is_reached_in_one_place() -> None:
    """A point that nothing reaches would test nothing."""
    source = "".join(path.read_text() for path in Path(birdwire.__file__).parent.rglob("*.py"))
    reached = re.findall(r'failpoints\.(?:reach|reach_now|during)\b[(,]\s*"(\w+)"', source)
    assert sorted(reached) == sorted(POINTS)
