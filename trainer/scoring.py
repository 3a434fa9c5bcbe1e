"""Asynchronous rewards: images are scored on a background thread while the next ones are drawn."""

import asyncio
import math
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from reward_api import Item, ItemError, Outcome, RewardClient, RewardInfo, RewardRejected, RewardUnavailable, Score
from trainer.config import RewardConfig
from trainer.prompts import Prompt

T = TypeVar("T")


class RewardFailure(Exception):
    """Rewards stayed away or too many scores are missing; the message names the reward and the cause."""


Outcomes = list[dict[str, Outcome]]


class RewardScorer:
    """Runs the reward client on its own event loop and thread; ``submit`` returns at once."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        self._client = self._run(self._open())
        self.exposed_wait_s = 0.0
        """Seconds the training loop has stood waiting for scores."""

    async def _open(self) -> RewardClient:
        return RewardClient(self._config.url, timeout_s=self._config.timeout_s)

    async def _abandon(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def available(self) -> list[RewardInfo]:
        """The rewards on offer. Raises RewardFailure if there is no answer."""
        try:
            return self._run(self._client.rewards())
        except (RewardUnavailable, RewardRejected) as error:
            raise RewardFailure(f"no rewards at {self._config.url}: {error}") from error

    def require(self, names: set[str]) -> None:
        """Raises RewardFailure unless every named reward is on offer."""
        offered = {info.name for info in self.available()}
        if absent := names - offered:
            raise RewardFailure(
                f"{self._config.url} does not offer {', '.join(sorted(absent))}; it offers {', '.join(sorted(offered))}"
            )

    def submit(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> "Future[Outcomes]":
        """Scores images (B, H, W, 3) against their prompts; each asks for its prompt's own rewards."""
        items = [
            Item(image, prompt.text, prompt.metadata, tuple(prompt.rewards))
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return asyncio.run_coroutine_threadsafe(self._client.score(items), self._loop)

    def collect(self, pending: "Future[Outcomes]", what: str) -> Outcomes:
        """Waits for submitted scores and counts the wait. Raises RewardFailure if no answer came."""
        started = time.monotonic()
        try:
            return pending.result(timeout=self._config.timeout_s + 10)
        except (RewardUnavailable, RewardRejected, TimeoutError) as error:
            raise RewardFailure(f"no scores for {what} from {self._config.url}: {error}") from error
        finally:
            self.exposed_wait_s += time.monotonic() - started

    def close(self) -> None:
        """Gives up what is still being scored and ends the thread."""
        self._run(self._abandon())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class RewardTable:
    """An epoch's scores by reward, each (S, G) with NaN where missing, and what went wrong."""

    scores: dict[str, NDArray[np.float64]]
    asked: dict[str, int]
    missing: dict[str, int]
    causes: dict[str, str]

    @property
    def missing_fraction(self) -> float:
        return sum(self.missing.values()) / max(1, sum(self.asked.values()))

    def check(self, most: float) -> None:
        """Raises RewardFailure naming each reward that misses more than the fraction ``most`` of its scores."""
        faults = [
            f"{name}: {lost} of {self.asked[name]} scores missing, for example: {self.causes[name]}"
            for name, lost in self.missing.items()
            if lost > most * self.asked[name]
        ]
        if faults:
            raise RewardFailure(f"more than {most:.0%} of the scores are missing; " + "; ".join(faults))


def tabulate(
    outcomes: Sequence[Sequence[dict[str, Outcome]]],
    prompts: Sequence[Prompt],
    details: Mapping[str, str] | None = None,
) -> RewardTable:
    """Arranges outcomes by slot and image. A reward a prompt did not ask for stays NaN and is not counted missing.

    ``details`` names for some rewards the detail that is taken instead of the score; an answer without it is missing.
    """
    details = details or {}
    size = len(outcomes[0])
    names = sorted({name for prompt in prompts for name in prompt.rewards})
    table = RewardTable(
        {name: np.full((len(prompts), size), np.nan) for name in names},
        dict.fromkeys(names, 0),
        dict.fromkeys(names, 0),
        {},
    )
    for slot, (group, prompt) in enumerate(zip(outcomes, prompts, strict=True)):
        for image, answer in enumerate(group):
            for name in prompt.rewards:
                table.asked[name] += 1
                outcome = answer.get(name, ItemError("no_answer", f"the answer holds no {name}"))
                if name in details and isinstance(outcome, Score):
                    outcome = _detail(outcome, details[name])
                if isinstance(outcome, ItemError):
                    table.missing[name] += 1
                    table.causes.setdefault(name, f"{outcome.code}: {outcome.message} (prompt {prompt.text!r})")
                else:
                    table.scores[name][slot, image] = outcome.score
    return table


def _detail(answer: Score, name: str) -> Outcome:
    value = answer.details.get(name)
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return Score(float(value))
    return ItemError("no_detail", f"the answer's details hold {value!r} as {name!r}, which is no finite number")
