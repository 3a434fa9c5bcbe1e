"""Prompt sets, and which prompts an epoch draws from them. Imports without torch."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_world
from trainer.config import PromptSource
from trainer.draws import stream


class PromptError(Exception):
    """A prompt file that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, its GenEval metadata if any, its task, and the weight of each reward asked of it."""

    text: str
    metadata: dict[str, Any] | None
    tag: str
    rewards: dict[str, float]


def resolve(path: str) -> Path:
    """``tiny_world:FOLDER/FILE`` lies inside the installed package; anything else is an ordinary path."""
    if path.startswith("tiny_world:"):
        return Path(tiny_world.__file__).parent / path.removeprefix("tiny_world:")
    return Path(path)


def load_prompts(source: PromptSource) -> list[Prompt]:
    """Reads a JSONL file of metadata lines, or a text file with a prompt a line. Raises PromptError."""
    path = resolve(source.path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also split inside JSON strings
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8: {error}") from error
    prompts = [_parse(line, path, number, source) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise PromptError(f"{path}: holds no prompt")
    if source.tag_weights:
        unknown = set(source.tag_weights) - {prompt.tag for prompt in prompts}
        if unknown:
            raise PromptError(f"{path}: tag_weights name tags no prompt has: {', '.join(sorted(unknown))}")
    return prompts


def _parse(line: str, path: Path, number: int, source: PromptSource) -> Prompt:
    if path.suffix != ".jsonl":
        return Prompt(line.strip(), None, "prompt", source.rewards)
    try:
        metadata = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{path}, line {number}: is not JSON: {error}") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str) or not metadata["prompt"]:
        raise PromptError(f'{path}, line {number}: needs a non-empty "prompt"')
    text = metadata["prompt"]
    return Prompt(text, metadata if "include" in metadata else None, metadata.get("tag", "prompt"), source.rewards)


class PromptMix:
    """Draws an epoch's prompts from several weighted sources."""

    def __init__(self, sources: Sequence[PromptSource], seed: int) -> None:
        self._seed = seed
        self._sources = [(source, load_prompts(source)) for source in sources]

    def epoch(self, epoch: int, groups: int) -> list[Prompt]:
        """The prompt of each group slot; a function of the seed and the epoch alone."""
        return [self._draw(stream(self._seed, "prompt", epoch, slot)) for slot in range(groups)]

    def _draw(self, rng: random.Random) -> Prompt:
        source, prompts = rng.choices(self._sources, [source.weight for source, _ in self._sources])[0]
        if source.tag_weights:
            tag = rng.choices(list(source.tag_weights), list(source.tag_weights.values()))[0]
            prompts = [prompt for prompt in prompts if prompt.tag == tag]
        return rng.choice(prompts)
