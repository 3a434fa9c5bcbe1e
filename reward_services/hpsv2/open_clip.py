"""A checkpoint in open_clip's layout as transformers' CLIPModel; open_clip itself is not needed.

The two hold the same network. open_clip keeps queries, keys and values of a layer in one matrix, and multiplies by
its projections from the right.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from reward_services.weights import WeightsError

HEADS = 16
_BLOCK = re.compile(r"(?P<tower>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    # The name is transformers' own slip.
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def clip_model(state: Mapping[str, torch.Tensor]) -> Any:
    """The CLIPModel (float32, in evaluation mode) of an open_clip state of a ViT-H/14.

    Sizes are read from the shapes. What shapes do not tell is ViT-H/14's own: 16 heads in both towers and the exact
    GELU. Raises WeightsError.
    """
    from transformers import CLIPConfig, CLIPModel

    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        config = CLIPConfig(**_sizes(named))
    except KeyError as error:
        raise WeightsError(f"this is no open_clip checkpoint of a ViT: it lacks {error.args[0]}") from None
    with torch.device("meta"):  # no random weights only to overwrite them
        model = CLIPModel(config)
    converted = dict(_converted(named))
    try:
        report = model.load_state_dict(converted, strict=False, assign=True)
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise WeightsError(f"this open_clip checkpoint does not fit together: {fault}") from None
    absent = [name for name, _ in model.named_parameters() if name in report.missing_keys]
    if absent or report.unexpected_keys:
        wrong = f"lacks {absent[0]}" if absent else f"has {report.unexpected_keys[0]}, which CLIP has not"
        raise WeightsError(f"this open_clip checkpoint {wrong}")
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        count = embeddings.position_embedding.num_embeddings
        embeddings.position_ids = torch.arange(count).expand(1, -1)  # a buffer no checkpoint holds
    return model.eval()


def _sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    layers = {True: 0, False: 0}
    for name in state:
        if match := _BLOCK.fullmatch(name):
            is_vision = match["tower"] is not None
            layers[is_vision] = max(layers[is_vision], int(match["layer"]) + 1)
    vocabulary, text_width = state["token_embedding.weight"].shape
    vision_width, _, patch, _ = state["visual.conv1.weight"].shape
    places = state["visual.positional_embedding"].shape[0] - 1  # the class token has one too
    end = vocabulary - 1
    return {
        "projection_dim": state["text_projection"].shape[1],
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": layers[False],
            "num_attention_heads": HEADS,
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "hidden_act": "gelu",
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        "vision_config": {
            "hidden_size": vision_width,
            "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": layers[True],
            "num_attention_heads": HEADS,
            "image_size": round(places**0.5) * patch,
            "patch_size": patch,
            "hidden_act": "gelu",
        },
    }


def _converted(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        if name == "attn_mask":  # a constant some versions saved
            continue
        weight = tensor.float()
        if match := _BLOCK.fullmatch(name):
            yield from _converted_block(match, weight)
        elif name in _TRANSPOSED:
            yield _TRANSPOSED[name], weight.T.contiguous()
        else:
            yield _OUTSIDE.get(name, name), weight


def _converted_block(match: re.Match[str], weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    tower = "text_model" if match["tower"] is None else "vision_model"
    prefix = f"{tower}.encoder.layers.{match['layer']}"
    rest = match["rest"]
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rpartition("_")[2]
        for projection, part in zip("qkv", weight.chunk(3), strict=True):
            yield f"{prefix}.self_attn.{projection}_proj.{kind}", part.contiguous()
        return
    module, _, kind = rest.rpartition(".")
    yield f"{prefix}.{_IN_BLOCK.get(module, module)}.{kind}", weight
