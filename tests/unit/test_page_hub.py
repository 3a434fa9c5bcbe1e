import asyncio
import json

import pytest

from gateway.page.hub import EVENTS_HELD, HEARTBEAT, Hub, Viewer, event

pytestmark = pytest.mark.unit


async def take(viewer: Viewer, count: int, heartbeat_s: float = 60.0) -> list[bytes]:
    taken: list[bytes] = []
    async with asyncio.timeout(10):
        async for sent in viewer.events(heartbeat_s):
            taken.append(sent)
            if len(taken) == count:
                break
    return taken


def test_an_event_is_one_block_whatever_the_data():
    block = event("image", {"prompt": "two\nlines and data: x\n\n"})
    assert block.endswith(b"\n\n")
    lines = block[:-2].split(b"\n")
    assert lines[0] == b"event: image"
    assert json.loads(lines[1].removeprefix(b"data: ")) == {"prompt": "two\nlines and data: x\n\n"}
    assert len(lines) == 2


async def test_every_viewer_gets_every_event_in_order():
    hub = Hub(2)
    first, second = hub.admit(), hub.admit()
    assert first is not None
    assert second is not None
    for number in range(3):
        hub.publish(b"%d" % number)
    assert await take(first, 3) == await take(second, 3) == [b"0", b"1", b"2"]


async def test_places_are_bounded_and_freed():
    hub = Hub(1)
    viewer = hub.admit()
    assert viewer is not None
    assert hub.admit() is None
    hub.release(viewer)
    hub.release(viewer)
    assert hub.admit() is not None


async def test_a_slow_viewer_loses_the_oldest_events_and_nobody_waits():
    hub = Hub(1)
    viewer = hub.admit()
    assert viewer is not None
    for number in range(EVENTS_HELD + 5):
        hub.publish(b"%d" % number)
    taken = await take(viewer, EVENTS_HELD)
    assert (taken[0], taken[-1]) == (b"5", b"%d" % (EVENTS_HELD + 4))


async def test_silence_is_broken_by_a_heartbeat():
    viewer = Viewer()
    assert await take(viewer, 2, heartbeat_s=0.01) == [HEARTBEAT, HEARTBEAT]


async def test_closing_ends_streams_and_admits_nobody():
    hub = Hub(2)
    viewer = hub.admit()
    assert viewer is not None
    stream = asyncio.create_task(take(viewer, 1))
    await asyncio.sleep(0)
    hub.close()
    assert await stream == []
    assert hub.admit() is None
