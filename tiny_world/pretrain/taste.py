"""``python -m tiny_world.pretrain.taste``: a small CLIP that prefers clean pictures of what the prompt asks for.

PickScore's objective (arXiv 2305.01569): of two pictures of a prompt one is preferred, and the loss is the
cross-entropy of softmax(s_1, s_2) with s = exp(logit_scale) cos(image, text). Here the pairs are drawn: a clean picture
against a flawed one (``tiny_world.flaws``). A head on the image encoder's patches names what they show meanwhile; it
is not saved.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from tiny_world.flaws import FLAWS, flawed, photographed
from tiny_world.pretrain.autoencoder import to_tensor
from tiny_world.pretrain.model import TEXT_LENGTH, carry_over
from tiny_world.pretrain.optimizers import muon_and_adamw, rate, take_step
from tiny_world.prompts import (
    SIGN,
    WORLDS,
    World,
    every_prompt,
    letter_rows,
    rows_by_tag,
    sign,
    split_words,
    unquoted_words,
)
from tiny_world.scenes import contents, names, render, sample_scene

PATCH = 8
FLAW_SHARE = {"mismatched": 0.2, "misread": 0.5, "smeared": 0.1, "broken": 0.1, "doubled": 0.1}
TASK_SHARE = {"single_object": 0.5, "colors": 0.5, "counting": 1.5, "position": 1.5, "color_attr": 1.5, SIGN: 3.0}
"""What pairs to train on show, for one of two objects: hard tasks more often. Held-out pairs are in equal shares."""
LETTER_ROWS = 2000
NAMING = 0.5
LEARNING_RATE = 2e-3
Metadata = dict[str, Any]


@dataclass(frozen=True)
class Preferences:
    """N pairs: preferred and other pictures (N, H, W, 3), the prompt's row (N,), what each patch of the preferred one
    shows (N, patches), the flaw's index (N,)."""

    preferred: torch.Tensor
    other: torch.Tensor
    prompts: torch.Tensor
    contents: torch.Tensor
    flaws: torch.Tensor


def preferences(
    prompts: Sequence[Metadata], world: World, count: int, seed: int, task_share: Mapping[str, float]
) -> Preferences:
    """Pairs over the prompts, flaws by FLAW_SHARE, tasks by ``task_share`` (1 where it names none)."""
    rng = random.Random(seed)
    rows = rows_by_tag(prompts)
    tasks, shares = list(rows.values()), [task_share.get(task, 1.0) for task in rows]
    pairs: list[tuple[Any, ...]] = []
    for _ in tqdm(range(count), desc="pairs", unit="pair", mininterval=5):
        row = rng.choice(rng.choices(tasks, shares)[0])
        flaw = rng.choices(FLAWS, [FLAW_SHARE[name] for name in FLAWS])[0]
        scene = sample_scene(prompts[row], world, rng)
        preferred = photographed(render(scene), rng)
        other = flawed(prompts[row], flaw, list(prompts), world, rng)
        pairs.append((preferred, other, row, contents(scene, world, world.size // PATCH).ravel(), FLAWS.index(flaw)))
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*pairs, strict=True)]
    return Preferences(*columns)


def untrained(tokenizer: CLIPTokenizer, size: int, text_layers: int) -> CLIPModel:
    """The model; text width and layers are those of the pipeline's first text encoder, which it starts from."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": size,
        "patch_size": PATCH,
        "hidden_act": "gelu",
    }
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=128, logit_scale_init_value=2.66)
    )


def scores(model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(logit_scale) cos of each image (B, H, W, 3) with its text (T, L): (B,), and the patches (B, N, width).

    With several images a text the texts begin again after T images.
    """
    pixels = to_tensor(images.numpy())
    seen = model.vision_model(pixel_values=pixels)
    image_BD = F.normalize(model.visual_projection(seen.pooler_output), dim=-1)
    text_TD = F.normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
    text_BD = text_TD.repeat(len(images) // len(tokens), 1)
    return model.logit_scale.exp() * (image_BD * text_BD).sum(-1), seen.last_hidden_state[:, 1:]


def train(
    model: CLIPModel, pairs: Preferences, tokens: torch.Tensor, things: int, steps: int, seed: int, bfloat16: bool
) -> None:
    """Fits the model in place, the learning rate falling to zero over the second half of the steps."""
    head = torch.nn.Linear(model.config.vision_config.hidden_size, things)
    parameters = [*model.parameters(), *head.parameters()]
    tools = muon_and_adamw(model.named_parameters(), "encoder.layers", head.parameters(), LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    smooth = [0.7, 3.0]
    model.train()
    with tqdm(range(steps), desc="taste", unit="step", mininterval=5) as bar:
        for step in bar:
            rows = torch.randint(len(pairs.prompts), (64,), generator=generator)
            text = tokens[pairs.prompts[rows]]
            both = torch.cat([pairs.preferred[rows], pairs.other[rows]])
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                score_B, patches = scores(model, both, text)
                named = head(patches[: len(rows)]).flatten(0, 1)
            preferred, other = score_B.float().chunk(2)
            loss = F.softplus(other - preferred).mean()
            unnamed = F.cross_entropy(named.float(), pairs.contents[rows].flatten())
            (loss + NAMING * unnamed).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            take_step(tools, LEARNING_RATE * rate(step, steps))
            smooth = [old + 0.02 * (new.item() - old) for old, new in zip(smooth, (loss, unnamed), strict=True)]
            bar.set_postfix(loss=f"{smooth[0]:.4f}", naming=f"{smooth[1]:.4f}", refresh=False)
    model.eval()


@torch.no_grad()
def accuracy(model: CLIPModel, pairs: Preferences, tokens: torch.Tensor) -> dict[str, float]:
    """Share of pairs whose preferred picture scores higher: over all, and by flaw."""
    right = []
    for rows in torch.arange(len(pairs.prompts)).split(256):
        text = tokens[pairs.prompts[rows]]
        right.append(scores(model, pairs.preferred[rows], text)[0] > scores(model, pairs.other[rows], text)[0])
    correct = torch.cat(right).float()
    by_flaw = {flaw: correct[pairs.flaws == index].mean().item() for index, flaw in enumerate(FLAWS)}
    return {"all": correct.mean().item()} | by_flaw


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny_world.pretrain.taste", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="small")
    parser.add_argument("--pipeline", type=Path, required=True, help="whose tokenizer and first text encoder to take")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--init", type=Path, help="a finished model to go on from")
    parser.add_argument("--bfloat16", action="store_true", help="forward passes in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    world = WORLDS[options.world]
    shapes = list(every_prompt(world))
    words, held_out_words = split_words()
    known = shapes + [sign(text) for text in words]
    known += [sign(row) for row in letter_rows(LETTER_ROWS, unquoted_words(known), kept_back=held_out_words)]
    tested = shapes + [sign(text) for text in held_out_words]
    tokenizer = CLIPTokenizer.from_pretrained(options.pipeline / "tokenizer")
    text_encoder = CLIPTextModelWithProjection.from_pretrained(options.pipeline / "text_encoder", dtype=torch.float32)
    model = untrained(tokenizer, world.size, text_encoder.config.num_hidden_layers)
    model.text_model.load_state_dict(text_encoder.text_model.state_dict())
    if options.init:
        before = CLIPModel.from_pretrained(options.init, dtype=torch.float32)
        carry_over(before, CLIPTokenizer.from_pretrained(options.init), model, tokenizer)

    def tokens(prompts: Sequence[Metadata]) -> torch.Tensor:
        texts = [prompt["prompt"] for prompt in prompts]
        found: torch.Tensor = tokenizer(
            texts, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
        ).input_ids
        return found

    pairs = preferences(known, world, options.pairs, options.seed, TASK_SHARE)
    train(model, pairs, tokens(known), names(world), options.steps, options.seed, options.bfloat16)
    test = preferences(tested, world, 3000, options.seed + 1, {})
    found = {name: round(value, 4) for name, value in accuracy(model, test, tokens(tested)).items()}
    model.half().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    CLIPImageProcessorPil(
        size={"shortest_edge": world.size},
        crop_size={"height": world.size, "width": world.size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(options.out)
    (options.out / "accuracy.json").write_text(json.dumps({"held_out_pairs": found}, indent=2) + "\n")
    tqdm.write(f"held-out pairs: {found}")


if __name__ == "__main__":
    main()
