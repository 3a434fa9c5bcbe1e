"""Kept HTTP/1.1 connections to the replicas.

httpx takes several times the processor time for a request, most of what the gateway would spend on it. Here a request
leaves in one write, the answer is read by the parser that the servers use too, and nothing stands between. Proxies,
redirects and HTTP/2 have no place between a gateway and its replicas. Faults bear httpx's names.
"""

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol, cast

import httptools
import httpx

CONNECT_S = 5.0
IDLE_S = 30.0  # well before the services close an idle connection themselves
ANSWER_BYTES = 64 * 2**20


class Answer(NamedTuple):
    """An HTTP response; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class Network(Protocol):
    """What carries requests to replicas: `Connections`, or in their place any httpx transport."""

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """One request and its whole answer; cancelling it closes the connection. No deadline is kept here.

        Raises httpx.ConnectError, ConnectTimeout or LocalProtocolError where the request was not sent, another
        httpx.TransportError where it was and no whole answer came back.
        """
        ...

    async def aclose(self) -> None:
        """Closes what is idle."""
        ...


class ThroughHttpx:
    """A `Network` that asks through an httpx transport: services in the same process, and tests."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        request = httpx.Request(method, url, headers=dict(headers), content=body or None)
        response = await self._transport.handle_async_request(request)
        return Answer(response.status_code, dict(response.headers), await response.aread())

    async def aclose(self) -> None:
        await self._transport.aclose()


class Connections:
    """A pool without an upper bound: how many requests are out is up to the caller, as are their deadlines.

    An answer is at most 64 MiB long.
    """

    def __init__(self) -> None:
        self._idle: dict[Origin, list[_Connection]] = defaultdict(list)

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """See `Network`."""
        origin, host, path = _target(url)
        head = _head(method, path, {"Host": host, **headers}, len(body))
        connection = self._reusable(origin) or await self._open(origin)
        try:
            answer = await connection.send(head, body)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._idle[origin].append(connection)
        else:
            connection.close()
        return answer

    async def aclose(self) -> None:
        """Closes the idle connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _reusable(self, origin: Origin) -> "_Connection | None":
        """The connection used last, if there is one."""
        while idle := self._idle[origin]:
            connection = idle.pop()
            if connection.fresh:
                return connection
            connection.close()
        self._drop_stale()
        return None

    def _drop_stale(self) -> None:
        """Also of other origins, since a replica that is gone for good is never asked again."""
        for origin, idle in list(self._idle.items()):
            for connection in [each for each in idle if not each.fresh]:
                idle.remove(connection)
                connection.close()
            if not idle:
                del self._idle[origin]

    async def _open(self, origin: Origin) -> "_Connection":
        tls = self._tls if origin.scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(_Connection, origin.host, origin.port, ssl=tls)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection within {CONNECT_S:g} s") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. The ``on_`` methods are called by the parser."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._keep = True
        self._clear()

    @property
    def reusable(self) -> bool:
        return self._keep and self._transport is not None and not self._transport.is_closing()

    @property
    def fresh(self) -> bool:
        """Neither hung up on nor idle for so long that it may be at any moment."""
        return self.reusable and time.monotonic() - self.idle_since <= IDLE_S

    async def send(self, head: bytes, body: bytes) -> Answer:
        assert self._transport is not None
        self._clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.writelines([head, body] if body else [head])
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but the name

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self._unasked()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"unreadable answer: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._keep = False
        if error is None and self._ends_with_the_connection:
            self._finish()
        elif error is None:
            self._fail(httpx.RemoteProtocolError("the connection was closed before the whole answer was there"))
        else:
            self._fail(httpx.ReadError(f"the connection was lost: {error}"))

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            self._unasked()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._ends_with_the_connection = not {"content-length", "transfer-encoding"} & self._headers.keys()

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size > ANSWER_BYTES:
            self._fail(httpx.ReadError(f"the answer is longer than {ANSWER_BYTES} bytes"))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # an interim answer: the real one follows
            self._clear()
            return
        self._keep = self._keep and self._parser.should_keep_alive()
        self._finish()

    def _unasked(self) -> None:
        """More than one answer to a request: whatever comes on this connection cannot be told apart any more."""
        self._keep = False
        self.close()

    def _finish(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), self._headers, b"".join(self._parts)))
        self._clear()

    def _fail(self, error: httpx.TransportError) -> None:
        self._keep = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    def _clear(self) -> None:
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._ends_with_the_connection = False


@lru_cache
def _target(url: str) -> tuple[Origin, str, str]:
    """Where to connect, the header Host and what to ask for. Kept, since there are few and parsing takes its time."""
    parsed = httpx.URL(url)
    origin = Origin(parsed.scheme, parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80))
    return origin, parsed.netloc.decode(), parsed.raw_path.decode()


def _head(method: str, path: str, headers: Mapping[str, str], size_bytes: int) -> bytes:
    """Request line and headers. Raises LocalProtocolError."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if any("\n" in line or "\r" in line for line in lines):
        raise httpx.LocalProtocolError("a header holds a line break")
    if method != "GET":
        lines.append(f"Content-Length: {size_bytes}")
    try:
        return "\r\n".join([*lines, "", ""]).encode("ascii")
    except UnicodeEncodeError as error:
        raise httpx.LocalProtocolError(f"a header is not ASCII: {error}") from error
