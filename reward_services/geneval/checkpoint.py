"""Reading a checkpoint of mmdet without executing anything in it."""

from pathlib import Path
from typing import Any

import torch

from reward_services.weights import WeightsError, read_tensors

PUBLISHED = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
)
"""GenEval's detector, as mmdet publishes it."""


class _Inert:
    """Stands in for what training left beside the weights: takes any arguments and state, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# mmengine keeps its training curves as HistoryBuffer objects with NumPy arrays and their own methods, which a pickle
# fetches by getattr (of no effect here either). `core` became `_core` in NumPy 2.
_LEFT_BEHIND = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar", "_frombuffer")
    ),
)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint of mmdet 2 or 3 (torch's zip format or the one before it), names as they are.

    torch reads it with ``weights_only``: of all classes a pickle may name, tensors alone come to life. Raises
    WeightsError: no such file, not decodable, not safe to read, no state dict inside.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint file {path}: GenEval's is {PUBLISHED}")
    with torch.serialization.safe_globals([(_Inert, name) for name in _LEFT_BEHIND]):
        state = read_tensors(path)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
