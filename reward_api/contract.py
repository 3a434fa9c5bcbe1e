"""What a reward is asked and what it answers, as plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class ErrorCode(StrEnum):
    """Why an item has no score. The first group is the caller's to mend, the last may pass by itself."""

    BAD_IMAGE = "bad_image"
    IMAGE_TOO_LARGE = "image_too_large"
    MISSING_PROMPT = "missing_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"
    MISSING_METADATA = "missing_metadata"
    BAD_METADATA = "bad_metadata"
    MISSING_TEXT = "missing_text"
    UNKNOWN_REWARD = "unknown_reward"

    SCORER_FAILED = "scorer_failed"

    NO_REPLICA = "no_replica"
    DEADLINE = "deadline"
    OVERLOADED = "overloaded"


RETRYABLE = frozenset({ErrorCode.NO_REPLICA, ErrorCode.DEADLINE, ErrorCode.OVERLOADED})


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One image to score against its prompt.

    `image` is (H, W, 3) uint8 RGB and may be read-only. `rewards` names the rewards asked for; a single
    reward service takes an empty tuple as its own, the gateway does not.
    """

    image: NDArray[np.uint8]
    prompt: str
    metadata: Mapping[str, Any] | None = None
    rewards: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(f"image must be (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}")


@dataclass(frozen=True, slots=True)
class Score:
    """A finite raw score; `details` (JSON values) let a person see why."""

    score: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"a score must be finite, got {self.score}")
        object.__setattr__(self, "score", float(self.score))


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item has no score. Never to be read as a number."""

    code: str
    message: str

    @property
    def retryable(self) -> bool:
        """Whether the same item may succeed later."""
        return self.code in RETRYABLE


Outcome = Score | ItemError


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """What a reward says about itself: `range` is (low, high), None where unbounded."""

    name: str
    version: str
    range: tuple[float | None, float | None] = (None, None)
    meaning: str = ""
    metadata: str = ""
    batch_limit: int = 32
    batch_invariant: bool = False


class Scorer(Protocol):
    """What a reward service wraps.

    Optional class attributes, with their defaults: `meaning` "", `low` None, `high` None, `metadata` "" (what
    it needs, in words), `batch_limit` 32, `batch_invariant` False. Optional methods `load(self) -> None`, to read
    weights, and `warm_up(self) -> None`, to run them once, are called in this order before the service says it is
    ready; the port answers meanwhile. All calls come from one thread.
    """

    name: str
    version: str

    def score(self, batch: Sequence[Item]) -> Sequence[Outcome | float]:
        """One outcome an item, in order. Raise only if nothing can be said about single items."""
        ...
