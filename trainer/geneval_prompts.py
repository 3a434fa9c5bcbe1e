"""GenEval's prompts over its 80 classes: as many as wanted of each task, none that asks for a picture of a test set.

Templates, classes, colors and metadata are the benchmark's own: colored prompts are never about a person, and plurals
are formed as it forms them ("two benchs"). Unlike its generator, which draws with replacement and then drops what came
twice, a prompt is repeated only after every other prompt of its task.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from tiny_world.prompts import (
    NUMBERS,
    RELATIONS,
    WORLDS,
    Metadata,
    color_attr,
    colors,
    counting,
    picture_key,
    position,
    single_object,
    two_object,
)
from trainer.draws import stream
from trainer.prompt_records import PromptError

# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
# fmt: on
"""COCO's 80 classes as GenEval spells them: three of COCO's names are made plain (computer mouse, tv remote,
computer keyboard)."""
COLORS = WORLDS["full"].colors
"""The ten colors, which the tiny world took over from GenEval."""
TRAINING_MIX = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0}
"""The paper's shares; single objects are never trained on."""

_COLORED = tuple(name for name in CLASSES if name != "person")


@dataclass(frozen=True)
class Family:
    """All prompts of one task: how many there are, and the one at an index."""

    size: int
    at: Callable[[int], Metadata]


def generate(
    count: int, seed: int, mix: Mapping[str, float] = TRAINING_MIX, exclude: Collection[str] = ()
) -> list[Metadata]:
    """``count`` metadata lines in random order, shared among the tasks by ``mix``; a function of the arguments alone.

    ``exclude`` holds keys of ``tiny_world.prompts.picture_key``. Raises PromptError if a task has no prompt left.
    """
    if unknown := mix.keys() - FAMILIES:
        raise PromptError(f"GenEval has no task {', '.join(sorted(unknown))}; its tasks are {', '.join(FAMILIES)}")
    lines: list[Metadata] = []
    for task, wanted in apportion(count, mix).items():
        drawn = list(itertools.islice(_draw(task, seed, exclude), wanted))
        if wanted and not drawn:
            raise PromptError(f"all {FAMILIES[task].size} prompts of the task {task} are excluded")
        lines.extend(itertools.islice(itertools.cycle(drawn), wanted))
    stream(seed, "geneval", "order").shuffle(lines)
    return lines


def apportion(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """``count`` shared out in proportion, by largest remainder; the sum is exact. Raises PromptError."""
    total = sum(shares.values())
    if not total > 0 or min(shares.values()) < 0:
        raise PromptError(f"shares must be at least 0 and not all 0, got {dict(shares)}")
    exact = {name: count * share / total for name, share in shares.items()}
    parts = {name: int(part) for name, part in exact.items()}
    by_remainder = sorted(exact, key=lambda name: parts[name] - exact[name])
    for name in by_remainder[: count - sum(parts.values())]:
        parts[name] += 1
    return parts


def _draw(task: str, seed: int, exclude: Collection[str]) -> Iterator[Metadata]:
    """The task's prompts that are not excluded, each once, in random order."""
    family = FAMILIES[task]
    order = stream(seed, "geneval", task).sample(range(family.size), family.size)
    prompts = (family.at(index) for index in order)
    return (prompt for prompt in prompts if picture_key(prompt) not in exclude)


def _two_of(index: int, size: int) -> tuple[int, int]:
    """The pair of different numbers below ``size`` at an index below size * (size - 1)."""
    first, second = divmod(index, size - 1)
    return first, second + (second >= first)


def _two_object(index: int) -> Metadata:
    first, second = _two_of(index, len(CLASSES))
    return two_object(CLASSES[first], CLASSES[second])


def _counting(index: int) -> Metadata:
    which, number = divmod(index, len(NUMBERS))
    return counting(CLASSES[which], list(NUMBERS)[number])


def _colors(index: int) -> Metadata:
    which, color = divmod(index, len(COLORS))
    return colors(_COLORED[which], COLORS[color])


def _position(index: int) -> Metadata:
    pair, relation = divmod(index, len(RELATIONS))
    first, second = _two_of(pair, len(CLASSES))
    return position(CLASSES[first], RELATIONS[relation], CLASSES[second])


def _color_attr(index: int) -> Metadata:
    pair, tints = divmod(index, len(COLORS) * (len(COLORS) - 1))
    first, second = _two_of(pair, len(_COLORED))
    one, two = _two_of(tints, len(COLORS))
    return color_attr(_COLORED[first], COLORS[one], _COLORED[second], COLORS[two])


FAMILIES = {
    "single_object": Family(len(CLASSES), lambda index: single_object(CLASSES[index])),
    "two_object": Family(len(CLASSES) * (len(CLASSES) - 1), _two_object),
    "counting": Family(len(CLASSES) * len(NUMBERS), _counting),
    "colors": Family(len(_COLORED) * len(COLORS), _colors),
    "position": Family(len(CLASSES) * (len(CLASSES) - 1) * len(RELATIONS), _position),
    "color_attr": Family(
        len(_COLORED) * (len(_COLORED) - 1) * len(COLORS) * (len(COLORS) - 1),
        _color_attr,
    ),
}
