"""What a judge is asked, where, and how its answer is read; one YAML file, or a preset and a few options."""

import math
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0)]

PRESETS: dict[str, dict[str, Any]] = {
    # UnifiedReward's pointwise form: caption in brackets, a grade of 1 to 5 after "Final Score:".
    "unified_reward": {
        "prompt": (
            "Judge a generated image against the caption it was made from, by two criteria:\n"
            "1. Alignment: the objects, attributes and relations of the caption are in the image.\n"
            "2. Quality: the image is clear, detailed, of faithful color and pleasing.\n"
            "End with a score from 1 to 5 after 'Final Score:'.\n"
            "Text Caption: [{prompt}]"
        ),
        "pattern": r"Final Score:\s*\**\s*(\d+(?:\.\d+)?)",
        "low": 1.0,
        "high": 5.0,
    },
    # For instructed models such as Qwen-VL, which keep to a form they are shown.
    "qwen_vl": {
        "prompt": (
            "This image was generated from the text below. Name in one or two sentences what of the text is missing or "
            "wrong in the image and what looks flawed. Then grade the image from 0 (unrelated or broken) to 10 "
            "(everything is there and looks right) in exactly this form: <score>GRADE</score>\n"
            "Text: {prompt}"
        ),
        "pattern": r"<score>\s*(\d+(?:\.\d+)?)\s*</score>",
        "low": 0.0,
        "high": 10.0,
    },
}


class JudgeConfig(BaseModel):
    """The settings of one judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str  # up to and with /v1; chat/completions is appended
    model: str = Field(min_length=1)  # as the endpoint calls it
    prompt: str  # what is asked beside the image; {prompt} stands for the item's prompt
    pattern: str  # regular expression whose first group is the score; the last match in the answer counts
    low: float  # a number outside of [low, high] is no score
    high: float
    max_tokens: int = Field(512, ge=1)  # an answer cut short has no score
    temperature: float = Field(0.0, ge=0)
    extra_body: dict[str, Any] = {}  # further members of the request, such as {chat_template_kwargs: {...}}
    concurrency: int = Field(16, ge=1)  # requests in flight
    deadline_s: Seconds = 60.0  # for one image, all attempts together
    attempts: int = Field(4, ge=1)
    start_timeout_s: Seconds = 600.0  # how long the service waits, not ready, for the endpoint to come up
    api_key_variable: str = "VLM_JUDGE_API_KEY"  # where the key is in the environment; absent means none is sent

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"must be an http:// or https:// address, got {url!r}")
        return url.rstrip("/")

    @field_validator("prompt")
    @classmethod
    def _holds_the_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("must contain {prompt}")
        return template

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if groups < 1:
            raise ValueError("needs a group in parentheses around the score")
        return pattern

    @model_validator(mode="after")
    def _is_a_range(self) -> "JudgeConfig":
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


def read_judge(path: str = "", preset: str = "", **chosen: str) -> JudgeConfig:
    """The settings of a YAML file over those of a preset, `chosen` ones over both where they are not empty.

    The file may name its preset itself. Raises ValueError naming file and setting.
    """
    document: Any = {}
    where = f"judge config {path}" if path else "judge"
    try:
        if path:
            document = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{where} must be a table of settings")
    named = preset or document.pop("preset", "")
    document.pop("preset", None)
    if named and named not in PRESETS:
        raise ValueError(f"{where}: there is no preset {named!r}; there are {', '.join(PRESETS)}")
    settings = PRESETS.get(named, {}) | document | {key: value for key, value in chosen.items() if value}
    try:
        return JudgeConfig.model_validate(settings)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        if not named and any(fault["type"] == "missing" for fault in error.errors()):
            faults += f"; a preset ({', '.join(PRESETS)}) brings all but base_url and model"
        raise ValueError(f"{where}: {faults}") from error


def read_score(answer: str, config: JudgeConfig) -> float:
    """The score in a judge's answer. Raises ValueError where there is none."""
    found = [match.group(1) for match in re.finditer(config.pattern, answer)]
    if not found:
        raise ValueError(f"the answer holds no score of the form {config.pattern}: {answer[-200:]!r}")
    try:
        score = float(found[-1])
    except (TypeError, ValueError):
        raise ValueError(f"the answer's score {found[-1]!r} is no number") from None
    if not (math.isfinite(score) and config.low <= score <= config.high):
        raise ValueError(f"the answer's score {score:g} is outside of {config.low:g} to {config.high:g}")
    return score
