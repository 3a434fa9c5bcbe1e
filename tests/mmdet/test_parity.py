"""The port against mmdet itself, with weights that neither has seen: from pixels to detections."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record
import reference
import torch

from reward_services.geneval.canvas import paint
from reward_services.geneval.coco import CLASSES
from reward_services.geneval.conversion import mmdet_3_names
from reward_services.geneval.convert import convert, save
from reward_services.geneval.detector import Detection
from reward_services.geneval.mask2former import Mask2FormerDetector
from reward_services.geneval.official import MmdetDetector, bridge_compiled_operators, build_official

pytestmark = pytest.mark.mmdet

TOLERANCE = 1e-4


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Coarse blobs under fine noise."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 200, (8, 8, 3)), np.ones((height // 8 + 1, width // 8 + 1, 1)))
    return (coarse[:height, :width] + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)


def check(model: Any, port: Mask2FormerDetector, image: np.ndarray) -> None:
    said = reference.ask(model, image)
    canvas = paint(image)
    np.testing.assert_allclose(canvas.pixels.numpy(), said["pixels"], rtol=0, atol=1e-6)
    class_logits, mask_logits = (logits[0].numpy() for logits in port.logits(canvas.pixels[None]))
    np.testing.assert_allclose(class_logits, said["class_logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(mask_logits, said["mask_logits"], rtol=0, atol=TOLERANCE)
    (ours,) = port.detections([image])
    theirs = [
        Detection(CLASSES[label], float(score), tuple(box.tolist()), mask)
        for label, score, box, mask in zip(said["labels"], said["scores"], said["boxes"], said["masks"], strict=True)
    ]
    check_detections(ours, theirs)
    print(  # noqa: T201
        f"{image.shape}: pixels {abs(canvas.pixels.numpy() - said['pixels']).max():.1e}, "
        f"class logits {abs(class_logits - said['class_logits']).max():.1e}, "
        f"mask logits {abs(mask_logits - said['mask_logits']).max():.1e}, "
        f"scores {max(abs(a.score - b.score) for a, b in pairs(ours, theirs)):.1e}, "
        f"mask pixels {sum((a.mask != b.mask).sum() for a, b in pairs(ours, theirs))} of "
        f"{sum(b.mask.size for b in theirs)}"
    )


def check_detections(ours: list[Detection], theirs: list[Detection]) -> None:
    assert len(ours) == len(theirs) == 100
    for one, other in pairs(ours, theirs):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score, abs=TOLERANCE)
        # A pixel whose logit is 0 up to rounding may fall to either side.
        assert (one.mask != other.mask).mean() < 1e-5
        assert one.box == pytest.approx(other.box, abs=1.0 if (one.mask != other.mask).any() else 0.0)


def pairs(ours: list[Detection], theirs: list[Detection]) -> list[tuple[Detection, Detection]]:
    """Detections of equal class and rank."""
    return list(zip(*(sorted(side, key=lambda d: (d.label, d.score)) for side in (ours, theirs)), strict=True))


@pytest.fixture(scope="module")
def small() -> Any:
    return reference.build(small=True)


@pytest.mark.parametrize("size", [(64, 64), (48, 120), (75, 33)])
def test_a_small_model(small: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    save(small.state_dict(), tmp_path / "port")
    check(small, Mask2FormerDetector(str(tmp_path / "port"), device="cpu"), picture(*size, seed=size[0]))


def test_the_full_size_through_a_checkpoint_file(tmp_path: Path) -> None:
    """68.7 million weights, saved with mmengine's training curves, converted; and the official backend bit for bit."""
    from mmengine.logging import HistoryBuffer

    model = reference.build(small=False)
    file, image = tmp_path / "epoch_50.pth", picture(512, 512, seed=1)
    curves = {"train/loss": HistoryBuffer([1.0, 0.5], [1, 1])}
    torch.save({"meta": {"epoch": 50}, "state_dict": model.state_dict(), "message_hub": {"log_scalars": curves}}, file)
    convert(file, tmp_path / "port")
    check(model, Mask2FormerDetector(str(tmp_path / "port"), device="cpu"), image)

    said = reference.ask(model, image)
    (official,) = MmdetDetector(str(file), device="cpu").detections([image])
    assert [detection.score for detection in official] == said["scores"].tolist()
    assert [CLASSES.index(detection.label) for detection in official] == said["labels"].tolist()
    assert [list(detection.box) for detection in official] == said["boxes"].tolist()
    assert all(np.array_equal(d.mask, mask) for d, mask in zip(official, said["masks"], strict=True))


def test_layers_of_mmdet_2_are_renamed_to_those_of_mmdet_3() -> None:
    """Built with mmcv's layer, of which mmdet 2 was made, and the orders in its configuration."""
    from mmcv.cnn.bricks.transformer import BaseTransformerLayer

    attention = {"type": "MultiheadAttention", "embed_dims": 32, "num_heads": 2}
    deformable = {"type": "MultiScaleDeformableAttention", "embed_dims": 32, "num_levels": 3}
    network = {"type": "FFN", "embed_dims": 32, "feedforward_channels": 8}
    layers = {
        "panoptic_head.pixel_decoder.encoder.layers.5": (deformable, ("self_attn", "norm", "ffn", "norm")),
        "panoptic_head.transformer_decoder.layers.8": (
            attention,
            ("cross_attn", "norm", "self_attn", "norm", "ffn", "norm"),
        ),
    }
    wanted = set(build_official("cpu").state_dict())
    for prefix, (cfg, order) in layers.items():
        layer = BaseTransformerLayer(attn_cfgs=cfg, ffn_cfgs=network, operation_order=order)
        names = mmdet_3_names({f"{prefix}.{name}": value for name, value in layer.state_dict().items()})
        assert set(names) == {name for name in wanted if name.startswith(f"{prefix}.")}


def test_without_compiled_operators_the_attention_takes_the_pytorch_path() -> None:
    if not bridge_compiled_operators():
        pytest.skip("mmcv is compiled here")
    from mmcv.ops import multi_scale_deform_attn, nms

    multi_scale_deform_attn.IS_CUDA_AVAILABLE = True
    assert bridge_compiled_operators()
    assert multi_scale_deform_attn.IS_CUDA_AVAILABLE is False
    with pytest.raises(NotImplementedError, match="needs compiled mmcv"):
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0.5]), 0.5)


def test_the_recording_is_what_mmdet_says() -> None:
    with np.load(record.FILE) as kept:
        fresh = record.recording()
        assert set(kept.files) == set(fresh)
        for name in kept.files:
            if kept[name].dtype.kind == "f":
                np.testing.assert_allclose(kept[name], fresh[name], rtol=0, atol=1e-5, err_msg=name)
            elif not name.startswith("masks"):
                assert np.array_equal(kept[name], fresh[name]), name
            else:
                assert np.unpackbits(kept[name] ^ fresh[name]).mean() < 1e-4
