"""One id for each request: taken from the caller or made, echoed, logged, and passed on to the replicas. For servers.

Work on a batch belongs to several requests; its id is theirs, joined by commas.
"""

import logging
import os
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from functools import lru_cache
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_api import tracing

logger = logging.getLogger(__name__)

HEADER = "X-Request-ID"
LONGEST = 1024  # room for the ids of a batch of small requests
_ACCEPTED = re.compile(rf"[A-Za-z0-9._:,+/=-]{{1,{LONGEST}}}")
_LOGGED = "/v1/"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request, or of the requests, that the present work is for; "" outside of any."""


def joined(ids: Iterable[str]) -> str:
    """The distinct ids, as many as there is room for."""
    text = ""
    for each in dict.fromkeys(ids):
        if each and len(text) + len(each) < LONGEST:
            text = f"{text},{each}" if text else each
    return text


def identify(sent: str) -> str:
    """The caller's id if it can stand in a header and in a log, else a new one."""
    return sent if _ACCEPTED.fullmatch(sent) else os.urandom(8).hex()


@lru_cache
def _quoted(path: str) -> str:
    """The path as it can stand in a log: a line break in it would forge a line."""
    return quote(path)


class RequestContext:
    """Middleware: gives each request its id and its span, and logs what became of it where it is about scores."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), _quoted(scope["path"])
        started, status = time.monotonic(), 0
        own = identify(headers.get(HEADER, ""))
        scope["request_id"] = own

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = own
            await send(message)

        token = request_id.set(own)
        try:
            if path.startswith(_LOGGED):
                with tracing.request_span(scope["method"], path, headers) as span:
                    await self.app(scope, receive, send_marked)
                    span.answered(status)
            else:
                await self.app(scope, receive, send_marked)
        finally:
            if path.startswith(_LOGGED):
                seconds = round(time.monotonic() - started, 4)
                line = f"{scope['method']} {path} {status or 'failed'} in {seconds} s"
                logger.info("%s", line, extra={"method": scope["method"], "path": path, "status": status, "s": seconds})
            request_id.reset(token)
