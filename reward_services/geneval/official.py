"""The ``mmdet`` detector: GenEval's own stack, mmdet 3.3, with compiled mmcv or without.

mmdet imports compiled operators of mmcv that Mask2Former does not need for inference. Where they are absent, as in
mmcv-lite, a module stands in for them whose operators refuse to run, and the deformable attention, which would call one
on cuda, takes mmcv's PyTorch path.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_services.devices import chosen_device
from reward_services.geneval.checkpoint import read_checkpoint
from reward_services.geneval.coco import CLASSES
from reward_services.geneval.conversion import configuration, mmdet_3_names
from reward_services.geneval.detector import Detection, Image
from reward_services.weights import WeightsError, first_line

CONFIG = Path(".mim", "configs", "mask2former", "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py")
"""Of GenEval's detector, inside the mmdet package; mmdet 2 named it mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco."""


class MmdetDetector:
    """Runs mmdet's ``inference_detector`` on a checkpoint of mmdet 2 or 3, one image after the other, in float32.

    ``device`` is a torch device, by default cuda where there is one. Detections of a confidence up to
    ``min_score`` are left out.
    """

    classes = CLASSES

    def __init__(self, model: str, *, device: str = "", min_score: float = -1.0) -> None:
        self.model = model
        self.device = str(chosen_device(device))
        self.min_score = min_score
        self._loaded: Any = None

    def load(self) -> None:
        """Build the model and read the weights. Raises WeightsError, or ModuleNotFoundError without mmdet."""
        if self._loaded is None:
            state = mmdet_3_names(read_checkpoint(self.model))
            configuration(state)  # names a checkpoint of something else
            model = build_official(self.device)
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise WeightsError(f"{self.model} does not fit {CONFIG.stem}: {first_line(error)}") from error
            self._loaded = model

    def detections(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The detections of each RGB image (H, W, 3), in mmdet's order."""
        self.load()
        from mmdet.apis import inference_detector

        results = inference_detector(self._loaded, [np.ascontiguousarray(image[:, :, ::-1]) for image in images])
        return [self._read(result.pred_instances.cpu()) for result in results]

    def _read(self, found: Any) -> list[Detection]:
        parts = (found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), found.masks.numpy())
        return [
            Detection(self.classes[label], score, tuple(box), mask)
            for label, score, box, mask in zip(*parts, strict=True)
            if score > self.min_score
        ]


def build_official(device: str) -> Any:
    """GenEval's detector as mmdet builds it from its own configuration, with random weights and COCO's classes."""
    bridge_compiled_operators()
    import mmdet
    from mmdet.apis import init_detector
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__file__).parent / CONFIG)
    config.model.backbone.init_cfg = None  # it would download weights that the checkpoint replaces
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no checkpoint yet
        return init_detector(config, None, device=device)


def bridge_compiled_operators() -> bool:
    """Put a stand-in in the place of mmcv's compiled operators if there are none; whether that was needed."""
    import mmcv

    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = stand_in = _StandIn("mmcv._ext")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)  # mmengine looks at it
        mmcv._ext = stand_in
    if not isinstance(sys.modules.get("mmcv._ext"), _StandIn):
        return False
    # On cuda the attention asks this name whether to call the compiled operator.
    attention: Any = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    attention.IS_CUDA_AVAILABLE = False
    return True


class _StandIn(types.ModuleType):
    """Has every operator; none of them runs."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"the operator {name} needs compiled mmcv")

        return refuse
