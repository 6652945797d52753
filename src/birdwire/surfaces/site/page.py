"""The /docs page: one HTML document without a script, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from birdwire.api.errors import PROBLEMS
from birdwire.api.paths import API
from birdwire.surfaces.openapi.outline import outline

if TYPE_CHECKING:
    from birdwire.api.messages import Headers


def render(document: dict[str, Any]) -> tuple[Headers, bytes]:
    """Return the page of a document, and headers that prevent it from loading anything."""
    loader = jinja2.PackageLoader("birdwire.surfaces.site", "templates")
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["prose"] = _prose
    style = loader.get_source(templates, "docs.css")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = templates.get_template("docs.html").render(
        api=API,
        document=document,
        sections=outline(document),
        problems=PROBLEMS,
        style=Markup(style),  # noqa: S704 - our own file
    )
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = (("content-security-policy", policy), ("referrer-policy", "no-referrer"))
    return headers, page.encode()


def _prose(text: str) -> Markup:
    """Return Markdown's `code`, **strong** and paragraphs as HTML; everything else is escaped."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    marked = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)
    return Markup("".join(f"<p>{part}</p>" for part in marked.split("\n\n")))  # noqa: S704 - escaped above
