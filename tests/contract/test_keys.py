"""API keys: their form, lifecycle and limits, alongside a running gateway and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from birdwire.api.errors import GatewayError
from birdwire.keys.registry import Keys
from birdwire.keys.rules import MAX_LABEL_CHARS, MAX_RPM, TIERS, KeyRuleError
from birdwire.keys.secrets import check_form, mint
from birdwire.store.database import Database
from harness.gateway import API

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.gateway import RunningGateway

FORM = re.compile(r"bw_(live|test)_[0-9A-Za-z]{49}")
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def refusal(raw_key: str) -> str:
    """What a key's form alone is refused with. No store is at hand here, so nothing can be looked up."""
    with pytest.raises(GatewayError) as caught:
        check_form(raw_key)
    return caught.value.reason


async def asked(running: RunningGateway, raw_key: str) -> tuple[int, str]:
    """What auth/status answers to a key."""
    answer = await running.bare.get(API + "auth/status", headers={"authorization": f"Bearer {raw_key}"})
    return answer.status_code, "" if answer.status_code == 200 else str(answer.json()["error"]["reason"])


@contextlib.asynccontextmanager
async def beside(running: RunningGateway) -> AsyncIterator[Keys]:
    """Another program's hands on the same database, as `birdwire keys` has them."""
    database = Database(running.settings.database_url)
    try:
        yield Keys(database, running.clock)
    finally:
        await database.close()


# The form.


@pytest.mark.parametrize("mode", ["live", "test"])
def test_a_key_shows_its_kind_and_has_256_random_bits(mode: str) -> None:
    """43 characters of base62 and a checksum of 6."""
    keys = {mint(mode) for _ in range(5_000)}  # type: ignore[arg-type]
    assert len(keys) == 5_000
    assert all(FORM.fullmatch(key) and key.startswith(f"bw_{mode}_") for key in keys)


@pytest.mark.parametrize("entropy", [bytes(32), b"\xff" * 32, bytes(31) + b"\x01"])
def test_every_entropy_makes_a_key_of_the_same_length(entropy: bytes) -> None:
    """The smallest and the largest number too."""
    key = mint("test", entropy)
    assert FORM.fullmatch(key)
    check_form(key)


@pytest.mark.trust("#15")
def test_every_changed_character_is_found_out_without_a_look_up() -> None:
    """A CRC-32 finds every error of one character: all of them are tried."""
    key = mint("test", bytes(range(32)))
    for at in range(len("bw_test_"), len(key)):
        for other in ALPHABET.replace(key[at], ""):
            assert refusal(key[:at] + other + key[at + 1 :]) == "key_malformed"


def test_two_neighbours_swapped_are_found_out() -> None:
    """The usual mistake of a hand."""
    key = mint("live", bytes(range(32)))
    for at in range(len("bw_live_"), len(key) - 1):
        if key[at] != key[at + 1]:
            assert refusal(key[:at] + key[at + 1] + key[at] + key[at + 2 :]) == "key_malformed"


def test_the_kind_is_part_of_the_checksum() -> None:
    """A test key does not become a live one by its prefix."""
    assert refusal(mint("test").replace("bw_test_", "bw_live_")) == "key_malformed"


# Shown once.


async def test_a_key_is_shown_once(running: RunningGateway) -> None:
    """Afterwards its last four characters, and nothing in the database that leads back."""
    _, raw_key = await running.gateway.keys.create("test", "shown", "free")
    listed = await running.gateway.keys.list()
    assert [hint for key, hint in listed if key.label == "shown"] == [raw_key[-4:]]
    assert raw_key not in repr(listed)
    kept = b"".join(path.read_bytes() for path in running.directory.glob("birdwire.db*"))
    assert raw_key.encode() not in kept
    assert raw_key[8:-6].encode() not in kept


# Rotation and revocation, from another program.


async def test_a_key_made_by_another_program_works_immediately(running: RunningGateway) -> None:
    """On the same database, while the gateway runs."""
    async with beside(running) as keys:
        _, raw_key = await keys.create("test", "from outside", "free")
        assert await asked(running, raw_key) == (200, "")


@pytest.mark.trust("T9")
@pytest.mark.trust("G4")
async def test_a_key_revoked_by_another_program_stops_working_immediately(running: RunningGateway) -> None:
    """With the next request; revoking twice changes nothing."""
    async with beside(running) as keys:
        first = await keys.revoke(running.key_id)
        assert await asked(running, running.raw_key) == (401, "key_revoked")
        running.clock.advance(hours=1)
        assert (await keys.revoke(running.key_id)).revoked_at == first.revoked_at


async def test_a_rotated_key_keeps_its_link(linked: RunningGateway) -> None:
    """The secret changes, the key does not."""
    key, raw_key = await linked.gateway.keys.rotate(linked.key_id, timedelta(0))
    assert key.key_id == linked.key_id
    assert await asked(linked, linked.raw_key) == (401, "key_revoked")
    linked.client.headers["authorization"] = f"Bearer {raw_key}"
    assert (await linked.like()).status_code == 200


async def test_the_old_secret_lives_on_for_the_overlap(running: RunningGateway) -> None:
    """Both work, then the old one is 401."""
    _, raw_key = await running.gateway.keys.rotate(running.key_id, timedelta(hours=1))
    assert await asked(running, running.raw_key) == await asked(running, raw_key) == (200, "")
    running.clock.advance(hours=1)
    assert await asked(running, running.raw_key) == (401, "key_revoked")
    assert await asked(running, raw_key) == (200, "")


async def test_at_most_two_secrets_of_a_key_live(running: RunningGateway) -> None:
    """A second rotation ends the oldest immediately; both use one allowance."""
    _, second = await running.gateway.keys.rotate(running.key_id, timedelta(hours=24))
    _, third = await running.gateway.keys.rotate(running.key_id, timedelta(hours=24))
    assert [(await asked(running, key))[0] for key in (running.raw_key, second, third)] == [401, 200, 200]
    await running.gateway.keys.change(running.key_id, rpm=3)
    running.clock.advance(minutes=2)
    assert [(await asked(running, key))[0] for key in (second, third, second, third)] == [200, 200, 200, 429]


async def test_a_shorter_overlap_is_never_lengthened_by_the_next_rotation(running: RunningGateway) -> None:
    """A secret that was to die in an hour does not live for a day."""
    await running.gateway.keys.rotate(running.key_id, timedelta(hours=1))
    await running.gateway.keys.rotate(running.key_id, timedelta(hours=24))
    assert await asked(running, running.raw_key) == (401, "key_revoked")


@pytest.mark.engines("sqlite", "postgres")
async def test_a_clock_that_is_put_back_brings_no_rotated_key_back_to_life(running: RunningGateway) -> None:
    """The newest secret is the one without an end, whatever the times say: the next rotation is of that."""
    _, second = await running.gateway.keys.rotate(running.key_id, timedelta(0))
    running.clock.advance(hours=-1)
    assert await asked(running, running.raw_key) == (401, "key_revoked")
    _, third = await running.gateway.keys.rotate(running.key_id, timedelta(0))
    running.clock.advance(minutes=5)
    _, fourth = await running.gateway.keys.rotate(running.key_id, timedelta(minutes=30))
    assert await asked(running, second) == (401, "key_revoked")
    assert [(await asked(running, raw_key))[0] for raw_key in (third, fourth)] == [200, 200]


@pytest.mark.parametrize("overlap", [timedelta(hours=24, seconds=1), timedelta(seconds=-1)])
async def test_an_overlap_has_its_bounds(running: RunningGateway, overlap: timedelta) -> None:
    """And a refused rotation changes nothing."""
    with pytest.raises(KeyRuleError, match="24 hours"):
        await running.gateway.keys.rotate(running.key_id, overlap)
    assert await asked(running, running.raw_key) == (200, "")


async def test_a_revoked_key_cannot_be_rotated_back_to_life(running: RunningGateway) -> None:
    """Nor can a key that never was."""
    _, raw_key = await running.gateway.keys.rotate(running.key_id, timedelta(hours=1))
    await running.gateway.keys.revoke(running.key_id)
    assert {await asked(running, key) for key in (raw_key, running.raw_key)} == {(401, "key_revoked")}
    with pytest.raises(KeyRuleError, match="revoked"):
        await running.gateway.keys.rotate(running.key_id, timedelta(0))
    with pytest.raises(KeyRuleError, match="no key"):
        await running.gateway.keys.rotate("key_none", timedelta(0))


# Tiers and limits.


@pytest.mark.parametrize(("tier", "rpm"), [("free", 60), ("starter", 600), ("growth", 3_000)])
async def test_a_tier_names_its_limit(running: RunningGateway, tier: str, rpm: int) -> None:
    """On the answer's headers."""
    _, raw_key = await running.gateway.keys.create("test", tier, tier)
    answer = await running.bare.get(API + "auth/status", headers={"authorization": f"Bearer {raw_key}"})
    assert answer.headers["x-ratelimit-limit-requests"] == str(rpm)
    assert answer.headers["x-ratelimit-remaining-requests"] == str(rpm - 1)


async def test_a_key_may_have_a_limit_of_its_own_and_lose_it_again(running: RunningGateway) -> None:
    """Below or above its tier's; the change holds from the next call on."""

    async def limit() -> str:
        return str((await running.client.get(API + "auth/status")).headers["x-ratelimit-limit"])

    assert await limit() == "3000"
    async with beside(running) as keys:
        for rpm, shown in ((7, "7"), (5_000, "5000"), (None, "3000")):
            await keys.change(running.key_id, rpm=rpm)
            assert await limit() == shown


async def test_a_change_that_cannot_be_changes_nothing(running: RunningGateway) -> None:
    """Nor does one of a key that is revoked, or never was."""
    for changes in ({"label": ""}, {"tier": "gold"}, {"rpm": 0}, {"actions": ("dance",)}, {"ips": ("here",)}):
        with pytest.raises(KeyRuleError):
            await running.gateway.keys.change(running.key_id, **changes)
    with pytest.raises(KeyRuleError, match="no key"):
        await running.gateway.keys.change("key_none", rpm=5)
    assert await running.gateway.keys.get(running.key_id) == (await running.gateway.keys.list())[0][0]
    assert (await running.client.get(API + "auth/status")).headers["x-ratelimit-limit"] == "3000"
    await running.gateway.keys.revoke(running.key_id)
    with pytest.raises(KeyRuleError, match="revoked"):
        await running.gateway.keys.change(running.key_id, rpm=5)


@pytest.mark.parametrize(
    ("label", "tier", "rpm"),
    [
        *(
            ("", "free", None),
            ("x" * (MAX_LABEL_CHARS + 1), "free", None),
            ("a\nb", "free", None),
            ("a\x1b[31m", "free", None),
        ),
        *(("x", "gold", None), ("x", "enterprise", None), ("x", "free", 0), ("x", "free", -1)),
        ("x", "free", MAX_RPM + 1),
    ],
)
async def test_a_key_that_cannot_be_is_not_made(
    running: RunningGateway, label: str, tier: str, rpm: int | None
) -> None:
    """Nothing is written."""
    before = len(await running.gateway.keys.list())
    with pytest.raises(KeyRuleError):
        await running.gateway.keys.create("test", label, tier, rpm)
    assert len(await running.gateway.keys.list()) == before


async def test_an_enterprise_key_requires_its_own_limit(running: RunningGateway) -> None:
    """And cannot go back to a tier's that has none."""
    key, raw_key = await running.gateway.keys.create("test", "own", "enterprise", 5)
    assert [(await asked(running, raw_key))[0] for _ in range(6)] == [200] * 5 + [429]
    with pytest.raises(KeyRuleError, match="--rpm"):
        await running.gateway.keys.change(key.key_id, rpm=None)


def test_the_tiers_are_those_of_the_contract() -> None:
    """And `custom`, another word for the one without a limit of its own."""
    assert TIERS == {"free": 60, "starter": 600, "growth": 3_000, "enterprise": None, "custom": None}


@pytest.mark.trust("#23")
async def test_a_live_key_is_refused_by_a_sandboxs_gateway_wherever_it_is_sent(running: RunningGateway) -> None:
    """403 on every route of a key; no allowance is spent."""
    _, raw_key = await running.gateway.keys.create("live", "real", "free")
    headers = {"authorization": f"Bearer {raw_key}"}
    for answer in (
        await running.bare.get(API + "auth/status", headers=headers),
        await running.bare.post(API + "auth_twitter", headers=headers),
        await running.bare.post(API + "like_twitter", headers=headers, json={"tweet_id": "1"}),
    ):
        assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "mode_mismatch")


@pytest.mark.trust("T10")
async def test_one_keys_link_is_nothing_to_another(linked: RunningGateway) -> None:
    """Neither to read, nor to use, nor to end."""
    _, raw_key = await linked.gateway.keys.create("test", "stranger", "free")
    headers = {"authorization": f"Bearer {raw_key}"}
    status = (await linked.bare.get(API + "auth/status", headers=headers)).json()
    assert status == {**dict.fromkeys(status), "linked": False, "usable": False}
    like = await linked.bare.post(API + "like_twitter", headers=headers, json={"tweet_id": "1"})
    assert like.json()["error"]["reason"] == "x_not_linked"
    await linked.bare.post(API + "unlink_twitter", headers=headers)
    assert (await linked.like()).status_code == 200


async def test_a_given_secret_is_taken_once(running: RunningGateway) -> None:
    """`dev` derives its own, and finds the same key at its next start."""
    secret = mint("test", bytes(32))
    async with beside(running) as keys:
        first, _ = await keys.create("test", "dev", "free", secret=secret)
    async with beside(running) as keys:
        again, raw_key = await keys.create("test", "dev", "free", secret=secret)
    assert (first.key_id, raw_key) == (again.key_id, secret)


@pytest.mark.trust("F41")
async def test_a_key_that_is_revoked_in_its_own_call_ends_with_it(linked: RunningGateway) -> None:
    """The call that was let in is answered; the next one is not."""
    await linked.fault("POST", "/2/users/*/likes", {"delay_s": 0.3})
    liking = asyncio.create_task(linked.like())
    async with asyncio.timeout(20):
        while not await linked.calls("/2/users/", method="POST"):
            pass
    await linked.gateway.keys.revoke(linked.key_id)
    assert (await liking).status_code == 200
    assert (await linked.like()).json()["error"]["reason"] == "key_revoked"
