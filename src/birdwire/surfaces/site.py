"""The documents about the gateway, as answers: made on first request, kept, open to any origin, without a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.call import Answer, encode
from birdwire.surfaces import openapi, yaml
from birdwire.surfaces.endpoints import DOCUMENTS

if TYPE_CHECKING:
    from birdwire.call import Call
    from birdwire.settings import Settings


class Site:
    """What stands at the paths of DOCUMENTS."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, Answer] = {}

    async def answer(self, call: Call) -> Answer:
        """The document of a path; the same bytes every time."""
        if call.path not in self._made:
            self._made[call.path] = self._make(call.path)
        return self._made[call.path]

    def _make(self, path: str) -> Answer:
        document = openapi.document(self._settings)
        bodies = {"/openapi.json": lambda: encode(document), "/openapi.yaml": lambda: yaml.dump(document).encode()}
        return Answer(200, (("content-type", DOCUMENTS[path][0]), *_HEADERS), bodies[path]())


_HEADERS = (("access-control-allow-origin", "*"), ("cache-control", "public, max-age=300"))
