"""CLIP directories with random weights: the published sizes to measure, and a tiny one for tests."""

import json
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,\"'"
START, END = "<|startoftext|>", "<|endoftext|>"

# (width, inner width, layers, heads) of the text tower and of the vision tower.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": (16, 32, 2, 2),
        "vision": (16, 32, 2, 2),
        "projection": 8,
        "image": 32,
        "patch": 8,
        "vocabulary": 0,
    },
    "ViT-L/14": {
        "text": (768, 3072, 12, 12),
        "vision": (1024, 4096, 24, 16),
        "projection": 768,
        "image": 224,
        "patch": 14,
        "vocabulary": 49408,
    },
    "ViT-H/14": {
        "text": (1024, 4096, 24, 16),
        "vision": (1280, 5120, 32, 16),
        "projection": 1024,
        "image": 224,
        "patch": 14,
        "vocabulary": 49408,
    },
}


def save_random_clip(folder: Path, size: str, *, processor: bool = True) -> None:
    """A CLIPModel of a size of `SIZES`, with tokenizer (one token a letter) and image processor beside it."""
    import torch
    from transformers import CLIPModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(clip_config(size)).save_pretrained(folder)
    if processor:
        save_processor(folder, size)


def save_random_open_clip(path: Path, size: str) -> None:
    """A checkpoint in open_clip's layout, as HPS publishes its own."""
    import torch

    measures = SIZES[size]
    (text, vision), projection = (measures[tower][0] for tower in ("text", "vision")), measures["projection"]
    patch, side = measures["patch"], measures["image"] // measures["patch"]
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection": (text, projection),
        "positional_embedding": (77, text),
        "token_embedding.weight": (len(vocabulary(size)), text),
        "visual.proj": (vision, projection),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (side**2 + 1, vision),
        "visual.conv1.weight": (vision, 3, patch, patch),
    }
    for norm, width in (("ln_final", text), ("visual.ln_pre", vision), ("visual.ln_post", vision)):
        shapes |= {f"{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    for prefix, (width, inner, layers, _) in (("", measures["text"]), ("visual.", measures["vision"])):
        matrices = {"attn.out_proj": (width, width), "mlp.c_fc": (inner, width), "mlp.c_proj": (width, inner)}
        block: dict[str, tuple[int, ...]] = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
        }
        block |= {f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        for name, shape in matrices.items():
            block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for layer in range(layers):
            shapes |= {f"{prefix}transformer.resblocks.{layer}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    torch.save({name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)


def clip_config(size: str) -> Any:
    """The CLIPConfig of a size of `SIZES`."""
    from transformers import CLIPConfig

    measures = SIZES[size]
    pieces = vocabulary(size)
    end = len(pieces) - 1
    activation = {"hidden_act": "gelu" if size == "ViT-H/14" else "quick_gelu"}
    text = {"vocab_size": len(pieces), "max_position_embeddings": 77, **activation}
    text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {"image_size": measures["image"], "patch_size": measures["patch"], **activation}
    return CLIPConfig(
        text_config=text | _tower(*measures["text"]),
        vision_config=vision | _tower(*measures["vision"]),
        projection_dim=measures["projection"],
    )


def vocabulary(size: str) -> list[str]:
    """The pieces of the tokenizer by their number, filled up to the size's vocabulary."""
    pieces = [letter + ending for ending in ("", "</w>") for letter in LETTERS]
    filler = SIZES[size]["vocabulary"] - len(pieces) - 2
    return [*pieces, *(f"<|{number}|>" for number in range(filler)), START, END]


def save_processor(folder: Path, size: str) -> None:
    """Tokenizer and image processor alone."""
    from transformers import CLIPImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    pieces = {piece: number for number, piece in enumerate(vocabulary(size))}
    (folder / "vocab.json").write_text(json.dumps(pieces), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END, "eos_token": END}
    settings |= {"bos_token": START, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    side = SIZES[size]["image"]
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )


def _tower(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
