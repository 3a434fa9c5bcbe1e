"""Running an app on a socket: port 0, ready-file, a keep-alive that outlives idle clients, a prompt stop."""

import asyncio
import contextlib
import ipaddress
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reward_api import memory
from reward_api.handover import Handover

KEEP_ALIVE_S = 120
HEADERS_S = 10.0  # who has not sent the head of a request by then is hung up on
HEADERS_BYTES = 64 * 1024  # and who sends more than this for one, give or take a read from the socket
DRAIN_S = 5.0
TRUST_VARIABLE = "REWARD_TRUST_NETWORK"


class ServiceFailed(RuntimeError):
    """What is served has failed for good; the message says why."""


def serve(
    app: ASGIApp,
    host: str = "127.0.0.1",
    port: int = 0,
    ready_file: Path | str | None = None,
    *,
    token: str | Mapping[str, str] | None = None,
    failure: Callable[[], str | None] | None = None,
    on_stop: Callable[[], None] | None = None,
    notice_s: float = 0.0,
    drain_s: float = DRAIN_S,
    handover: Handover | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight within `drain_s`.

    Port 0 takes a free one. `ready_file` receives the address ("http://HOST:PORT") in one rename once the socket
    listens. `token` is what the app checks; without one only a loopback host is served. `failure` is asked ten times
    a second; what it says ends the serving. `on_stop` is called on the event loop when the signal arrives; for
    `notice_s` after it the socket still listens, so that clients on open connections hear from the app why it goes. A
    second signal ends the notice. Raises ValueError, and ServiceFailed with what `failure` said.

    A `handover` takes the place of host, port and ready-file: connections come from there, and each carries one
    request, so that the next one may go to another worker.
    """
    check_exposure(host, token)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # its lines go where all others go
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(drain_s),
        http=BoundedHead,
        headers=[("connection", "close")] if handover else None,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, Path(ready_file) if ready_file else None, failure, on_stop, notice_s, handover).run()
    if failure is not None and (fault := failure()) is not None:
        raise ServiceFailed(fault)


class BoundedHead(HttpToolsProtocol):
    """The framework's fast parser sets no limit to the head of a request; its slow one does."""

    _head_bytes = 0
    _in_head = True
    _complete = 0

    def data_received(self, data: bytes) -> None:
        complete = self._complete
        super().data_received(data)
        if self._in_head and self._complete == complete:  # else these bytes ended a request
            self._head_bytes += len(data)
            if self._head_bytes > HEADERS_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._complete = True, self._complete + 1
        super().on_message_complete()


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        ready_file: Path | None,
        failure: Callable[[], str | None] | None,
        on_stop: Callable[[], None] | None,
        notice_s: float,
        handover: Handover | None,
    ) -> None:
        super().__init__(config)
        self.ready_file = ready_file
        self.failure = failure
        self.on_stop = on_stop
        self.notice_s = notice_s
        self.handover = handover
        self.stop_asked = False
        self.stop_at: float | None = None
        self.headless: dict[object, float] = {}
        self._taking: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        memory.settle()
        if self.handover is not None:
            await super().startup([])
            asyncio.get_running_loop().add_reader(self.handover.fileno(), self._take, self.handover)
            self.handover.report_answering()
            return
        await super().startup(sockets)
        if self.ready_file is not None:
            announce(self.servers[0].sockets[0], self.ready_file)

    def _take(self, handover: Handover) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection = handover.receive()
        except EOFError:
            loop.remove_reader(handover.fileno())
            self.should_exit = True
            return
        if connection is None:
            return
        # What uvicorn does with a connection that it accepted itself.
        protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        task = loop.create_task(loop.connect_accepted_socket(lambda: protocol, connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if not self.stop_asked and self.notice_s > 0:
            self.should_exit = False
        self.stop_asked = True

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second."""
        if self.failure is not None and self.failure() is not None:
            return True
        now = time.monotonic()
        self._hang_up_on_the_headless(now)
        if self.stop_asked and self.stop_at is None:
            self.stop_at = now + self.notice_s
            if self.on_stop is not None:
                self.on_stop()
        if self.stop_at is not None and (now >= self.stop_at or not self.server_state.connections):
            self.should_exit = True
        return await super().on_tick(counter)

    def _hang_up_on_the_headless(self, now: float) -> None:
        """The framework has no time limit for the head of a request: ten bytes a minute would hold a connection."""
        since: dict[object, float] = {}
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            between_requests = cycle is None or cycle.response_complete
            if between_requests and getattr(connection, "timeout_keep_alive_task", None) is None:
                since[connection] = self.headless.get(connection, now)
                if now - since[connection] > HEADERS_S:
                    connection.transport.close()
        self.headless = since


def check_exposure(host: str, token: str | Mapping[str, str] | None) -> None:
    """Raises ValueError for a host that others reach if nothing is asked of them.

    REWARD_TRUST_NETWORK=1 in the environment says that only friends do, as inside a network of containers.
    """
    if token is None and not _is_loopback(host) and os.environ.get(TRUST_VARIABLE) != "1":
        choices = f"set REWARD_TOKEN, serve 127.0.0.1, or set {TRUST_VARIABLE}=1 where no stranger gets in"
        raise ValueError(f"refusing to serve {host} without a token: {choices}")


def announce(listener: socket.socket, ready_file: Path) -> None:
    """Write the listener's address ("http://HOST:PORT") in one rename: no reader ever sees half of it."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    aside = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
    aside.write_text(address + "\n")
    aside.replace(ready_file)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
