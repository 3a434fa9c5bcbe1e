"""Results by task: the mean of each task, the mean over tasks, and the tables that show them. Imports without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward_api import Outcome, Score
from tiny_world.prompts import TASKS
from trainer.paired import paired_diversity, paired_rewards

_MEAN = "mean of tasks"


@dataclass(frozen=True)
class RewardSummary:
    """``score`` is the mean over tasks of ``tasks``, the mean result of each task's images."""

    score: float
    tasks: dict[str, float]
    images: int
    missing: int


@dataclass
class TaskTally:
    """Images of one task so far: how many, how many without a score, the sum of the others, and their prompts."""

    images: int = 0
    missing: int = 0
    total: float = 0.0
    prompts: set[str] = field(default_factory=set)

    @property
    def mean(self) -> float | None:
        """Of the images that have a score; None if none has."""
        known = self.images - self.missing
        return self.total / known if known else None


class Tally:
    """Results of one reward as they come, task by task; it holds each prompt once and no image."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskTally] = {}

    def add(self, task: str, prompt: str, value: float | None) -> None:
        """Counts one image; None is a missing score."""
        tally = self.tasks.setdefault(task, TaskTally())
        tally.images += 1
        tally.missing += value is None
        tally.total += value or 0.0
        tally.prompts.add(prompt)

    def unscored(self) -> list[str]:
        """Tasks that have images and not one score."""
        return [task for task, tally in self.tasks.items() if tally.mean is None]

    def summary(self) -> RewardSummary:
        """Of the tasks that have a score; there must be one."""
        means = {task: tally.mean for task, tally in self.tasks.items()}
        known = {task: mean for task, mean in means.items() if mean is not None}
        return RewardSummary(
            sum(known.values()) / len(known),
            known,
            sum(tally.images for tally in self.tasks.values()),
            sum(tally.missing for tally in self.tasks.values()),
        )


def result(outcome: Outcome | None) -> float | None:
    """The benchmark's result of one image: GenEval's official verdict where the details carry one, else the score."""
    if not isinstance(outcome, Score):
        return None
    correct = outcome.details.get("correct")
    return outcome.score if correct is None else float(correct)


def table(before: Mapping[str, RewardSummary] | None, after: Mapping[str, RewardSummary]) -> str:
    """A text table of every reward's tasks, with both columns where there are two evaluations."""
    blocks = []
    for name, reward in after.items():
        old = before.get(name) if before else None
        rows = {}
        for task, value in [*reward.tasks.items(), (_MEAN, reward.score)]:
            earlier = [old.score if task == _MEAN else old.tasks.get(task)] if old else []
            rows[task] = [_figure(number) for number in (*earlier, value)]
        blocks.append(_block(name, ["before", "after"] if old else ["score"], rows))
    return "\n".join(blocks)


def saved_table(folder: Path) -> str:
    """The table of the evaluations ``before`` and ``after`` saved into ``folder``, with paired differences."""
    saved = [json.loads((folder / f"{label}.json").read_text()) for label in ("before", "after")]
    before, after = (
        {name: RewardSummary(**reward) for name, reward in evaluation["rewards"].items()} for evaluation in saved
    )
    lines = [table(before, after)]
    if differences := paired_rewards(*saved):
        lines.append("paired difference of images [95 % interval]")
        lines.extend(f"  {name:<14} {difference}" for name, difference in differences.items())
    if difference := paired_diversity(*saved):
        lines.append(f"diversity, paired difference of prompts\n  {'1 - cos':<14} {difference}")
    return "\n".join(lines)


def counted_table(tallies: Mapping[str, Tally]) -> str:
    """A text table of every reward's tasks with their images, prompts and missing scores: GenEval's summary.

    Missing scores are in no mean. While a task has none at all, the mean of tasks is left open.
    """
    blocks = []
    for name, tally in tallies.items():
        order = [task for task in TASKS if task in tally.tasks] + [task for task in tally.tasks if task not in TASKS]
        rows = {task: _counted(tally.tasks[task].mean, [tally.tasks[task]]) for task in order}
        rows[_MEAN] = _counted(None if tally.unscored() else tally.summary().score, list(tally.tasks.values()))
        blocks.append(_block(name, ["score", "images", "prompts", "missing"], rows))
    return "\n".join(blocks)


def _counted(score: float | None, parts: Sequence[TaskTally]) -> list[str]:
    images, missing = sum(part.images for part in parts), sum(part.missing for part in parts)
    return [_figure(score), str(images), str(sum(len(part.prompts) for part in parts)), str(missing)]


def _figure(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _block(name: str, header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    width = max(16, len(name), *(len(task) + 2 for task in rows))
    lines = [f"{name:<{width}}" + "".join(f"{title:>9}" for title in header)]
    lines += [f"  {task:<{width - 2}}" + "".join(f"{cell:>9}" for cell in cells) for task, cells in rows.items()]
    return "\n".join(lines)
