"""New API keys: creates one in the database, with the rules of a preset if one is named."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.cli.database import opened, operator
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.registry import Policies
from birdwire.keys.registry import Key, Keys
from birdwire.runtime.clock import Clock
from birdwire.store.database import file_of, place_of

if TYPE_CHECKING:
    from birdwire.keys.rules import KeyRules
    from birdwire.settings import Settings

LIFTED = {
    "rpm": "rpm",
    "expires-in": "expires_at",
    "actions": "actions",
    "ips": "ips",
    "return-to": "return_to",
    "daily-writes": "daily_writes",
    "text-limit": "text_limit",
    "account": "account_username",
}
"""Rules that `change --lift` removes: the option's name -> the name in `birdwire log --acts`. Both are accepted."""


class NewKey(NamedTuple):
    """A new key with its secret, and a sentence that states where it is stored."""

    key: Key
    raw_key: str
    stored: str


def create_key(
    settings: Settings,
    label: str,
    tier: str = "free",
    rpm: int | None = None,
    *,
    rules: KeyRules,
    preset: str | None = None,
) -> NewKey:
    """Create a key; a missing database is created, too.

    Raises:
        Stop: the rules are invalid, or the database is unusable.
    """
    file = file_of(settings.database_url)
    new = file is not None and not file.exists()

    async def create() -> tuple[Key, str]:
        async with opened(settings, new=True) as database:
            keys = Keys(database, Clock(), by=operator())
            key, raw_key = await keys.create(settings.mode, label, tier, rpm, rules=rules)
            if preset is not None:
                await Policies(database, Clock(), operator()).set(key.key_id, preset=preset)
                # A preset may set rules of the key itself.
                key = await keys.get(key.key_id)
            return key, raw_key

    key, raw_key = asyncio.run(create())
    made = ", which was just created. Only a gateway that uses this database accepts the key" if new else ""
    return NewKey(key, raw_key, f"The key is stored in the database {place_of(settings.database_url)}{made}.")


def check_preset(preset: str | None, given: dict[str, Any]) -> None:
    """Check that a preset exists, and that no option sets a rule that it also sets.

    Raises:
        Stop: one of both.
    """
    if preset is None:
        return
    if preset not in PRESETS:
        raise Stop(ExitCode.USAGE, f"--preset: {preset} is not one of {', '.join(PRESETS)}.")
    both = [name for name in PRESETS[preset].key_rules if name in given]
    if both:
        option = next(option for option, column in LIFTED.items() if column == both[0])
        raise Stop(ExitCode.USAGE, f"The preset {preset} sets --{option} itself.", "Leave out one of them.")
