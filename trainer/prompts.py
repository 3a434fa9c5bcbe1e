"""Prompt sets, and which prompts an epoch draws from them. Imports without torch."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_world import resolve
from trainer.config import DATASETS, PromptSource
from trainer.draws import stream
from trainer.focus import Focus
from trainer.prompt_datasets import dataset_records
from trainer.prompt_records import PromptError, Record, numbered_lines, read_object, read_record


@dataclass(frozen=True)
class Prompt:
    """A prompt, its GenEval metadata if any, its task, and the weight of each reward asked of it."""

    text: str
    metadata: dict[str, Any] | None
    tag: str
    rewards: dict[str, float]


def load_prompts(source: PromptSource) -> list[Prompt]:
    """The prompts of a JSONL file, a text file with a prompt a line, or a Hugging Face dataset. Raises PromptError."""
    dataset = source.path.removeprefix(DATASETS)
    if dataset != source.path:
        name, records = dataset, dataset_records(dataset, source.subset, source.split, source.column)
    else:
        path = resolve(source.path)
        name, records = str(path), _records(path)
    prompts = [Prompt(record.text, record.metadata, record.tag, source.rewards) for record in records]
    if not prompts:
        raise PromptError(f"{name}: holds no prompt")
    if source.tag_weights:
        unknown = set(source.tag_weights) - {prompt.tag for prompt in prompts}
        if unknown:
            raise PromptError(f"{name}: tag_weights name tags no prompt has: {', '.join(sorted(unknown))}")
    return prompts


def _records(path: Path) -> Iterator[Record]:
    for where, line in numbered_lines(path):
        if path.suffix == ".jsonl":
            yield read_record(read_object(line, where), where)
        else:
            yield Record(line.strip(), None, "prompt")


class PromptMix:
    """Draws an epoch's prompts from several weighted sources."""

    def __init__(self, sources: Sequence[PromptSource], seed: int) -> None:
        self._seed = seed
        self._sources = [_Source(source, load_prompts(source), Focus(source.focus)) for source in sources]

    def epoch(self, epoch: int, groups: int) -> list[Prompt]:
        """The prompt of each group slot; a function of the seed, the epoch and what ``learn`` was told so far."""
        return [self._draw(stream(self._seed, "prompt", epoch, slot)) for slot in range(groups)]

    def learn(self, prompts: Sequence[Prompt], total_SG: NDArray[np.float64]) -> None:
        """Takes note of the total rewards of an epoch's groups, for the sources that focus."""
        for prompt, rewards_G in zip(prompts, total_SG, strict=True):
            for source in self._sources:
                if source.settings.focus and prompt in source.prompts:
                    source.focus.learn(prompt.text, rewards_G)

    @property
    def state(self) -> list[dict[str, float]]:
        """What was learned, one entry a source; for checkpoints."""
        return [source.focus.spreads for source in self._sources]

    @state.setter
    def state(self, state: Sequence[dict[str, float]]) -> None:
        for source, spreads in zip(self._sources, state, strict=True):
            source.focus.spreads = dict(spreads)

    def _draw(self, rng: random.Random) -> Prompt:
        source = rng.choices(self._sources, [source.settings.weight for source in self._sources])[0]
        prompts, tags = source.prompts, source.settings.tag_weights
        if tags:
            tag = rng.choices(list(tags), list(tags.values()))[0]
            prompts = [prompt for prompt in prompts if prompt.tag == tag]
        if source.settings.focus:
            return rng.choices(prompts, source.focus.weights([prompt.text for prompt in prompts]))[0]
        return rng.choice(prompts)


@dataclass(frozen=True)
class _Source:
    settings: PromptSource
    prompts: list[Prompt]
    focus: Focus
