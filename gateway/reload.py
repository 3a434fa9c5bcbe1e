"""Follows the configuration file: its replicas are taken over when it changes, and on SIGHUP."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.config import load_config
from gateway.scoring import Gateway

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None


def stamp_of(path: Path | None) -> Stamp:
    """What differs once the file has been written or another put in its place; None without a file."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size) if found is not None else None


@asynccontextmanager
async def following(path: Path | None, gateway: Gateway, seen: Stamp) -> AsyncIterator[None]:
    """Keeps `gateway` at what the file at `path` lists, as long as the block lasts. A broken file changes nothing.

    `seen` is the stamp of the file when the gateway's own configuration was read.
    """
    if path is None:
        yield
        return
    hang_up = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # only the main thread gets signals
        loop.add_signal_handler(signal.SIGHUP, hang_up.set)
    task = asyncio.create_task(_follow(path, gateway, seen, hang_up))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            loop.remove_signal_handler(signal.SIGHUP)


async def _follow(path: Path, gateway: Gateway, seen: Stamp, hang_up: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(gateway.config.reload_interval_s):
                await hang_up.wait()
        stamp = stamp_of(path)
        if stamp == seen and not hang_up.is_set():
            continue
        seen = stamp
        hang_up.clear()
        try:
            config = await asyncio.to_thread(load_config, path, os.environ)
        except ValueError as error:
            logger.error("the replicas stay as they are: %s", error)
            continue
        await gateway.reload(config)
