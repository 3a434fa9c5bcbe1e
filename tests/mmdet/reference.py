"""mmdet's Mask2Former with weights drawn from a seed, and what it says about an image."""

from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from drawn_weights import drawn_weights
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config

from reward_services.geneval.official import CONFIG


def build(*, small: bool, seed: int = 0) -> Any:
    """GenEval's detector at full size, or a model of the same parts that is a thousand times smaller."""
    config = Config.fromfile(Path(mmdet.__file__).parent / CONFIG)
    config.model.backbone.init_cfg = None
    if small:
        _shrink(config.model)
    model = init_detector(config, None, device="cpu")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(drawn_weights(shapes, seed), strict=False)  # the windows' indices stay
    return model


def _shrink(model: Any, channels: int = 32) -> None:
    model.backbone.update(embed_dims=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 4])
    head = model.panoptic_head
    head.update(in_channels=[8, 16, 32, 64], feat_channels=channels, out_channels=channels, num_queries=12)
    pixels, decoder = head.pixel_decoder, head.transformer_decoder
    pixels.encoder.num_layers = 2
    pixels.encoder.layer_cfg.self_attn_cfg.embed_dims = channels
    pixels.encoder.layer_cfg.ffn_cfg.update(embed_dims=channels, feedforward_channels=48)
    pixels.positional_encoding.num_feats = head.positional_encoding.num_feats = channels // 2
    decoder.num_layers = 4
    decoder.layer_cfg.self_attn_cfg.embed_dims = decoder.layer_cfg.cross_attn_cfg.embed_dims = channels
    decoder.layer_cfg.ffn_cfg.update(embed_dims=channels, feedforward_channels=64)


def ask(model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """What mmdet makes of an RGB image (H, W, 3): its input, logits of the last layer, and detections."""
    kept: dict[str, np.ndarray] = {}

    def keep_input(_: Any, __: Any, prepared: dict[str, Any]) -> None:
        kept["pixels"] = prepared["inputs"][0].numpy()

    def keep_logits(_: Any, __: Any, output: tuple[list[torch.Tensor], list[torch.Tensor]]) -> None:
        kept["class_logits"], kept["mask_logits"] = (part[-1][0].detach().numpy() for part in output)

    hooks = [
        model.data_preprocessor.register_forward_hook(keep_input),
        model.panoptic_head.register_forward_hook(keep_logits),
    ]
    try:
        found = inference_detector(model, np.ascontiguousarray(image[:, :, ::-1])).pred_instances
    finally:
        for hook in hooks:
            hook.remove()
    kept |= {"labels": found.labels.numpy(), "scores": found.scores.numpy()}
    return kept | {"boxes": found.bboxes.numpy(), "masks": found.masks.numpy()}
