"""A job as plain values: what was asked, how far it is, and what a worker is handed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from reward_api import Item, ItemError, Score


class JobState(StrEnum):
    """queued -> running -> done; or cancelled, from either of the first two. The last two are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


LIVE = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item whose image lies in the store; or, of one that could not be read, the error."""

    rewards: tuple[str, ...]
    image: str = ""  # its digest
    size_bytes: int = 0
    content: str = ""  # prompt and metadata
    error: ItemError | None = None

    def key(self, *, deterministic: bool) -> str:
        """What a score depends on besides reward and version."""
        return _digest([self.image, self.content, deterministic])


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to be added. `digest` tells a request sent again from another one under the same Idempotency-Key."""

    items: Sequence[StoredItem]
    deterministic: bool = False
    idempotency_key: str | None = None

    def digest(self) -> str:
        rows = [
            [item.rewards, item.image, item.content, item.error and [item.error.code, item.error.message]]
            for item in self.items
        ]
        return _digest([rows, self.deterministic])


@dataclass(frozen=True, slots=True)
class Progress:
    """A job and its counts; one result is an item's score, or error, by one reward. Times in Unix seconds."""

    id: str
    state: JobState
    items: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    scored: int
    failed: int
    pending: int


@dataclass(frozen=True, slots=True)
class Task:
    """One item of a claimed chunk and the rewards it still lacks."""

    number: int
    image: str
    content: str
    key: str
    rewards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk in the hands of one worker. `claims` counts workers, this one included, since one was last heard of."""

    chunk_id: str
    token: str
    job_id: str
    deterministic: bool
    claims: int
    troubles: int
    tasks: Sequence[Task] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Message:
    """What the broker carries: which chunk, and the token that claims it. `again`: an earlier message led nowhere."""

    chunk_id: str
    token: str
    again: bool = False


def write_content(prompt: str, metadata: Mapping[str, Any] | None) -> str:
    """The same text for the same prompt and metadata, in whatever order the metadata came."""
    return json.dumps({"metadata": metadata, "prompt": prompt}, sort_keys=True, separators=(",", ":"))


def write_details(score: Score) -> str:
    """The details as JSON. Raises TypeError or ValueError for what JSON has no word for."""
    return msgspec.json.encode(score.details).decode()


def read_item(task: Task, image: Any) -> Item:
    """The item to be sent, with `image` as its pixels."""
    content = json.loads(task.content)
    return Item(image, content["prompt"], content["metadata"], task.rewards)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
