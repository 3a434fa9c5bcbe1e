"""F2, F7, F8: hostile input, connections at the edge of keep-alive, clients that hang up in droves."""

import asyncio
import gzip
import io
import random
import struct
import time
import zlib
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from ledger import Ledger
from processes import Stand, until

from reward_api import RewardClient, listening
from reward_api.wire import MSGPACK, encode_request

pytestmark = pytest.mark.faults

SAFE_KEEP_ALIVE_S = 30.0


def png_of_144_megapixels() -> bytes:
    """A sound PNG, 12000x12000 of one color, some 400 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + 12000 * 3)
    pixels = b"".join(packer.compress(row) for _ in range(12000)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


async def trickle(url: str, head: bytes, body: bytes) -> bytes:
    """Sends `head` at once and `body` byte by byte, and returns what the server says until it hangs up."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write(head)

    async def send() -> None:
        for byte in body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def test_f2_hostile_input_is_refused_by_name_and_harms_nobody(logs, ledger, ask):
    sound = ledger.items(1)
    wrong_length = msgspec.msgpack.decode(encode_request(Ledger().items(1)))
    wrong_length["items"][0]["image"]["data"] += b"x"
    huge_file = png_of_144_megapixels()
    msgpack = {"Content-Type": MSGPACK}
    with Stand(logs, limits={"headers": 4.0, "body": 6.0}) as stand:
        score = f"{stand.url}/v1/score"
        form = {"prompt": "a prompt", "rewards": "fake"}

        async def innocent(client: RewardClient) -> None:
            while True:
                await ask(client, ledger.items(4))

        async with (
            RewardClient(stand.url, timeout_s=60.0, attempts=1) as client,
            httpx.AsyncClient(trust_env=False, timeout=60.0) as http,
        ):
            scoring = [asyncio.create_task(innocent(client)) for _ in range(4)]
            garbage = await http.post(score, content=bytes(50_000_000), headers=msgpack)
            too_long = await http.post(score, content=bytes(70_000_000), headers=msgpack)
            huge = await http.post(score, files={"image": io.BytesIO(huge_file)}, data=form)
            crooked = await http.post(score, content=msgspec.msgpack.encode(wrong_length), headers=msgpack)
            packed = gzip.compress(encode_request(sound))
            zipped = await http.post(score, content=packed, headers=msgpack | {"Content-Encoding": "gzip"})
            started = time.monotonic()
            head = b"POST /v1/score HTTP/1.1\r\nHost: gateway\r\n"
            length = f"Content-Type: {MSGPACK}\r\nContent-Length: 100000\r\n\r\n".encode()
            slow = await asyncio.gather(
                *(trickle(stand.url, head, b"X-Slow: " + b"x" * 1000) for _ in range(20)),
                *(trickle(stand.url, head + length, bytes(1000)) for _ in range(20)),
            )
            hung_up_s = time.monotonic() - started
            assert not any(call.done() for call in scoring)
            await ask(client, sound)
            for call in scoring:
                call.cancel()
            await asyncio.gather(*scoring, return_exceptions=True)
    assert (garbage.status_code, too_long.status_code, zipped.status_code) == (400, 413, 415)
    for answer in (garbage, too_long, zipped):
        assert answer.headers["content-type"] == "application/problem+json"
    for answer, code in ((huge, "image_too_large"), (crooked, "bad_image")):
        assert answer.status_code == 422
        (outcome,) = answer.json()["items"]
        assert outcome["results"]["fake"]["error"]["code"] == code
    assert set(slow[:20]) == {b""}
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in slow[20:])
    assert hung_up_s < 30
    interrupted = set(ledger.right) - set(ledger.answers)
    assert len(interrupted) <= 16  # four calls of four items were under way at the end
    assert ledger.check(excused=interrupted)["score"] >= 100


async def test_f7_connections_that_idle_until_the_server_closes_them_lose_nothing(logs, ledger, ask):
    assert listening.KEEP_ALIVE_S > 2 * SAFE_KEEP_ALIVE_S  # the client's own limit stays far from the edge
    edge_s = 1.0
    with Stand(logs, limits={"keep_alive": edge_s}) as stand:

        async def idle_and_ask(number: int) -> None:
            pauses = random.Random(number)
            async with RewardClient(stand.url, timeout_s=60.0, attempts=4) as client:
                for _ in range(6):
                    await ask(client, ledger.items(2))
                    await asyncio.sleep(edge_s + pauses.uniform(-0.02, 0.02))

        await asyncio.gather(*(idle_and_ask(number) for number in range(24)))
        assert stand.up_count() == 2
    assert ledger.check() == {"score": 24 * 6 * 2}


async def test_f8_a_storm_of_clients_that_hang_up_leaves_the_queue_to_those_who_wait(logs, ledger, ask):
    with Stand(logs, options={number: ["--option", "slow=10"] for number in range(2)}) as stand:
        abandoned = Ledger()
        storm = [encode_request(abandoned.items(16)) for _ in range(100)]

        async def ask_and_hang_up(http: httpx.AsyncClient, content: bytes) -> None:
            try:
                async with asyncio.timeout(random.uniform(0.3, 0.6)):
                    await http.post("/v1/score", content=content, headers={"Content-Type": MSGPACK})
            except TimeoutError:
                pass

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=stand.url, trust_env=False, limits=limits, timeout=60.0) as http:
            await asyncio.gather(*(ask_and_hang_up(http, content) for content in storm))
        await until(lambda: stand.metric('reward_queue_depth_items{reward="fake"}') == 0, within_s=10.0)
        scored = stand.metric('reward_batch_size_sum{reward="fake"}')
        assert scored < len(abandoned.right) / 2  # most were dropped before a batch was formed
        started = time.monotonic()
        async with RewardClient(stand.url, timeout_s=60.0, attempts=1) as client:
            await ask(client, ledger.items(16))
        assert time.monotonic() - started < 10
        for replica in stand.replicas:
            assert stand.metric(f'reward_inflight_batches{{replica="{replica.url}"}}') == 0
            assert stand.up(replica) == 1
    assert ledger.check() == {"score": 16}
