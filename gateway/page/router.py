"""The page's routes: its files, which hold no data and are open to all, and its stream of events, which is not."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.page.hub import Viewer
from gateway.page.page import Page
from reward_api import EnvelopeError
from reward_api.http import Tokens, check_token

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
BUSY_S = 30
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_router(page: Page, token: Tokens) -> APIRouter:
    """`/` and `/page/FILE` for anybody; `/v1/page/events` asks for `token`, where there is one."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return _file("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in _names():
            raise EnvelopeError(404, "Not Found", f"the page has no file {name[:80]!r}")
        return _file(name)

    @router.get("/v1/page/events")
    async def events(request: Request) -> Response:
        check_token(request, token)
        viewer = page.hub.admit()
        if viewer is None:
            detail = f"{page.hub.limit} pages are open, which is what the setting page.viewers allows"
            raise EnvelopeError(503, "Too many viewers", detail, headers={"Retry-After": str(BUSY_S)})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies hold events back otherwise
        return _EventStream(page, viewer, headers=headers)

    return router


class _EventStream(StreamingResponse):
    """A viewer's events; its place is free again however the stream ends, also before its first event."""

    def __init__(self, page: Page, viewer: Viewer, headers: Mapping[str, str]) -> None:
        super().__init__(page.watch(viewer), headers=headers, media_type="text/event-stream")
        self._page = page
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._page.hub.release(self._viewer)


@cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def _file(name: str) -> Response:
    return Response(_content(name), headers=HEADERS, media_type=MEDIA_TYPES[Path(name).suffix])
