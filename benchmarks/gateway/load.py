"""The client all systems are measured with: plain HTTP/1.1 over asyncio streams, and the ledger of its answers."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.gateway.fake import right_score


@dataclass(frozen=True, slots=True)
class Request:
    """A POST ready to be written; `numbers` are the ids of its images, in order."""

    numbers: Sequence[int]
    wire: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def refused(self) -> bool:
        return self.status in {429, 503}


class Encode(Protocol):
    def __call__(self, numbers: Sequence[int], *, deadline_s: float | None = None) -> Request: ...


Decode = Callable[[Answer], Sequence[float | None]]


class LedgerFault(AssertionError):
    """A score that is not the right one for its image."""


@dataclass(slots=True)
class Ledger:
    """What became of every image: scored in time, scored late, refused, expired, lost. A wrong score ends the run."""

    ends: Counter[str] = field(default_factory=Counter)

    def enter(self, request: Request, scores: Sequence[float | None], end: str = "scored") -> None:
        if len(scores) != len(request.numbers):
            raise LedgerFault(f"{len(scores)} answers to {len(request.numbers)} images")
        for number, score in zip(request.numbers, scores, strict=True):
            if score is None:
                self.ends["lost"] += 1
            elif score != right_score(number):
                raise LedgerFault(f"image {number} was given {score}, right is {right_score(number)}")
            else:
                self.ends[end] += 1


class Connections:
    """Keep-alive connections to one address, reused last in, first out."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, request: Request, timeout_s: float) -> Answer:
        """Raises OSError (TimeoutError included) or asyncio.IncompleteReadError."""
        async with asyncio.timeout(timeout_s):
            reader, writer = self._reusable() or await asyncio.open_connection(*self._address)
            try:
                writer.write(request.wire)
                answer = await _read(reader)
            except BaseException:
                writer.close()
                raise
        if answer.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer

    def _reusable(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection used last, those left out that the server has hung up on since."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def aclose(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


def post(path: str, headers: dict[str, str], body: bytes) -> bytes:
    """The bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Answer(status, headers, await _read_chunks(reader))
    return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    chunks = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(chunks)


async def ask(
    connections: Connections,
    request: Request,
    decode: Decode,
    ledger: Ledger,
    *,
    timeout_s: float = 30.0,
    in_time_s: float = float("inf"),
) -> Answer | None:
    """One request into the ledger. None if there was no answer."""
    started = time.perf_counter()
    nothing = [None] * len(request.numbers)
    try:
        answer = await connections.post(request, timeout_s)
    except (OSError, asyncio.IncompleteReadError):
        ledger.enter(request, nothing)
        return None
    if answer.refused:
        ledger.ends["refused"] += len(request.numbers)
    elif answer.status == 504:
        ledger.ends["expired"] += len(request.numbers)
    else:
        in_time = time.perf_counter() - started <= in_time_s
        ledger.enter(request, decode(answer), "scored" if in_time else "late")
    return answer
