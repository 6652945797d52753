"""What all HTML pages for people share: their frame, their headers, and the check of who sends their forms.

Every value is escaped, no page runs a script, and none loads anything from another host. A package that serves pages
has its own templates, which extend `page.html` of this one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jinja2 import Environment

    from birdwire.api.messages import Call, Headers

_SHARED = "birdwire.api"
_STYLE = "style.css"


class WebPages:
    """The pages of one package, from its folder `templates`. Its `style.css`, if any, follows the shared one.

    `filters` are added to those of the templates, by name.
    """

    def __init__(self, package: str, filters: Mapping[str, Callable[..., object]] | None = None) -> None:
        self._package = package
        self._filters = filters or {}

    @cached_property
    def _templates(self) -> Environment:
        import jinja2  # noqa: PLC0415 - 2 MiB, needed only once a page is shown

        own, shared = jinja2.PackageLoader(self._package, "templates"), jinja2.PackageLoader(_SHARED, "templates")
        templates = jinja2.Environment(
            loader=jinja2.ChoiceLoader([own, shared]),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
        )
        templates.filters.update({"code": code, **self._filters})
        style = shared.get_source(templates, _STYLE)[0]
        if _STYLE in own.list_templates():
            style += own.get_source(templates, _STYLE)[0]
        templates.globals["style"] = Markup(style)  # noqa: S704 - our own files
        return templates

    @cached_property
    def _style_hash(self) -> str:
        style = str(self._templates.globals["style"])
        return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    def render(
        self, template: str, status: int = 200, *, forms: bool = False, images: bool = False, **values: object
    ) -> Answer:
        """Return a page. `forms`: it has forms; `images`: it shows images of this gateway."""
        body = self._templates.get_template(template).render(**values)
        return Answer(status, self.headers(forms=forms, images=images), body.encode())

    def headers(self, *, forms: bool = False, images: bool = False) -> Headers:
        """Return the headers of a page.

        With no-referrer, a browser would send the page's form with `Origin: null`. Neither value sends another site
        the address of the page.
        """
        policy = [
            "default-src 'none'",
            f"style-src 'sha256-{self._style_hash}'",
            *(["img-src 'self'"] if images else []),
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
        return (
            ("content-type", "text/html; charset=utf-8"),
            ("content-security-policy", "; ".join(policy)),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("referrer-policy", "same-origin" if forms else "no-referrer"),
        )


class OwnSite:
    """The origin of the gateway's own pages, from which alone their forms may come."""

    def __init__(self, base_url: str) -> None:
        self._origin = _origin(base_url)

    @property
    def secure(self) -> bool:
        """Whether the pages are served over TLS."""
        return self._origin[0] == "https"

    def check(self, call: Call) -> None:
        """Refuse a request from another site's page, by Fetch Metadata, or by Origin if the browser sends none.

        Raises:
            GatewayError: origin_not_allowed.
        """
        site, origin = call.header("sec-fetch-site"), call.header("origin")
        own = site in ("same-origin", "none") if site is not None else origin is None or _origin(origin) == self._origin
        if not own:
            raise GatewayError("origin_not_allowed")


def wants_json(call: Call) -> bool:
    """Return whether the client asks for JSON and not for a page."""
    accept = (call.header("accept") or "").lower()
    return "application/json" in accept and "text/html" not in accept


def is_prefetch(call: Call) -> bool:
    """Return whether a browser or a scanner loads the page before a person has opened it."""
    return "prefetch" in " ".join(call.header(name) or "" for name in ("purpose", "sec-purpose", "x-moz")).lower()


def code(text: str) -> Markup:
    """Escape a text, and show its parts between backticks as code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped here


def _origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL, or of an Origin header (RFC 6454 §4)."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", "", None
