"""The four measurements, each a round of one system; the caller interleaves rounds and takes medians."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gateway.load import Answer, Connections, Ledger, Request, ask
from benchmarks.gateway.systems import Cost, System

IN_FLIGHT = 64  # B1
CHUNKS, CHUNK, CHUNK_EVERY_S = 36, 16, 0.25  # B4
DEADLINE_S = 2.0  # B6: a later answer is worth nothing
NUMBERS = itertools.count(1)
"""Ids of images: none is used twice, so that no system can answer from memory."""

B1_REWARDS = {"fake": Cost(5.0, 1.0, 2)}
B4_REWARDS = {"quick": Cost(0.0, 3.0, 1), "medium": Cost(0.0, 8.0, 1), "slow": Cost(0.0, 25.0, 3)}
"""64 images a second load them to 19, 51 and 53 %: the fewest replicas that stay below 70 %."""
B6_REWARDS = {"fake": Cost(20.0, 10.0, 2)}
"""Slower than B1's scorer, so that twice its capacity is an arrival rate that the client and every system can carry."""


@dataclass(frozen=True, slots=True)
class Round:
    """Figures of one round by name, and what became of its images."""

    figures: dict[str, float]
    ledger: Ledger


async def throughput(system: System, seconds: float) -> Round:
    """B1: images a second with 64 requests of one image in flight."""
    connections, ledger = Connections("127.0.0.1", system.ports["fake"]), Ledger()
    requests = [system.encode("fake", [next(NUMBERS)]) for _ in range(IN_FLIGHT)]
    ready = _prepared(system, requests)
    started = time.perf_counter()
    end = started + seconds

    async def worker() -> None:
        while time.perf_counter() < end:
            await ask(connections, next(ready), system.decode, ledger)

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    elapsed = time.perf_counter() - started
    await connections.aclose()
    return Round({"images_per_s": ledger.ends["scored"] / elapsed}, ledger)


async def latency(system: System, count: int) -> Round:
    """B2: milliseconds that a system adds to the 6 ms of its scorer, one image in flight."""
    connections, ledger = Connections("127.0.0.1", system.ports["fake"]), Ledger()
    cost = system.rewards["fake"]
    added = []
    for _ in range(count):
        request = system.encode("fake", [next(NUMBERS)])
        started = time.perf_counter()
        await ask(connections, request, system.decode, ledger)
        added.append(1000 * (time.perf_counter() - started) - cost.base_ms - cost.item_ms)
    await connections.aclose()
    return Round({"added_ms": statistics.median(added), "added_p95_ms": sorted(added)[int(0.95 * count)]}, ledger)


async def exposed_wait(system: System, chunks: int) -> Round:
    """B4: one step of chunks of 16 images by three rewards, a chunk every 250 ms; the wait after the last is drawn.

    A system that takes chunks gets one request for a chunk and all rewards, another gets 48.
    """
    ledger = Ledger()
    connections = {reward: Connections("127.0.0.1", port) for reward, port in system.ports.items()}

    async def score(numbers: list[int]) -> None:
        if system.takes_chunks:
            requests = [(next(iter(connections)), system.encode(",".join(system.rewards), numbers))]
        else:
            requests = [(reward, system.encode(reward, [n])) for reward in system.rewards for n in numbers]
        await asyncio.gather(*(ask(connections[r], request, system.decode, ledger) for r, request in requests))

    started = time.perf_counter()
    waiting = []
    for number in range(1, chunks + 1):
        await asyncio.sleep(max(0.0, started + number * CHUNK_EVERY_S - time.perf_counter()))
        waiting.append(asyncio.create_task(score([next(NUMBERS) for _ in range(CHUNK)])))
    drawn = time.perf_counter()
    await asyncio.gather(*waiting)
    wait_s = time.perf_counter() - drawn
    for each in connections.values():
        await each.aclose()
    return Round({"exposed_s": wait_s, "exposed_share": wait_s / (CHUNKS * CHUNK_EVERY_S)}, ledger)


async def goodput(system: System, seconds: float) -> Round:
    """B6: right answers within 2 s as a share of the capacity, while twice the capacity arrives.

    Refused requests are not sent again. `retry_after_off_s` is how far the Retry-After of a refusal was from the
    moment at which the same request was taken: asked again and again by one more client, every 100 ms, once the
    flood has ended.
    """
    connections, ledger = Connections("127.0.0.1", system.ports["fake"]), Ledger()
    capacity = system.rewards["fake"].capacity()
    first = next(NUMBERS)
    ready = (system.encode("fake", [n], deadline_s=DEADLINE_S) for n in itertools.count(first))
    refusals: list[Answer] = []

    async def one(request: Request) -> None:
        answer = await ask(connections, request, system.decode, ledger, timeout_s=3 * DEADLINE_S, in_time_s=DEADLINE_S)
        if answer is not None and answer.refused:
            refusals.append(answer)

    started = time.perf_counter()
    tasks = set()
    sent = 0
    while (now := time.perf_counter()) < started + seconds:
        while sent < (now - started) * 2 * capacity:
            task = asyncio.create_task(one(next(ready)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    for _ in range(sent):
        next(NUMBERS)
    elapsed = time.perf_counter() - started
    figures = {
        "goodput": ledger.ends["scored"] / (elapsed * capacity),
        "refused_share": ledger.ends["refused"] / max(1, sent),
    }
    await connections.aclose()
    return Round(figures, ledger)


async def retry_after_off(system: System) -> Round:
    """B6: by how many seconds the Retry-After of refusals is off; nothing where a system refuses without one.

    A burst of twelve seconds' work arrives at once, with deadlines of 8 s. One request is then sent every 100 ms until
    it is refused (for at most 5 s), and on until it is taken: each refusal named a moment, and the moment is known now.
    """
    connections, ledger = Connections("127.0.0.1", system.ports["fake"]), Ledger()
    capacity = system.rewards["fake"].capacity()
    flood = Ledger()

    async def send() -> None:
        request = system.encode("fake", [next(NUMBERS)], deadline_s=8.0)
        await ask(connections, request, system.decode, flood)

    await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))  # so that a rate is known
    tasks = [asyncio.create_task(send()) for _ in range(int(12 * capacity))]
    await asyncio.sleep(1.0)
    named: list[tuple[float, float]] = []
    began = time.perf_counter()
    while True:
        asked = time.perf_counter()
        answer = await ask(connections, system.encode("fake", [next(NUMBERS)], deadline_s=4.0), system.decode, ledger)
        refused = answer is not None and answer.refused
        if answer is not None and refused and "retry-after" in answer.headers:
            named.append((asked, float(answer.headers["retry-after"])))
        if asked > began + (15.0 if named else 5.0) or (named and not refused):
            break
        await asyncio.sleep(0.1)
    taken = asked
    await asyncio.gather(*tasks)
    await connections.aclose()
    off = [abs(taken - (moment + wait)) for moment, wait in named]
    return Round({"retry_after_off_s": statistics.median(off)} if off else {}, ledger)


def _prepared(system: System, requests: list[Request]) -> Iterator[Request]:
    """Encoded while nothing is measured as far as they reach, then as they are needed."""
    yield from requests
    while True:
        yield system.encode("fake", [next(NUMBERS)])
