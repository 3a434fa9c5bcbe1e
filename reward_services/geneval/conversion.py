"""A Mask2Former of mmdet under transformers' names: weights and configuration.

Everything about the architecture is read off the weights' shapes, so that any Mask2Former of mmdet with a Swin backbone
converts, whatever its size.
"""

import re
from typing import Any

import torch

from reward_services.geneval.coco import CLASSES
from reward_services.weights import WeightsError

State = dict[str, torch.Tensor]

LEVELS, POINTS = 3, 4
"""Feature levels and sampling points a head of the deformable attention; transformers knows no others."""

# mmdet 2 lists attentions and feed-forward networks of a layer by their order; the decoder attends across first.
_MMDET_2 = (
    (re.compile(r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\."), r"\1.self_attn."),
    (re.compile(r"(transformer_decoder\.layers\.\d+)\.attentions\.0\."), r"\1.cross_attn."),
    (re.compile(r"(transformer_decoder\.layers\.\d+)\.attentions\.1\."), r"\1.self_attn."),
    (re.compile(r"(layers\.\d+)\.ffns\.0\."), r"\1.ffn."),
)

_SWIN = "model.pixel_level_module.encoder"
_PIXEL = "model.pixel_level_module.decoder"
_MODULE = "model.transformer_module"
_RENAMED = tuple(
    (re.compile(rf"{pattern}(?=\.|$)"), name)
    for pattern, name in (
        (r"backbone\.patch_embed\.projection", f"{_SWIN}.swin.embeddings.patch_embeddings.projection"),
        (r"backbone\.patch_embed\.norm", f"{_SWIN}.swin.embeddings.norm"),
        (r"backbone\.stages\.(\d+)\.(blocks\.\d+|downsample)", rf"{_SWIN}.swin.encoder.layers.\1.\2"),
        (
            r"\.attn\.w_msa\.relative_position_bias_table",
            ".attention.relative_position_bias.relative_position_bias_table",
        ),
        (r"\.attn\.w_msa\.proj", ".attention.o_proj"),
        (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
        (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
        (r"(blocks\.\d+)\.ffn\.layers\.0\.0", r"\1.mlp.fc1"),
        (r"(blocks\.\d+)\.ffn\.layers\.1", r"\1.mlp.fc2"),
        (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.conv", rf"{_PIXEL}.input_projections.\1.0"),
        (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.gn", rf"{_PIXEL}.input_projections.\1.1"),
        (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", f"{_PIXEL}.adapter_1.0"),
        (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", f"{_PIXEL}.adapter_1.1"),
        (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", f"{_PIXEL}.layer_1.0"),
        (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", f"{_PIXEL}.layer_1.1"),
        (r"panoptic_head\.pixel_decoder\.mask_feature", f"{_PIXEL}.mask_projection"),
        (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", f"{_PIXEL}.level_embed"),
        (r"panoptic_head\.pixel_decoder\.encoder", f"{_PIXEL}.encoder"),
        (r"(decoder\.encoder\.layers\.\d+)\.norms\.0", r"\1.self_attn_layer_norm"),
        (r"(decoder\.encoder\.layers\.\d+)\.norms\.1", r"\1.final_layer_norm"),
        (r"panoptic_head\.transformer_decoder\.post_norm", f"{_MODULE}.decoder.layernorm"),
        (r"panoptic_head\.transformer_decoder", f"{_MODULE}.decoder"),
        (r"(module\.decoder\.layers\.\d+\.(?:self|cross)_attn)\.attn", r"\1"),
        (r"(module\.decoder\.layers\.\d+)\.norms\.0", r"\1.cross_attn_layer_norm"),
        (r"(module\.decoder\.layers\.\d+)\.norms\.1", r"\1.self_attn_layer_norm"),
        (r"(module\.decoder\.layers\.\d+)\.norms\.2", r"\1.final_layer_norm"),
        (r"(decoder\.(?:encoder\.)?layers\.\d+)\.ffn\.layers\.0\.0", r"\1.fc1"),
        (r"(decoder\.(?:encoder\.)?layers\.\d+)\.ffn\.layers\.1", r"\1.fc2"),
        (r"panoptic_head\.decoder_input_projs", f"{_MODULE}.input_projections"),
        (r"panoptic_head\.query_embed", f"{_MODULE}.queries_embedder"),
        (r"panoptic_head\.query_feat", f"{_MODULE}.queries_features"),
        (r"panoptic_head\.level_embed", f"{_MODULE}.level_embed"),
        (r"panoptic_head\.mask_embed\.0", f"{_MODULE}.decoder.mask_predictor.mask_embedder.0.0"),
        (r"panoptic_head\.mask_embed\.2", f"{_MODULE}.decoder.mask_predictor.mask_embedder.1.0"),
        (r"panoptic_head\.mask_embed\.4", f"{_MODULE}.decoder.mask_predictor.mask_embedder.2.0"),
        (r"panoptic_head\.cls_embed", "class_predictor"),
    )
)
_STAGE_NORM = re.compile(r"backbone\.norm(\d)\.")
_QKV = re.compile(r"(.*)\.attn\.w_msa\.qkv\.(weight|bias)")
_IN_PROJECTION = re.compile(r"(.*decoder\.layers\.\d+\.self_attn)\.attn\.in_proj_(weight|bias)")


def mmdet_3_names(state: State) -> State:
    """The state dict of mmdet 2 or 3 under the names of mmdet 3."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in _MMDET_2:
            name = pattern.sub(new, name)
        renamed[name] = tensor
    return renamed


def transformers_state(state: State) -> State:
    """mmdet's weights (of either naming) under the names, and in the order of channels, of transformers."""
    converted: State = {}
    for name, tensor in mmdet_3_names(state).items():
        if name.endswith("relative_position_index"):
            continue  # follows from the window's size
        if fused := _QKV.fullmatch(name) or _IN_PROJECTION.fullmatch(name):
            inside = ".attention" if "w_msa" in name else ""
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{_renamed(fused[1])}{inside}.{letter}_proj.{fused[2]}"] = part.contiguous()
        elif ".downsample." in name:
            converted[_renamed(name)] = _merged_order(tensor)
        else:
            converted[_renamed(name)] = tensor.contiguous()
    return converted


def _renamed(name: str) -> str:
    name = _STAGE_NORM.sub(lambda match: f"{_SWIN}.hidden_states_norms.stage{int(match[1]) + 1}.", name)
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return name


def _merged_order(tensor: torch.Tensor) -> torch.Tensor:
    """Channels of a 2x2 patch: mmdet counts (channel, row, column), transformers (column, row, channel)."""
    patches = tensor.unflatten(-1, (-1, 2, 2))
    reordered: torch.Tensor = patches.movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)
    return reordered.contiguous()


def configuration(state: State) -> dict[str, Any]:
    """The arguments of transformers' Mask2FormerConfig that fit mmdet's weights. Raises WeightsError."""
    state = mmdet_3_names(state)
    try:
        return _configuration(state)
    except KeyError as error:
        raise WeightsError(f"this is no Mask2Former of mmdet with a Swin backbone: it has no {error.args[0]}") from None


def _configuration(state: State) -> dict[str, Any]:
    def shape(name: str) -> torch.Size:
        return state[name].shape

    def count(pattern: str) -> int:
        found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    head, blocks = "panoptic_head", "backbone.stages.{}.blocks.0"
    classes = shape(f"{head}.cls_embed.weight")[0] - 1
    if classes != len(CLASSES):
        raise WeightsError(
            f"the checkpoint tells {classes} classes apart, not COCO's {len(CLASSES)}: "
            "GenEval's is mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, for instances, not the panoptic one"
        )
    encoder, decoder = f"{head}.pixel_decoder.encoder.layers", f"{head}.transformer_decoder.layers"
    tables = [shape(f"{blocks.format(i)}.attn.w_msa.relative_position_bias_table") for i in range(4)]
    width, channels, _, patch = shape("backbone.patch_embed.projection.weight")
    features, hidden = shape(f"{head}.pixel_decoder.mask_feature.weight")[1], shape(f"{head}.query_feat.weight")[1]
    backbone = {
        "model_type": "swin",
        "image_size": 224,
        "patch_size": patch,
        "num_channels": channels,
        "embed_dim": width,
        "depths": [count(rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(4)],
        "num_heads": [table[1] for table in tables],
        "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        "mlp_ratio": shape(f"{blocks.format(0)}.ffn.layers.0.0.weight")[0] / width,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return {
        "backbone_config": backbone,
        "num_queries": shape(f"{head}.query_feat.weight")[0],
        "feature_size": features,
        "mask_feature_size": shape(f"{head}.pixel_decoder.mask_feature.weight")[0],
        "hidden_dim": hidden,
        "num_attention_heads": shape(f"{encoder}.0.self_attn.attention_weights.weight")[0] // (LEVELS * POINTS),
        "encoder_layers": count(rf"{encoder}\.(\d+)\."),
        "encoder_feedforward_dim": shape(f"{encoder}.0.ffn.layers.0.0.weight")[0],
        # transformers counts the prediction before the first layer as one.
        "decoder_layers": count(rf"{decoder}\.(\d+)\.") + 1,
        "dim_feedforward": shape(f"{decoder}.0.ffn.layers.0.0.weight")[0],
        "enforce_input_projection": f"{head}.decoder_input_projs.0.weight" in state,
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: index for index, name in enumerate(CLASSES)},
    }
