"""The detectors and color classifiers the GenEval service can be told to use, by name."""

import importlib.util
from dataclasses import dataclass

from reward_services.geneval.detector import ColorClassifier, Detector
from reward_services.geneval.verdict import THRESHOLD
from tiny_world.prompts import WORLDS

DETECTORS = {"shapes": "palette", "mask2former": "clip", "mmdet": "clip"}
"""Name of a detector -> the color classifier that goes with it."""

COLOR_CLASSIFIERS = ("palette", "clip")


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for; empty texts stand for defaults."""

    detector: str
    model: str = ""
    colors: str = ""
    colors_model: str = ""
    world: str | None = None
    device: str = ""
    half: bool = True
    images_at_once: int = 0

    @property
    def label(self) -> str:
        """Names both models, for the scorer's version; empty for the tiny world's."""
        if self.detector == "shapes" and self.colors in ("", "palette"):
            return ""
        names = (self.detector, self.model, self.colors or DETECTORS[self.detector], self.colors_model)
        return "+".join(name.rstrip("/").rsplit("/", 1)[-1] for name in names if name)


def make_detector(choice: Choice) -> Detector:
    """The detector; its weights are read at the first use. Raises ValueError for options that do not fit it."""
    if choice.detector == "shapes":
        from reward_services.geneval.shapes import ShapesDetector

        if choice.model:
            raise ValueError("detector='shapes' has no model: name detector=mask2former or detector=mmdet with it")
        world = WORLDS[choice.world] if choice.world else None
        return ShapesDetector(world.shapes, world.colors) if world else ShapesDetector()
    if choice.world:
        raise ValueError(f"world={choice.world!r} is about detector='shapes', not detector={choice.detector!r}")
    if choice.detector == "mmdet":
        from reward_services.geneval.official import MmdetDetector

        if not choice.model:
            raise ValueError("detector='mmdet' needs the checkpoint: --option model=FILE.pth")
        absent = [name for name in ("mmcv", "mmengine", "mmdet") if not _is_installed(name)]
        if absent:
            raise ValueError(
                f"detector='mmdet' needs {' and '.join(absent)}: install flow-grpo[geneval-mmdet] with mmcv or "
                "mmcv-lite 2.1 as make .venv-mmdet does; detector=mask2former needs none of them"
            )
        return MmdetDetector(choice.model, device=choice.device, min_score=THRESHOLD)
    from reward_services.geneval.mask2former import Mask2FormerDetector

    if not choice.model:
        raise ValueError(
            "detector='mask2former' needs --option model=...: a directory written by flow-grpo convert-detector, "
            "or a hub id such as facebook/mask2former-swin-small-coco-instance"
        )
    return Mask2FormerDetector(
        choice.model,
        device=choice.device,
        half=choice.half,
        images_at_once=choice.images_at_once,
        min_score=THRESHOLD,
    )


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def make_colors(choice: Choice) -> ColorClassifier:
    """The color classifier; its weights are read at the first use. Raises ValueError for options that do not fit it."""
    if (choice.colors or DETECTORS[choice.detector]) == "palette":
        from reward_services.geneval.colors import PaletteColors

        if choice.colors_model:
            raise ValueError("colors='palette' has no model: name colors=clip with it")
        return PaletteColors(WORLDS[choice.world].colors if choice.world else None)
    from reward_services.clip import CLIP_L
    from reward_services.geneval.clip_colors import ClipColors

    return ClipColors(choice.colors_model or CLIP_L, device=choice.device, half=choice.half)
