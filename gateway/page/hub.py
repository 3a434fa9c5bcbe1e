"""Server-sent events to a bounded number of viewers, none of whom can hold up another or the gateway."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import msgspec

EVENTS_HELD = 32
HEARTBEAT_S = 10.0
HEARTBEAT = b": still here\n\n"


class Viewer:
    """One open page. A viewer that reads too slowly loses the oldest events."""

    def __init__(self) -> None:
        self.closed = False
        self._events: deque[bytes] = deque(maxlen=EVENTS_HELD)
        self._changed = asyncio.Event()

    def send(self, event: bytes) -> None:
        self._events.append(event)
        self._changed.set()

    def close(self) -> None:
        self.closed = True
        self._changed.set()

    async def events(self, heartbeat_s: float = HEARTBEAT_S) -> AsyncGenerator[bytes, None]:
        """Events as they come, and a comment in every `heartbeat_s` of silence; ends when the viewer is closed."""
        while not self.closed:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._changed.wait()
            except TimeoutError:
                yield HEARTBEAT
                continue
            self._changed.clear()
            while self._events:
                yield self._events.popleft()


class Hub:
    """The viewers, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.viewers: set[Viewer] = set()
        self.closed = False

    def admit(self) -> Viewer | None:
        """A new viewer, or None where there is no place for one."""
        if self.closed or len(self.viewers) >= self.limit:
            return None
        viewer = Viewer()
        self.viewers.add(viewer)
        return viewer

    def release(self, viewer: Viewer) -> None:
        viewer.close()
        self.viewers.discard(viewer)

    def publish(self, event: bytes) -> None:
        for viewer in self.viewers:
            viewer.send(event)

    def close(self) -> None:
        """Ends all streams; no viewer is admitted any more."""
        self.closed = True
        for viewer in self.viewers:
            viewer.close()


def event(name: str, data: object) -> bytes:
    """One server-sent event with `data` as JSON, which has no line breaks."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
