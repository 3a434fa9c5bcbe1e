"""GenEval behind the HTTP contract: detector, colors, verdict and reward in one ``Scorer``."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from reward_api import ErrorCode, Item, ItemError, Outcome, Score
from reward_services.geneval.backends import COLOR_CLASSIFIERS, DETECTORS, Choice, make_colors, make_detector
from reward_services.geneval.detector import Detection
from reward_services.geneval.metadata import (
    BadMetadataError,
    Metadata,
    NoTemplateError,
    Templates,
    check_vocabulary,
    read_metadata,
)
from reward_services.geneval.reward import reward
from reward_services.geneval.verdict import THRESHOLD, by_class, evaluate, kept, threshold
from tiny_world.prompts import WORLDS

Mode = Literal["reward", "official"]


class GenEvalScorer:
    """The RL reward in [0, 1], or with ``mode="official"`` the benchmark's verdict as 0 or 1.

    ``detector`` is shapes (the tiny world's), mask2former or mmdet, these two over COCO's classes with the weights
    ``model``; ``colors`` is palette or clip (``colors_model``: a directory or hub id), by default what goes with the
    detector. ``device``, ``half`` (float16 on cuda) and ``images_at_once`` are about these models. ``world`` narrows
    classes and colors to those of a tiny world; ``compat="flow_grpo"`` gives the reference reward server's RL reward,
    faults included.
    """

    name = "geneval"
    metadata = "GenEval's metadata line; without it the prompt must follow one of GenEval's six templates"
    batch_limit = 32

    def __init__(
        self,
        detector: str = "shapes",
        world: str | None = None,
        mode: Mode = "reward",
        compat: str | None = None,
        model: str = "",
        colors: str = "",
        colors_model: str = "",
        device: str = "",
        half: bool = True,
        images_at_once: int = 0,
    ) -> None:
        _check("detector", detector, DETECTORS)
        _check("colors", colors, ("", *COLOR_CLASSIFIERS))
        _check("world", world, (None, *WORLDS))
        _check("mode", mode, ("reward", "official"))
        _check("compat", compat, (None, "flow_grpo"))
        if mode == "official" and compat is not None:
            raise ValueError(f"compat={compat!r} is about the RL reward and has no meaning with mode='official'")
        choice = Choice(detector, model, colors, colors_model, world, device, half, images_at_once)
        self._detector, self._colors = make_detector(choice), make_colors(choice)
        self.version = f"1+{choice.label}" if choice.label else "1"
        # Matrix products of another batch size may round differently.
        self.batch_invariant = not choice.label
        self._templates = Templates(self._detector.classes, self._colors.names)
        self._mode, self._compat = mode, compat
        self.low, self.high = (-14.0 if compat else 0.0), 1.0
        self.meaning = {
            "official": "1 if GenEval's official verdict is correct, else 0",
            "reward": "share of objects, counts, colors and relations that are as the prompt asks",
        }[mode]

    def load(self) -> None:
        """Read all weights. Raises WeightsError where a model is absent or not what it should be."""
        for part in (self._detector, self._colors):
            read = getattr(part, "load", None)  # the tiny world's have no weights
            if read is not None:
                read()

    def warm_up(self) -> None:
        """Run detector and color classifier once."""
        gray = np.full((64, 64, 3), 128, dtype=np.uint8)
        self._detector.detections([gray])
        thing = Detection(self._detector.classes[0], 1.0, (0, 0, 64, 64), np.ones((64, 64), dtype=np.bool_))
        self._colors.colors([(gray, thing)])

    def score(self, batch: Sequence[Item]) -> list[Outcome]:
        """One outcome an item. Details: correct, tag, reason, detections above .3, threshold, reward's terms."""
        asked = [self._metadata(item) for item in batch]
        images = [item.image for item, metadata in zip(batch, asked, strict=True) if isinstance(metadata, Metadata)]
        prompts = [metadata for metadata in asked if isinstance(metadata, Metadata)]
        found = self._detector.detections(images)
        in_color = [
            (image, thing)
            for image, metadata, things in zip(images, prompts, found, strict=True)
            for thing in _asked_in_color(metadata, things)
        ]
        names = self._colors.colors(in_color)
        colors = {id(thing): name for (_, thing), name in zip(in_color, names, strict=True)}
        scores = iter(self._outcome(metadata, things, colors) for metadata, things in zip(prompts, found, strict=True))
        return [metadata if isinstance(metadata, ItemError) else next(scores) for metadata in asked]

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

    def _outcome(self, metadata: Metadata, found: list[Detection], colors: dict[int, str]) -> Score:
        groups = by_class(found)

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


def _asked_in_color(metadata: Metadata, found: list[Detection]) -> list[Detection]:
    """The detections that count and whose class is asked in a color."""
    in_color = {clause.name for clause in metadata.include if clause.color is not None}
    groups = kept(by_class(found), metadata.tag)
    return [thing for label, group in groups.items() if label in in_color for thing in group]


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
