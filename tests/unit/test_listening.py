"""The head of a request: how long it may be, and what comes after it does not count."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from reward_api.listening import HEADERS_BYTES, BoundedHead

pytestmark = pytest.mark.unit


async def length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


class Started(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = Starlette(routes=[Route("/", length, methods=["GET", "POST"])])
    server = Started(uvicorn.Config(app, port=0, http=BoundedHead, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await server.listens.wait()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def exchange(port: int, sent: list[bytes], answers: int) -> list[bytes]:
    """The status line of each answer; fewer where the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: list[bytes] = []
    async with asyncio.timeout(10):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        while len(found) < answers:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            found.append(head.split(b"\r\n")[0])
            count = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
            await reader.readexactly(count)
        at_end = reader.at_eof()
        writer.close()
    return [*found, b"closed"] if at_end else found


GET = b"GET / HTTP/1.1\r\nhost: a\r\n"


async def test_a_head_without_end_is_refused_and_hung_up_on(port: int):
    flood = [GET + b"x: "] + [b"y" * 16_384] * 5
    answers = await exchange(port, flood, 2)
    assert answers[0].startswith(b"HTTP/1.1 400")
    assert len(answers) == 1 or answers[1] == b"closed"


async def test_many_short_headers_are_one_head(port: int):
    answers = await exchange(port, [GET] + [b"x: yyyyyyyyyy\r\n" * 1000] * 6, 1)
    assert answers[0].startswith(b"HTTP/1.1 400")


async def test_bodies_and_requests_on_one_connection_have_no_such_limit(port: int):
    body = b"b" * (4 * HEADERS_BYTES)
    post = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    small = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\n" + b"s" * 60_000
    answers = await exchange(port, [post, small, small, small, post], 5)
    assert answers == [b"HTTP/1.1 200 OK"] * 5


async def test_a_long_head_within_the_limit_is_heard(port: int):
    answers = await exchange(port, [GET + b"x: " + b"y" * (HEADERS_BYTES - 1000), b"\r\n\r\n"], 1)
    assert answers == [b"HTTP/1.1 200 OK"]
