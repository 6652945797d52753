"""Rules of API keys: tiers, limits, and what a key may do, with the checks that a rule can be kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from birdwire.runtime.addresses import is_loopback
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from datetime import datetime

TIERS: dict[str, int | None] = {"free": 60, "starter": 600, "growth": 3_000, "enterprise": None, "custom": None}
"""Calls per minute of each tier; None: the key must set its own limit."""

MAX_RPM = 1_000_000
MAX_LABEL_CHARS = 100
MAX_TEXT_LIMIT = 25_000

LINK, UNLINK = "link", "unlink"
"""The actions that manage a key's link: LINK covers auth_twitter and auth/confirm, UNLINK covers unlink_twitter."""

ACTIONS = (*(row.name for row in OPERATIONS), *(row.name for row in LOOKUPS), LINK, UNLINK)
"""The names that `actions` may contain. Reading the key's own state (auth/status, requests/{id}) is always allowed."""

_USERNAME = re.compile(r"[A-Za-z0-9_]{1,15}")


class KeyRuleError(Exception):
    """A change of a key is not possible. The text states why and is safe to show."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What a key may do. None or empty means that there is no such rule.

    `actions` holds names of ACTIONS; `ips` addresses or networks; `return_to` whole URLs; `daily_writes` is a maximum
    per UTC day; `text_limit` is the maximum weighted length of a post, which X raises for Premium accounts.
    `account_username` pins the key to one X account, without the @; from the first link on, `account_user_id`
    identifies that account, even after it was renamed.
    """

    expires_at: datetime | None = None
    actions: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    return_to: tuple[str, ...] = ()
    daily_writes: int | None = None
    text_limit: int | None = None
    account_username: str | None = None
    account_user_id: str | None = None

    def check(self, now: datetime) -> None:
        """Check that every rule is valid.

        Raises:
            KeyRuleError: a rule is not valid.
        """
        unknown = [name for name in self.actions if name not in ACTIONS]
        if unknown:
            raise KeyRuleError(f"Unknown action: {unknown[0]}. Actions: {', '.join(ACTIONS)}.")
        if self.expires_at is not None and self.expires_at <= now:
            raise KeyRuleError("The expiry time must be in the future.")
        for network in self.ips:
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise KeyRuleError(f"{network} is not an IP address or a network such as 192.0.2.0/24.") from None
        for url in self.return_to:
            parts = urlsplit(url)
            safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
            if not (safe and parts.hostname and parts.username is None and url.isascii() and url.isprintable()):
                raise KeyRuleError(f"{url} is not an https URL.")
        if self.daily_writes is not None and not 1 <= self.daily_writes <= MAX_RPM:
            raise KeyRuleError(f"The daily cap must be between 1 and {MAX_RPM} writes.")
        if self.text_limit is not None and not 1 <= self.text_limit <= MAX_TEXT_LIMIT:
            raise KeyRuleError(f"The text limit must be between 1 and {MAX_TEXT_LIMIT}.")
        if self.account_username is not None and not _USERNAME.fullmatch(self.account_username):
            raise KeyRuleError(f"{self.account_username!r} is not an X username such as ada.")

    def allow(self, action: str) -> bool:
        """Return whether the key may do this action."""
        return not self.actions or action in self.actions

    def allow_address(self, peer: str) -> bool:
        """Return whether the key may be used from an address."""
        if not self.ips:
            return True
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in ip_network(network, strict=False) for network in self.ips)


NO_RULES = KeyRules()
"""The rules of a key that may do everything."""


def check_limits(label: str, tier: str, rpm: int | None) -> None:
    """Check a key's label, tier and own rate limit.

    Raises:
        KeyRuleError: one of them is not valid.
    """
    if not 0 < len(label) <= MAX_LABEL_CHARS or not label.isprintable():
        raise KeyRuleError(f"The label must be 1 to {MAX_LABEL_CHARS} printable characters.")
    if tier not in TIERS:
        raise KeyRuleError(f"Unknown tier: {tier}. Tiers: {', '.join(TIERS)}.")
    if rpm is None and TIERS[tier] is None:
        raise KeyRuleError(f"A key of the tier {tier} requires its own limit (--rpm).")
    if rpm is not None and not 1 <= rpm <= MAX_RPM:
        raise KeyRuleError(f"The limit must be between 1 and {MAX_RPM} calls per minute.")
