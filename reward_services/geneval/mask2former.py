"""The ``mask2former`` detector: transformers' Mask2Former with mmdet's pre- and post-processing, without mmcv.

Shapes: B images, Q queries, C classes, H by W pixels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reward_services.devices import chosen_device
from reward_services.geneval.canvas import Canvas, paint
from reward_services.geneval.coco import CLASSES
from reward_services.geneval.detector import Detection, Image
from reward_services.geneval.instances import instances
from reward_services.weights import WeightsError, fetch, first_line


class Mask2FormerDetector:
    """Finds COCO's 80 classes with the model in a directory (see `flow-grpo convert-detector`) or on the hub.

    ``device`` is a torch device, by default cuda where there is one. On cuda the model runs in float16 autocast unless
    ``half`` is false; logits and everything after them are float32. ``images_at_once`` bounds memory, by default 8 on
    cuda and 1 elsewhere, where a batch is no faster. Detections of a confidence up to ``min_score`` are left out.
    """

    classes = CLASSES

    def __init__(
        self, model: str, *, device: str = "", half: bool = True, images_at_once: int = 0, min_score: float = -1.0
    ) -> None:
        self.model = model
        self.device = chosen_device(device)
        self.half = half and self.device.type == "cuda"
        self.images_at_once = images_at_once or (8 if self.device.type == "cuda" else 1)
        self.min_score = min_score
        self._loaded: Any = None

    def load(self) -> None:
        """Read the weights. Raises WeightsError."""
        if self._loaded is None:
            self._loaded = load_mask2former(self.model).to(self.device)

    def detections(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The detections of each RGB image (H, W, 3), in no particular order."""
        canvases = [paint(image) for image in images]
        found: list[list[Detection]] = [[] for _ in images]
        for places in _alike(canvases, self.images_at_once):
            class_logits, mask_logits = self.logits(torch.stack([canvases[place].pixels for place in places]))
            for place, one_class, one_mask in zip(places, class_logits, mask_logits, strict=True):
                found[place] = instances(one_class, one_mask, canvases[place], self.classes, self.min_score)
        return found

    def logits(self, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (B, Q, C + 1) and mask logits (B, Q, H / 4, W / 4) of canvases, in float32."""
        self.load()
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self.half):
            output = self._loaded(pixel_values=pixels_B3HW.to(self.device))
        return output.class_queries_logits.float(), output.masks_queries_logits.float()


def load_mask2former(source: str) -> Any:
    """The Mask2FormerForUniversalSegmentation of a directory or hub id, in float32. Raises WeightsError."""
    from transformers import Mask2FormerForUniversalSegmentation

    if Path(source).is_file():
        raise WeightsError(f"{source} is a file: make a directory of it with flow-grpo convert-detector {source} OUT")
    config = fetch(source, "config.json")
    if config is None:
        raise WeightsError(
            f"{source} has no config.json: a checkpoint of mmdet is converted with flow-grpo convert-detector"
        )
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{config} is no model's configuration: {first_line(error)}") from error
    if kind != "mask2former":
        raise WeightsError(f"{source} holds a model of type {kind!r}, not a mask2former")
    try:
        model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # OSError, RuntimeError, SafetensorError...: files absent, torn or of other shapes
        raise WeightsError(f"{source} cannot be loaded as a Mask2Former: {first_line(error)}") from error
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise WeightsError(f"{source} lacks {len(absent)} weights of its Mask2Former, first {absent[0]}")
    if model.config.num_labels != len(CLASSES):
        raise WeightsError(
            f"{source} tells {model.config.num_labels} classes apart, not COCO's {len(CLASSES)}: "
            "take weights for instance segmentation on COCO"
        )
    return model.eval().requires_grad_(False)


def _alike(canvases: Sequence[Canvas], most: int) -> list[list[int]]:
    """Places of canvases of one size, at most ``most`` together: mmdet pads each image by itself."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, canvas in enumerate(canvases):
        groups.setdefault(canvas.size, []).append(place)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]
