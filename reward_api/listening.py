"""Running an app on a socket: port 0, ready-file, a keep-alive that outlives idle clients, a prompt stop."""

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

KEEP_ALIVE_S = 120
HEADERS_S = 10.0  # who has not sent the head of a request by then is hung up on
DRAIN_S = 5.0


def serve(
    app: ASGIApp,
    host: str = "127.0.0.1",
    port: int = 0,
    ready_file: Path | str | None = None,
    *,
    token: str | Mapping[str, str] | None = None,
    on_stop: Callable[[], None] | None = None,
    notice_s: float = 0.0,
    drain_s: float = DRAIN_S,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight within `drain_s`.

    Port 0 takes a free one. `ready_file` receives the address ("http://HOST:PORT") in one rename once the socket
    listens. `token` is what the app checks; without one only a loopback host is served. `on_stop` is called on the
    event loop when the signal arrives; for `notice_s` after it the socket still listens, so that clients on open
    connections hear from the app why it goes. A second signal ends the notice. Raises ValueError.
    """
    if token is None and not _is_loopback(host):
        raise ValueError(f"refusing to serve {host} without a token: set REWARD_TOKEN or serve 127.0.0.1")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, Path(ready_file) if ready_file else None, on_stop, notice_s).run()


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, ready_file: Path | None, on_stop: Callable[[], None] | None, notice_s: float
    ) -> None:
        super().__init__(config)
        self.ready_file = ready_file
        self.on_stop = on_stop
        self.notice_s = notice_s
        self.stop_asked = False
        self.stop_at: float | None = None
        self.headless: dict[object, float] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.ready_file is not None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _write_whole(self.ready_file, address + "\n")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if not self.stop_asked and self.notice_s > 0:
            self.should_exit = False
        self.stop_asked = True

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second."""
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


def _write_whole(path: Path, text: str) -> None:
    """No reader ever sees half of `text`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
