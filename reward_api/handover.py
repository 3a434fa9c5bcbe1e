"""Connections handed from the process that accepts them to the workers that answer them, over a Unix socket each.

One byte a message. Downwards CONNECTION, with the connection's descriptor beside it, and ALL_WARM; upwards what a
worker has reached.
"""

import socket

CONNECTION, ALL_WARM = b"c", b"g"
ANSWERING, WARM = b"a", b"w"


class Handover:
    """A worker's end, made from the descriptor it inherits.

    `not_ready` turns None once all workers have been warm at one time, before any connection handed over after that.
    """

    def __init__(self, descriptor: int) -> None:
        self._channel = socket.socket(fileno=descriptor)
        self.not_ready: str | None = "other workers are warming up"

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._channel.fileno()

    def receive(self) -> socket.socket | None:
        """The next message, a connection or None. Raises EOFError once the other end is gone."""
        message, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        if not message:
            raise EOFError
        if message == ALL_WARM:
            self.not_ready = None
        return socket.socket(fileno=descriptors[0]) if descriptors else None

    def report_answering(self) -> None:
        """Say that connections are taken."""
        self._channel.sendall(ANSWERING)

    def report_warm(self) -> None:
        """Say that the scorer is warm."""
        self._channel.sendall(WARM)
