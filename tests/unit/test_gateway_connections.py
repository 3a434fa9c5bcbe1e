"""The pool of connections to the replicas, against servers that do what servers do to a client."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway import connections
from gateway.connections import Connections

pytestmark = pytest.mark.unit

Answer = Callable[["Peer"], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """One connection as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.gone = asyncio.Event()

    async def read(self) -> None:
        """The next request: its first line, headers and body."""
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        self.asked.append((lines[0], headers, body))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def hang_up(self) -> None:
        self._writer.close()

    async def until_gone(self) -> None:
        await self._reader.read()
        self.gone.set()


class Server:
    """Answers every request on a connection by `answer`; `peers` are the connections there have been."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.url = ""
        self.pool = Connections()

    async def get(self) -> connections.Answer:
        return await self.pool.ask("GET", f"{self.url}/readyz", {})

    async def post(self, body: bytes, **headers: str) -> connections.Answer:
        return await self.pool.ask("POST", f"{self.url}/v1/score?a=b", headers, body)


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        server.peers.append(peer)
        try:
            while not writer.is_closing():
                await peer.read()
                await answer(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            peer.gone.set()
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, limit=2**24)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(20):
        yield server
        await server.pool.aclose()
        listening.close()
        await listening.wait_closed()


def saying(*parts: bytes, then_hang_up: bool = False) -> Answer:
    async def answer(peer: Peer) -> None:
        for part in parts:
            peer.write(part)
            await asyncio.sleep(0.01)
        if then_hang_up:
            peer.hang_up()

    return answer


async def test_a_request_arrives_whole_and_the_connection_is_kept():
    async with serving(saying(OK)) as server:
        for body in (b"x" * 5_000_000, b"", b"third"):
            response = await server.post(body, authorization="Bearer abc")
            assert (response.status, response.body) == (200, b"ok")
    (peer,) = server.peers
    assert [body for _, _, body in peer.asked] == [b"x" * 5_000_000, b"", b"third"]
    line, headers, _ = peer.asked[0]
    assert line == "POST /v1/score?a=b HTTP/1.1"
    assert headers["host"] == server.url.removeprefix("http://")
    assert headers["authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no", b"\r\n1\r\nk\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", OK],
        [OK[:20], OK[20:-1], OK[-1:]],
    ],
)
async def test_answers_in_pieces(answer: list[bytes]):
    async with serving(saying(*answer)) as server:
        assert [(await server.get()).body for _ in range(2)] == [b"ok", b"ok"]
    assert len(server.peers) == 1


async def test_an_answer_without_length_ends_with_its_connection():
    async with serving(saying(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\no", b"k", then_hang_up=True)) as server:
        for _ in range(2):
            response = await server.get()
            assert (response.body, response.headers["x-a"]) == (b"ok", "1")
    assert len(server.peers) == 2


async def test_requests_at_the_same_time_have_a_connection_each_and_the_last_used_serves_next():
    async with serving(saying(OK)) as server:
        await asyncio.gather(*(server.get() for _ in range(3)))
        await server.get()
    assert sorted(len(peer.asked) for peer in server.peers) == [1, 1, 2]


async def test_a_connection_the_server_has_closed_is_not_used_again():
    async with serving(saying(OK, then_hang_up=True)) as server:
        for _ in range(3):
            assert (await server.get()).status == 200
            await asyncio.sleep(0.05)
    assert len(server.peers) == 3


async def test_a_server_that_says_close_is_taken_at_its_word():
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with serving(saying(closing)) as server:
        for _ in range(2):
            assert (await server.get()).body == b"ok"
    assert len(server.peers) == 2


async def test_a_long_idle_connection_is_dropped(monkeypatch: pytest.MonkeyPatch):
    async with serving(saying(OK)) as server:
        await server.get()
        monkeypatch.setattr(connections, "IDLE_S", 0.0)
        await server.get()
    assert len(server.peers) == 2


async def test_nothing_is_kept_of_replicas_that_are_gone():
    async with serving(saying(OK)) as gone, serving(saying(OK)) as there:
        there.pool = gone.pool
        await gone.get()
        for peer in gone.peers:
            peer.hang_up()
        await asyncio.sleep(0.05)
        assert len(gone.pool._idle) == 1
        await there.get()
        assert [origin.port for origin in gone.pool._idle] == [int(there.url.rsplit(":", 1)[1])]


async def test_nobody_there_is_told_from_lost_on_the_way():
    async with serving(saying(OK)) as server:
        pass
    with pytest.raises(httpx.ConnectError):
        await server.get()


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([], "closed before the whole answer"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"], "closed before the whole answer"),
        ([b"SSH-2.0-OpenSSH\r\n"], "unreadable answer"),
    ],
)
async def test_half_answers_and_no_answers_are_errors(parts: list[bytes], fault: str):
    async with serving(saying(*parts, then_hang_up=True)) as server:
        with pytest.raises(httpx.RemoteProtocolError, match=fault):
            await server.get()


async def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "ANSWER_BYTES", 10)
    async with serving(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b"x" * 11)) as server:
        with pytest.raises(httpx.ReadError, match="longer than 10 bytes"):
            await server.get()


async def test_a_second_answer_to_one_request_never_reaches_the_next():
    async with serving(saying(OK + OK.replace(b"ok", b"no"))) as server:
        for _ in range(3):
            assert (await server.get()).body == b"ok"
            await asyncio.sleep(0.02)
    assert len(server.peers) == 3


async def test_a_cancelled_request_closes_its_connection():
    async def never(peer: Peer) -> None:
        await peer.until_gone()

    async with serving(never) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await server.post(b"x")
        await server.peers[0].gone.wait()


async def test_a_header_cannot_carry_another():
    async with serving(saying(OK)) as server:
        with pytest.raises(httpx.LocalProtocolError, match="line break"):
            await server.post(b"", authorization="Bearer a\r\nX-Admin: 1")
        with pytest.raises(httpx.LocalProtocolError, match="not ASCII"):
            await server.post(b"", authorization="Bearer ä")
    assert not server.peers


async def test_connecting_has_a_deadline(monkeypatch: pytest.MonkeyPatch):
    async def never(*arguments: object, **options: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    monkeypatch.setattr(connections, "CONNECT_S", 0.02)
    with pytest.raises(httpx.ConnectTimeout):
        await Connections().ask("GET", "http://127.0.0.1:9", {})


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=replica -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


async def test_tls_and_a_certificate_nobody_vouches_for(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    async with serving(saying(OK), tls) as server:
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await server.get()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        server.pool = Connections()
        assert (await server.get()).body == b"ok"
