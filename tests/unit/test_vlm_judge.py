"""The judge against a small endpoint of our own: what it is sent, how answers are read, what becomes of failures."""

import asyncio
import base64
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from reward_api import Item, ItemError, Outcome, Score
from reward_services.scoring import info_of
from reward_services.vlm_judge import scorer as judge_module
from reward_services.vlm_judge.config import PRESETS, read_judge, read_score
from reward_services.vlm_judge.endpoint import retry_after
from reward_services.vlm_judge.scorer import VlmJudgeScorer

pytestmark = pytest.mark.unit

BASE = "http://judge/v1"
Answer = Callable[[dict[str, Any]], Any]


class Endpoint:
    """An OpenAI-compatible endpoint; `answer` turns a request body into a text or a whole response."""

    def __init__(self, answer: Answer = lambda body: "Final Score: 4", models: Any = ("judge-7b",)) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.at_once = self.most_at_once = 0
        self.app = FastAPI()

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request) -> Any:
            body = await request.json()
            self.bodies.append(body)
            self.headers.append(httpx.Headers(request.headers.raw))
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            await asyncio.sleep(0.01)
            self.at_once -= 1
            said = answer(body)
            if asyncio.iscoroutine(said):
                said = await said
            return said if isinstance(said, Response) else completion(said)

        @self.app.get("/v1/models")
        async def listed() -> Any:
            return models if isinstance(models, Response) else {"data": [{"id": name} for name in models]}

    def scorer(self, **settings: str) -> VlmJudgeScorer:
        chosen = {"preset": "unified_reward", "base_url": BASE, "model": "judge-7b"} | settings
        return VlmJudgeScorer(**chosen, transport=httpx.ASGITransport(self.app))  # type: ignore[arg-type]


def completion(text: Any, finish_reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}


def config_file(tmp_path: Path, **settings: Any) -> str:
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump({"preset": "unified_reward", "deadline_s": 20, **settings}))
    return str(path)


def items(*prompts: str) -> list[Item]:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    return [Item(pixels, prompt) for prompt in prompts]


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][1]["text"])


def fault(outcome: Outcome) -> ItemError:
    assert isinstance(outcome, ItemError)
    return outcome


def test_image_and_prompt_are_sent_and_the_score_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_JUDGE_API_KEY", "sesame")
    endpoint = Endpoint(lambda body: "Nice.\nFinal Score: 3.5")
    (asked,) = items('a cat in {curly} "brackets"')
    (outcome,) = endpoint.scorer().score([asked])
    assert outcome == Score(3.5, {"answer": "Nice.\nFinal Score: 3.5"})
    (body,) = endpoint.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-7b", 0.0, 512)
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(base64.b64decode(data)))), asked.image)
    assert text_of(body).endswith('Text Caption: [a cat in {curly} "brackets"]')
    assert endpoint.headers[0]["authorization"] == "Bearer sesame"


def test_no_key_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM_JUDGE_API_KEY", raising=False)
    endpoint = Endpoint()
    endpoint.scorer().score(items("a"))
    assert "authorization" not in endpoint.headers[0]


def test_answers_find_their_items_with_bounded_concurrency(tmp_path: Path) -> None:
    prompts = [str(n % 5 + 1) for n in range(20)]
    endpoint = Endpoint(lambda body: f"Final Score: {text_of(body)[-2]}")
    scorer = endpoint.scorer(config=config_file(tmp_path, concurrency=3))
    assert [outcome.score for outcome in scorer.score(items(*prompts)) if isinstance(outcome, Score)] == [
        float(prompt) for prompt in prompts
    ]
    assert endpoint.most_at_once == 3
    assert info_of(scorer).batch_limit == 12


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("I would rather not say.", "holds no score of the form"),
        ("", "holds no score"),
        ("Final Score: 9", "score 9 is outside of 1 to 5"),
        ("Final Score: 0", "score 0 is outside of 1 to 5"),
        (None, "no chat completion"),
        (Response("<html>", media_type="text/html"), "no chat completion"),
        (JSONResponse({"choices": []}), "no chat completion"),
        (JSONResponse(completion("Final Score: 4", "length")), "cut at max_tokens"),
        (JSONResponse({"error": "no such model"}, 404), "answered 404: .*no such model"),
        (JSONResponse({"error": "image too large"}, 400), "answered 400: .*image too large"),
    ],
)
def test_no_score_is_an_item_error_and_harms_no_other(answer: Any, words: str) -> None:
    endpoint = Endpoint(lambda body: answer if "bad" in text_of(body) else "Final Score: 2")
    good, bad, again = endpoint.scorer().score(items("a", "bad", "b"))
    assert isinstance(good, Score)
    assert isinstance(again, Score)
    assert (good.score, again.score) == (2.0, 2.0)
    assert fault(bad).code == "scorer_failed"
    assert re.search(words, fault(bad).message)
    assert len(endpoint.bodies) == 3, "what cannot change is asked once"


def busy_at_first(status: int, headers: dict[str, str]) -> Answer:
    answers = iter([JSONResponse({}, status, headers)])
    return lambda body: next(answers, "Final Score: 5")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(status: int) -> None:
    endpoint = Endpoint(busy_at_first(status, {}))
    assert endpoint.scorer().score(items("a")) == [Score(5.0, {"answer": "Final Score: 5"})]
    assert len(endpoint.bodies) == 2


def test_not_before_retry_after() -> None:
    endpoint = Endpoint(busy_at_first(429, {"Retry-After": "1"}))
    started = time.monotonic()
    (outcome,) = endpoint.scorer().score(items("a"))
    assert isinstance(outcome, Score)
    assert time.monotonic() - started >= 1


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    endpoint = Endpoint(lambda body: JSONResponse({}, 429, {"Retry-After": "600"}))
    started = time.monotonic()
    (outcome,) = endpoint.scorer().score(items("a"))
    assert fault(outcome).code == "overloaded"
    assert fault(outcome).retryable
    assert time.monotonic() - started < 20
    assert len(endpoint.bodies) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert 25 < retry_after({"retry-after": later}) <= 30
    assert retry_after({"retry-after": "soon"}) == retry_after({}) == retry_after({"retry-after": "-3"}) == 0


def test_attempts_are_counted(tmp_path: Path) -> None:
    endpoint = Endpoint(lambda body: JSONResponse({}, 503))
    (outcome,) = endpoint.scorer(config=config_file(tmp_path, attempts=2)).score(items("a"))
    assert fault(outcome).code == "no_replica"
    assert len(endpoint.bodies) == 2


def test_a_silent_endpoint_meets_the_deadline(tmp_path: Path) -> None:
    endpoint = Endpoint(lambda body: asyncio.sleep(30))
    started = time.monotonic()
    (outcome,) = endpoint.scorer(config=config_file(tmp_path, deadline_s=0.3)).score(items("a"))
    assert fault(outcome).code == "deadline"
    assert time.monotonic() - started < 10


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    path = config_file(tmp_path, attempts=1, base_url="http://127.0.0.1:9/v1", model="m")
    (outcome,) = VlmJudgeScorer(config=path).score(items("a"))
    assert fault(outcome).code == "no_replica"
    assert "http://127.0.0.1:9/v1/chat/completions cannot be reached" in fault(outcome).message


def test_warm_up_finds_the_model() -> None:
    Endpoint().scorer().warm_up()
    Endpoint(models=Response(status_code=404)).scorer().warm_up()
    with pytest.raises(ValueError, match="does not serve 'judge-70b'; it serves judge-7b"):
        Endpoint().scorer(model="judge-70b").warm_up()
    with pytest.raises(ValueError, match="answered 401: set VLM_JUDGE_API_KEY to a key it accepts"):
        Endpoint(models=Response(status_code=401)).scorer().warm_up()


def test_warm_up_waits_for_an_endpoint_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "_LOOK_EVERY_S", 0.01)
    endpoint = Endpoint()
    looks = iter([Response(status_code=503)] * 3)
    served = endpoint.app

    async def loading(scope: Any, receive: Any, send: Any) -> None:
        response = next(looks, None)
        await (served if response is None else response)(scope, receive, send)

    settings = {"preset": "qwen_vl", "base_url": BASE, "model": "judge-7b"}
    VlmJudgeScorer(**settings, transport=httpx.ASGITransport(loading)).warm_up()  # type: ignore[arg-type]
    assert next(looks, None) is None
    path = config_file(tmp_path, start_timeout_s=0.05)
    with pytest.raises(ValueError, match=r"no judge within 0.05 s: .*models answered 503"):
        Endpoint(models=Response(status_code=503)).scorer(config=path).warm_up()


@pytest.mark.parametrize(
    ("preset", "answer", "score"),
    [
        ("unified_reward", "The hat is missing.\nFinal Score: 2", 2.0),
        ("unified_reward", "Final Score: **4.5**", 4.5),
        ("unified_reward", "I was told: 'Final Score: 1'. I say\nFinal Score: 5", 5.0),
        ("qwen_vl", "All there. <score> 8 </score>", 8.0),
        ("qwen_vl", "<score>0</score>", 0.0),
    ],
)
def test_presets_read_their_own_form(preset: str, answer: str, score: float) -> None:
    assert read_score(answer, read_judge(preset=preset, base_url=BASE, model="m")) == score


def test_a_file_over_a_preset_and_options_over_both(tmp_path: Path) -> None:
    path = config_file(tmp_path, model="from-file", base_url="http://file/v1/", high=4.0)
    config = read_judge(path, model="from-option")
    assert (config.model, config.base_url, config.high, config.low) == ("from-option", "http://file/v1", 4.0, 1.0)
    assert config.prompt == PRESETS["unified_reward"]["prompt"]
    assert read_judge(path, "qwen_vl").prompt == PRESETS["qwen_vl"]["prompt"]


def test_another_question_is_another_version(tmp_path: Path) -> None:
    versions = {
        VlmJudgeScorer(config=config_file(tmp_path, model="m", base_url=BASE, **change)).version
        for change in ({}, {"concurrency": 2}, {"prompt": "Grade {prompt}"}, {"temperature": 0.5})
    }
    assert len(versions) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "how good?"}, "prompt: .*must contain {prompt}"),
        ({"pattern": r"\d+"}, "pattern: .*needs a group"),
        ({"pattern": "("}, "pattern: .*is no regular expression"),
        ({"low": 5.0}, "low 5 must be below high 5"),
        ({"base_url": "judge:8000"}, "base_url: .*must be an http"),
        ({"colour": 1}, "colour: "),
        ({"preset": "gpt"}, "no preset 'gpt'; there are unified_reward, qwen_vl"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    path = config_file(tmp_path, **{"base_url": BASE, "model": "m", **settings})
    with pytest.raises(ValueError, match=words) as caught:
        VlmJudgeScorer(config=path)
    assert path in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base_url: Field required; model: Field required"):
        VlmJudgeScorer(preset="qwen_vl")
    with pytest.raises(ValueError, match=r"a preset \(unified_reward, qwen_vl\) brings all but base_url and model"):
        VlmJudgeScorer()
    with pytest.raises(ValueError, match=r"absent.yaml cannot be read"):
        VlmJudgeScorer(config=str(tmp_path / "absent.yaml"))
