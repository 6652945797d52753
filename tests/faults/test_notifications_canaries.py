"""What a notification carries, and what its delivery needs, is nowhere at rest, in a log or in an error in clear."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import create_key_file, read_key_file
from birdwire.store.encryption.key_rotation import KeyRotation, _place_of
from birdwire.store.encryption.vault import Vault, VaultError
from birdwire.store.tables import destinations, sealed_columns
from harness.approvals import desk
from harness.fault_scale import LONG
from harness.gateway import API, RunningGateway
from harness.guarded_gateway import OPERATOR, hidden_forms, places_of
from harness.notifying import Notifier
from harness.processes import environment
from harness.webhook_receiver import ACCEPTED, UNAVAILABLE, receiving

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.approvals import Desk
    from harness.webhook_receiver import Delivery, WebhookReceiver

TEXT, HOST, OPTION = "dotterel-canary-3307", "whimbrel-canary.example.org", "knot-canary-9914"
FILE = b"GIF89a" + b"ruff-canary-2256" * 4
PATH = "T0CANARY/B0CANARY/phalarope-7713"
TOPIC = "turnstone-canary-6120"
TOKEN = "canaries-metrics-token"
X_TOKENS = ("MToxOmF0OjE", "MToxOnJ0OjE")
"""How the sandbox's access and refresh tokens end: `1:1:at:1` and `1:1:rt:1` in base64."""

FIRST_RETRY_S = 6
"""A failed delivery is tried again by then, for the first time."""


class Place:
    """A gateway whose posts wait, its receiver, and everything that must be nowhere in clear."""

    def __init__(self, asked: Desk, receiver: WebhookReceiver) -> None:
        self.asked, self.running, self.receiver = asked, asked.running, receiver
        self.notifier = Notifier.of(asked.database, asked.running.settings, asked.running.clock)
        self.canaries = [TEXT, HOST, OPTION, "ruff-canary-2256", PATH, asked.running.raw_key, *X_TOKENS]

    async def set(self, *, with_link: bool, with_text: bool) -> None:
        """Set the destination; its secret is a canary, too."""
        url = f"{self.receiver.url}/{PATH}?topic={TOPIC}"
        secret = await self.notifier.set(url, with_link=with_link, with_text=with_text)
        self.canaries += [secret, secret.removeprefix("whsec_"), TOPIC]

    async def ask(self, prefix: str) -> list[str]:
        """Ask for posts with everything that could leak."""
        files = {"media_files": ("a.gif", FILE, "image/gif")}
        answer = (await self.running.client.post(API + "upload_media", files=files)).raise_for_status()
        media = {"media": {"media_ids": [answer.json()["data"]["media_id"]]}}
        poll = {"poll": {"options": [OPTION, "No"], "duration_minutes": 60}}
        bodies: list[dict[str, Any]] = [{"text": f"{prefix} {TEXT} https://{HOST}/a"}]
        bodies += [{"text": f"{prefix} {TEXT} b"} | media, {"text": f"{prefix} {TEXT} c"} | poll]
        return [str((await self.asked.ask(body))["request_id"]) for body in bodies]

    async def leaks(self) -> list[str]:
        """Return where a canary is in clear: in a table, in the database's files, in the log or in the metrics."""
        found = await places_of(self.asked.database, self.canaries)
        texts = {"log": self.running.log.getvalue().encode()}
        answer = await self.running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        texts["metrics"] = answer.raise_for_status().content
        texts |= await asyncio.to_thread(_files, self.running.directory)
        return found + [f"{name}: {one}" for name, text in texts.items() for one in _found(text, self.canaries)]


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("birdwire.db*")}


def _found(text: bytes, canaries: Iterable[str]) -> list[str]:
    return [one for one in canaries if any(form in text for form in hidden_forms(one))]


@pytest.mark.trust("#328", "#329")
@pytest.mark.engines("sqlite", "postgres")
@pytest.mark.parametrize("options", [(False, False), (True, True)], ids=["thin", "with text and link"])
async def test_nothing_is_at_rest_in_clear(
    tmp_path: Path, database_url: str, engine: str, options: tuple[bool, bool]
) -> None:
    """While deliveries wait, after they failed, once they arrived, after a decision; the old vault key opens none."""
    if engine == "postgres" and not all(options) and not LONG:
        pytest.skip("the long form: make acceptance PART=notifications")
    with_link, with_text = options
    built = RunningGateway.built(tmp_path, database_url=database_url, metrics_token=SecretStr(TOKEN))
    async with receiving() as receiver:
        async with built as running:
            await running.link("ada")
            async with desk(running, {"approve": ["post_twitter"]}) as asked:
                place = Place(asked, receiver)
                await place.set(with_link=with_link, with_text=with_text)
                receiver.answer(UNAVAILABLE)
                request_ids = await place.ask("First")
                failed = await receiver.wait_for(len(request_ids))
                await place.notifier.until_tried(len(request_ids))
                await _check(place, failed, with_link=with_link, with_text=with_text)
                receiver.answer(ACCEPTED)
                await asked.approvals.deny(request_ids[0], OPERATOR)
                running.clock.advance(seconds=FIRST_RETRY_S)
                await receiver.until(lambda: len(receiver.accepted) >= len(request_ids) + 1)
                await place.notifier.until_sent()
                again = {one.event_id: one.body for one in receiver.accepted}
                assert all(again[one.event_id] == one.body for one in failed)
                assert await place.leaks() == []
                assert {row.extra_ct for row in (await place.notifier.events()).values()} == {None}
                # For the rotation of the vault's keys, once more with deliveries that wait and two secrets.
                receiver.answer(UNAVAILABLE)
                tries = await place.notifier.tries()
                await place.ask("Second")
                await place.notifier.until_tried(tries + len(request_ids))
                await place.notifier.rotate(timedelta(hours=1))
        database = Database(database_url)
        try:
            await _rotate(database, tmp_path, extras=len(request_ids) if with_link else 0)
        finally:
            await database.close()


async def _check(place: Place, deliveries: list[Delivery], *, with_link: bool, with_text: bool) -> None:
    """Look at what was sent, and for what must be nowhere."""
    bodies = [one.body.decode() for one in deliveries]
    assert all((TEXT in json.dumps(json.loads(body), ensure_ascii=False)) is with_text for body in bodies)
    links = [_link(body, place.running.settings.base_url) for body in bodies]
    assert [link is not None for link in links] == [with_link] * len(bodies)
    place.canaries += [link for link in links if link is not None]
    headers = [name + value for one in deliveries for name, value in one.headers.items()]
    assert _found("".join(headers).encode(), place.canaries) == []
    assert [one for body in bodies for one in _found(body.encode(), [place.running.raw_key, *X_TOKENS])] == []
    assert await place.leaks() == []


def _link(body: str, base: str) -> str | None:
    """Return the token of the signed link in a message."""
    _, found, rest = body.partition(f"{base}/approve/")
    return rest.partition('"')[0] if found else None


async def _rotate(database: Database, directory: Path, *, extras: int) -> None:
    """Reseal everything, as `vault rotate` does; the old key then opens none of it."""
    new, old = directory / "new.key", directory / "vault.key"
    create_key_file(new)
    before = await _sealed(database)
    names = ("url_ct", "secret_ct", "old_secret_ct")
    assert [len(before[f"destinations.{name}"]) for name in names] == [1, 1, 1]
    assert len(before["outbox.extra_ct"]) == extras
    keyring = KeyRotation(database, Vault(read_key_file(new), read_key_file(old)), Clock())
    await keyring.enlist()
    assert await keyring.reseal(lambda _: None) == 0
    after, alone, only = await _sealed(database), Vault(read_key_file(old)), Vault(read_key_file(new))
    assert {name: len(values) for name, values in before.items()} == {name: len(found) for name, found in after.items()}
    for sealed in sealed_columns.SEALED:
        for value in after[str(sealed.column)]:
            place = _place_of(sealed, value)
            assert only.open_bytes(value.blob, place)
            with pytest.raises(VaultError):
                alone.open_bytes(value.blob, place)


async def _sealed(database: Database) -> dict[str, list[sealed_columns.SealedValue]]:
    async with database.read() as connection:
        return {
            str(one.column): await sealed_columns.others(connection, one, b"-", None, 1_000)
            for one in sealed_columns.SEALED
        }


@pytest.mark.trust("#328")
async def test_no_list_of_processes_has_the_url(linked: RunningGateway) -> None:
    """It comes on stdin, and nothing that the command prints repeats it."""
    async with receiving() as receiver:
        url = f"{receiver.url}/{PATH}"
        code, out, err, argv = await _command(linked, "notify", "set", "-", "--kind", "slack", given=url)
        assert code == 0, err
        assert _found(out + err + argv, [PATH]) == []
        (row,) = await _rows(linked)
        assert row.host.startswith("127.0.0.1")


async def _rows(running: RunningGateway) -> list[Any]:
    async with desk(running) as asked, asked.database.read() as connection:
        return list(await connection.execute(select(destinations.destinations)))


async def _command(running: RunningGateway, *words: str, given: str = "") -> tuple[int, bytes, bytes, bytes]:
    """Run a command in a process of its own; return its exit code, stdout, stderr and the arguments that others see."""
    settings = {name: str(value) for name, value in _settings(running).items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "birdwire.cli", *words),
        env=environment(**settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    argv = Path(f"/proc/{process.pid}/cmdline").read_bytes()  # noqa: ASYNC240 - a file of the kernel
    out, err = await asyncio.wait_for(process.communicate(f"{given}\n".encode()), 60)
    assert process.returncode is not None
    return process.returncode, out, err, argv


def _settings(running: RunningGateway) -> dict[str, Any]:
    secret = running.settings.x_client_secret
    names = ("database_url", "vault_key_file", "x_client_id", "x_api_url", "x_authorize_url", "public_url")
    return {name: getattr(running.settings, name) for name in names} | {
        "x_client_secret": secret.get_secret_value() if secret else ""
    }
