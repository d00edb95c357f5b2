"""The page on which a person tries the services: three files, and headers that keep it to itself.

It is a client like any other: what it does goes through Envoy, to the paths of this service and to
RPCs as JSON, with the key that the person types.
"""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Where Envoy has them, too: nothing else is looked up, so no path leads to another file.
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# Scripts and styles are these files alone, nothing comes from or goes to another address, and what
# models say can never become markup (Trusted Types). The one picture by an address is the icon.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), display-capture=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """The paths of the page, with the files as they are now."""
    folder = resources.files("http_svc") / "static"
    return [
        Route(path, _Sent((folder / name).read_bytes(), kind).answer, methods=["GET"])
        for path, (name, kind) in FILES.items()
    ]


class _Sent:
    """A file in memory."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._media_type = media_type

    async def answer(self, _: Request) -> Response:
        return Response(self._content, headers=HEADERS, media_type=self._media_type)
