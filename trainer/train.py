"""``flow-grpo train``: rollouts scored while the next are drawn, advantages, updates, checkpoints."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from reward_api import Score
from trainer import advantages as adv
from trainer.checkpoint import CheckpointError, Checkpoints, restore
from trainer.config import ConfigError, TrainConfig, load_config
from trainer.ema import MovingAverage
from trainer.evaluate import Evaluation, evaluate, evaluation_embedder
from trainer.grids import Sample, save_grid
from trainer.models.sd3 import SD3, Conditioning, ModelError
from trainer.prompt_records import PromptError
from trainer.prompts import Prompt, PromptMix, load_prompts
from trainer.report import write_report
from trainer.rollout import Rollout, roll_out, window
from trainer.scoring import Outcomes, RewardFailure, RewardScorer, RewardTable, tabulate
from trainer.tracking import Tracker
from trainer.update import PolicyUpdate, TrainingFailure

RUN_CONTENTS = (
    "checkpoints",
    "config.yaml",
    "evaluation",
    "metrics.jsonl",
    "report.html",
    "samples",
    "summary.json",
    "tensorboard",
)
"""What a run writes into its folder; starting again removes these and nothing else."""


class Run:
    """One training run: the model, its optimizer and the folder they report to."""

    def __init__(self, config: TrainConfig, scorer: RewardScorer, folder: Path) -> None:
        self.config, self.scorer, self.folder = config, scorer, folder
        self.mix = PromptMix(config.prompts, config.seed)
        self.held_out = [prompt for source in config.evaluation.prompts for prompt in load_prompts(source)]
        scorer.require(self._rewards_needed())
        self.model = SD3(config.model, config.lora, config.seed)
        self.average = MovingAverage(self.model.lora_parameters(), config.optimizer.ema_decay)
        self.update = PolicyUpdate(
            self.model, self.average, config.rollout, config.loss, config.optimizer, config.epochs
        )
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.unconditional = self.model.encode([""]) if config.rollout.guidance > 1 else None
        self.embedder = evaluation_embedder(config.evaluation, self.model)
        self.epochs_done = 0

    def _rewards_needed(self) -> set[str]:
        sources = (*self.config.prompts, *self.config.evaluation.prompts)
        return {name for source in sources for name in source.rewards}

    def resume(self) -> None:
        """Goes on from the latest checkpoint, if there is one."""
        if checkpoint := self.checkpoints.latest():
            self.epochs_done = restore(checkpoint, self.model, self.average, self.update, self.mix)

    def epoch(self, number: int) -> dict[str, float]:
        """Rollouts, scores, advantages, update; returns the epoch's metrics."""
        config = self.config
        started = time.monotonic()
        waited = self.scorer.exposed_wait_s
        prompts = self.mix.epoch(number, config.rollout.groups)
        rollouts, pending = self._draw(prompts, number)
        drawn = time.monotonic()
        outcomes = self._outcomes(rollouts, pending, number)
        collected = time.monotonic()
        rewards = tabulate(outcomes, prompts, config.rewards.details)
        rewards.check(config.rewards.max_missing)
        weights = [prompt.rewards for prompt in prompts]
        total_SG = adv.weighted_sum(rewards.scores, weights)
        self.mix.learn(prompts, total_SG)
        advantage_SG = adv.advantages(rewards.scores, weights, config.advantages)
        statistics = self.update.run(rollouts, advantage_SG)
        finished = time.monotonic()
        if number % config.samples_every == 0:
            self._save_samples(rollouts, outcomes, prompts, number)
        images = config.rollout.groups * config.rollout.group_size
        return {
            **_reward_metrics(rewards, total_SG),
            **statistics.metrics(),
            "time/rollout_s": drawn - started,
            "time/reward_wait_exposed": self.scorer.exposed_wait_s - waited,
            "time/update_s": finished - collected,
            "time/epoch_s": finished - started,
            "throughput/images_per_s": images / (finished - started),
        }

    def _draw(self, prompts: Sequence[Prompt], number: int) -> tuple[list[Rollout], list["Future[Outcomes]"]]:
        """All groups of the epoch; each batch of pictures is sent off to be scored as soon as it is decoded."""
        config = self.config.rollout
        trained = window(config, self.config.seed, number)
        text = self.model.encode([prompt.text for prompt in prompts])
        rollouts: list[Rollout] = []
        pending: list[Future[Outcomes]] = []
        for start in range(0, config.groups, config.groups_per_batch):
            slots = range(start, start + config.groups_per_batch)
            rows = Conditioning(text.tokens_BLD[slots.start : slots.stop], text.pooled_BD[slots.start : slots.stop])
            rollout = roll_out(
                self.model,
                rows,
                self.unconditional,
                slots,
                config,
                self.config.loss.log_prob,
                trained,
                self.config.seed,
                number,
            )
            asked = [prompts[slot] for slot in slots for _ in range(config.group_size)]
            pending.append(self.scorer.submit(rollout.images, asked))
            rollouts.append(rollout)
        return rollouts, pending

    def _outcomes(
        self, rollouts: Sequence[Rollout], pending: Sequence["Future[Outcomes]"], number: int
    ) -> list[Outcomes]:
        """The answers by slot."""
        size = self.config.rollout.group_size
        by_slot: list[Outcomes] = []
        for rollout, future in zip(rollouts, pending, strict=True):
            answers = self.scorer.collect(future, f"epoch {number}, groups {rollout.slots[0]} to {rollout.slots[-1]}")
            by_slot.extend(answers[start : start + size] for start in range(0, len(answers), size))
        return by_slot

    def _save_samples(
        self, rollouts: Sequence[Rollout], outcomes: Sequence[Outcomes], prompts: Sequence[Prompt], number: int
    ) -> None:
        samples = []
        size = self.config.rollout.group_size
        for rollout in rollouts:
            for row, slot in enumerate(rollout.slots):
                for image in range(min(4, size)):
                    answer = outcomes[slot][image].get(next(iter(prompts[slot].rewards)))
                    score = answer.score if isinstance(answer, Score) else None
                    samples.append(Sample(rollout.images[row * size + image], prompts[slot].text, score))
        save_grid(samples[:48], self.folder / "samples" / f"epoch_{number:06d}.png")

    def evaluate(self, label: str) -> Evaluation | None:
        """Held-out prompts with the averaged weights; None where the recipe names none."""
        if not self.held_out:
            return None
        config = self.config
        with self.average.applied():
            outcome = evaluate(
                self.model,
                self.scorer,
                self.held_out,
                config.evaluation,
                config.rollout.guidance,
                label,
                self.embedder,
            )
        outcome.save(self.folder / "evaluation", label)
        return outcome

    def save(self) -> None:
        self.checkpoints.save(self.epochs_done, self.model, self.average, self.update, self.mix)


def train(run: Run) -> None:
    """Trains to the recipe's last epoch, evaluating before and after, and writes summary and report."""
    config, started = run.config, time.monotonic()
    before_path = run.folder / "evaluation" / "before.json"
    if run.epochs_done == 0:
        run.evaluate("before")
    with (
        Tracker(run.folder, run.epochs_done) as tracker,
        tqdm(
            range(run.epochs_done + 1, config.epochs + 1),
            initial=run.epochs_done,
            total=config.epochs,
            desc="train",
            unit="epoch",
            dynamic_ncols=True,
        ) as bar,
    ):
        for number in bar:
            metrics = run.epoch(number)
            run.epochs_done = number
            tracker.log(number, metrics)
            bar.write(epoch_line(number, metrics))
            if number % config.checkpoint_every == 0 or number == config.epochs:
                run.save()
            if config.evaluation.every and number % config.evaluation.every == 0 and number < config.epochs:
                run.evaluate(f"epoch_{number:06d}")
    after = run.evaluate("after")
    seconds = time.monotonic() - started
    summary: dict[str, object] = {"recipe": config.name, "epochs": config.epochs, "seconds": round(seconds, 1)}
    if after is not None:
        summary["after"] = _headline(json.loads((run.folder / "evaluation" / "after.json").read_text()))
        if before_path.exists():
            summary["before"] = _headline(json.loads(before_path.read_text()))
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(run.folder)


def _headline(saved: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    """Score and per-task results of the first reward, and the scores of all."""
    first = next(iter(saved["rewards"].values()))
    return {
        "score": first["score"],
        "tasks": first["tasks"],
        "rewards": {name: reward["score"] for name, reward in saved["rewards"].items()},
    }


def _reward_metrics(rewards: RewardTable, total_SG: NDArray[np.float64]) -> dict[str, float]:
    metrics = {}
    for name, scores in rewards.scores.items():
        known = scores[~np.isnan(scores)]
        if known.size:
            metrics[f"reward/{name}"] = float(known.mean())
            metrics[f"reward/{name}_std"] = float(known.std())
    metrics["reward/missing_fraction"] = rewards.missing_fraction
    metrics["reward/zero_variance_groups"] = adv.zero_variance_fraction(total_SG)
    return metrics


def epoch_line(number: int, metrics: dict[str, float]) -> str:
    """One line an epoch for the terminal."""
    rewards = "  ".join(
        f"{name.removeprefix('reward/')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("reward/") and not name.endswith(("_std", "_fraction", "_groups"))
    )
    return (
        f"epoch {number:4d}  {rewards}  first |log ratio| {metrics['policy/first_log_ratio']:.1e}  "
        f"clipped {metrics['policy/clip_fraction']:.2f}  exposed wait {metrics['time/reward_wait_exposed']:.2f} s  "
        f"{metrics['throughput/images_per_s']:.1f} images/s"
    )


def open_folder(config: TrainConfig, resume: bool, overwrite: bool) -> Path:
    """The run's folder with its settings written down. Raises ConfigError rather than mixing two runs."""
    folder = Path(config.out) / config.name
    if (folder / "config.yaml").exists() and not resume:
        if not overwrite:
            raise ConfigError(f"{folder} holds a run already: pass --resume to go on, --overwrite to start again")
        for name in RUN_CONTENTS:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="flow-grpo train", description="Trains a recipe. Any setting can be overridden: --rollout.groups=16"
    )
    parser.add_argument("recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the run's latest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run of the same name")
    options, overrides = parser.parse_known_args(argv)
    try:
        config = load_config(options.recipe, overrides, os.environ)
        folder = open_folder(config, options.resume, options.overwrite)
        with RewardScorer(config.rewards) as scorer:
            run = Run(config, scorer, folder)
            if options.resume:
                run.resume()
            try:
                train(run)
            except (RewardFailure, TrainingFailure):
                if run.epochs_done:
                    run.save()
                write_report(folder)
                raise
    except (CheckpointError, ConfigError, ModelError, PromptError, RewardFailure, TrainingFailure) as error:
        sys.stderr.write(f"flow-grpo train: {error}\n")
        return 1
    sys.stdout.write(f"{folder}: summary.json, report.html, checkpoints\n")
    return 0
