"""Records what mmdet makes of two small images with small drawn weights: `python tests/mmdet/record.py`.

The weights are not kept: `drawn_weights` gives them back from their names and shapes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "data" / "mask2former_small.npz"
SIZES = ((40, 48), (60, 34))
SEED = 5
STRIDE = 10
"""Of mask logits and pixels every tenth is kept along both axes."""


def image(index: int) -> np.ndarray:
    """Smooth blobs of color (H, W, 3)."""
    height, width = SIZES[index]
    coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def recording() -> dict[str, Any]:
    """The arrays of the file, fresh from mmdet."""
    import reference

    model = reference.build(small=True, seed=SEED)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    arrays: dict[str, Any] = {"shapes": json.dumps(shapes), "seed": SEED, "stride": STRIDE}
    for index in range(len(SIZES)):
        said = reference.ask(model, image(index))
        for name in ("pixels", "mask_logits"):
            said[name] = said[name][:, ::STRIDE, ::STRIDE]
        said["masks"] = np.packbits(said["masks"])
        arrays |= {f"{name}_{index}": array for name, array in {**said, "image": image(index)}.items()}
    return arrays


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from reward_services.geneval.official import bridge_compiled_operators

    bridge_compiled_operators()
    np.savez_compressed(FILE, **recording())
    print(f"wrote {FILE}, {FILE.stat().st_size} bytes")  # noqa: T201
