"""The page's files."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """One route for each file of the page, and ``/`` for its ``index.html``. Nothing else
    in the file system has a route."""
    files = sorted(path for path in folder.glob("*") if path.suffix in MEDIA_TYPES)
    routes = [_route(f"/{path.name}", path) for path in files]
    index = folder / "index.html"
    return [_route("/", index), *routes] if index in files else routes


def _route(url: str, path: Path) -> Route:
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]

    async def send(_: Request) -> Response:
        return Response(content, headers={"cache-control": "no-cache"}, media_type=media_type)

    return Route(url, send, methods=["GET"])
