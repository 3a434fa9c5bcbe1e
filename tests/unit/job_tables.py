"""A table of jobs to test on, and jobs to put in it."""

import hashlib
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine

from gateway.jobs.config import JobsConfig
from gateway.jobs.job import Claim, JobRequest, StoredItem, write_content
from gateway.jobs.leases import Leases, Place
from gateway.jobs.ledger import Ledger
from gateway.jobs.tables import open_database
from reward_api import ItemError, Outcome, Score

VERSIONS = {"count": "7", "style": "2"}


class Tables:
    """Ledger and leases on one database, with leases of 100 s."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.config = JobsConfig.model_validate({"lease_s": 100, "chunk_timeout_s": 50, "chunk_items": 2} | settings)
        self.engines: tuple[Engine, Engine] = open_database(url)
        self.ledger = Ledger(*self.engines, self.config)
        self.leases = Leases(*self.engines, self.config)

    def add(self, items: Iterable[StoredItem], now: float = 0.0, **more: Any) -> str:
        items = list(items)
        for item in items:
            if item.error is None:
                self.ledger.expect(item.image, item.size_bytes, now)
        return self.ledger.add(JobRequest(items, **more), now)

    def claim_all(self, now: float) -> list[Claim]:
        """What workers hold after taking all that is due."""
        claims = [self.leases.claim(message.chunk_id, message.token, now) for message in self.leases.due(now)]
        assert None not in claims
        return [claim for claim in claims if claim is not None]

    def score(self, claim: Claim, now: float) -> bool:
        return self.leases.record(claim, right_outcomes(claim), VERSIONS, now)

    def close(self) -> None:
        self.engines[0].dispose()


def stored(number: int, *rewards: str, size_bytes: int = 12) -> StoredItem:
    image = hashlib.sha256(str(number).encode()).hexdigest()
    return StoredItem(rewards or ("count",), image, size_bytes, write_content(f"prompt {number}", None))


def broken(*rewards: str) -> StoredItem:
    return StoredItem(rewards or ("count",), error=ItemError("bad_image", "not an image"))


def right_score(prompt_content: str, reward: str) -> Score:
    """The number of the prompt, told apart by reward."""
    number = int(prompt_content.rpartition(" ")[2].rstrip('"}'))
    return Score(number + (0.5 if reward == "style" else 0.0), {"by": reward})


def right_outcomes(claim: Claim) -> dict[Place, Outcome]:
    return {(task.number, reward): right_score(task.content, reward) for task in claim.tasks for reward in task.rewards}
