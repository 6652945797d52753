"""The simulated X without HTTP: the world, the clock, the switches, and when the world is written to disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from birdwire.sandbox.api.errors import Catalogue
from birdwire.sandbox.oauth.clients import Clients, new_clients
from birdwire.sandbox.oauth.grants import Grants
from birdwire.sandbox.state.clock import Clock
from birdwire.sandbox.state.rate_limits import RateLimits
from birdwire.sandbox.state.seed import plant
from birdwire.sandbox.state.switches import Switches
from birdwire.sandbox.state.uploads import Uploads
from birdwire.sandbox.state.world import Registration, World, WorldFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SAVE_AFTER_S = 0.2


class Simulator:
    """State that the endpoints work on."""

    def __init__(
        self,
        *,
        clients: Clients | None,
        redirect_uris: Sequence[str],
        world_path: Path | None,
        app_name: str,
    ) -> None:
        self.app_name = app_name
        self.redirect_uris = tuple(redirect_uris)
        self.clock = Clock()
        self.config = Switches()
        self.limits = RateLimits()
        self.catalogue = Catalogue()
        self.uploads = Uploads()
        self._file = WorldFile(world_path) if world_path else None
        self._due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        stored = self._file.load() if self._file else None
        self.world = stored or _fresh()
        self.clock.set_offset(self.world.clock_offset_s)
        self.clients = self._register(clients)
        self.grants = Grants(self.world, self.clock)

    def _register(self, clients: Clients | None) -> Clients:
        """Return the given clients, else those of the stored world, else new ones."""
        known = self.world.registration
        if clients is None and known is not None:
            return Clients(known.client_id, known.client_secret, known.public_client_id)
        chosen = clients or new_clients()
        self.world.registration = Registration(chosen.client_id, chosen.client_secret, chosen.public_client_id)
        return chosen

    def reset(self, *, keep_grants: bool = True) -> None:
        """Restore the seed, the default switches and the real time. Grants are kept unless `keep_grants` is false."""
        old = self.world
        self.world = _fresh()
        self.world.registration = old.registration
        self.world.last_id = old.last_id
        if keep_grants:
            self.world.grants = {key: one for key, one in old.grants.items() if one.user_id in self.world.users}
            self.world.app_tokens = old.app_tokens
        self.config = Switches()
        self.clock.set_offset(0)
        self.limits.clear()
        self.uploads.clear()
        self.grants.adopt(self.world)
        self.changed()

    def advance(self, seconds: float) -> None:
        """Move the clock; raise ValueError beyond its range."""
        self.clock.advance(seconds)
        self.world.clock_offset_s = self.clock.offset_s
        self.changed()

    def changed(self) -> None:
        """Schedule a write of the world; several changes share one write."""
        if self._file is not None and self._due is None:
            self._due = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self.save)

    async def saved(self) -> None:
        """Return once every change so far is on disk; concurrent calls share one write."""
        if self._file is None:
            return
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())
        await asyncio.shield(self._writing)

    async def _write(self) -> None:
        # Changes after this point wait for the next write.
        await asyncio.sleep(0)
        self._writing = None
        self.save()

    def save(self) -> None:
        """Write the world to disk now; raise OSError if that fails."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._file is not None:
            self._file.save(self.world)


def _fresh() -> World:
    world = World()
    plant(world)
    return world
