"""GET /: the page, and GET /docs: the reference of the API. Their files are in service/page, and docs/ in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

FOLDER = Path(__file__).parent.parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    # The page loads from this origin only, sends to it only, runs no inline code, and cannot be put in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # cached, but revalidated by ETag, so that a new version shows at once
}


def blueprint() -> Blueprint:
    """Create the routes. The files are read once, here; no other file has an address."""
    routes = Blueprint("page", __name__)
    paths = [*FOLDER.iterdir(), *(FOLDER / "docs").iterdir()]
    files = {path.name: path.read_bytes() for path in paths if path.suffix in _TYPES}

    def answer(name: str) -> Response:
        data = files.get(name)
        if data is None:
            raise NotFound(f"the page has no file of this name: {name[:80]}")
        response = Response(data, mimetype=_TYPES[Path(name).suffix], headers=_HEADERS)
        response.set_etag(hashlib.sha256(data).hexdigest()[:32])
        response.make_conditional(request)
        return response

    @routes.get("/")
    def index() -> Response:
        return answer("index.html")

    @routes.get("/docs")
    def docs() -> Response:
        return answer("docs.html")

    @routes.get("/page/<file>")
    def page_file(file: str) -> Response:
        return answer(file)

    return routes
