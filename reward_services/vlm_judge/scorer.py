"""A vision-language model as judge; it runs elsewhere, behind an OpenAI-compatible endpoint."""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Sequence

import httpx

from reward_api import ErrorCode, Item, ItemError, Outcome, Score
from reward_services.vlm_judge.config import read_judge, read_score
from reward_services.vlm_judge.endpoint import ask, chat_body, data_url

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0


class VlmJudgeScorer:
    """The number a judge gives, as it gives it; an answer without one is an item error.

    `config` is a YAML file of `JudgeConfig`; `preset`, `base_url` and `model` take the place of its entries. The key
    is read from the environment (VLM_JUDGE_API_KEY, or what `api_key_variable` names).
    """

    name = "vlm_judge"
    metadata = "none"
    # What a server batches together sways its rounding, and with it words near a tie.
    batch_invariant = False

    def __init__(
        self,
        config: str = "",
        preset: str = "",
        base_url: str = "",
        model: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.config = read_judge(config, preset, base_url=base_url, model=model)
        asked = self.config.model_dump_json(include={"prompt", "pattern", "max_tokens", "temperature", "extra_body"})
        self.version = f"{self.config.model}+{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
        self.low, self.high = self.config.low, self.config.high
        self.meaning = f"grade by {self.config.model} from {self.low:g} to {self.high:g}"
        # A batch lasts as long as its slowest answer; several rounds in one keep the endpoint busy.
        self.batch_limit = 4 * self.config.concurrency
        self._transport = transport

    def warm_up(self) -> None:
        """Wait until the endpoint lists the model. Raises ValueError if it does not in time, or refuses."""
        asyncio.run(self._await_endpoint())

    def score(self, batch: Sequence[Item]) -> list[Outcome]:
        """One outcome an item, with details {"answer"}; up to `concurrency` requests are in flight."""
        return asyncio.run(self._score(batch))

    async def _score(self, batch: Sequence[Item]) -> list[Outcome]:
        places = asyncio.Semaphore(self.config.concurrency)
        async with self._client() as http:

            async def one(item: Item) -> Outcome:
                async with places:
                    return await self._grade(http, item)

            return list(await asyncio.gather(*map(one, batch)))

    async def _grade(self, http: httpx.AsyncClient, item: Item) -> Outcome:
        config = self.config
        body = chat_body(
            config.model,
            config.prompt.replace("{prompt}", item.prompt),
            await asyncio.to_thread(data_url, item.image),
            {"max_tokens": config.max_tokens, "temperature": config.temperature, **config.extra_body},
        )
        url = f"{config.base_url}/chat/completions"
        answer = await ask(http, url, body, deadline_s=config.deadline_s, attempts=config.attempts)
        if isinstance(answer, ItemError):
            return answer
        try:
            return Score(read_score(answer, config), {"answer": answer})
        except ValueError as error:
            return ItemError(ErrorCode.SCORER_FAILED, str(error))

    async def _await_endpoint(self) -> None:
        url = f"{self.config.base_url}/models"
        deadline = time.monotonic() + self.config.start_timeout_s
        async with self._client() as http:
            while True:
                fault = await self._look(http, url)
                if fault is None:
                    return
                if time.monotonic() + _LOOK_EVERY_S >= deadline:
                    raise ValueError(f"no judge within {self.config.start_timeout_s:g} s: {fault}")
                logger.info("waiting for the judge: %s", fault)
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self, http: httpx.AsyncClient, url: str) -> str | None:
        """What keeps the endpoint from answering as yet, or None. Raises ValueError if it never will."""
        try:
            response = await http.get(url, timeout=10.0)
        except httpx.TransportError as error:
            return f"{url} cannot be reached: {type(error).__name__}: {error}"
        if response.status_code in (401, 403):
            variable = self.config.api_key_variable
            raise ValueError(f"{url} answered {response.status_code}: set {variable} to a key it accepts")
        if response.status_code == 404:  # a proxy before the model may not list it
            return None
        if response.status_code != 200:
            return f"{url} answered {response.status_code}"
        try:
            served = [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            return None
        if served and self.config.model not in served:
            raise ValueError(f"{url} does not serve {self.config.model!r}; it serves {', '.join(served[:20])}")
        return None

    def _client(self) -> httpx.AsyncClient:
        key = os.environ.get(self.config.api_key_variable)
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=self._transport,
            limits=httpx.Limits(max_connections=self.config.concurrency),
        )
