"""Evaluation: held-out prompts, the ODE, fixed seeds; and ``flow-grpo evaluate``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from trainer.config import ConfigError, EvaluationConfig, load_config
from trainer.diversity import ImageEmbedder, diversity
from trainer.draws import key
from trainer.models.sd3 import SD3, ModelError
from trainer.prompt_records import PromptError
from trainer.prompts import Prompt, load_prompts
from trainer.rollout import sample
from trainer.scoring import Outcomes, RewardFailure, RewardScorer
from trainer.task_table import RewardSummary, Tally, result, table


@dataclass(frozen=True)
class Judged:
    """One evaluated image: ``scores`` holds each reward's result, None where it is missing."""

    prompt: str
    tag: str
    image: NDArray[np.uint8]
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """``diversity`` holds each prompt's, empty where the recipe names no embedder."""

    rewards: dict[str, RewardSummary]
    images: list[Judged]
    diversity: dict[str, float]

    def save(self, folder: Path, label: str) -> None:
        """Writes ``LABEL.json`` and the pictures beside it."""
        pictures = folder / label
        pictures.mkdir(parents=True, exist_ok=True)
        items = []
        for index, judged in enumerate(self.images):
            name = f"{index:04d}.png"
            Image.fromarray(judged.image).save(pictures / name)
            items.append(
                {"prompt": judged.prompt, "tag": judged.tag, "image": f"{label}/{name}", "scores": judged.scores}
            )
        summary = {name: asdict(reward) for name, reward in self.rewards.items()}
        content = {"rewards": summary, "items": items, "diversity": self.diversity}
        (folder / f"{label}.json").write_text(json.dumps(content, indent=1))


def plan(prompts: Sequence[Prompt], config: EvaluationConfig) -> list[tuple[Prompt, int]]:
    """(prompt, noise key) of each image: ``images_per_task`` for every tag, its prompts in turn."""
    by_tag: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_tag.setdefault(prompt.tag, []).append(prompt)
    chosen = []
    for tag, same in by_tag.items():
        count = config.images_per_task
        for index in range(count):
            # With more prompts than images, a stride through the list still meets all kinds of prompts.
            row = index * len(same) // count if len(same) > count else index % len(same)
            chosen.append((same[row], key(config.seed, "evaluate", tag, index)))
    return chosen


def evaluate(
    model: SD3,
    scorer: RewardScorer,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    guidance: float,
    label: str,
    embedder: ImageEmbedder | None = None,
) -> Evaluation:
    """Draws and scores the held-out images with whatever weights the model holds. Raises RewardFailure."""
    chosen = plan(prompts, config)
    unconditional = model.encode([""]) if guidance > 1 else None
    pending: list[Future[Outcomes]] = []
    drawn: list[NDArray[np.uint8]] = []
    with tqdm(total=len(chosen), desc=f"evaluate {label}", unit="image", dynamic_ncols=True) as bar:
        for start in range(0, len(chosen), config.batch):
            batch = chosen[start : start + config.batch]
            batch_prompts = [prompt for prompt, _ in batch]
            images = sample(
                model,
                model.encode([prompt.text for prompt in batch_prompts]),
                unconditional.expand(len(batch)) if unconditional else None,
                [noise for _, noise in batch],
                config.steps,
                guidance,
                config.solver,
            )
            pending.append(scorer.submit(images, batch_prompts))
            drawn.extend(images)
            bar.update(len(batch))
    answers = [answer for future in pending for answer in scorer.collect(future, f"the evaluation {label!r}")]
    judged = [
        Judged(prompt.text, prompt.tag, image, {name: result(answer.get(name)) for name in prompt.rewards})
        for (prompt, _), image, answer in zip(chosen, drawn, answers, strict=True)
    ]
    names = sorted({name for judge in judged for name in judge.scores})
    spread = diversity(embedder.embed(drawn), [prompt.text for prompt, _ in chosen]) if embedder else {}
    return Evaluation({name: summarise(judged, name) for name in names}, judged, spread)


def evaluation_embedder(config: EvaluationConfig, model: SD3) -> ImageEmbedder | None:
    """What the recipe's images are embedded with for their diversity, on the model's device. Raises ModelError."""
    return ImageEmbedder(config.embedder, model.device) if config.embedder else None


def summarise(images: Sequence[Judged], reward: str) -> RewardSummary:
    """Mean over tasks of each task's mean. Raises RewardFailure if a task has no score at all."""
    tally = Tally()
    for judged in images:
        if reward in judged.scores:
            tally.add(judged.tag, judged.prompt, judged.scores[reward])
    if unscored := tally.unscored():
        raise RewardFailure(f"the evaluation has no {reward} score for any image of the task {unscored[0]!r}")
    return tally.summary()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="flow-grpo evaluate", description="Evaluates a recipe's model, or a LoRA of it, on the held-out prompts."
    )
    parser.add_argument("recipe")
    parser.add_argument("--lora", type=Path, help="folder with pytorch_lora_weights.safetensors; without it the base")
    parser.add_argument("--out", type=Path, help="folder for the results as JSON and the pictures")
    options, overrides = parser.parse_known_args(argv)
    try:
        config = load_config(options.recipe, overrides, os.environ)
        prompts = [prompt for source in config.evaluation.prompts for prompt in load_prompts(source)]
        if not prompts:
            raise ConfigError(f"{options.recipe}: evaluation.prompts is empty")
        with RewardScorer(config.rewards) as scorer:
            scorer.require({name for prompt in prompts for name in prompt.rewards})
            model = SD3(config.model, config.lora, config.seed)
            if options.lora:
                model.load_lora(options.lora)
            embedder = evaluation_embedder(config.evaluation, model)
            outcome = evaluate(model, scorer, prompts, config.evaluation, config.rollout.guidance, "held-out", embedder)
    except (ConfigError, PromptError, ModelError, RewardFailure) as error:
        sys.stderr.write(f"flow-grpo evaluate: {error}\n")
        return 1
    if options.out:
        outcome.save(options.out, "evaluation")
    sys.stdout.write(table(None, outcome.rewards) + "\n")
    if outcome.diversity:
        mean = sum(outcome.diversity.values()) / len(outcome.diversity)
        sys.stdout.write(f"diversity        {mean:.3f} of {len(outcome.diversity)} prompts\n")
    return 0
