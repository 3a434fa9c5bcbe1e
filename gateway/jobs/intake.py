"""A request for a job, read like one for scores, its images put into the store one by one."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from starlette.requests import Request

from gateway.jobs.config import JobsConfig
from gateway.jobs.job import JobRequest, StoredItem, write_content
from gateway.jobs.ledger import Ledger
from gateway.jobs.store import ImageStore, digest_of
from reward_api import EnvelopeError, Item, ItemError, Limits
from reward_api.http import parse_score_request
from reward_api.problems import missing_rewards, unknown_reward

_ELSEWHERE = np.zeros((1, 1, 3), np.uint8)  # in the place of pixels that lie in the store
_LONGEST_KEY = 255


async def read_job(
    request: Request,
    served: Collection[str],
    ledger: Ledger,
    store: ImageStore,
    config: JobsConfig,
    limits: Limits,
    clock: Callable[[], float] = time.time,
) -> JobRequest:
    """Raises EnvelopeError: 4xx, and 507 where the store has no room. A request that fails leaves nothing expected."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        detail = f"Idempotency-Key must have 1 to {_LONGEST_KEY} printable ASCII characters"
        raise EnvelopeError(422, "Invalid header", detail)
    bounds = replace(
        limits, max_items=config.max_items, max_body_bytes=config.max_bytes, body_seconds=config.body_seconds
    )
    began = clock()
    expected: set[str] = set()
    stored: list[tuple[str, int]] = []
    room = config.store_bytes - await asyncio.to_thread(ledger.stored_bytes)

    def keep(item: Item) -> Item:
        nonlocal room
        digest, size = digest_of(item.image), item.image.nbytes
        expected.add(digest)
        if ledger.expect(digest, size, began):
            room -= size
        try:
            if room < 0:
                raise OSError(f"all images together may take {config.store_bytes} bytes")
            store.put(digest, item.image)
        except OSError as error:
            detail = f"the store of images has no room: {error}"
            raise EnvelopeError(507, "Insufficient storage", detail) from error
        stored.append((digest, size))
        return replace(item, image=_ELSEWHERE)

    try:
        parsed = await parse_score_request(request, bounds, keep=keep)
        _check_rewards(parsed.rewards, served)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(ledger.unexpect, expected, began))
        raise
    places = iter(stored)
    items = [
        StoredItem(rewards, error=item)
        if isinstance(item, ItemError)
        else StoredItem(rewards, *next(places), write_content(item.prompt, item.metadata))
        for item, rewards in zip(parsed.items, parsed.rewards, strict=True)
    ]
    return JobRequest(items, parsed.deterministic, key)


def _check_rewards(rewards: Sequence[Sequence[str]], served: Collection[str]) -> None:
    for index, asked in enumerate(rewards):
        if not asked:
            raise missing_rewards(index, served)
        for name in asked:
            if name not in served:
                raise unknown_reward(index, name, served)
