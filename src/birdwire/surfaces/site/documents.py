"""Which documents about the gateway there are, without a key, and at which paths; site.py makes them."""

from __future__ import annotations

DOCUMENTS: dict[str, tuple[str, str]] = {
    "/openapi.json": ("application/json", "This description, as JSON"),
    "/openapi.yaml": ("application/yaml", "This description, as YAML"),
    "/docs": ("text/html", "This description, as a page for people"),
    "/llms.txt": ("text/plain", "This description in short, for language models"),
    "/.well-known/agent-card.json": ("application/json", "What an agent can do here"),
    "/.well-known/ai-plugin.json": ("application/json", "The same as a plugin manifest"),
}
"""Path -> media type and summary."""
