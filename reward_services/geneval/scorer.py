"""GenEval behind the HTTP contract: detector, colors, verdict and reward in one ``Scorer``."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from reward_api import ErrorCode, Item, ItemError, Outcome, Score
from reward_services.geneval.colors import PaletteColors
from reward_services.geneval.detector import ColorClassifier, Detection, Detector, Image
from reward_services.geneval.metadata import (
    BadMetadataError,
    Metadata,
    NoTemplateError,
    Templates,
    check_vocabulary,
    read_metadata,
)
from reward_services.geneval.reward import reward
from reward_services.geneval.shapes import ShapesDetector
from reward_services.geneval.verdict import THRESHOLD, by_class, evaluate, kept, threshold
from tiny_world.prompts import WORLDS

Mode = Literal["reward", "official"]


def _shapes(world: str | None) -> tuple[Detector, ColorClassifier]:
    if world is None:
        return ShapesDetector(), PaletteColors()
    shapes, colors = WORLDS[world].shapes, WORLDS[world].colors
    return ShapesDetector(shapes, colors), PaletteColors(colors)


DETECTORS: dict[str, Callable[[str | None], tuple[Detector, ColorClassifier]]] = {"shapes": _shapes}
"""Name of a detector -> what makes it and its color classifier for a world."""


class GenEvalScorer:
    """The RL reward in [0, 1], or with ``mode="official"`` the benchmark's verdict as 0 or 1.

    ``world`` narrows classes and colors to those of a tiny world; ``compat="flow_grpo"`` gives the reference reward
    server's RL reward, faults included.
    """

    name = "geneval"
    version = "1"
    metadata = "GenEval's metadata line; without it the prompt must follow one of GenEval's six templates"
    batch_limit = 32
    batch_invariant = True

    def __init__(
        self,
        detector: str = "shapes",
        world: str | None = None,
        mode: Mode = "reward",
        compat: str | None = None,
    ) -> None:
        _check("detector", detector, DETECTORS)
        _check("world", world, (None, *WORLDS))
        _check("mode", mode, ("reward", "official"))
        _check("compat", compat, (None, "flow_grpo"))
        if mode == "official" and compat is not None:
            raise ValueError(f"compat={compat!r} is about the RL reward and has no meaning with mode='official'")
        self._detector, self._colors = DETECTORS[detector](world)
        self._templates = Templates(self._detector.classes, self._colors.names)
        self._mode, self._compat = mode, compat
        self.low, self.high = (-14.0 if compat else 0.0), 1.0
        self.meaning = {
            "official": "1 if GenEval's official verdict is correct, else 0",
            "reward": "share of objects, counts, colors and relations that are as the prompt asks",
        }[mode]

    def warm_up(self) -> None:
        self._detector.detections([np.full((64, 64, 3), 128, dtype=np.uint8)])

    def score(self, batch: Sequence[Item]) -> list[Outcome]:
        """One outcome an item. Details: correct, tag, reason, detections above .3, threshold, reward's terms."""
        asked = [self._metadata(item) for item in batch]
        images = [item.image for item, metadata in zip(batch, asked, strict=True) if isinstance(metadata, Metadata)]
        found = iter(self._detector.detections(images))
        return [
            metadata if isinstance(metadata, ItemError) else self._outcome(item.image, metadata, next(found))
            for item, metadata in zip(batch, asked, strict=True)
        ]

    def _metadata(self, item: Item) -> Metadata | ItemError:
        try:
            if item.metadata is not None:
                metadata = read_metadata(item.metadata)
                check_vocabulary(metadata, self._detector.classes, self._colors.names)
                return metadata
            if not item.prompt.strip():
                return ItemError(ErrorCode.MISSING_PROMPT, "geneval needs a prompt or metadata")
            return self._templates.parse(item.prompt)
        except BadMetadataError as error:
            return ItemError(ErrorCode.BAD_METADATA, f"geneval metadata: {error}")
        except NoTemplateError as error:
            return ItemError(ErrorCode.MISSING_METADATA, str(error))

    def _outcome(self, image: Image, metadata: Metadata, found: list[Detection]) -> Score:
        groups = by_class(found)
        colors = self._named_colors(image, metadata, groups)

        def color_of(detection: Detection) -> str:
            return colors[id(detection)]

        verdict = evaluate(groups, metadata, color_of)
        graded = reward(groups, metadata, color_of, self._compat)
        details = {
            "correct": verdict.correct,
            "tag": metadata.tag,
            "reason": verdict.reason,
            "threshold": threshold(metadata.tag),
            "detections": [_described(d, colors.get(id(d))) for d in found if d.score > THRESHOLD],
            "terms": [{"class": term.label, "asked": term.asked, "value": term.value} for term in graded.terms],
        }
        return Score(float(verdict.correct) if self._mode == "official" else graded.score, details)

    def _named_colors(self, image: Image, metadata: Metadata, groups: dict[str, list[Detection]]) -> dict[int, str]:
        """Color names by the detection's id, of the detections whose class is asked in a color."""
        in_color = {clause.name for clause in metadata.include if clause.color is not None}
        things = [d for label, group in kept(groups, metadata.tag).items() if label in in_color for d in group]
        return dict(zip(map(id, things), self._colors.colors(image, things), strict=True))


def _described(detection: Detection, color: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "class": detection.label,
        "box": [round(float(edge), 2) for edge in detection.box],
        "score": round(float(detection.score), 4),
    }
    return described if color is None else {**described, "color": color}


def _check(option: str, value: str | None, allowed: Iterable[str | None]) -> None:
    choices = tuple(allowed)
    if value not in choices:
        raise ValueError(f"{option}={value!r}: must be one of {', '.join(map(str, choices))}")
