"""The sandbox's HTML pages: templates and security headers. All values are escaped."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse


class Pages:
    """Renders templates under a strict Content-Security-Policy: no scripts, no frames, one style sheet by its hash."""

    def __init__(self) -> None:
        loader = PackageLoader("birdwire.sandbox")
        self._templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        style = files("birdwire.sandbox").joinpath("templates/style.css").read_text(encoding="utf-8")
        self._style = Markup(style)  # noqa: S704 - the package's own style sheet
        self._style_hash = b64encode(sha256(style.encode()).digest()).decode()

    def page(self, name: str, status: int = 200, form_action: str = "", **values: Any) -> HTMLResponse:
        """Render a page; `form_action` is another origin that its form may redirect to."""
        text = self._templates.get_template(name).render(style=self._style, **values)
        policy = (
            f"default-src 'none'; style-src 'sha256-{self._style_hash}'; img-src data:; "
            "base-uri 'none'; frame-ancestors 'none'; "
            f"form-action 'self' {form_action}"
        )
        headers = {
            "content-security-policy": policy.strip(),
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        return HTMLResponse(text, status, headers)
