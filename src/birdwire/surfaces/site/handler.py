"""Serves the documents about the gateway: built on the first request, cached, open to any origin, without a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.api.messages import Answer, encode
from birdwire.surfaces.site.documents import DOCUMENTS

if TYPE_CHECKING:
    from birdwire.api.messages import Call, Headers
    from birdwire.settings import Settings

_HEADERS = (("access-control-allow-origin", "*"), ("cache-control", "public, max-age=300"))


class Site:
    """Answers the paths of DOCUMENTS."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, Answer] = {}

    async def answer(self, call: Call) -> Answer:
        """Return the document of a path; the same bytes every time."""
        if call.path not in self._made:
            headers, body = self._make(call.path)
            media_type = DOCUMENTS[call.path][0]
            charset = "; charset=utf-8" if media_type.startswith("text/") else ""
            self._made[call.path] = Answer(200, (("content-type", media_type + charset), *_HEADERS, *headers), body)
        return self._made[call.path]

    def _make(self, path: str) -> tuple[Headers, bytes]:
        from birdwire.surfaces.openapi import document, yaml  # noqa: PLC0415 - 5 MiB, needed only on request
        from birdwire.surfaces.site import discovery, page  # noqa: PLC0415 - 5 MiB, needed only on request

        match path:
            case "/openapi.json":
                return (), encode(document.document(self._settings)) + b"\n"
            case "/openapi.yaml":
                return (), yaml.dump(document.document(self._settings)).encode()
            case "/docs":
                return page.render(document.document(self._settings))
            case _:
                return (), discovery.llms(document.document(self._settings)).encode()
