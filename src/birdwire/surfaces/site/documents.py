"""The documents about the gateway and their paths. They need no key; `handler` serves them."""

from __future__ import annotations

DOCUMENTS: dict[str, tuple[str, str]] = {
    "/openapi.json": ("application/json", "OpenAPI document as JSON"),
    "/openapi.yaml": ("application/yaml", "OpenAPI document as YAML"),
    "/docs": ("text/html", "API reference as a web page"),
    "/llms.txt": ("text/plain", "Summary of the API for language models"),
}
"""The media type and summary of each document, by path."""
