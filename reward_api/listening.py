"""Running an app on a socket: port 0, ready-file, a keep-alive that outlives idle clients, a prompt stop."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_S = 120
DRAIN_S = 5


class ServiceFailed(RuntimeError):
    """What is served has failed for good; the message says why."""


def serve(
    app: ASGIApp,
    host: str = "127.0.0.1",
    port: int = 0,
    ready_file: Path | str | None = None,
    *,
    token: str | None = None,
    failure: Callable[[], str | None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight within 5 s.

    Port 0 takes a free one. `ready_file` receives the address ("http://HOST:PORT") in one rename once the socket
    listens. `token` is what the app checks; without one only a loopback host is served. `failure` is asked ten times
    a second; what it says ends the serving. `on_stop` is called as the stop begins, so that answers without end do not
    use up the 5 s. Raises ValueError, and ServiceFailed with what `failure` said.
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
        timeout_graceful_shutdown=DRAIN_S,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, Path(ready_file) if ready_file else None, failure, on_stop).run()
    if failure is not None and (fault := failure()) is not None:
        raise ServiceFailed(fault)


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        ready_file: Path | None,
        failure: Callable[[], str | None] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self.ready_file = ready_file
        self.failure = failure
        self.on_stop = on_stop

    async def on_tick(self, counter: int) -> bool:
        if self.failure is not None and self.failure() is not None:
            return True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.ready_file is not None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _write_whole(self.ready_file, address + "\n")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.on_stop is not None:
            self.on_stop()
        await super().shutdown(sockets)


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
