"""What the fault tests share."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from ledger import Ledger

from reward_api import Item, RewardClient


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def ask(ledger: Ledger) -> Callable[[RewardClient, Sequence[Item]], Awaitable[None]]:
    """Scores items and enters the answers; the deadline is far beyond what any of it should take."""

    async def ask(client: RewardClient, items: Sequence[Item]) -> None:
        async with asyncio.timeout(120):
            ledger.enter(items, await client.score(items))

    return ask
